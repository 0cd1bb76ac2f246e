"""The disk figures of a kubelet, over real TLS: how they are read, which token the kubelet
receives, and the problem that is reported without figures. Kubelets are not trusted, because root
on any node controls its kubelet.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from imagegate.domain.disk import NOT_READ
from imagegate.domain.facts import Node
from imagegate.kube import kubelets as module
from imagegate.kube import tokens as token_module
from imagegate.kube.errors import Forbidden
from imagegate.kube.kubelets import PREFIX, Kubelets, parse
from imagegate.kube.tokens import Tokens
from tests.unit.registry.certificates import Authority

SUMMARY = {
    "node": {
        "fs": {"capacityBytes": 1, "availableBytes": 1, "usedBytes": 0},
        "runtime": {
            "imageFs": {"capacityBytes": 1000, "availableBytes": 400, "usedBytes": 250},
        },
    }
}
POD = {"podRef": {"name": "web", "namespace": "serving", "uid": "u"}, "network": {"rxBytes": 1}}
OWN = "the operator's own token"


def test_used_bytes_are_capacity_minus_available() -> None:
    usage = parse(json.dumps(SUMMARY).encode())
    assert (usage.capacity, usage.used, usage.problem) == (1000, 600, "")


def test_node_figures_are_read_from_the_beginning_of_a_long_answer() -> None:
    body = json.dumps({**SUMMARY, "pods": [POD] * 50_000}, indent=2).encode()
    assert len(body) > 10 * PREFIX
    assert parse(body[:PREFIX]).used == 600


HOSTILE = {
    "empty": b"",
    "no object": b"[]",
    "no node": b"{}",
    "no capacity": b'{"node": {"runtime": {"imageFs": {"capacityBytes": 0}}}}',
    "no text": b"\xff",
    "a bracket a byte": b'{"node":' + b"[" * PREFIX,
    "objects in objects": b'{"node":' + b'{"a":' * (PREFIX // 5),
    "an infinite number": b'{"node":{"runtime":{"imageFs":{"capacityBytes":1e999}}}}',
    "not a number": b'{"node":{"runtime":{"imageFs":{"capacityBytes":NaN}}}}',
    "a number of half a million digits": b'{"node":' + b"9" * PREFIX,
    "many small objects": b'{"node":[' + b"{}," * (PREFIX // 3),
    "many numbers": b'{"node":[' + b"0.5," * (PREFIX // 4),
    "many names": b'{"node":{' + b",".join(b'"%x":1' % i for i in range(PREFIX // 9)),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_invalid_summary_is_rejected_at_little_cost(body: bytes) -> None:
    began = time.thread_time()  # CPU time, because the machine may be busy
    assert "no figures" in parse(body[:PREFIX]).problem
    assert time.thread_time() - began < 0.25
    tracemalloc.start()
    try:
        parse(body[:PREFIX])
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
    finally:
        tracemalloc.stop()


class Granting:
    """The API server's TokenRequest: it grants a new token each time, valid for `seconds`."""

    def __init__(self, seconds: float = 600) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, Any]] = []
        self.error: Exception | None = None

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((path, body["spec"]))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return {
            "spec": {"expirationSeconds": self.seconds},
            "status": {"token": f"sesame-{len(self.asked)}"},
        }


def tokens(api: Granting) -> Tokens:
    client: Any = api
    return Tokens(client, "imagegate-system", "imagegate-kubelets")


async def test_token_is_requested_once_and_renewed_before_its_expiry() -> None:
    api = Granting()
    granted = tokens(api)
    assert set(await asyncio.gather(*(granted.get() for _ in range(100)))) == {"sesame-1"}
    path = "/api/v1/namespaces/imagegate-system/serviceaccounts/imagegate-kubelets/token"
    assert api.asked == [(path, {"expirationSeconds": 600})]
    brief = tokens(api := Granting(seconds=0.2))
    assert await brief.get() == "sesame-1"
    await asyncio.sleep(0.16)  # before its expiry
    assert await brief.get() == "sesame-2"


async def test_refused_token_request_is_not_repeated_for_each_node() -> None:
    api = Granting()
    api.error = Forbidden("create token", 403, "imagegate may not")
    granted = tokens(api)
    results = await asyncio.gather(*(granted.get() for _ in range(1000)), return_exceptions=True)
    assert {str(result) for result in results} == {"create token: 403: imagegate may not"}
    assert len(api.asked) == 1


