"""The client of the API server: the leadership check before each send, and its connections."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from imagegate.kube import client as kube_client
from imagegate.kube import errors
from imagegate.kube.client import JSON_PATCH, Client, api_client

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Leadership:
    lost = False

    def fence(self) -> None:
        if self.lost:
            raise errors.NotLeader("not leading")


@asynccontextmanager
async def serving(
    handler: Handler,
    leadership: Leadership | None = None,
    connections: int = 0,
    recovered: Callable[[], None] = lambda: None,
) -> AsyncIterator[Client]:
    """A real client of a real HTTP server."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    fence = (leadership or Leadership()).fence
    client = Client(
        api_client(configuration), fence=fence, connections=connections, recovered=recovered
    )
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


def throttled() -> web.Response:
    return web.json_response({"message": "slow down"}, status=429, headers={"Retry-After": "0"})


async def test_throttled_write_is_not_repeated_after_leadership_is_lost() -> None:
    leadership, received = Leadership(), list[tuple[str, bool]]()

    async def handler(request: web.Request) -> web.StreamResponse:
        received.append((request.method, leadership.lost))
        leadership.lost = True  # while the client waits before its next attempt
        return throttled()

    async with serving(handler, leadership) as client:
        with pytest.raises(errors.NotLeader):
            await client.patch("/api/v1/nodes/n1", [], JSON_PATCH)
    assert received == [("PATCH", False)]


@pytest.mark.parametrize("method", ["create", "patch", "replace", "delete"])
async def test_write_that_waits_for_a_connection_is_not_sent_after_leadership_is_lost(
    method: str,
) -> None:
    leadership, received, go = Leadership(), list[str](), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        received.append(request.method)
        await go.wait()
        return web.json_response({})

    async with serving(handler, leadership, connections=1) as client:
        first = asyncio.create_task(client.get("/version"))
        await asyncio.sleep(0.05)
        call: dict[str, Callable[[], Awaitable[object]]] = {
            "create": lambda: client.create("/x", {}),
            "patch": lambda: client.patch("/x", [], JSON_PATCH),
            "replace": lambda: client.replace("/x", {}),
            "delete": lambda: client.delete("/x"),
        }
        second = asyncio.ensure_future(call[method]())
        await asyncio.sleep(0.05)
        leadership.lost = True
        go.set()
        await first
        with pytest.raises(errors.NotLeader):
            await second
    assert received == ["GET"]


async def test_urgent_patch_is_sent_before_the_requests_that_wait() -> None:
    received, go = list[str](), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        received.append(request.path)
        await go.wait()
        return web.json_response({})

    async with serving(handler, connections=2) as client:
        others = [asyncio.create_task(client.get(f"/{number}")) for number in range(6)]
        await asyncio.sleep(0.05)
        urgent = asyncio.create_task(client.patch("/urgent", [], JSON_PATCH, urgent=True))
        await asyncio.sleep(0.05)
        assert received == ["/0", "/1"]
        go.set()
        await asyncio.gather(urgent, *others)
    assert "/urgent" in received[2:4]
    assert [path for path in received if path != "/urgent"] == [f"/{n}" for n in range(6)]


async def test_lease_renewal_waits_for_no_other_request_and_is_not_fenced() -> None:
    leadership, go = Leadership(), asyncio.Event()
    leadership.lost = True

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            await go.wait()
        return web.json_response({"kind": request.method})

    async with serving(handler, leadership, connections=1) as client:
        other = asyncio.create_task(client.get("/version"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1):
            assert await client.replace("/lease", {}, fenced=False) == {"kind": "PUT"}
            assert await client.create_unfenced("/lease", {}) == {"kind": "POST"}
        go.set()
        await other


async def test_wait_for_a_connection_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_client, "CONNECTION_WAIT", 0.05)
    go = asyncio.Event()

    async def handler(_: web.Request) -> web.StreamResponse:
        await go.wait()
        return web.json_response({})

    async with serving(handler, connections=1) as client:
        first = asyncio.create_task(client.get("/version"))
        await asyncio.sleep(0.05)
        with pytest.raises(errors.Unavailable, match="no connection was free"):
            await client.get("/version")
        go.set()
        await first
        assert await client.get("/version") == {}


