"""How fast a registry may be asked: so many requests at once, and none before it said so."""

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
"""Seconds after a 429 that names no time; doubled with each further one."""
LONGEST_PAUSE = 900.0
"""Seconds: whatever a registry says, it is asked again after this, by one request or a few."""

_NUMBER = re.compile(r"\s*(\d{1,9})")
_WINDOW = re.compile(r"w=(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Timing:
    """The time, injected so that tests need not wait for it."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Lane:
    """The way to one registry: its requests in flight, and its pauses.

    A short pause is waited for; one of more than `longest_wait` seconds raises `Throttled` at once,
    for the caller has something better to do than to wait. Docker Hub counts GETs of manifests and
    no HEADs, so an allowance that is used up (`ratelimit-remaining: 0`) holds only what is counted.
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
        """Room for one request. Raises `Throttled`."""
        async with self._slots:
            # Another request may lengthen the pause while this one waits: hence a loop.
            while (pause := self.pause(counted=counted)) > 0:
                if pause > self._longest_wait:
                    raise Throttled(self._registry, "it asked for a pause", pause)
                await self._timing.sleep(pause)
            yield

    def pause(self, *, counted: bool) -> float:
        """Seconds until the next request may go; 0 or less: now."""
        resume = max(self._resume, self._resume_counted) if counted else self._resume
        return resume - self._timing.monotonic()

    def heed(self, status: int, headers: Mapping[str, str]) -> float | None:
        """Learn from an answer. Seconds of the pause if it refused for its rate, else None."""
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
            # Requests that were in flight together are refused together: that counts once.
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

    A date is compared with the answer's own `Date` where it has one: its clock may not be ours.
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
    """Seconds until one more counted request is likely to be granted; None while some are left.

    Docker Hub sends `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 0;w=21600`: requests
    and a window in seconds, which slides. So the next one comes back within window / limit seconds
    on average. Others send the draft standard's `ratelimit-reset`, which is taken as it is.
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
    """`-0000`, which is no time zone, is UTC all the same in HTTP."""
    return moment.replace(tzinfo=UTC)
