"""Which token services get a registry's credentials. Every server here can be reached."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from imagegate import cli
from imagegate.api.references import parse
from imagegate.registry import errors, realms
from imagegate.registry.client import Client
from imagegate.registry.endpoints import RegistrySettings
from imagegate.registry.keychain import Keyring
from tests.unit.registry.conftest import MakeClient
from tests.unit.registry.distribution import basic, digest_of
from tests.unit.registry.scripted import Scripted
from tests.unit.registry.secrets import keyring, secret
from tests.unit.registry.test_addresses import Zone

PATH = "/v2/ml/llm/manifests/v1"
DIGEST = digest_of(b"x")
PASSWORD = "correct-horse-battery-staple"
LOGIN = basic("user", PASSWORD)


class Pair:
    """A registry at one name, and its token service at another; both are on the loopback interface.

    The registry shows a private image to a token that was granted to the user.
    """

    def __init__(self, registry: Scripted, service: Scripted, own: str, host: str) -> None:
        self.registry, self.service = registry, service
        self.domain = f"{own}:{registry.port}"
        self.host = host
        self.zone = Zone(**{name: ["127.0.0.1"] for name in (own, host)})
        realm = f"http://{host}:{service.port}/token"
        registry.say("HEAD", PATH, 401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}"'})
        service.say("GET", "/token", 200, b'{"token": "anonymous"}')
        service.say("POST", "/token", 200, b'{"token": "from-refresh-token"}')

    def client(self, *listed: str) -> Client:
        settings = RegistrySettings(
            plain_http=frozenset({self.domain}), token_services=realms.parse(listed)
        )
        return Client(settings, resolver=self.zone)

    async def refusal(self, keys: Keyring, *listed: str) -> errors.RegistryError:
        async with self.client(*listed) as client:
            with pytest.raises(errors.RegistryError) as caught:
                await client.resolve(parse(f"{self.domain}/ml/llm:v1"), keys)
        return caught.value

    @property
    def logins(self) -> list[str | None]:
        return [seen.authorization for seen in self.service.seen]


FOREIGN = [
    ("registry.example.org", "auth.example.net"),
    ("registry.example.org", "auth.registry.example.org.attacker.net"),
    ("registry.example.org", "notexample.org"),
    ("victim.co.uk", "attacker.co.uk"),
    ("victim.github.io", "attacker.github.io"),
    ("registry.victim.com.au", "com.au"),
    ("127.0.0.1", "auth.example.net"),
    ("registry.corp", "gitlab.corp"),
    ("rg.fr-par.scw.cloud", "api.scaleway.com.attacker.net"),
]


@pytest.mark.parametrize(("own", "host"), FOREIGN)
async def test_a_token_service_of_another_domain_is_asked_without_the_password(
    scripted: Scripted, elsewhere: Scripted, own: str, host: str
) -> None:
    pair = Pair(scripted, elsewhere, own, host)
    error = await pair.refusal(keyring((pair.domain, "user", PASSWORD)))
    assert pair.logins == [None]
    assert f"list {pair.domain}={host} in registry.tokenServices" in str(error)
    assert PASSWORD not in str(error)


@pytest.mark.parametrize(("own", "host"), FOREIGN)
async def test_an_administrator_lists_the_token_service(
    scripted: Scripted, elsewhere: Scripted, own: str, host: str
) -> None:
    pair = Pair(scripted, elsewhere, own, host)
    keys = keyring((pair.domain, "user", PASSWORD))
    error = await pair.refusal(keys, f"{pair.domain}={host.upper()}")
    assert pair.logins == [LOGIN]
    assert "tokenServices" not in str(error)


@pytest.mark.parametrize(
    ("own", "host"),
    [
        ("registry.example.com", "gitlab.example.com"),
        ("registry.gitlab.com", "gitlab.com"),
        ("registry.example.co.uk", "auth.example.co.uk"),
        ("registry.example.com", "REGISTRY.example.com"),
        ("registry.example.com", "auth.example.com."),
        ("registry.example.internal", "gitlab.example.internal"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
async def test_the_same_host_and_the_same_registrable_domain_get_the_password(
    scripted: Scripted, elsewhere: Scripted, own: str, host: str
) -> None:
    pair = Pair(scripted, elsewhere, own, host)
    pair.zone = Zone(**{name: ["127.0.0.1"] for name in (own, host, host.lower())})
    await pair.refusal(keyring((pair.domain, "user", PASSWORD)))
    assert pair.logins == [LOGIN]


@pytest.mark.parametrize(
    ("own", "host", "told"),
    [
        ("registry-1.docker.io", "auth.docker.io", True),
        ("quay.io", "quay.io", True),
        ("registry.redhat.io", "sso.redhat.io", True),
        ("rg.fr-par.scw.cloud", "api.scaleway.com", True),
        ("rg.fr-par.scw.cloud", "auth.docker.io", False),
        ("attacker.example", "api.scaleway.com", False),
        ("a.example", "", False),
        ("a." * 100_000 + "example.org", "b." * 100_000 + "example.org", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("::1", "::1", True),
        ("localhost", "localhost.example.org", False),
    ],
)
async def test_pairs_of_registries_and_token_services(own: str, host: str, told: bool) -> None:
    assert await realms.may_have_credentials(own, own, host, frozenset()) == told


async def test_a_listed_host_gets_the_password_of_its_own_registry_only(
    scripted: Scripted, elsewhere: Scripted
) -> None:
    pair = Pair(scripted, elsewhere, "registry.example.org", "auth.example.net")
    await pair.refusal(
        keyring((pair.domain, "user", PASSWORD)), "other.example.org=auth.example.net"
    )
    assert pair.logins == [None]


async def test_a_refresh_token_is_not_sent_to_another_domain(
    scripted: Scripted, elsewhere: Scripted
) -> None:
    pair = Pair(scripted, elsewhere, "registry.example.org", "auth.example.net")
    entry = {"username": "00000000-0000", "password": "", "identitytoken": PASSWORD}
    keys = Keyring([secret({"auths": {pair.domain: entry}})])
    await pair.refusal(keys)
    assert [(seen.method, seen.body) for seen in elsewhere.seen] == [("GET", "")]
    await pair.refusal(keys, f"{pair.domain}=auth.example.net")
    assert (elsewhere.seen[-1].method, PASSWORD in elsewhere.seen[-1].body) == ("POST", True)


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_names_the_value_to_set(
    scripted: Scripted, elsewhere: Scripted, status: int
) -> None:
    pair = Pair(scripted, elsewhere, "registry.example.org", "auth.example.net")
    keys = keyring((pair.domain, "user", PASSWORD))

    # The registry refuses the anonymous token; then the service refuses to grant one.
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") is None:
            realm = f"http://auth.example.net:{elsewhere.port}/token"
            return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})
        return web.Response(status=status)

    scripted.on("HEAD", PATH, answer)
    scripted.on("GET", PATH, answer)
    said = f"list {pair.domain}=auth.example.net in registry.tokenServices"
    assert said in str(await pair.refusal(keys))
    elsewhere.say("GET", "/token", 401, json.dumps({"details": "no"}).encode())
    assert said in str(await pair.refusal(keys))


async def test_a_public_image_needs_no_entry(scripted: Scripted, elsewhere: Scripted) -> None:
    pair = Pair(scripted, elsewhere, "registry.example.org", "auth.example.net")

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == "Bearer anonymous":
            return web.Response(headers={"Docker-Content-Digest": DIGEST})
        realm = f"http://auth.example.net:{elsewhere.port}/token"
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})

    scripted.on("HEAD", PATH, answer)
    async with pair.client() as client:
        keys = keyring((pair.domain, "user", PASSWORD))
        assert await client.resolve(parse(f"{pair.domain}/ml/llm:v1"), keys) == DIGEST
    assert pair.logins == [None]


async def test_basic_goes_to_the_registry_itself(
    scripted: Scripted, make_client: MakeClient
) -> None:
    scripted.say("HEAD", PATH, 401, b"", {"WWW-Authenticate": 'Basic realm="http://a.example"'})
    with pytest.raises(errors.Unauthorized):
        await make_client().resolve(
            parse(f"{scripted.domain}/ml/llm:v1"), keyring((scripted.domain, "user", PASSWORD))
        )
    assert [seen.authorization for seen in scripted.seen] == [None, LOGIN]


@pytest.mark.parametrize("entry", ["a", "=a", "a=", "a=http://b", "a=b/c", "a=b=c", "a=u@b"])
def test_an_entry_that_is_no_pair_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is not of the form registry=host"):
        realms.parse([entry])
    assert cli.main(["lint", f"--registry-token-services={entry}", "a.example/b:1"]) == 2
