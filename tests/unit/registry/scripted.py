"""A server that a test scripts, for behaviour that a real registry does not show on demand."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: dict[str, str]
    authorization: str | None
    body: str


class Scripted:
    """Answers by (method, path), and 404 for all others. Records each request in `seen`."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._handlers: dict[tuple[str, str], Handler] = {}
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        self.port = 0

    async def start(
        self, port: int = 0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=tls)
        await site.start()
        assert self._runner.addresses
        self.port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        await self._runner.cleanup()

    @property
    def domain(self) -> str:
        return f"127.0.0.1:{self.port}"

    def on(self, method: str, path: str, handler: Handler) -> None:
        self._handlers[method, path] = handler

    def say(
        self,
        method: str,
        path: str,
        status: int = 200,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(status=status, body=body, headers=headers)

        self.on(method, path, answer)

    def requests(self, method: str = "") -> list[str]:
        return [f"{s.method} {s.path}" for s in self.seen if method in ("", s.method)]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(
            Seen(
                request.method,
                request.path,
                dict(request.query),
                request.headers.get("Authorization"),
                await request.text(),
            )
        )
        handler = self._handlers.get((request.method, request.path))
        if handler is None:
            return web.Response(status=404)
        return await handler(request)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def talking(words: bytes) -> AsyncIterator[int]:
    """The port of a server that is not a web server: it sends `words` and then only reads."""
    finished = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        finished.append(done := asyncio.Event())
        with contextlib.suppress(OSError):
            writer.write(words)
            await writer.drain()
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        done.set()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for done in finished:
            await asyncio.wait_for(done.wait(), 5)
