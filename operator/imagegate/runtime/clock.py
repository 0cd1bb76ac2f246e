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
"""Number of answers whose median is used, so that the wrong clock of one of several API servers has
no effect, and the time does not jump back and forth."""
SLOW = 2.0
"""An answer that takes longer (seconds) is ignored, because the time of its writing is unknown."""


@dataclass(frozen=True, slots=True)
class Clock:
    now: Callable[[], float] = time.time
    """Seconds since the epoch, to compare with the cluster's timestamps."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds that never jump, to measure durations."""


class ServerTime:
    """The time by the API server's clock, even if the clock of the operator's node is wrong.

    Nodes' creation times are by the API server's clock. An operator whose clock is fast would
    release every joining node by its timeout immediately. With a slow clock, its heartbeat would be
    too old for the admission policy to taint any node.
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
        """Use the Date header of an answer; ``sent``: monotonic time of its request."""
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
                "the clock of the operator's node differs from the API server's clock, which is"
                " used instead"
                if self._corrected
                else "the clock of the operator's node agrees with the API server's clock again",
                extra={"seconds": round(difference, 1)},
            )

    def now(self) -> float:
        """Seconds since the epoch: by the node's clock before the first answer, and while it agrees
        with the API server's clock; otherwise by the API server's clock.
        """
        own = self._wall()
        if self._base is None:
            return own
        server = self._monotonic() + self._base
        return own if abs(own - server) <= TOLERANCE else server
