"""Bearer tokens: which are accepted, and which requests are sent before a token is verified."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.hooks import bearer
from imagegate.hooks.event import TokenRule, Unverified
from tests.unit.hooks.signing import (
    CLAIMS,
    KEYS_URL,
    Web,
    delivery,
    ec_key,
    jwk,
    jwks,
    rsa_key,
    token,
)

RULE = TokenRule(str(CLAIMS["iss"]), str(CLAIMS["aud"]), str(CLAIMS["email"]))
PUBLISHED = {KEYS_URL: jwks(jwk(rsa_key(), "one"), jwk(ec_key(), "two"))}


async def verify(shown: str, rule: TokenRule = RULE, web: Web | None = None) -> None:
    web = web or Web(PUBLISHED)
    await bearer.verify(delivery(authorization=shown), rule, KEYS_URL, web)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_valid_token_is_accepted(scheme: str) -> None:
    await verify(f"{scheme} {token()}")


async def test_token_signed_with_an_elliptic_key_is_accepted() -> None:
    await verify(f"Bearer {token(ec_key(), algorithm='ES256', headers={'kid': 'two'})}")


async def test_token_is_accepted_up_to_a_minute_after_its_expiry() -> None:
    await verify(f"Bearer {token(expires=-30)}")


async def test_key_without_algorithm_and_use_is_accepted() -> None:
    """Microsoft publishes keys without `alg`, and some issuers publish keys without `use`."""
    key = jwk(rsa_key(), "one")
    bare = {name: value for name, value in key.items() if name not in {"alg", "use"}}
    await verify(f"Bearer {token()}", web=Web({KEYS_URL: jwks(bare)}))


async def test_keys_are_fetched_again_for_an_unknown_key() -> None:
    web = Web({KEYS_URL: jwks(jwk(rsa_key("older"), "older"))})
    web.newer = dict(PUBLISHED)
    await verify(f"Bearer {token()}", web=web)
    assert web.asked == [KEYS_URL] * 2


async def test_keys_url_of_the_rule_replaces_the_default() -> None:
    web = Web({"https://other.test/keys": PUBLISHED[KEYS_URL]})
    rule = TokenRule(RULE.issuer, RULE.audience, RULE.email, "https://other.test/keys")
    await verify(f"Bearer {token()}", rule, web)
    assert web.asked == ["https://other.test/keys"]


async def test_token_that_is_valid_for_more_than_a_day_is_rejected() -> None:
    await verify(f"Bearer {token(expires=24 * 3600)}")
    with pytest.raises(Unverified, match="more than 24 hours"):
        await verify(f"Bearer {token(expires=25 * 3600)}")
    year = 365 * 24 * 3600
    with pytest.raises(Unverified, match="more than 24 hours"):
        await verify(f"Bearer {token(iat=int(time.time()) - year, expires=60)}")


async def test_rule_without_email_accepts_a_token_without_email() -> None:
    rule = TokenRule(RULE.issuer, RULE.audience)
    await verify(f"Bearer {token(email=None, email_verified=None)}", rule)


@pytest.mark.parametrize(
    "claims",
    [
        {"expires": -90},
        {"exp": None},
        {"iat": None},
        {"iss": None},
        {"aud": None},
        {"email": None},
        {"email_verified": None},
        {"email_verified": False},
        {"email_verified": "true"},
        {"email_verified": 1},
        {"iss": "https://accounts.google.com.evil.example"},
        {"iss": "accounts.google.com"},
        {"aud": "https://hooks.example.com/hooks/0123456789abcdef/"},
        {"aud": "https://hooks.example.com"},
        {"aud": [CLAIMS["aud"], "https://other.example.com"]},
        {"aud": str(CLAIMS["aud"]).upper()},
        {"email": "imagegate@evil.iam.gserviceaccount.com"},
        {"email": str(CLAIMS["email"]).upper()},
        {"email": [CLAIMS["email"]]},
        {"nbf": 4102444800},
        {"iat": 4102444800},
    ],
    ids=str,
)
async def test_token_with_wrong_claims_is_rejected(claims: dict[str, Any]) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {token(**claims)}")


def encoded(part: bytes | object) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(algorithm: str) -> str:
    header = {"alg": algorithm, "typ": "JWT", "kid": "one"}
    return f"{encoded(header)}.{encoded({**CLAIMS, 'iat': 1, 'exp': 4102444800})}."


def hmac_with_the_public_key() -> str:
    """A verifier that trusts the token's `alg` would accept this signature as the issuer's."""
    shown = unsigned("HS256").removesuffix(".")
    public = rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return f"{shown}.{encoded(hmac.digest(public, shown.encode(), 'sha256'))}"


def other_signature() -> str:
    mine, theirs = token(), token(email="someone@else.test")
    return ".".join([*theirs.split(".")[:2], mine.split(".")[2]])


@pytest.mark.parametrize(
    "forge",
    [
        lambda: token(rsa_key("forger")),
        lambda: token(ec_key("forger"), algorithm="ES256", headers={"kid": "two"}),
        lambda: token(ec_key(), algorithm="ES256", headers={"kid": "one"}),
        lambda: token(headers={"kid": "two"}),
        lambda: token(algorithm="RS512"),
        lambda: unsigned("none"),
        lambda: unsigned("None"),
        lambda: unsigned("RS256"),
        hmac_with_the_public_key,
        other_signature,
        lambda: token().rsplit(".", 1)[0],
        lambda: token().rsplit(".", 1)[0] + ".",
        lambda: token()[:-20],
        lambda: token() + "xx",
    ],
)
async def test_token_with_wrong_signature_is_rejected(forge: Callable[[], str]) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {forge()}")


@pytest.mark.parametrize("header", ["jku", "x5u"])
async def test_key_url_in_the_token_is_not_fetched(header: str) -> None:
    theirs = "https://evil.test/keys"
    web = Web({**PUBLISHED, theirs: jwks(jwk(rsa_key("forger"), "mine"))})
    forged = token(rsa_key("forger"), headers={"kid": "mine", header: theirs})
    with pytest.raises(Unverified):
        await verify(f"Bearer {forged}", web=web)
    assert set(web.asked) == {KEYS_URL}


async def test_key_inside_the_token_is_not_trusted() -> None:
    forged = token(rsa_key("forger"), headers={"jwk": jwk(rsa_key("forger"), "one")})
    with pytest.raises(Unverified):
        await verify(f"Bearer {forged}")


@pytest.mark.parametrize(
    "shown",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Bearer ..",
        "Basic dXNlcjpwYXNz",
        f"Bearer {unsigned('none')}",
        f"Bearer {unsigned('HS256')}",
        unsigned("RS256"),
    ],
)
async def test_invalid_token_causes_no_fetch(shown: str) -> None:
    web = Web(PUBLISHED)
    with pytest.raises(Unverified):
        await verify(shown, web=web)
    assert web.asked == []


@pytest.mark.parametrize("name", [None, 1, ["one"], {"one": 1}])
async def test_token_without_a_valid_key_id_is_rejected(name: Any) -> None:
    head, rest = token().split(".", 1)
    header = json.loads(base64.urlsafe_b64decode(head + "==")) | {"kid": name}
    with pytest.raises(Unverified):
        await verify(f"Bearer {encoded(header)}.{rest}")


@pytest.mark.parametrize(
    "published",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"keys": null}',
        b'{"keys": [1]}',
        b'{"keys": []}',
        b'{"keys": [{"kty": "RSA", "kid": "one"}]}',
        b'{"keys": [{"kty": "RSA", "kid": "one", "n": 1, "e": 2}]}',
        b'{"keys": [{"kty": [], "kid": {}}]}',
        b'{"keys": {"kty": "RSA"}}',
        b"[" * 100_000,
    ],
)
async def test_unreadable_keys_are_rejected(published: bytes) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {token()}", web=Web({KEYS_URL: published}))


@pytest.mark.parametrize(("name", "use"), [("other", "sig"), ("one", "enc")])
async def test_key_with_another_id_or_use_is_not_used(name: str, use: str) -> None:
    web = Web({KEYS_URL: jwks(jwk(rsa_key(), name, use=use))})
    with pytest.raises(Unverified):
        await verify(f"Bearer {token()}", web=web)


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_rsa_key_below_2048_bits_is_rejected() -> None:
    weak = rsa_key("weak", 1024)
    with pytest.raises(Unverified, match="2048"):
        await verify(f"Bearer {token(weak)}", web=Web({KEYS_URL: jwks(jwk(weak, "one"))}))


async def test_token_is_rejected_if_the_keys_cannot_be_fetched() -> None:
    with pytest.raises(Unverified, match="404"):
        await verify(f"Bearer {token()}", web=Web({}))


async def test_withdrawn_key_is_rejected() -> None:
    web = Web(PUBLISHED)
    await verify(f"Bearer {token()}", web=web)
    web.pages[KEYS_URL] = jwks(jwk(rsa_key("next"), "next"))
    with pytest.raises(Unverified):
        await verify(f"Bearer {token()}", web=web)
    await verify(f"Bearer {token(rsa_key('next'), headers={'kid': 'next'})}", web=web)


@settings(deadline=None)
@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))))
async def test_arbitrary_header_is_rejected(text: str) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {text}")


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists), st.text())
async def test_token_of_arbitrary_json_is_rejected(header: object, rest: str) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {encoded(header)}.{encoded(header)}.{rest}")


@pytest.mark.parametrize("deep", [b"[" * 50_000, b'{"a":' * 50_000])
async def test_token_of_deeply_nested_json_is_rejected(deep: bytes) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {encoded(deep)}.{encoded(deep)}.{encoded(deep)}")
