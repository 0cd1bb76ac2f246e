"""The time, injected so that tests need not wait for it."""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

logger = logging.getLogger(__name__)

TOLERANCE = 2.0
"""Seconds of difference to the API server's clock that are ignored: its Date header has whole
seconds, and an answer takes some time."""
SAMPLES = 9
"""Answers of which the median counts: one API server of several whose clock is wrong is outvoted,
and the time does not jump to and fro between them."""
SLOW = 2.0
"""Seconds after which an answer says too little about the time at which it was written."""


@dataclass(frozen=True, slots=True)
class Clock:
    now: Callable[[], float] = time.time
    """Seconds since the epoch: what is compared with the cluster's timestamps."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds that never jump: what durations are measured with."""


class ServerTime:
    """The time by the API server's clock, whatever the clock of the operator's own node says.

    Nodes' creation times are by the API server's clock. An operator whose clock is ahead would
    release every joining node by its timeout at once; with a clock behind, its heartbeat would
    be too old for the admission policy to taint anything.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._base: float | None = None
        """The API server's time less the monotonic time."""
        self._corrected = False

    def heard(self, date: str | None, sent: float) -> None:
        """Take in the Date header of an answer to a request of the monotonic time ``sent``."""
        received = self._monotonic()
        if date is None or received - sent > SLOW:
            return
        try:
            written = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        # Half a second: the header cuts off the fraction.
        self._samples.append(written + 0.5 - (sent + received) / 2)
        self._base = statistics.median(self._samples)
        difference = self._wall() - (received + self._base)
        if (abs(difference) > TOLERANCE) is not self._corrected:
            self._corrected = not self._corrected
            logger.warning(
                "the clock of the operator's node differs from the API server's; the API server's"
                " counts"
                if self._corrected
                else "the clock of the operator's node is right again",
                extra={"seconds": round(difference, 1)},
            )

    def now(self) -> float:
        """Seconds since the epoch. The own clock while nothing was heard, or as long as it agrees
        with the API server's.
        """
        own = self._wall()
        if self._base is None:
            return own
        server = self._monotonic() + self._base
        return own if abs(own - server) <= TOLERANCE else server