async def test_refused_token_is_replaced_after_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Granting()
    granted = tokens(api)
    for _ in range(3):
        granted.refused(await granted.get())
    assert len(api.asked) == 1, "a hostile kubelet may refuse every token"
    monkeypatch.setattr(token_module, "REPLACED_AFTER", 0.0)
    granted.refused(await granted.get())
    granted.refused("another token")
    assert await granted.get() == "sesame-2"


Handler = Callable[[web.Request], Any]


@dataclass
class Kubelet:
    """A server on loopback that records the received `Authorization` headers in `shown`."""

    folder: Path
    """The service account's folder, with the CA that signs the server's certificate."""
    node: Node = field(default_factory=lambda: Node("n1", "u", 1))
    shown: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "token").write_text(OWN)

    async def serve(self, handler: Handler, *, tls: bool = True) -> web.AppRunner:
        context = None
        if tls:
            authority = Authority(self.folder)
            (self.folder / "ca.crt").write_text(authority.pem)
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*authority.issue("kubelet", "127.0.0.1"))

        async def record(request: web.Request) -> web.StreamResponse:
            self.shown.append(request.headers.get("Authorization", ""))
            response: web.StreamResponse = await handler(request)
            return response

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", record)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        server: Any = site._server
        port = server.sockets[0].getsockname()[1]
        self.node = Node("n1", "u", 1, address="127.0.0.1", kubelet_port=port)
        return runner


@asynccontextmanager
async def listening(folder: Path, handler: Handler, *, tls: bool = True) -> AsyncIterator[Kubelet]:
    kubelet = Kubelet(folder)
    runner = await kubelet.serve(handler, tls=tls)
    try:
        yield kubelet
    finally:
        await runner.cleanup()


async def summary(request: web.Request) -> web.Response:
    if not request.headers.get("Authorization", "").startswith("Bearer sesame-"):
        return web.Response(status=403)
    return web.json_response(SUMMARY)


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[Kubelet]:
    async with listening(tmp_path / "kubelet", summary) as made:
        yield made


async def test_kubelet_never_receives_the_operators_own_token(kubelet: Kubelet) -> None:
    async with Kubelets(tokens(Granting()), service_account=kubelet.folder) as kubelets:
        assert (await kubelets.usage(kubelet.node)).used == 600
    async with Kubelets(None, service_account=kubelet.folder) as kubelets:
        assert await kubelets.usage(kubelet.node) is NOT_READ
    assert kubelet.shown == ["Bearer sesame-1"]


