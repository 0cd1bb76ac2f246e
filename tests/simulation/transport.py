"""Between an operator process and the API server: delays, losses, broken and late watches.

`Transport` replaces the ``ApiClient`` of the package ``kubernetes``, so that the operator's own
`Client` is simulated, too: its paging, its retries, its fence and its parsing of watches.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import aiohttp

from tests.simulation.apiserver import ApiServer, Change, Refused
from tests.simulation.loop import EPOCH, elapsed

BOOKMARKS = 60.0


@dataclass(slots=True)
class Network:
    """The current state of the network to the API server; `World.disturb` changes it."""

    rng: random.Random
    latency: float = 0.01
    """Seconds of one way, on average."""
    away: bool = False
    """Whether no request is answered."""
    failing: bool = False
    """Whether every request is answered with 503."""
    lost_answers: float = 0.0
    """Share of writes whose answer is lost after the write was done."""
    throttled: float = 0.0
    """Share of requests that are answered with 429."""
    retry_after: int = 1
    """The Retry-After of such an answer, in seconds."""
    leaseless: bool = False
    """Whether requests about the Lease are not answered."""
    slow_lists: float = 0.0
    """Seconds, on average, between the creation of a list and its arrival."""
    slow_patches: float = 0.0
    """Seconds that a patch of a Node waits for a webhook before it is done."""
    lag: dict[str, float] = field(default_factory=dict)
    """By resource, the average delay of its watches in seconds."""
    dead: set[str] = field(default_factory=set)
    """Resources whose watches report nothing any more, not even bookmarks."""
    breaks: int = 0
    """Counts up when every open watch breaks."""

    def one_way(self) -> float:
        return self.latency * self.rng.uniform(0.2, 1.8)


class Response:
    def __init__(
        self, status: int, payload: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self._payload = payload
        self._headers = {"Date": formatdate(int(EPOCH + elapsed()), usegmt=True), **(headers or {})}

    @property
    def response(self) -> Response:
        """Itself, as a client reads it. No attribute: a cycle keeps the payload until the garbage
        collector runs.
        """
        return self

    async def read(self) -> bytes:
        return self._payload

    def getheader(self, name: str) -> str | None:
        return self._headers.get(name)

    def close(self) -> None: ...


class Stream:
    """A watch as its client sees it: changes in order, delayed by the network."""

    def __init__(
        self,
        server: ApiServer,
        network: Network,
        actor: str,
        resource: str,
        namespace: str,
        query: Mapping[str, str],
    ) -> None:
        self._server, self._network, self._resource = server, network, resource
        self._news: asyncio.Queue[tuple[float, Change]] = asyncio.Queue()
        self._until = asyncio.get_running_loop().time() + float(query.get("timeoutSeconds", 300))
        self._breaks = network.breaks
        self._version = int(query.get("resourceVersion") or server.version)
        self._watch = server.watch(actor, resource, namespace, query, self._tell)

    def _tell(self, change: Change) -> None:
        lag = self._network.lag.get(self._resource, 0.0)
        delay = self._network.one_way() + (self._network.rng.expovariate(1 / lag) if lag else 0.0)
        self._news.put_nowait((asyncio.get_running_loop().time() + delay, change))

    def close(self) -> None:
        self._server.unwatch(self._watch)

    async def changes(self) -> AsyncIterator[Change | None]:
        """None is a bookmark. Ends normally at the server's timeout, and raises ClientError if the
        connection breaks.
        """
        loop, network = asyncio.get_running_loop(), self._network
        marked = loop.time()
        try:
            while True:
                wait = min(self._until, marked + BOOKMARKS) - loop.time()
                try:
                    # Changes that have arrived are reported in one turn of the loop, as by kopf.
                    due, change = (
                        self._news.get_nowait()
                        if not self._news.empty()
                        else await asyncio.wait_for(self._news.get(), max(0.01, wait))
                    )
                except TimeoutError:
                    if network.breaks != self._breaks or network.away:
                        raise aiohttp.ClientPayloadError("the connection broke") from None
                    if loop.time() >= self._until:
                        return
                    marked = loop.time()
                    if self._resource not in network.dead:
                        yield None
                    continue
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                if network.breaks != self._breaks:
                    raise aiohttp.ClientPayloadError("the connection broke")
                if self._resource in network.dead:
                    continue
                self._version = change.version
                yield change
        finally:
            self.close()


class Lines:
    """The body of a watch's answer, as aiohttp gives it."""

    status = 200

    def __init__(self, stream: Stream, server: ApiServer) -> None:
        self._stream, self._server = stream, server
        self.response: Any = self

    @property
    def content(self) -> AsyncIterator[bytes]:
        return self._lines()

    async def _lines(self) -> AsyncIterator[bytes]:
        async for change in self._stream.changes():
            if change is None:
                mark = {"metadata": {"resourceVersion": str(self._server.version)}}
                yield json.dumps({"type": "BOOKMARK", "object": mark}).encode() + b"\n"
            else:
                head = b'{"type":"' + change.type.encode() + b'","object":'
                yield head + change.stored.bytes() + b"}\n"

    def close(self) -> None:
        self._stream.close()


