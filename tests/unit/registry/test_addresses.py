"""The addresses to which a registry can redirect the operator, and the forbidden addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.helpers import netrc_from_env
from prometheus_client import CollectorRegistry

from imagegate import cli
from imagegate.api.references import parse
from imagegate.metrics import MOST_REGISTRIES, OTHERS, Metrics
from imagegate.registry import addresses, errors
from imagegate.registry.addresses import AddressRefused, Guard
from imagegate.registry.client import Client
from imagegate.registry.endpoints import RegistrySettings, is_loopback
from tests.unit.registry.conftest import MakeClient
from tests.unit.registry.distribution import digest_of
from tests.unit.registry.scripted import Scripted
from tests.unit.registry.secrets import keyring

PATH = "/v2/ml/llm/manifests/v1"
DIGEST = digest_of(b"x")
PASSWORD = "correct-horse-battery-staple"


class Zone(AbstractResolver):
    """A resolver whose answers may change with each query."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): found for name, found in names.items()}
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        self.asked.append(host)
        found = self.names[host]
        address = found.pop(0) if len(found) > 1 else found[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
        ]

    async def close(self) -> None:
        pass


@pytest.fixture
async def internal() -> AsyncIterator[Scripted]:
    """A service that only the operator can reach, at another private address."""
    server = await Scripted().start(host="127.0.0.2")
    server.say("GET", "/token", 200, json.dumps({"token": "internal-token"}).encode())
    yield server
    await server.stop()


def challenge(server: Scripted, realm: str) -> None:
    server.say("HEAD", PATH, 401, b"", {"WWW-Authenticate": f'Bearer realm="{realm}"'})


@pytest.mark.parametrize("literal", [True, False])
async def test_realm_at_another_private_address_gets_no_password(
    scripted: Scripted, internal: Scripted, literal: bool
) -> None:
    host = "127.0.0.2" if literal else "internal.test"
    challenge(scripted, f"http://{host}:{internal.port}/token")
    zone = Zone(internal_test=["127.0.0.2"])
    reference = parse(f"{scripted.domain}/ml/llm:v1")
    keys = keyring((scripted.domain, "user", PASSWORD))
    async with Client(resolver=zone) as client:
        with pytest.raises(errors.InvalidAnswer, match=r"private address.*privateHosts"):
            await client.resolve(reference, keys)
    assert internal.seen == []
    allowed = RegistrySettings(private_hosts=frozenset({host}))
    async with Client(allowed, resolver=zone) as client:
        with pytest.raises(errors.Unauthorized):
            await client.resolve(reference, keys)
    assert len(internal.seen) == 1, "private_hosts allows this host"


async def test_redirect_to_another_private_address_is_not_followed(
    scripted: Scripted, internal: Scripted, make_client: MakeClient
) -> None:
    location = f"http://127.0.0.2:{internal.port}/secret"
    scripted.say("HEAD", PATH, 307, b"", {"Location": location})
    with pytest.raises(errors.InvalidAnswer, match="private address"):
        await make_client().resolve(parse(f"{scripted.domain}/ml/llm:v1"))
    assert internal.seen == []


async def test_connection_of_a_registry_is_not_used_for_another_registry(
    scripted: Scripted, internal: Scripted, make_client: MakeClient
) -> None:
    """A user names `internal` as a registry, so the client keeps open connections to it."""
    client = make_client()
    internal.say("HEAD", PATH, 200, b"", {"Docker-Content-Digest": DIGEST})
    domain = f"127.0.0.2:{internal.port}"
    assert await client.resolve(parse(f"{domain}/ml/llm:v1")) == DIGEST
    scripted.say("HEAD", PATH, 307, b"", {"Location": f"http://{domain}/secret"})
    with pytest.raises(errors.InvalidAnswer, match="private address"):
        await client.resolve(parse(f"{scripted.domain}/ml/llm:v1"))
    assert [seen.path for seen in internal.seen] == [PATH]


