"""``POST /hooks/<path>``: receives the deliveries of registries, on a port of its own that may be
reachable from the internet.

Unknown paths and failed verifications get the same 404, so that a sender cannot tell them apart.
Memory for bodies and concurrent verifications are limited per receiver, so that no sender can block
the other receivers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import aiohttp
from aiohttp import web

from imagegate.errors import ImagegateError
from imagegate.hooks.connections import Connection
from imagegate.hooks.directory import Directory
from imagegate.hooks.event import Answer, Delivery, Receiver, Source
from imagegate.hooks.receiver import NOT_FOUND, UNAVAILABLE, Observe, Outcome, PushReceiver

logger = logging.getLogger(__name__)

PREFIX = "/hooks/"
BODY_SECONDS = 10.0
MOST_BYTES = 16 << 20
"""Memory for the bodies of all receivers."""
MOST_BYTES_OF_RECEIVER = 4 << 20
AT_ONCE = 32
"""Deliveries that are verified concurrently."""
AT_ONCE_OF_RECEIVER = 8
_METHODS = ("POST", "OPTIONS")

TOO_LARGE = Answer(413)


class NoRoom(ImagegateError):
    """A limit is reached."""


class Room:
    """A limit for all receivers together, and a limit for each receiver. Amounts that were taken
    must be given back.
    """

    def __init__(self, most: int, most_of_receiver: int) -> None:
        self._most = most
        self._most_of_receiver = most_of_receiver
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._taken.total()

    def take(self, receiver: str, amount: int) -> None:
        """Raises NoRoom."""
        if (
            self.taken + amount > self._most
            or self._taken[receiver] + amount > self._most_of_receiver
        ):
            raise NoRoom(f"no room for another delivery to {receiver}")
        self._taken[receiver] += amount

    def give_back(self, receiver: str, amount: int) -> None:
        self._taken[receiver] -= amount
        if self._taken[receiver] <= 0:
            del self._taken[receiver]

    @contextmanager
    def place(self, receiver: str) -> Iterator[None]:
        """Raises NoRoom."""
        self.take(receiver, 1)
        try:
            yield
        finally:
            self.give_back(receiver, 1)


class Endpoint:
    def __init__(
        self,
        directory: Directory,
        receiver: PushReceiver,
        sources: Mapping[str, Source],
        observe: Observe,
    ) -> None:
        self._directory = directory
        self._receiver = receiver
        self._sources = sources
        self._observe = observe
        self._memory = Room(MOST_BYTES, MOST_BYTES_OF_RECEIVER)
        self._places = Room(AT_ONCE, AT_ONCE_OF_RECEIVER)

    def app(self) -> web.Application:
        async def handle(request: web.Request) -> web.Response:
            answer = await self._answer(request)
            response = web.Response(
                status=answer.status, body=answer.body, headers=dict(answer.headers)
            )
            response.force_close()
            return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        return app

    async def _answer(self, request: web.Request) -> Answer:
        connection = request.protocol
        if isinstance(connection, Connection):
            connection.has_headers()
        path = request.path
        receiver = self._directory.find(path.removeprefix(PREFIX))
        if receiver is None or not path.startswith(PREFIX) or request.method not in _METHODS:
            return NOT_FOUND
        body = bytearray()
        try:
            if not await self._read(request, receiver, body):
                self._observe(receiver.source, Outcome.MALFORMED)
                return TOO_LARGE
            if isinstance(connection, Connection):
                connection.complete()
            headers = {name.lower(): value for name, value in request.headers.items()}
            # Take the slot after the body has arrived, so that slow senders do not occupy slots.
            with self._places.place(receiver.name):
                return await self._receiver.receive(
                    receiver, Delivery(headers, bytes(body), request.method)
                )
        except NoRoom:
            self._observe(receiver.source, Outcome.UNAVAILABLE)
            return UNAVAILABLE
        except (TimeoutError, ConnectionError, aiohttp.ClientError, web.HTTPException):
            return NOT_FOUND  # The body did not arrive. Usually the sender has disconnected.
        except Exception:
            # Never answer 500, because an internal error must not be visible to the sender.
            logger.exception("delivery failed", extra={"receiver": receiver.name})
            return NOT_FOUND
        finally:
            self._memory.give_back(receiver.name, len(body))

    async def _read(self, request: web.Request, receiver: Receiver, body: bytearray) -> bool:
        """Read the body into ``body``; False if it is too large. The length of ``body`` counts
        against the memory limit.

        Raises TimeoutError if the sender is too slow, NoRoom if the memory limit is reached.
        """
        most = self._sources[receiver.source].max_body
        if (request.content_length or 0) > most:
            return False
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                if len(body) + len(chunk) > most:
                    return False
                self._memory.take(receiver.name, len(chunk))
                body += chunk
        return True