class Transport:
    """The connection of one process to the API server."""

    def __init__(self, server: ApiServer, network: Network, actor: str) -> None:
        self._server, self._network, self._actor = server, network, actor
        self.user_agent = ""
        self.frozen: Callable[[], float] = lambda: 0.0
        """Seconds for which the process is still stopped (SIGSTOP), and receives nothing."""

    async def param_serialize(
        self,
        method: str,
        path: str,
        *,
        query_params: list[tuple[str, str]],
        header_params: Mapping[str, str],
        body: Any,
        auth_settings: list[str],
    ) -> tuple[Any, ...]:
        return method, path, dict(query_params), header_params["Content-Type"], body

    async def call_api(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        content_type: str,
        body: Any,
        _request_timeout: aiohttp.ClientTimeout,
    ) -> Any:
        resource, key, subresource = parse(path)
        network = self._network
        try:
            await asyncio.sleep(network.one_way() + self.frozen())
        except asyncio.CancelledError:
            # Killed with a request on the wire: it may still arrive.
            if method != "GET" and not network.away and network.rng.random() < 0.5:
                self._answer(method, resource, key, subresource, content_type, body, query)
            raise
        if network.away:
            await asyncio.sleep(network.rng.uniform(0.0, 5.0))
            raise aiohttp.ClientConnectionError("nobody answers")
        if network.leaseless and resource == "leases":
            raise aiohttp.ClientConnectionError("nobody answers")
        if network.failing:
            return Response(503, b'{"message": "the server is starting"}')
        if resource != "leases" and network.rng.random() < network.throttled:
            after = {"Retry-After": str(network.retry_after)}
            return Response(429, b'{"message": "too many requests"}', after)
        if query.get("watch"):
            return self._watch(resource, key[0], query)
        if method == "PATCH" and resource == "nodes" and network.slow_patches:
            await asyncio.sleep(network.slow_patches)
        answer = self._answer(method, resource, key, subresource, content_type, body, query)
        back = network.one_way()
        if method == "GET" and not key[1] and network.slow_lists:
            back += network.rng.expovariate(1 / network.slow_lists)
        await asyncio.sleep(min(back, 29.0) + self.frozen())
        if method != "GET" and network.rng.random() < network.lost_answers:
            raise aiohttp.ServerDisconnectedError
        return answer

    def _watch(self, resource: str, namespace: str, query: dict[str, str]) -> Any:
        try:
            stream = Stream(self._server, self._network, self._actor, resource, namespace, query)
        except Refused as refused:
            return Response(refused.status, refused.payload)
        return Lines(stream, self._server)

    def _answer(
        self,
        method: str,
        resource: str,
        key: tuple[str, str],
        subresource: str,
        content_type: str,
        body: Any,
        query: dict[str, str],
    ) -> Response:
        server = self._server
        try:
            if method == "GET" and not key[1]:
                page, version, more = server.listed(self._actor, resource, key[0], query)
                metadata = json.dumps({"resourceVersion": version, "continue": more}).encode()
                items = b",".join(stored.bytes() for stored in page)
                return Response(200, b'{"metadata":' + metadata + b',"items":[' + items + b"]}")
            answer = server.handle(
                self._actor,
                method,
                resource,
                key,
                sent=json.loads(json.dumps(body)) if body is not None else None,
                subresource=subresource,
                content_type=content_type,
                query=query,
            )
        except Refused as refused:
            headers = {"Retry-After": str(refused.retry)} if refused.retry else {}
            return Response(refused.status, refused.payload, headers)
        return Response(200, json.dumps(answer).encode())


def parse(path: str) -> tuple[str, tuple[str, str], str]:
    """Resource, (namespace, name) and subresource of a path of the API."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    return rest[0], (namespace, name), rest[2] if len(rest) > 2 else ""
