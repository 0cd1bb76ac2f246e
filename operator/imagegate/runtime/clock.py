"""The time, injected so that tests need not wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    now: Callable[[], float] = time.time
    """Seconds since the epoch: what is compared with the cluster's timestamps."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds that never jump: what durations are measured with."""
