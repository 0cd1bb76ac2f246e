"""Fixtures: a real registry of each kind for the whole session, and clients."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from imagegate.registry.client import Client
from imagegate.registry.endpoints import RegistrySettings
from tests.unit.registry import distribution
from tests.unit.registry.certificates import ISSUER, Authority
from tests.unit.registry.distribution import Registry
from tests.unit.registry.scripted import Scripted

USER, PASSWORD = "puller", "pässword:with colon"
HUB_SERVICE = "registry.docker.io"


class Names(AbstractResolver):
    """A resolver that maps each host name to a port of the loopback interface."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._ports = ports

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        if host not in self._ports:
            raise OSError(f"no such name: {host}")
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=self._ports[host], family=2, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


@dataclass
class Counter:
    """Records the calls that the metrics would get."""

    codes: list[tuple[str, str]] = field(default_factory=list)

    def observe_registry_request(self, registry: str, code: str) -> None:
        self.codes.append((registry, code))


MakeClient = Callable[..., Client]


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
async def make_client(counter: Counter) -> AsyncIterator[MakeClient]:
    clients = []

    def make(*, names: dict[str, int] | None = None, timing: Any = None, **settings: Any) -> Client:
        client = Client(
            RegistrySettings(**settings),
            observer=counter,
            resolver=Names(names) if names is not None else None,
            timing=timing,
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    server = await Scripted().start()
    yield server
    await server.stop()


@pytest.fixture
async def elsewhere() -> AsyncIterator[Scripted]:
    """A second server, for redirects and tokens."""
    server = await Scripted().start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registries")


@pytest.fixture(scope="session")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="session")
def server_files(authority: Authority) -> tuple[Path, Path]:
    """One certificate for all host names of the tests, of an authority that only they trust."""
    return authority.issue(
        "registry.test",
        "registry-1.docker.io",
        "auth.docker.io",
        "store.test",
        "127.0.0.1",
    )


@pytest.fixture(scope="session")
def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem)


@pytest.fixture(scope="session")
def open_registry(folder: Path) -> Iterator[Registry]:
    with distribution.serve(folder) as registry:
        yield registry


@pytest.fixture(scope="session")
def basic_registry(folder: Path) -> Iterator[Registry]:
    path = folder / "htpasswd"
    subprocess.run(
        ["/usr/bin/htpasswd", "-c", "-i", "-B", "-C", "4", str(path), USER],
        input=PASSWORD.encode(),
        check=True,
        capture_output=True,
    )
    auth = {"htpasswd": {"realm": "a realm, with a comma", "path": str(path)}}
    with distribution.serve(folder, auth=auth) as registry:
        registry.headers = {"Authorization": distribution.basic(USER, PASSWORD)}
        yield registry


@pytest.fixture(scope="session")
def tls_registry(
    folder: Path, server_files: tuple[Path, Path], trusting: ssl.SSLContext
) -> Iterator[Registry]:
    with distribution.serve(folder, tls=server_files, context=trusting) as registry:
        yield registry


@pytest.fixture(scope="session")
def hub_registry(
    folder: Path,
    authority: Authority,
    server_files: tuple[Path, Path],
    trusting: ssl.SSLContext,
) -> Iterator[Registry]:
    """A registry like Docker Hub: TLS, and a token service at another host name."""
    auth = {
        "token": {
            "realm": "https://auth.docker.io/token",
            "service": HUB_SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": str(authority.path),
        }
    }
    with distribution.serve(folder, auth=auth, tls=server_files, context=trusting) as registry:
        token = authority.token(HUB_SERVICE, "ml/llm", ["pull", "push"])
        registry.headers = {"Authorization": f"Bearer {token}"}
        yield registry
