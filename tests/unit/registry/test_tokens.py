"""The bearer flow, against a scripted registry and a scripted token service."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from imagegate.api.references import Reference, parse
from imagegate.registry import errors, limits
from imagegate.registry.keychain import Keyring
from tests.unit.registry.certificates import Authority
from tests.unit.registry.conftest import MakeClient
from tests.unit.registry.distribution import basic
from tests.unit.registry.scripted import Scripted
from tests.unit.registry.secrets import keyring, secret

PATH = "/v2/ml/llm/manifests/v1"
DIGEST = f"sha256:{'a' * 64}"
PASSWORD = "correct-horse-battery-staple"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def timing(self) -> limits.Timing:
        return limits.Timing(monotonic=lambda: self.now, wall=lambda: self.now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reference(scripted: Scripted) -> Reference:
    return parse(f"{scripted.domain}/ml/llm:v1")


@pytest.fixture
def keys(scripted: Scripted) -> Keyring:
    return keyring((scripted.domain, "user", PASSWORD))


class Guard:
    """A registry that accepts only the newest token of its token service."""

    def __init__(self, registry: Scripted, service: Scripted, challenge: str = "") -> None:
        self.granted: list[str] = []
        self.answer: dict[str, object] = {}
        self.delay = 0.0
        self._challenge = challenge or (
            f'Bearer realm="http://{service.domain}/token",service="s,p",'
            'scope="repository:ml/llm:pull,push"'
        )
        registry.on("HEAD", PATH, self._guard)
        service.on("GET", "/token", self._grant)
        service.on("POST", "/token", self._grant)

    async def _guard(self, request: web.Request) -> web.StreamResponse:
        if self.granted and request.headers.get("Authorization") == f"Bearer {self.granted[-1]}":
            return web.Response(headers={"Docker-Content-Digest": DIGEST})
        return web.Response(status=401, headers={"WWW-Authenticate": self._challenge})

    async def _grant(self, _: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.delay)
        self.granted.append(f"token-{len(self.granted)}")
        return web.json_response({"token": self.granted[-1], **self.answer})


async def test_token_is_requested_with_service_and_scope_of_the_challenge(
    scripted: Scripted,
    elsewhere: Scripted,
    make_client: MakeClient,
    reference: Reference,
    keys: Keyring,
) -> None:
    Guard(scripted, elsewhere)
    assert await make_client().resolve(reference, keys) == DIGEST
    (asked,) = elsewhere.seen
    assert asked.query == {"service": "s,p", "scope": "repository:ml/llm:pull,push"}
    assert asked.authorization == basic("user", PASSWORD)


async def test_missing_scope_gets_a_default_and_the_realm_keeps_its_query(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    Guard(scripted, elsewhere, f'Bearer realm="http://{elsewhere.domain}/token?a=b"')
    assert await make_client().resolve(reference) == DIGEST
    (asked,) = elsewhere.seen
    assert asked.query == {"a": "b", "scope": "repository:ml/llm:pull"}
    assert asked.authorization is None


async def test_bearer_is_preferred_to_basic(
    scripted: Scripted,
    elsewhere: Scripted,
    make_client: MakeClient,
    reference: Reference,
    keys: Keyring,
) -> None:
    challenge = f'Basic realm="r", Bearer realm="http://{elsewhere.domain}/token"'
    Guard(scripted, elsewhere, challenge)
    assert await make_client().resolve(reference, keys) == DIGEST


@pytest.mark.parametrize(
    ("answer", "lives"),
    [
        ({}, 60),
        ({"expires_in": 300}, 300),
        ({"expires_in": 4}, 4),
        ({"expires_in": 0}, 60),
        ({"expires_in": -5}, 60),
        ({"expires_in": "300"}, 60),
        ({"expires_in": None}, 60),
        ({"expires_in": 1e300}, 3600),
    ],
)
async def test_token_is_used_until_shortly_before_its_expiry(
    scripted: Scripted,
    elsewhere: Scripted,
    make_client: MakeClient,
    reference: Reference,
    clock: Clock,
    answer: dict[str, object],
    lives: float,
) -> None:
    guard = Guard(scripted, elsewhere)
    guard.answer = answer
    client = make_client(timing=clock.timing())
    await client.resolve(reference)
    clock.now += lives - min(10, lives / 2) - 0.1
    await client.resolve(reference)
    assert len(guard.granted) == 1
    clock.now += 0.2
    await client.resolve(reference)
    assert len(guard.granted) == 2


async def test_refused_token_is_renewed_once(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    guard = Guard(scripted, elsewhere)
    client = make_client()
    await client.resolve(reference)
    guard.granted.append("revoked")
    assert await client.resolve(reference) == DIGEST
    assert len(elsewhere.seen) == 2

    async def never(_: web.Request) -> web.StreamResponse:
        return web.Response(status=401, headers={"WWW-Authenticate": guard._challenge})

    scripted.on("HEAD", PATH, never)
    before = len(scripted.seen)
    with pytest.raises(errors.Unauthorized):
        await client.resolve(reference)
    assert (len(scripted.seen) - before, len(elsewhere.seen)) == (2, 3)


async def test_concurrent_requests_share_a_login(
    scripted: Scripted,
    elsewhere: Scripted,
    make_client: MakeClient,
    reference: Reference,
    keys: Keyring,
) -> None:
    guard = Guard(scripted, elsewhere)
    guard.delay = 0.05
    client = make_client(concurrency=32)
    found = await asyncio.gather(*(client.resolve(reference, keys) for _ in range(20)))
    assert set(found) == {DIGEST}
    assert len(elsewhere.seen) == 1


async def test_token_is_not_shared_between_credentials_or_repositories(
    scripted: Scripted,
    elsewhere: Scripted,
    make_client: MakeClient,
    reference: Reference,
    keys: Keyring,
) -> None:
    Guard(scripted, elsewhere)
    client = make_client()
    await client.resolve(reference, keys)
    await client.resolve(reference)
    with pytest.raises(errors.NotFound):
        await client.resolve(parse(f"{scripted.domain}/ml/other"), keys)
    assert [asked.authorization is None for asked in elsewhere.seen] == [False, True]
    assert scripted.seen[-1].authorization is None


async def test_access_token_field_is_accepted(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    guard = Guard(scripted, elsewhere)
    guard.answer = {"token": "", "access_token": "token-0"}
    assert await make_client().resolve(reference) == DIGEST


async def test_identity_token_is_sent_in_a_post_body_only(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    Guard(scripted, elsewhere)
    entry = {"auths": {scripted.domain: {"identitytoken": "refresh-me"}}}
    assert await make_client().resolve(reference, Keyring([secret(entry)])) == DIGEST
    (asked,) = elsewhere.seen
    assert (asked.method, asked.query, asked.authorization) == ("POST", {}, None)
    assert "grant_type=refresh_token" in asked.body
    assert "refresh_token=refresh-me" in asked.body


async def test_redirect_does_not_receive_the_identity_token(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    Guard(scripted, elsewhere)
    elsewhere.say("POST", "/token", 307, b"", {"Location": f"http://{scripted.domain}/thief"})
    entry = {"auths": {scripted.domain: {"identitytoken": "refresh-me"}}}
    with pytest.raises(errors.InvalidAnswer, match="redirects a request that holds a token"):
        await make_client().resolve(reference, Keyring([secret(entry)]))
    assert "/thief" not in [seen.path for seen in scripted.seen]


async def test_redirect_of_a_token_service_is_not_followed(
    scripted: Scripted,
    elsewhere: Scripted,
    make_client: MakeClient,
    reference: Reference,
    keys: Keyring,
) -> None:
    Guard(scripted, elsewhere)
    elsewhere.say("GET", "/token", 307, b"", {"Location": f"http://{scripted.domain}/thief"})
    with pytest.raises(errors.InvalidAnswer, match="its token service redirects;"):
        await make_client().resolve(reference, keys)
    assert "/thief" not in [seen.path for seen in scripted.seen]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Unauthorized),
        (401, errors.Unauthorized),
        (403, errors.Unauthorized),
        (404, errors.InvalidAnswer),
        (429, errors.Throttled),
        (500, errors.Unavailable),
    ],
)
async def test_refusal_of_a_token_service_has_the_error_of_its_status(
    scripted: Scripted,
    elsewhere: Scripted,
    make_client: MakeClient,
    reference: Reference,
    keys: Keyring,
    status: int,
    kind: type[errors.RegistryError],
) -> None:
    Guard(scripted, elsewhere)
    said = {"errors": [{"code": "NO", "message": f"{PASSWORD} is wrong"}]}
    elsewhere.say("GET", "/token", status, json.dumps(said).encode())
    with pytest.raises(kind, match=f"127.*{status}") as caught:
        await make_client().resolve(reference, keys)
    assert type(caught.value) is kind
    assert caught.value.where == scripted.domain
    assert PASSWORD not in str(caught.value)


async def test_unreachable_token_service_is_unavailable(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, reference: Reference
) -> None:
    Guard(scripted, elsewhere)
    await elsewhere.stop()
    with pytest.raises(errors.Unavailable, match=f"no connection to {elsewhere.domain}"):
        await make_client().resolve(reference)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"token",
        b"[]",
        b"{}",
        b'{"token": ""}',
        b'{"token": 5}',
        b'{"token": "a\\r\\nEvil: header"}',
        b'{"token": "t\xc3\xb6ken"}',
        b"[" * 50_000,
        b'{"token": "' + b"x" * 70_000 + b'"}',
    ],
)
async def test_invalid_token_answer_is_rejected(
    scripted: Scripted,
    elsewhere: Scripted,
    make_client: MakeClient,
    reference: Reference,
    body: bytes,
) -> None:
    Guard(scripted, elsewhere)
    elsewhere.say("GET", "/token", 200, body)
    with pytest.raises(errors.InvalidAnswer, match=r"sent no token|more than 65536 bytes"):
        await make_client().resolve(reference)


@pytest.mark.parametrize(
    ("challenge", "problem"),
    [
        ("", "offered: none"),
        ("Negotiate", "offered: negotiate"),
        ('Bearer service="no realm"', "offered: bearer"),
        ('Bearer realm="/token"', "the realm of its challenge is not an address"),
        ('Bearer realm="ftp://a.test/"', "the realm of its challenge is not an address"),
        ('Bearer realm="http://u:p@a.test/"', "the realm of its challenge is not an address"),
        ('Bearer realm="http://a.test:99999/"', "the realm of its challenge is not an address"),
    ],
)
async def test_unsupported_challenge_is_rejected_without_a_login(
    scripted: Scripted,
    make_client: MakeClient,
    reference: Reference,
    keys: Keyring,
    challenge: str,
    problem: str,
) -> None:
    scripted.say("HEAD", PATH, 401, b"", {"WWW-Authenticate": challenge} if challenge else {})
    with pytest.raises(errors.InvalidAnswer, match=problem):
        await make_client().resolve(reference, keys)
    assert len(scripted.seen) == 1


async def test_password_is_not_sent_to_a_token_service_without_tls(
    elsewhere: Scripted,
    make_client: MakeClient,
    authority: Authority,
    server_files: tuple[Path, Path],
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*server_files)
    registry = await Scripted().start(tls=context)
    Guard(registry, elsewhere)
    client = make_client(names={"registry.test": registry.port}, ca_bundle=authority.pem)
    with pytest.raises(errors.InvalidAnswer, match=r"token service 127\.0\.0\.1 speaks plain HTTP"):
        await client.resolve(
            parse("registry.test/ml/llm:v1"), keyring(("registry.test", "user", PASSWORD))
        )
    assert elsewhere.seen == []
    await registry.stop()
