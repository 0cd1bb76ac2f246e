"""The parts of the operator's process that need no connection."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from imagegate.metrics import Metrics
from imagegate.runtime.clock import Clock
from imagegate.runtime.election import Leadership
from imagegate.runtime.queues import Queues
from imagegate.runtime.store import Store


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
