"""Which tokens are accepted, and what is asked for before that is known."""

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
async def test_accepted(scheme: str) -> None:
    await verify(f"{scheme} {token()}")


async def test_accepted_with_an_elliptic_key() -> None:
    await verify(f"Bearer {token(ec_key(), algorithm='ES256', headers={'kid': 'two'})}")


async def test_a_clock_may_be_a_minute_off() -> None:
    await verify(f"Bearer {token(expires=-30)}")


async def test_keys_without_an_algorithm_or_a_use() -> None:
    """As Microsoft publishes the first, and some issuers the second."""
    key = jwk(rsa_key(), "one")
    bare = {name: value for name, value in key.items() if name not in {"alg", "use"}}
    await verify(f"Bearer {token()}", web=Web({KEYS_URL: jwks(bare)}))


async def test_a_key_that_is_new_is_asked_for() -> None:
    web = Web({KEYS_URL: jwks(jwk(rsa_key("older"), "older"))})
    web.newer = dict(PUBLISHED)
    await verify(f"Bearer {token()}", web=web)
    assert web.asked == [KEYS_URL] * 2


async def test_keys_of_the_rule() -> None:
    web = Web({"https://other.test/keys": PUBLISHED[KEYS_URL]})
    rule = TokenRule(RULE.issuer, RULE.audience, RULE.email, "https://other.test/keys")
    await verify(f"Bearer {token()}", rule, web)
    assert web.asked == ["https://other.test/keys"]


async def test_a_token_may_live_for_a_day() -> None:
    await verify(f"Bearer {token(expires=24 * 3600)}")
    with pytest.raises(Unverified, match="more than 24 hours"):
        await verify(f"Bearer {token(expires=25 * 3600)}")
    year = 365 * 24 * 3600
    with pytest.raises(Unverified, match="more than 24 hours"):
        await verify(f"Bearer {token(iat=int(time.time()) - year, expires=60)}")


async def test_no_email_asked_for() -> None:
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
async def test_refused_for_what_it_says(claims: dict[str, Any]) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {token(**claims)}")


def encoded(part: bytes | object) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(algorithm: str) -> str:
    header = {"alg": algorithm, "typ": "JWT", "kid": "one"}
    return f"{encoded(header)}.{encoded({**CLAIMS, 'iat': 1, 'exp': 4102444800})}."


def hmac_with_the_public_key() -> str:
    """What a verifier that believes the token's algorithm would take for the issuer's."""
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
async def test_refused_for_how_it_is_signed(forge: Callable[[], str]) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {forge()}")


@pytest.mark.parametrize("header", ["jku", "x5u"])
async def test_keys_that_the_token_names_are_not_fetched(header: str) -> None:
    theirs = "https://evil.test/keys"
    web = Web({**PUBLISHED, theirs: jwks(jwk(rsa_key("forger"), "mine"))})
    forged = token(rsa_key("forger"), headers={"kid": "mine", header: theirs})
    with pytest.raises(Unverified):
        await verify(f"Bearer {forged}", web=web)
    assert set(web.asked) == {KEYS_URL}


async def test_a_key_that_the_token_brings() -> None:
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
async def test_what_is_no_token_fetches_nothing(shown: str) -> None:
    web = Web(PUBLISHED)
    with pytest.raises(Unverified):
        await verify(shown, web=web)
    assert web.asked == []


@pytest.mark.parametrize("name", [None, 1, ["one"], {"one": 1}])
async def test_no_name_of_a_key(name: Any) -> None:
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
async def test_keys_that_are_none(published: bytes) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {token()}", web=Web({KEYS_URL: published}))


@pytest.mark.parametrize(("name", "use"), [("other", "sig"), ("one", "enc")])
async def test_keys_for_something_else(name: str, use: str) -> None:
    web = Web({KEYS_URL: jwks(jwk(rsa_key(), name, use=use))})
    with pytest.raises(Unverified):
        await verify(f"Bearer {token()}", web=web)


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_a_key_that_is_too_short() -> None:
    weak = rsa_key("weak", 1024)
    with pytest.raises(Unverified, match="2048"):
        await verify(f"Bearer {token(weak)}", web=Web({KEYS_URL: jwks(jwk(weak, "one"))}))


async def test_no_keys_to_be_had() -> None:
    with pytest.raises(Unverified, match="404"):
        await verify(f"Bearer {token()}", web=Web({}))


async def test_a_key_that_was_withdrawn() -> None:
    web = Web(PUBLISHED)
    await verify(f"Bearer {token()}", web=web)
    web.pages[KEYS_URL] = jwks(jwk(rsa_key("next"), "next"))
    with pytest.raises(Unverified):
        await verify(f"Bearer {token()}", web=web)
    await verify(f"Bearer {token(rsa_key('next'), headers={'kid': 'next'})}", web=web)


@settings(deadline=None)
@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))))
async def test_any_header(text: str) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {text}")


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists), st.text())
async def test_any_parts(header: object, rest: str) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {encoded(header)}.{encoded(header)}.{rest}")


@pytest.mark.parametrize("deep", [b"[" * 50_000, b'{"a":' * 50_000])
async def test_deep_parts(deep: bytes) -> None:
    with pytest.raises(Unverified):
        await verify(f"Bearer {encoded(deep)}.{encoded(deep)}.{encoded(deep)}")
