"""Limits for the connections of the public port: total number, number per peer, and duration.

aiohttp has no deadline for a request's headers and no limit for connections. Each connection here
serves one request. While its request is incomplete, a connection may be closed in favour of a newer
connection. This hits slow or stalled senders, because a normal request is complete within
milliseconds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from aiohttp import web

MOST = 256
MOST_PER_PEER = 64
"""Connections from one address. Behind a proxy or a NodePort many senders may share an address."""
HEADER_SECONDS = 5.0
SECONDS = 30.0
"""For the whole request: its headers, its body (`endpoint.BODY_SECONDS`), and the requests that
verify it."""
READ_BUFFER = 16 << 10
SHUTDOWN_SECONDS = 1.5
"""Seconds for open requests at shutdown; aiohttp waits for twice this time. The pod has 10 s in
all, and `receive` writes the remaining pushes after the requests have ended."""
LINGER = 1.0
"""Seconds that a connection with an unread body stays open, so that the answer can arrive."""


class Connections:
    """The open connections. Closes an old connection if a new one exceeds a limit."""

    def __init__(self, most: int = MOST, most_per_peer: int = MOST_PER_PEER) -> None:
        self._most = most
        self._most_per_peer = most_per_peer
        self._open: dict[Connection, str] = {}
        """Address of the peer, by connection."""
        self._incomplete: dict[Connection, None] = {}
        """Connections whose request is incomplete; the oldest first."""
        self._of_peer: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: Connection, peer: str) -> None:
        self._open[connection] = peer
        self._incomplete[connection] = None
        self._of_peer[peer] += 1
        if self._of_peer[peer] > self._most_per_peer:
            self._close(next(each for each in self._incomplete if self._open[each] == peer))
        elif len(self._open) > self._most:
            self._close(next(iter(self._incomplete)))

    def complete(self, connection: Connection) -> None:
        """The request and its body have arrived: the connection is no longer closed for others."""
        self._incomplete.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        peer = self._open.pop(connection, None)
        self._incomplete.pop(connection, None)
        if peer is None:
            return
        self._of_peer[peer] -= 1
        if not self._of_peer[peer]:
            del self._of_peer[peer]

    def _close(self, connection: Connection) -> None:
        self.closed(connection)
        connection.abort()


class Connection(web.RequestHandler):
    """aiohttp's request handler with deadlines."""

    def __init__(self, server: web.Server, connections: Connections, **options: Any) -> None:
        super().__init__(server, **options)
        self._connections = connections
        self._timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_later(HEADER_SECONDS, self.abort),
            loop.call_later(SECONDS, self.abort),
        ]
        peer = transport.get_extra_info("peername")
        self._connections.opened(self, str(peer[0]) if peer else "")

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._connections.closed(self)
        super().connection_lost(exc)

    def has_headers(self) -> None:
        """The headers have arrived: stop their deadline."""
        self._timers[0].cancel()

    def complete(self) -> None:
        self._connections.complete(self)

    def abort(self) -> None:
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()


class _Site(web.BaseSite):
    """A port of a runner whose connections are `Connection`."""

    def __init__(self, runner: web.AppRunner, port: int, connections: Connections) -> None:
        super().__init__(runner)
        self._port = port
        self._connections = connections

    @property
    def name(self) -> str:
        return f"http://0.0.0.0:{self._port}"

    async def start(self) -> None:
        await super().start()
        loop = asyncio.get_running_loop()
        server = self._runner.server
        assert server is not None

        def connection() -> Connection:
            return Connection(
                server,
                self._connections,
                loop=loop,
                access_log=None,
                # Do not decompress bodies, because the signature is over the sent bytes, and
                # because a small body could decompress to a very large one.
                auto_decompress=False,
                read_bufsize=READ_BUFFER,
                lingering_time=LINGER,
            )

        self._server = await loop.create_server(connection, None, self._port)


async def serve(
    app: web.Application, port: int, connections: Connections | None = None
) -> web.AppRunner:
    """Listen on every address. Raises OSError when the port is taken."""
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    await _Site(runner, port, Connections() if connections is None else connections).start()
    return runner
