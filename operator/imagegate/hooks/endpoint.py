"""``POST /hooks/<path>``: where registries deliver. On a port of its own, made for the internet.

Every replica listens, but only the leader may ask registries: a standby hands on what it gets, as
it is, and the leader verifies it. Whatever is not found or not verified gets one and the same 404.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import aiohttp
from aiohttp import web

from imagegate.hooks.directory import Directory
from imagegate.hooks.event import Answer, Delivery, Receiver
from imagegate.hooks.receiver import NOT_FOUND, Observe, Outcome, PushReceiver

logger = logging.getLogger(__name__)

PREFIX = "/hooks/"
MAX_BODY = 1 << 20
BODY_SECONDS = 10.0
FORWARD_SECONDS = 5.0
AT_ONCE = 32
"""Requests; each may hold a body in memory."""
FORWARDED = "X-Imagegate-Forwarded"
_METHODS = ("POST", "OPTIONS")
_HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "expect", "host", "content-length"),
        *("date", "server"),
    )
)

TOO_LARGE = Answer(413)
UNAVAILABLE = Answer(503, headers={"Retry-After": "5"})


class Endpoint:
    """``leading``: whether this process may ask. ``leader``: ``host:port`` of the one that may, or
    empty where nobody knows.
    """

    def __init__(
        self,
        directory: Directory,
        receiver: PushReceiver,
        *,
        leading: Callable[[], bool],
        leader: Callable[[], str],
        session: aiohttp.ClientSession,
        observe: Observe,
    ) -> None:
        self._directory = directory
        self._receiver = receiver
        self._leading = leading
        self._leader = leader
        self._session = session
        self._observe = observe
        self._busy = 0

    def app(self) -> web.Application:
        async def handle(request: web.Request) -> web.Response:
            answer = await self._answer(request)
            return web.Response(
                status=answer.status, body=answer.body, headers=dict(answer.headers)
            )

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        return app

    async def _answer(self, request: web.Request) -> Answer:
        path = request.path
        receiver = self._directory.find(path.removeprefix(PREFIX))
        if receiver is None or not path.startswith(PREFIX) or request.method not in _METHODS:
            return NOT_FOUND
        if self._busy >= AT_ONCE:
            self._observe(receiver.source, Outcome.UNAVAILABLE)
            return UNAVAILABLE
        self._busy += 1
        try:
            body = await _body(request)
            if body is None:
                self._observe(receiver.source, Outcome.MALFORMED)
                return TOO_LARGE
            if self._leading():
                headers = {name.lower(): value for name, value in request.headers.items()}
                return await self._receiver.receive(
                    receiver, Delivery(headers, body, request.method)
                )
            return await self._forward(receiver, request, body)
        except (TimeoutError, ConnectionError, aiohttp.ClientError, web.HTTPException):
            return NOT_FOUND  # The body did not come. Most likely nobody reads this.
        except Exception:
            # A defect of ours, which is no business of the sender's: never a 500.
            logger.exception("delivery failed", extra={"receiver": receiver.name})
            return NOT_FOUND
        finally:
            self._busy -= 1

    async def _forward(self, receiver: Receiver, request: web.Request, body: bytes) -> Answer:
        """To the leader, but never on from there: after a change both may take the other for it."""
        address = "" if FORWARDED in request.headers else self._leader()
        if not address:
            self._observe(receiver.source, Outcome.UNAVAILABLE)
            return UNAVAILABLE
        headers = [*_passed(request.headers), (FORWARDED, "1")]
        try:
            async with self._session.request(
                request.method,
                f"http://{address}{request.path}",
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=FORWARD_SECONDS),
            ) as response:
                said = await response.content.read(MAX_BODY)
                answer = Answer(response.status, said, dict(_passed(response.headers)))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger.warning("delivery not forwarded", extra={"error": type(error).__name__})
            self._observe(receiver.source, Outcome.UNAVAILABLE)
            return UNAVAILABLE
        self._observe(receiver.source, Outcome.FORWARDED)
        return answer


def _passed(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """What goes from hand to hand, and can be written as it was read."""
    return [
        (name, value)
        for name, value in headers.items()
        if name.lower() not in _HOP_BY_HOP and value.isprintable()
    ]


async def _body(request: web.Request) -> bytes | None:
    """None when it is too large. Raises TimeoutError when it is too slow."""
    if (request.content_length or 0) > MAX_BODY:
        return None
    body = bytearray()
    async with asyncio.timeout(BODY_SECONDS):
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY:
                return None
    return bytes(body)
