"""The way of a delivery: it is verified, parsed, checked for duplicates, and handed to the leader.

A delivery never decides which image is pulled. It only causes a request to the registry, which
would be made later anyway. So a wrong delivery does no harm and needs no special answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from imagegate.api import references
from imagegate.errors import ImagegateError
from imagegate.hooks.directory import Directory
from imagegate.hooks.event import (
    Answer,
    Delivery,
    Fetch,
    Malformed,
    Parsed,
    Push,
    Receiver,
    Source,
    Told,
)
from imagegate.hooks.limits import Bucket, Seen

logger = logging.getLogger(__name__)

RATE, BURST = 20.0, 200.0
"""Deliveries per second for one receiver. A registry may report every blob."""
REMEMBERED = 600.0
"""Seconds for which a repeated delivery is recognised; senders try again within minutes."""
MOST_REMEMBERED = 4096
MOST_PUSHES = 100
"""Pushes of one delivery."""
RELOAD = 5.0
"""Seconds between two reads of the file of receivers."""
_LOG_EVERY = 10.0
_DOCKER_HUB = {"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}


class Outcome(StrEnum):
    """Result of a push, or of a delivery without a push; a label of the metric."""

    ASKED = "asked"
    DEBOUNCED = "debounced"
    UNMATCHED = "unmatched"
    IGNORED = "ignored"
    DUPLICATE = "duplicate"
    MALFORMED = "malformed"
    UNVERIFIED = "unverified"
    LIMITED = "limited"
    FORWARDED = "forwarded"
    UNAVAILABLE = "unavailable"


ACCEPTED = Answer(202)
NOT_FOUND = Answer(404, b"not found\n")
TOO_MANY = Answer(429, headers={"Retry-After": "1"})

UNAVAILABLE = Answer(503, headers={"Retry-After": "5"})

HandOver = Callable[[Sequence[Told]], bool]
"""Queues pushes for the leader; False if the queue is full."""
Observe = Callable[[str, str], None]
"""Counts an outcome: (source, outcome)."""


class PushReceiver:
    def __init__(
        self,
        directory: Directory,
        sources: Mapping[str, Source],
        *,
        hand_over: HandOver,
        fetch: Fetch,
        observe: Observe,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._sources = sources
        self._hand_over = hand_over
        self._fetch = fetch
        self._observe = observe
        self._clock = clock
        self._seen = Seen(REMEMBERED, MOST_REMEMBERED)
        self._buckets: dict[str, Bucket] = {}
        self._logged: dict[str, float] = {}
        self._visits: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Read the file of receivers periodically."""
        while True:
            await asyncio.to_thread(self._directory.reload)
            for of_receivers in (self._buckets, self._logged):
                for gone in of_receivers.keys() - self._directory.names:
                    del of_receivers[gone]
            await asyncio.sleep(RELOAD)

    async def receive(self, receiver: Receiver, delivery: Delivery) -> Answer:
        """Waits only for the verification, which may have to fetch keys."""
        source = self._sources[receiver.source]
        now = self._clock()
        try:
            await source.verify(delivery, receiver, self._fetch)
        except ImagegateError as error:
            self._refused(receiver, Outcome.UNVERIFIED, error, now)
            return NOT_FOUND
        # Apply the rate limit after the verification, so that a sender that knows only the path
        # cannot use up the registry's rate.
        if not self._buckets.setdefault(receiver.name, Bucket(RATE, BURST)).take(now):
            self._observe(receiver.source, Outcome.LIMITED)
            return TOO_MANY
        try:
            parsed = source.parse(delivery, receiver)
        except Malformed as error:
            self._refused(receiver, Outcome.MALFORMED, error, now)
            # Accept it, because Docker Distribution would repeat it forever, and would delay all
            # later events (`hooks.distribution`).
            return ACCEPTED if delivery.method == "POST" else NOT_FOUND
        if delivery.method != "POST" and parsed.answer is None:
            return NOT_FOUND
        if parsed.visit:
            self._visit(receiver, parsed.visit)
        answer = self._heed(receiver, parsed, now)
        return parsed.answer or answer

    def _heed(self, receiver: Receiver, parsed: Parsed, now: float) -> Answer:
        if parsed.pushes and parsed.id and self._seen.again(receiver.name, parsed.id, now):
            self._observe(receiver.source, Outcome.DUPLICATE)
            return ACCEPTED
        told = parsed.pushes[:MOST_PUSHES]
        pushes = list(dict.fromkeys(filter(None, (_normal(push, receiver) for push in told))))
        if not pushes:
            self._observe(receiver.source, Outcome.IGNORED)
            return ACCEPTED
        if not self._hand_over([Told(push, receiver.name, receiver.source) for push in pushes]):
            self._seen.forget(receiver.name, parsed.id)
            self._observe(receiver.source, Outcome.UNAVAILABLE)
            return UNAVAILABLE
        for _ in pushes:
            self._observe(receiver.source, Outcome.FORWARDED)
        return ACCEPTED

    def _refused(
        self, receiver: Receiver, outcome: Outcome, error: ImagegateError, now: float
    ) -> None:
        self._observe(receiver.source, outcome)
        if now - self._logged.get(receiver.name, float("-inf")) >= _LOG_EVERY:
            self._logged[receiver.name] = now
            logger.warning(
                "delivery refused",
                extra={"receiver": receiver.name, "outcome": outcome, "error": str(error)},
            )

    def _visit(self, receiver: Receiver, url: str) -> None:
        async def visit() -> None:
            try:
                await self._fetch(url)
            except ImagegateError as error:
                logger.warning(
                    "subscription not confirmed",
                    extra={"receiver": receiver.name, "error": str(error)},
                )
            else:
                logger.info("subscription confirmed", extra={"receiver": receiver.name})

        task = asyncio.create_task(visit(), name="confirm subscription")
        self._visits.add(task)
        task.add_done_callback(self._visits.discard)


def _normal(push: Push, receiver: Receiver) -> Push | None:
    """The push with the names of image references; None if they are not a valid reference."""
    host, slash, above = receiver.registry.partition("/")
    registry = host or push.registry
    if registry in _DOCKER_HUB:
        registry = references.DEFAULT_DOMAIN
    tag = f":{push.tag}" if push.tag else ""
    try:
        image = references.parse(f"{registry}/{above}{slash}{push.repository}{tag}")
    except references.InvalidReference:
        return None
    if image.domain != registry or image.digest is not None or (image.tag or "") != push.tag:
        return None  # One field contains a separator, so the parts were split differently.
    return replace(push, registry=image.domain, repository=image.path)
