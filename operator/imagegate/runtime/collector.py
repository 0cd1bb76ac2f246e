"""Metrics that are computed at each scrape. They are not stored, so they cannot become stale."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from imagegate.domain.facts import NodeState
from imagegate.metrics import Metrics
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.queues import Queues


@dataclass(frozen=True, slots=True)
class Leader:
    """What a process knows of its own leadership, and what only the leader knows."""

    lease: str
    leading: Callable[[], bool]
    problem: Callable[[], str | None]
    """What this leader does not see, see `Health.problem`."""
    armed: Callable[[], bool | None]
    """Whether joining nodes are held; None: they are not meant to be, so there is no series."""
    oldest_hold: Callable[[], float]
    """For how many seconds the node that is held longest has been Ready; 0.0: no node is held."""


class StateCollector(Collector):
    """Computes the metrics of nodes, work queues and leadership."""

    def __init__(
        self,
        metrics: Metrics,
        ledger: Ledger,
        queues: Queues,
        leader: Leader,
    ) -> None:
        self._metrics = metrics
        self._ledger = ledger
        self._queues = queues
        self._leader = leader

    def collect(self) -> Iterable[Metric]:
        yield from self._nodes()
        yield from self._work()
        leader = GaugeMetricFamily(
            "leader_election_master_status",
            "1 where this process leads.",
            labels=["name"],
        )
        leader.add_metric([self._leader.lease], float(self._leader.leading()))
        yield leader
        if self._leader.leading():
            yield from self._view()
        info = GaugeMetricFamily("imagegate_build_info", "Always 1.", labels=["version", "python"])
        info.add_metric([self._metrics.version, platform.python_version()], 1)
        yield info

    def _view(self) -> Iterable[Metric]:
        """What only the leader can know, because only the leader lists and watches."""
        stale = GaugeMetricFamily(
            "imagegate_watch_stale", "1 if the leader's watches or resyncs have stopped."
        )
        stale.add_metric([], float(self._leader.problem() is not None))
        yield stale
        if (armed := self._leader.armed()) is not None:
            gauge = GaugeMetricFamily(
                "imagegate_gate_armed", "0 if joining nodes are not held although they should be."
            )
            gauge.add_metric([], float(armed))
            yield gauge
        hold = GaugeMetricFamily(
            "imagegate_gate_oldest_hold_seconds",
            "How long the node that is held longest has been Ready.",
        )
        hold.add_metric([], self._leader.oldest_hold())
        yield hold

    def _nodes(self) -> Iterable[Metric]:
        nodes = GaugeMetricFamily(
            "imagegate_nodes",
            "Nodes by where they stand with an ImagePrefetch.",
            labels=["prefetch", "state"],
        )
        allowed = GaugeMetricFamily(
            "imagegate_rollout_allowed",
            "Nodes in service that may pull at once.",
            labels=["prefetch"],
        )
        stopped = GaugeMetricFamily(
            "imagegate_rollout_stopped",
            "Topology domains whose first nodes have failed, so that no other node pulls there.",
            labels=["prefetch"],
        )
        for name, entry in self._ledger.entries.items():
            for state in NodeState:
                nodes.add_metric([name, state], entry.counts[state])
            allowed.add_metric([name], self._metrics.allowed.get(name, 0))
            stopped.add_metric([name], len(entry.stopped))
        gated = GaugeMetricFamily("imagegate_gated_nodes", "Nodes held by the gate taint.")
        gated.add_metric([], len(self._ledger.holding))
        yield from (nodes, allowed, stopped, gated)

    def _work(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily("workqueue_depth", "Keys waiting.", labels=["name"])
        adds = CounterMetricFamily("workqueue_adds", "Keys added.", labels=["name"])
        retries = CounterMetricFamily("workqueue_retries", "Keys retried.", labels=["name"])
        for queue in self._queues:
            depth.add_metric([queue.name], len(queue))
            adds.add_metric([queue.name], queue.adds)
            retries.add_metric([queue.name], queue.retries)
        yield from (depth, adds, retries)
