"""GET requests of verifications: keys, certificates, and the confirmation of a subscription."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Self

import aiohttp
from yarl import URL

from imagegate.errors import ImagegateError

SECONDS = 5.0
MAX_BYTES = 256 << 10
KEPT = 600.0
"""Seconds that an answer is cached: keys are published days before they are used."""
KEPT_FRESH = 30.0
"""Seconds that an answer is cached for a caller that needs a fresh one, so that deliveries signed
with unknown keys do not each cause a request."""
KEPT_FAILURE = 10.0
"""Seconds before a failed URL is tried again, so that forged deliveries do not each cause a
request."""
MOST = 64


class FetchFailed(ImagegateError):
    pass


class Fetcher:
    """An open HTTP session with a cache; callable as a `Fetch`."""

    def __init__(self, *, user_agent: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._headers = {"User-Agent": user_agent}
        self._session: aiohttp.ClientSession | None = None
        self._kept: dict[str, tuple[float, asyncio.Future[bytes]]] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ssl.create_default_context()),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def __call__(self, url: str, *, fresh: bool = False) -> bytes:
        """Raises FetchFailed. ``fresh``: the answer is not older than `KEPT_FRESH`."""
        now = self._clock()
        end, kept = self._kept.get(url, (float("-inf"), None))
        if fresh and kept is not None and kept.done() and kept.exception() is None:
            end -= KEPT - KEPT_FRESH
        if kept is None or (kept.done() and now >= end):
            self._make_room(now)
            kept = asyncio.ensure_future(self._get(url))
            kept.add_done_callback(lambda task: self._keep(url, task))
            self._kept[url] = (float("inf"), kept)
        # Shielded, because several callers may wait: the cancellation of one must not cancel the
        # request of the others.
        return await asyncio.shield(kept)

    def _keep(self, url: str, task: asyncio.Future[bytes]) -> None:
        failed = task.cancelled() or task.exception() is not None
        self._kept[url] = (self._clock() + (KEPT_FAILURE if failed else KEPT), task)

    def _make_room(self, now: float) -> None:
        self._kept = {url: each for url, each in self._kept.items() if now < each[0]}
        while len(self._kept) >= MOST:
            del self._kept[min(self._kept, key=lambda url: self._kept[url][0])]

    async def _get(self, url: str) -> bytes:
        assert self._session is not None
        try:
            target = URL(url)
        except ValueError:
            raise FetchFailed("not a URL") from None
        if target.scheme != "https" or not target.host:
            raise FetchFailed("only https is fetched")
        try:
            # Redirects are not followed, because the target of a redirect was not checked.
            async with self._session.get(target, allow_redirects=False) as response:
                if response.status != 200:
                    raise FetchFailed(f"{target.host} answered {response.status}")
                body = await response.content.read(MAX_BYTES + 1)
                while len(body) <= MAX_BYTES and not response.content.at_eof():
                    body += await response.content.read(MAX_BYTES + 1 - len(body))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise FetchFailed(f"{type(error).__name__} with {target.host}") from None
        if len(body) > MAX_BYTES:
            raise FetchFailed(f"{target.host} sent more than {MAX_BYTES} bytes")
        return body