async def test_another_host_at_the_address_of_the_registry_is_allowed(
    scripted: Scripted, elsewhere: Scripted
) -> None:
    challenge(scripted, f"http://gitlab.test:{elsewhere.port}/token")
    elsewhere.say("GET", "/token", 200, b'{"token": "t"}')
    settings = RegistrySettings(plain_http=frozenset({f"registry.test:{scripted.port}"}))
    zone = Zone(registry_test=["127.0.0.1"], gitlab_test=["127.0.0.1"])
    async with Client(settings, resolver=zone) as client:
        with pytest.raises(errors.Unauthorized):
            await client.resolve(parse(f"registry.test:{scripted.port}/ml/llm:v1"))
    assert elsewhere.requests() == ["GET /token"]


async def test_address_of_a_name_is_checked_for_each_connection() -> None:
    zone = Zone(evil_test=["8.8.8.8", "10.96.0.1"], registry_test=["1.1.1.1"])
    guard = Guard(zone, "registry.test", ())
    assert [each["host"] for each in await guard.resolve("evil.test")] == ["8.8.8.8"]
    with pytest.raises(AddressRefused, match=r"private address 10\.96\.0\.1"):
        await guard.resolve("evil.test")


@pytest.mark.parametrize("host", ["169.254.169.254", "0.0.0.0", "[fd00:ec2::254]", "[fe80::1]"])
async def test_link_local_and_metadata_addresses_get_no_request(
    make_client: MakeClient, host: str
) -> None:
    client = make_client(private_hosts=frozenset({host.strip("[]")}))
    with pytest.raises(errors.InvalidAnswer, match=r"metadata.*correct the image reference"):
        await client.resolve(parse(f"{host}:5000/ml/llm:v1"))


async def test_registry_name_at_a_metadata_address_is_rejected(scripted: Scripted) -> None:
    async with Client(resolver=Zone(meta_test=["169.254.169.254"])) as client:
        with pytest.raises(errors.InvalidAnswer, match="link-local"):
            await client.resolve(parse("meta.test/ml/llm:v1"))


@pytest.mark.parametrize(
    ("host", "forbidden", "public"),
    [
        ("8.8.8.8", False, True),
        ("2001:4860:4860::8888", False, True),
        ("10.0.0.1", False, False),
        ("100.64.0.1", False, False),
        ("127.1", False, False),
        ("0x7f000001", False, False),
        ("::1", False, False),
        ("fd00::1", False, False),
        ("::ffff:10.0.0.1", False, False),
        ("64:ff9b::10.0.0.1", False, False),
        ("64:ff9b::8.8.8.8", False, True),
        ("2002:a00:1::", False, False),
        ("::127.0.0.1", False, False),
        ("0.0.0.0", True, False),
        ("0", True, False),
        ("::", True, False),
        ("169.254.169.254", True, False),
        ("2852039166", True, False),
        ("::ffff:169.254.169.254", True, False),
        ("64:ff9b::a9fe:a9fe", True, False),
        ("100.100.100.200", True, False),
        ("168.63.129.16", True, True),
        ("fd00:ec2::254", True, False),
        ("fe80::1%eth0", True, False),
    ],
)
def test_address_is_classified_as_forbidden_or_public(
    host: str, forbidden: bool, public: bool
) -> None:
    address = addresses.literal(host)
    assert address is not None
    assert addresses.is_forbidden(address) == forbidden
    assert addresses.is_public(address) == public


def test_host_name_is_no_address_literal() -> None:
    assert addresses.literal("registry.test") is None
    assert addresses.meant(ipaddress.ip_address("::1")) == ipaddress.ip_address("::1")
    assert is_loopback("127.1")
    assert is_loopback("0.0.0.0")
    assert not is_loopback("10.1")


@pytest.mark.parametrize("status", [401, 404, 503])
async def test_error_body_of_another_service_is_not_quoted(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, status: int
) -> None:
    challenge(scripted, f"http://{elsewhere.domain}/token")
    body = json.dumps({"errors": [{"code": "X", "message": "inner secret"}]}).encode()
    elsewhere.say("GET", "/token", status, body)
    with pytest.raises(errors.RegistryError, match=str(status)) as caught:
        await make_client().resolve(parse(f"{scripted.domain}/ml/llm:v1"))
    assert "inner secret" not in str(caught.value)


