"""All work queues of the operator, and how many workers each has.

The queues exist before the parts that add keys and the parts that work on them, so that every part
gets its queue at construction. `app` says which handler works on which queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from imagegate.runtime.queue import KeyedQueue, Observe

PASS_INTERVAL = 0.2
"""Seconds over which changes of one prefetch are gathered into one rollout pass."""
GATHER = 0.2
"""Seconds over which changes of prefetches are gathered into one decision about each node: a start
with hundreds of prefetches would decide hundreds of times about each node."""


@dataclass(frozen=True, slots=True)
class Queues:
    nodes: KeyedQueue
    prefetches: KeyedQueue
    disks: KeyedQueue
    """Nodes whose kubelet is asked for the disk usage."""
    forecasts: KeyedQueue
    """ImagePrefetches with ``dryRun``."""
    images: KeyedQueue
    """ImagePrefetches whose registries are asked."""
    start_after: KeyedQueue
    """Nodes that wait for a DaemonSet."""
    workloads: KeyedQueue
    """ImagePrefetches with ``imagesFrom`` whose workloads have changed."""
    repositories: KeyedQueue
    """Repositories whose tags are listed."""

    @classmethod
    def create(
        cls, observers: Callable[[str], tuple[Observe, Observe] | None] = lambda _: None
    ) -> Queues:
        """``observers``: by a queue's name, see `KeyedQueue`."""

        def queue(name: str, workers: int, urgent_workers: int = 0) -> KeyedQueue:
            return KeyedQueue(
                name,
                workers=workers,
                urgent_workers=urgent_workers,
                observers=observers(name),
            )

        return cls(
            # A worker waits for the API server most of the time. As many for joining nodes as for
            # the others, because hundreds of nodes may join in some seconds.
            nodes=queue("node", 32, urgent_workers=32),
            prefetches=queue("imageprefetch", 4),
            disks=queue("disk", 32, urgent_workers=8),
            forecasts=queue("forecast", 1),
            # First looks and pushes are urgent: a node or a rollout waits for them. The workers
            # only wait for registries; the registry client bounds how much they hold in memory.
            images=queue("image", 4, urgent_workers=16),
            start_after=queue("startafter", 4),
            workloads=queue("workloads", 1),
            # Pushes and new specs are urgent.
            repositories=queue("repository", 4, urgent_workers=8),
        )

    def __iter__(self) -> Iterator[KeyedQueue]:
        yield self.nodes
        yield self.prefetches
        yield self.disks
        yield self.forecasts
        yield self.images
        yield self.start_after
        yield self.workloads
        yield self.repositories

    def plan_passes(self, prefetches: Iterable[str]) -> None:
        """Something about these prefetches' nodes has changed: make a rollout pass soon."""
        for name in prefetches:
            self.prefetches.add(name, delay=PASS_INTERVAL)

    def plan_decisions(self, nodes: Iterable[str]) -> None:
        """A prefetch of these nodes has changed: decide about them soon."""
        for name in nodes:
            self.nodes.add(name, delay=GATHER)

    def kick(self) -> None:
        """The API server answers again: retry the keys that have failed without it."""
        for queue in self:
            queue.kick()
