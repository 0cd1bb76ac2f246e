"""Rate limits for requests to a registry: concurrent requests, and pauses that it asks for."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from imagegate.registry.errors import Throttled

logger = logging.getLogger(__name__)

FIRST_PAUSE = 5.0
"""Seconds of the pause after a 429 that names no time; doubled with each further 429."""
LONGEST_PAUSE = 900.0
"""Longest pause in seconds. After it, one or a few requests are sent, even if the registry asked
for a longer pause."""

_NUMBER = re.compile(r"\s*(\d{1,9})")
_WINDOW = re.compile(r"w=(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Timing:
    """Clock and sleep, injected so that tests need not wait."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Lane:
    """The limits of one registry: its requests in flight, and its pauses.

    A request waits for a short pause. A pause of more than `longest_wait` seconds raises
    `Throttled` immediately, so that the caller can do other work. Docker Hub counts GETs of
    manifests, but no HEADs. So an exhausted rate limit (`ratelimit-remaining: 0`) delays only the
    requests that count.
    """

    def __init__(self, registry: str, *, slots: int, longest_wait: float, timing: Timing) -> None:
        self._registry = registry
        self._slots = asyncio.Semaphore(slots)
        self._longest_wait = longest_wait
        self._timing = timing
        self._resume = 0.0
        self._resume_counted = 0.0
        self._refused = 0

    @asynccontextmanager
    async def turn(self, *, counted: bool) -> AsyncIterator[None]:
        """A slot for one request. Raises `Throttled`."""
        async with self._slots:
            # A loop, because another request may lengthen the pause during the wait.
            while (pause := self.pause(counted=counted)) > 0:
                if pause > self._longest_wait:
                    raise Throttled(self._registry, "it asked for a pause", pause)
                await self._timing.sleep(pause)
            yield

    def pause(self, *, counted: bool) -> float:
        """Seconds until the next request may be sent; 0 or less: now."""
        resume = max(self._resume, self._resume_counted) if counted else self._resume
        return resume - self._timing.monotonic()

    def heed(self, status: int, headers: Mapping[str, str]) -> float | None:
        """Record the rate limit in an answer. Returns the pause in seconds if the registry refused
        the request because of its rate, else None.
        """
        now = self._timing.monotonic()
        exhausted = allowance_pause(headers)
        if exhausted is not None:
            self._resume_counted = max(self._resume_counted, now + min(exhausted, LONGEST_PAUSE))
        told = retry_after(headers, self._timing.wall())
        if status != 429 and (status != 503 or told is None):
            if status < 400:
                self._refused = 0
            return None
        if now >= self._resume:
            # Count the refusals of requests that were in flight together only once.
            self._refused += 1
        if told is None:
            told = FIRST_PAUSE * 2.0 ** min(self._refused - 1, 16)
        pause = min(told, LONGEST_PAUSE)
        self._resume = max(self._resume, now + pause)
        logger.warning(
            "registry throttles",
            extra={"registry": self._registry, "status": status, "seconds": round(pause, 1)},
        )
        return pause


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds from a `Retry-After` header, a number or a date (RFC 9110, 10.2.3), or None.

    A date is compared with the answer's own `Date`, if any, because the clocks may differ.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    until = _date(text)
    if until is None:
        return None
    now = _date(headers.get("Date", ""))
    return max(0.0, until - (wall if now is None else now))


def allowance_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds until the next counted request will probably be allowed; None while some are left.

    Docker Hub sends `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 0;w=21600`: a number
    of requests, and a sliding window in seconds. On average, a request becomes available every
    window / limit seconds. Other registries send `ratelimit-reset` of the draft standard, which is
    used as it is.
    """
    remaining = _NUMBER.match(headers.get("ratelimit-remaining", ""))
    if remaining is None or int(remaining[1]) > 0:
        return None
    reset = _NUMBER.match(headers.get("ratelimit-reset", ""))
    if reset is not None:
        return float(reset[1])
    limit = _NUMBER.match(headers.get("ratelimit-limit", ""))
    window = _WINDOW.search(headers.get("ratelimit-limit", ""))
    if limit is None or window is None:
        return FIRST_PAUSE
    return int(window[1]) / max(1, int(limit[1]))


def _date(text: str) -> float | None:
    if not text:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return (moment if moment.tzinfo is not None else _utc(moment)).timestamp()


def _utc(moment: datetime) -> datetime:
    """In HTTP, `-0000` means UTC, although Python parses it as a date without a time zone."""
    return moment.replace(tzinfo=UTC)
