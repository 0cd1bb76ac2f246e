"""Metrics for Prometheus. No label contains a node's name.

Gauges about nodes are computed from the ledger at scrape time, so that they are always correct, and
disappear with their prefetch. Counters of a deleted prefetch are removed (`Metrics.forget`).
``workqueue_*``, ``rest_client_*`` and ``leader_election_master_status`` have Kubernetes' own names,
so that existing dashboards work.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from imagegate.domain.actions import ReleaseReason

Observe = Callable[[float], None]

LONG = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600)
"""Seconds: from an image that the node already holds to 20 GB over a slow network."""
SHORT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
MOST_REGISTRIES = 100
"""Largest number of registries with series of their own. It is limited, because the authors of
ImagePrefetches choose the registries."""
OTHERS = "<other>"


class Metrics:
    """Counters and histograms that are updated as events happen; one instance per process."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        version: str,
        host: str = "",
        exists: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """``exists``: whether an ImagePrefetch of this name exists. A name that does not exist gets
        no series.
        """
        disable_created_metrics()
        self.registry = registry
        self._host = host
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._hold = Histogram(
            "imagegate_gate_hold_seconds",
            "Age of a node when its gate taint was removed.",
            buckets=LONG,
            registry=registry,
        )
        self._releases = Counter(
            "imagegate_gate_releases",
            "Gate taints removed, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in ReleaseReason:
            self._releases.labels(reason)
        self._cache = Histogram(
            "imagegate_node_cache_seconds",
            "Time from a joining node's Ready to its images being cached.",
            ["prefetch"],
            buckets=LONG,
            registry=registry,
        )
        self._pull = Histogram(
            "imagegate_image_pull_seconds",
            "Time the kubelet needed to pull one image, from its Pulled event.",
            ["prefetch"],
            buckets=LONG,
            registry=registry,
        )
        self._bytes = Counter(
            "imagegate_image_pull_bytes",
            "Bytes of pulled images, as the container runtime counts them.",
            ["prefetch"],
            registry=registry,
        )
        self._failures = Counter(
            "imagegate_pull_failures",
            "Failed attempts to pull, by class.",
            ["prefetch", "reason"],
            registry=registry,
        )
        self._reconcile = Histogram(
            "imagegate_reconcile_seconds",
            "Time of one reconciliation.",
            ["kind"],
            buckets=SHORT,
            registry=registry,
        )
        self._queue_wait = Histogram(
            "workqueue_queue_duration_seconds",
            "Time a key waits in the queue.",
            ["name"],
            buckets=SHORT,
            registry=registry,
        )
        self._queue_work = Histogram(
            "workqueue_work_duration_seconds",
            "Time the work on a key takes.",
            ["name"],
            buckets=SHORT,
            registry=registry,
        )
        self._pruned = Counter(
            "imagegate_resync_pruned",
            "Deleted objects that a resync found, because the watch had missed the deletion.",
            ["kind"],
            registry=registry,
        )
        self._registry_requests = Counter(
            "imagegate_registry_requests",
            "Requests to image registries.",
            ["registry", "code"],
            registry=registry,
        )
        self._pushes = Counter(
            "imagegate_push_events",
            "Pushes that registries reported, and deliveries without a push, by outcome.",
            ["source", "outcome"],
            registry=registry,
        )
        self._requests = Counter(
            "rest_client_requests",
            "Requests to the API server.",
            ["code", "method", "host"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Time of one request to the API server.",
            ["verb", "host"],
            buckets=SHORT,
            registry=registry,
        )
        self._registries: set[str] = set()
        self._allowed: dict[str, int] = {}
        self.version = version
        self._exists = exists

    def released(self, reason: ReleaseReason, *, held: float) -> None:
        self._releases.labels(reason).inc()
        self._hold.observe(max(0.0, held))

    def forget(self, prefetch: str) -> None:
        """Remove the series of a deleted ImagePrefetch. Otherwise their number would grow forever,
        for instance in a cluster with an ImagePrefetch for each pull request.
        """
        self._allowed.pop(prefetch, None)
        for metric in (self._cache, self._pull, self._bytes, self._failures):
            metric.remove_by_labels({"prefetch": prefetch})

    def cached(self, prefetch: str, seconds: float) -> None:
        if not self._exists(prefetch):
            return
        self._cache.labels(prefetch).observe(max(0.0, seconds))

    def pulled(self, prefetch: str, seconds: float, size: int | None) -> None:
        if self._exists(prefetch):
            self._pull.labels(prefetch).observe(seconds)
            if size is not None:
                self._bytes.labels(prefetch).inc(size)

    def pull_failed(self, prefetch: str, reason: str) -> None:
        if self._exists(prefetch):
            self._failures.labels(prefetch, reason).inc()

    def rollout_allowed(self, prefetch: str, nodes: int) -> None:
        self._allowed[prefetch] = nodes

    def pruned(self, kind: str, count: int) -> None:
        self._pruned.labels(kind).inc(count)

    def observe_registry_request(self, registry: str, code: str) -> None:
        if registry not in self._registries:
            if len(self._registries) >= MOST_REGISTRIES:
                registry = OTHERS
            self._registries.add(registry)
        self._registry_requests.labels(registry, code).inc()

    def push_event(self, source: str, outcome: str) -> None:
        self._pushes.labels(source, outcome).inc()

    def observe_request(self, method: str, code: str, seconds: float) -> None:
        self._requests.labels(code, method, self._host).inc()
        self._request_seconds.labels(method, self._host).observe(seconds)

    def queue_observers(self, name: str) -> tuple[Observe, Observe]:
        """The observers of a queue: for the wait of a key, and for the work on a key."""
        work, reconcile = self._queue_work.labels(name), self._reconcile.labels(name)

        def worked(seconds: float) -> None:
            work.observe(seconds)
            reconcile.observe(seconds)

        return self._queue_wait.labels(name).observe, worked

    @property
    def allowed(self) -> dict[str, int]:
        return self._allowed
