"""The parts of the operator's process that need no connection."""

from __future__ import annotations

import gc
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from imagegate.metrics import Metrics
from imagegate.runtime.clock import Clock
from imagegate.runtime.election import Leadership
from imagegate.runtime.queues import Queues
from imagegate.runtime.store import Store

COLLECTIONS = 50_000, 20, 100
"""Thresholds of Python's cyclic garbage collector: new objects for a collection of the youngest
generation, and how many collections of one generation make one of the next. The defaults (700, 10,
10) are a third of the CPU time of a start with 10,000 nodes, because each list makes millions of
objects. Nothing that comes by the thousand is in a cycle, so nearly all memory is freed without the
collector."""


def collect_less() -> None:
    """Run Python's garbage collector less often, in this whole process."""
    gc.set_threshold(*COLLECTIONS)


@dataclass(frozen=True, slots=True)
class Process:
    clock: Clock
    leadership: Leadership
    """Fences every write of the client."""
    store: Store
    metrics: Metrics
    queues: Queues

    @classmethod
    def create(cls, clock: Clock, *, version: str, host: str = "") -> Process:
        """``host``: label of the requests to the API server in the metrics."""
        store = Store(clock)
        metrics = Metrics(
            CollectorRegistry(),
            version=version,
            host=host,
            exists=lambda prefetch: prefetch in store.prefetches,
        )
        queues = Queues.create(metrics.queue_observers)
        return cls(clock, Leadership(clock), store, metrics, queues)
