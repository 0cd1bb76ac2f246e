"""GET of keys and certificates: https only, with a limited size and a cache."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from imagegate.hooks import fetch as module
from imagegate.hooks.fetch import Fetcher, FetchFailed
from tests.unit.registry.certificates import Authority


class Issuer:
    """A server with a certificate for localhost."""

    def __init__(self) -> None:
        self.port = 0
        self.hits: list[str] = []

    def url(self, path: str) -> str:
        return f"https://localhost:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.Response:
        self.hits.append(request.path)
        match request.path:
            case "/large":
                return web.Response(body=b"x" * (module.MAX_BYTES + 1))
            case "/exact":
                return web.Response(body=b"x" * module.MAX_BYTES)
            case "/moved":
                raise web.HTTPFound("/keys")
            case "/slow":
                await asyncio.sleep(5)
                return web.Response()
            case "/keys":
                await asyncio.sleep(0.05)
                return web.Response(text=f"keys {len(self.hits)}")
            case _:
                return web.Response(status=500)


@pytest.fixture
async def issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Issuer]:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    certificate, key = authority.issue("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    made, app = Issuer(), web.Application()
    app.router.add_get("/{path:.*}", made.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


class Hands:
    now = 100.0


@pytest.fixture
async def fetch(issuer: Issuer) -> AsyncIterator[tuple[Fetcher, Hands]]:
    hands = Hands()
    async with Fetcher(user_agent="test", clock=lambda: hands.now) as made:
        yield made, hands


async def test_answer_is_cached_until_its_lifetime_ends(
    issuer: Issuer, fetch: tuple[Fetcher, Hands]
) -> None:
    get, hands = fetch
    found = await asyncio.gather(*(get(issuer.url("/keys")) for _ in range(5)))
    assert set(found) == {b"keys 1"}
    hands.now += module.KEPT - 1
    assert await get(issuer.url("/keys")) == b"keys 1"
    hands.now += 1
    assert await get(issuer.url("/keys")) == b"keys 2"


async def test_fresh_fetches_are_limited_in_rate(
    issuer: Issuer, fetch: tuple[Fetcher, Hands]
) -> None:
    get, hands = fetch
    assert await get(issuer.url("/keys")) == b"keys 1"
    assert await get(issuer.url("/keys"), fresh=True) == b"keys 1"
    hands.now += module.KEPT_FRESH
    for _ in range(50):
        assert await get(issuer.url("/keys"), fresh=True) == b"keys 2"
    assert await get(issuer.url("/keys")) == b"keys 2"
    assert len(issuer.hits) == 2


async def test_failed_fetch_is_not_repeated_immediately(
    issuer: Issuer, fetch: tuple[Fetcher, Hands]
) -> None:
    get, hands = fetch
    for _ in range(3):
        with pytest.raises(FetchFailed, match="answered 500"):
            await get(issuer.url("/broken"))
    assert len(issuer.hits) == 1
    hands.now += module.KEPT_FAILURE
    with pytest.raises(FetchFailed):
        await get(issuer.url("/broken"))
    assert len(issuer.hits) == 2


async def test_cancelled_caller_does_not_cancel_a_shared_fetch(
    issuer: Issuer, fetch: tuple[Fetcher, Hands]
) -> None:
    get, _ = fetch
    first = asyncio.create_task(get(issuer.url("/keys")))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(get(issuer.url("/keys")))
    first.cancel()
    assert await second == b"keys 1"


@pytest.mark.parametrize("path", ["/large", "/moved", "/missing"])
async def test_large_answer_redirect_and_error_are_rejected(
    issuer: Issuer, fetch: tuple[Fetcher, Hands], path: str
) -> None:
    with pytest.raises(FetchFailed):
        await fetch[0](issuer.url(path))
    assert issuer.hits == [path]


async def test_answer_of_the_maximum_size_is_accepted(
    issuer: Issuer, fetch: tuple[Fetcher, Hands]
) -> None:
    assert len(await fetch[0](issuer.url("/exact"))) == module.MAX_BYTES


@pytest.mark.parametrize(
    "url",
    ["http://localhost/", "file:///etc/passwd", "localhost", "", "https://", "https://[", "ftp://a"],
)  # fmt: skip
async def test_url_without_https_is_rejected(fetch: tuple[Fetcher, Hands], url: str) -> None:
    with pytest.raises(FetchFailed):
        await fetch[0](url)


async def test_timeout_and_refused_connection_are_fetch_failures(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)
    async with Fetcher(user_agent="test") as get:
        with pytest.raises(FetchFailed, match="TimeoutError"):
            await get(issuer.url("/slow"))
        with pytest.raises(FetchFailed):
            await get("https://localhost:1/")


async def test_certificate_of_an_unknown_authority_is_rejected(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with Fetcher(user_agent="test") as get:
        with pytest.raises(FetchFailed, match="Certificate"):
            await get(issuer.url("/keys"))
    assert issuer.hits == []


async def test_cache_is_bounded(fetch: tuple[Fetcher, Hands]) -> None:
    for number in range(3 * module.MOST):
        with pytest.raises(FetchFailed):
            await fetch[0](f"http://localhost/{number}")
        assert len(fetch[0]._kept) <= module.MOST