async def test_number_of_remembered_registries_is_bounded(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagegate.registry.transport.MOST_REGISTRIES", 3)
    client = make_client(connect_timeout=0.2)
    for number in range(2, 12):
        with pytest.raises(errors.Unavailable):
            await client.resolve(parse(f"127.0.0.{number}:1/ml/llm:v1"))
    assert len(client._transport._ways) == 3


async def test_registries_that_ask_for_a_pause_are_bounded_too(
    monkeypatch: pytest.MonkeyPatch, make_client: MakeClient
) -> None:
    """Every name of a hostile domain may be a registry that asks for fifteen minutes."""
    monkeypatch.setattr("imagegate.registry.transport.MOST_REGISTRIES", 3)
    monkeypatch.setattr("imagegate.registry.transport.MOST_PAUSED", 6)
    client = make_client()
    server = await Scripted().start(host="0.0.0.0")
    server.say("HEAD", PATH, 429, b"", {"Retry-After": "900"})
    for number in range(2, 22):
        with pytest.raises(errors.Throttled):
            await client.resolve(parse(f"127.0.0.{number}:{server.port}/ml/llm:v1"))
    await server.stop()
    assert len(client._transport._ways) == 6


async def test_registries_that_are_asked_at_the_same_time_keep_their_connections(
    monkeypatch: pytest.MonkeyPatch, make_client: MakeClient
) -> None:
    monkeypatch.setattr("imagegate.registry.transport.MOST_REGISTRIES", 3)
    client = make_client()
    server = await Scripted().start(host="0.0.0.0")
    server.say("HEAD", PATH, 200, b"", {"Docker-Content-Digest": DIGEST})
    references = [parse(f"127.0.0.{number}:{server.port}/ml/llm:v1") for number in range(2, 82)]
    for reference in references[:3]:  # These have idle connections, which are closed for others.
        await client.resolve(reference)
    found = await asyncio.gather(*map(client.resolve, references[3:]))
    await server.stop()
    assert set(found) == {DIGEST}


async def test_headers_full_of_challenges_do_not_stop_the_loop(
    scripted: Scripted, make_client: MakeClient
) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        response = web.Response(status=401)
        for _number in range(120):
            response.headers.add("WWW-Authenticate", "a " * 4000)
        return response

    scripted.on("HEAD", PATH, refuse)
    began = time.process_time()
    with pytest.raises(errors.InvalidAnswer, match="no known way"):
        await make_client().resolve(parse(f"{scripted.domain}/ml/llm:v1"))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("expires", ["1e400", str(10**400), "true"])
async def test_lifetime_of_a_token_is_limited(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, expires: str
) -> None:
    challenge(scripted, f"http://{elsewhere.domain}/token")
    elsewhere.say("GET", "/token", 200, f'{{"token": "t", "expires_in": {expires}}}'.encode())
    with pytest.raises(errors.Unauthorized):
        await make_client().resolve(parse(f"{scripted.domain}/ml/llm:v1"))


def test_number_of_registry_series_is_bounded() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, version="1")
    for number in range(MOST_REGISTRIES + 50):
        metrics.observe_registry_request(f"r{number}.test", "200")
    metrics.observe_registry_request("r0.test", "200")
    name = "imagegate_registry_requests_total"
    assert registry.get_sample_value(name, {"registry": "r0.test", "code": "200"}) == 2
    assert registry.get_sample_value(name, {"registry": OTHERS, "code": "200"}) == 50


def test_passwords_of_a_netrc_file_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine issuer.test login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    assert netrc_from_env() is not None
    assert cli.main(["lint", "127.0.0.1:1/a:1"]) != 0
    found = netrc_from_env()
    assert found is None or not found.hosts