async def test_end_of_an_outage_is_reported_once_and_status_500_is_no_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kube_client, "OUTAGE", 0.0)
    status, recovered = 503, list[int]()

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=status)

    async with serving(handler, recovered=lambda: recovered.append(status)) as client:
        for status in (503, 503, 200, 200, 500, 200, 503, 404):  # noqa: B007 -- handler
            try:
                await client.get("/version")
            except errors.KubeError:
                continue
    assert recovered == [200, 404]


async def test_requests_leave_no_cycles_to_the_garbage_collector() -> None:
    """The operator's process runs the collector seldom (`runtime.process.COLLECTIONS`), so a page
    of a list must be freed without it.
    """

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"items": [{"a": number} for number in range(100)]})

    async with serving(handler) as client:
        await client.get("/warm")
        await asyncio.sleep(0.05)
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await client.get("/api/v1/nodes", limit="500")
            assert gc.collect() < 20, "the collector had to free what the requests made"
        finally:
            gc.enable()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("server", "exceptions", "expected"),
    [
        ("https://10.96.0.1:443", "", "http://proxy.test:3128"),
        ("https://10.96.0.1:443", "10.96.0.1", None),
        ("https://[fd00::1]:443", "fd00::1", None),
        ("https://kubernetes.default.svc", ".svc", None),
        ("https://kubernetes.default.svc", "example.com", "http://proxy.test:3128"),
        ("http://10.96.0.1:80", "", None),
    ],
)
async def test_proxy_of_the_environment_is_used_for_the_api_server(
    environment: pytest.MonkeyPatch, server: str, exceptions: str, expected: str | None
) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    environment.setenv("NO_PROXY", exceptions)
    api = api_client(Configuration(host=server))
    assert api.configuration.proxy == expected
    await api.close()


async def test_proxy_of_the_kubeconfig_wins(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://environment.test:3128")
    api = api_client(Configuration(host="https://10.96.0.1", proxy="http://kubeconfig.test:3128"))
    assert api.configuration.proxy == "http://kubeconfig.test:3128"
    await api.close()


async def test_requests_go_through_the_proxy_with_its_password(
    environment: pytest.MonkeyPatch,
) -> None:
    received = list[tuple[str, str | None]]()

    async def handler(request: web.Request) -> web.StreamResponse:
        received.append((request.host, request.headers.get("Proxy-Authorization")))
        return web.json_response({})

    async with serving(handler) as proxy:
        address = proxy._api.configuration.host
        environment.setenv("HTTP_PROXY", address.replace("//", "//user:secret@"))
        client = Client(api_client(Configuration(host="http://kubernetes.test")))
        await client.get("/version")
        await client.close()
    encoded = base64.b64encode(b"user:secret").decode()
    assert received == [("kubernetes.test", f"Basic {encoded}")]


async def test_environment_is_not_read_for_each_request(environment: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    async with serving(handler) as client:

        def looked_up(*_: object) -> None:
            raise AssertionError("looked up again")

        environment.setattr(aiohttp.client, "get_env_proxy_for_url", looked_up)
        await client.get("/version")


async def test_each_object_of_a_page_is_parsed_when_it_is_reached() -> None:
    """500 parsed Nodes would need 31 MiB. The second object here has a number out of range."""
    text = b'{"metadata":{"resourceVersion":"7","continue":"t"},"items":[{"n":1},{"n":1e999}]}'

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=text, content_type="application/json")

    async with serving(handler) as client:
        page = await client.page("/x", limit=2)
        assert (page.version, page.token, next(page.items)) == ("7", "t", {"n": 1})
        with pytest.raises(ValueError, match="out of range"):
            next(page.items)


@pytest.mark.parametrize("text", [b'{"metadata":{}}', b'{"items":null}', b"{}"])
async def test_a_page_may_have_no_objects(text: bytes) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=text, content_type="application/json")

    async with serving(handler) as client:
        page = await client.page("/x")
    assert (page.version, page.token, list(page.items)) == ("", "", [])