@pytest.mark.parametrize("tls", [True, False], ids=["to another kubelet", "to plain HTTP"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed(tmp_path: Path, status: int, tls: bool) -> None:
    async with listening(tmp_path / "thief", summary, tls=tls) as thief:
        scheme = "https" if tls else "http"
        there = f"{scheme}://127.0.0.1:{thief.node.kubelet_port}/stats/summary"

        async def redirect(_: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": there})

        async with (
            listening(tmp_path / "kubelet", redirect) as kubelet,
            Kubelets(tokens(Granting()), insecure_tls=True) as kubelets,
        ):
            assert f"redirect ({status})" in (await kubelets.usage(kubelet.node)).problem
        assert thief.shown == []


async def test_summary_in_several_chunks_is_read(tmp_path: Path) -> None:
    async def pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        body = json.dumps({**SUMMARY, "pods": [POD] * 1000}, indent=2).encode()
        for piece in (body[:40], body[40:120], body[120:]):
            await response.write(piece)
            await asyncio.sleep(0.02)
        return response

    async with (
        listening(tmp_path / "kubelet", pieces) as kubelet,
        Kubelets(tokens(Granting()), service_account=kubelet.folder) as kubelets,
    ):
        assert (await kubelets.usage(kubelet.node)).used == 600


async def test_endless_or_compressed_answer_is_read_up_to_a_limit(tmp_path: Path) -> None:
    bomb = gzip.compress(b'{"node":' + b" " * 50_000_000 + b"{}}")
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        assert request.headers["Accept-Encoding"] == "identity"
        if request.path == "/stats/summary" and sent == 0:
            response = web.StreamResponse(headers={"Content-Encoding": "gzip"})
            await response.prepare(request)
            await response.write(bomb)
            sent = 1
            return response
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 200 * 2**20:
            await response.write(b'{"node":' + b"[" * 2**16)
            sent += 2**16
            await asyncio.sleep(0)  # a write may not notice a closed connection
        return response

    async with (
        listening(tmp_path / "kubelet", endless) as kubelet,
        Kubelets(tokens(Granting()), service_account=kubelet.folder) as kubelets,
    ):
        tracemalloc.start()
        try:
            for _ in range(2):
                assert "no figures" in (await kubelets.usage(kubelet.node)).problem
            assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
        finally:
            tracemalloc.stop()
    assert sent < 64 * 2**20


async def test_hostile_kubelets_do_not_block_the_others(tmp_path: Path, kubelet: Kubelet) -> None:
    bodies = iter([*HOSTILE.values()] * 3)

    async def hostile(_: web.Request) -> web.Response:
        return web.Response(body=next(bodies))

    async with (
        listening(tmp_path / "hostile", hostile) as bad,
        Kubelets(tokens(Granting()), insecure_tls=True) as kubelets,
    ):
        late = 0.0
        """The longest CPU time of the loop between two iterations of `beat`."""

        async def beat() -> None:
            nonlocal late
            while True:
                began = time.thread_time()
                await asyncio.sleep(0.005)
                late = max(late, time.thread_time() - began)

        task = asyncio.create_task(beat())
        found = await asyncio.gather(
            *(kubelets.usage(node) for node in [bad.node, kubelet.node] * 3 * len(HOSTILE))
        )
        task.cancel()
    assert [usage.used for usage in found[1::2]] == [600] * 3 * len(HOSTILE)
    assert all(usage.problem for usage in found[0::2])
    assert late < 0.5, "the loop must renew the Lease"


async def test_self_signed_kubelet_certificate_is_not_trusted(
    kubelet: Kubelet, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").path
    granted = tokens(Granting())
    account = kubelet.folder
    async with Kubelets(granted, service_account=account, ca_file=str(other)) as kubelets:
        assert "kubelet.insecureTLS" in (await kubelets.usage(kubelet.node)).problem
    assert kubelet.shown == []
    async with Kubelets(granted, service_account=account, insecure_tls=True) as kubelets:
        assert (await kubelets.usage(kubelet.node)).used == 600


@pytest.mark.parametrize("address", ["thief.test/", "10.0.0.1@thief.test", "kubelet", "[::1]"])
async def test_invalid_node_address_gets_no_request(address: str) -> None:
    node = Node("n1", "u", 1, address=address, kubelet_port=10250)
    api = Granting()
    async with Kubelets(tokens(api), insecure_tls=True) as kubelets:
        assert "not an IP address" in (await kubelets.usage(node)).problem
    assert api.asked == []


async def test_problem_is_returned_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Node("n1", "u", 1, address="127.0.0.1", kubelet_port=1)
    api = Granting()
    async with Kubelets(tokens(api), service_account=tmp_path) as kubelets:
        assert "InternalIP" in (await kubelets.usage(Node("n1", "u", 1))).problem
        assert "ca.crt is not there" in (await kubelets.usage(gone)).problem
        (tmp_path / "ca.crt").write_text("nonsense")
        assert "CA of the kubelets" in (await kubelets.usage(gone)).problem
        (tmp_path / "ca.crt").write_text(Authority(tmp_path).pem)
        assert "does not answer" in (await kubelets.usage(gone)).problem
        far = Node("n1", "u", 1, address="127.0.0.1", kubelet_port=99999)
        assert "does not answer" in (await kubelets.usage(far)).problem
        api.error = Forbidden("create token", 403, "may not")
        monkeypatch.setattr(token_module, "USED", 0.0)
    async with Kubelets(tokens(api), service_account=tmp_path) as kubelets:
        assert "no token" in (await kubelets.usage(gone)).problem
    for status, said in ((401, "refuses the token"), (403, "nodes/stats"), (500, "answers 500")):

        async def refuse(_: web.Request, status: int = status) -> web.Response:
            return web.Response(status=status)

        async with (
            listening(tmp_path / "kubelet", refuse) as kubelet,
            Kubelets(tokens(Granting()), insecure_tls=True) as kubelets,
        ):
            assert said in (await kubelets.usage(kubelet.node)).problem
    assert module.TIMEOUT.total is not None
