"""Objects that must be deleted with their prefetch, or after its namespace changes."""

from __future__ import annotations

import math

from tests.simulation.apiserver import Body
from tests.simulation.asks import LABEL, PREFETCH, Ask
from tests.simulation.judge.bodies import finished, ready
from tests.simulation.judge.bounds import DELETED, NAMESPACES, PROGRESS
from tests.simulation.judge.clocks import Clocks
from tests.simulation.judge.record import Record
from tests.simulation.loop import elapsed


class LeftoverRules:
    def __init__(self, record: Record, clocks: Clocks) -> None:
        self._record = record
        self._clocks = clocks
        self._refused_at = -math.inf
        """When a change of a Node or a deletion of a pod was last refused."""

    def look(self, nodes: list[Body]) -> None:
        self._misplaced(nodes)
        self._deletions()
        self._labels(nodes)

    def _misplaced(self, nodes: list[Body]) -> None:
        """Puller pods in a namespace that their prefetch used before an edit."""
        record = self._record
        alive = {m.name for n in nodes if (m := record.machine(n)) and m.alive and ready(n)}
        for pod in record.truth.server.all("pods"):
            ask = record.asks.get((pod["metadata"].get("labels") or {}).get(PREFETCH, ""))
            if ask is None or ask.namespace not in NAMESPACES:
                continue
            other = pod["metadata"]["namespace"] != ask.namespace and finished(pod)
            other = other and pod["spec"]["nodeName"] in alive and record.allowed(ask)
            other = other and not ask.paused and not self._cannot_pull(pod, ask)
            node = record.truth.server.get("nodes", pod["spec"]["nodeName"]) or {"metadata": {}}
            labels = node["metadata"].get("labels") or {}
            # Until the rollout reaches the node, the pod pins the images of the earlier spec.
            other = other and labels.get(LABEL + ask.name) == ask.target
            subject = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            seconds = min(
                self._clocks.seconds("misplaced", subject, other),
                elapsed() - record.truth.disturbed,
            )
            record.applied["misplaced"] += 1
            if min(seconds, record.asked_for(ask.name)) > PROGRESS + record.truth.lag:
                record.blame(
                    "leftover", subject, f"{ask.name} uses the namespace {ask.namespace} now"
                )

    def _cannot_pull(self, pod: Body, ask: Ask) -> bool:
        machine = self._record.truth.machines.get(pod["spec"]["nodeName"])
        return machine is None or machine.stalled or self._record.hopeless(machine, ask)

    def _deletions(self) -> None:
        record = self._record
        for body in record.truth.server.all("imageprefetches"):
            name = body["metadata"]["name"]
            deleted = "deletionTimestamp" in body["metadata"]
            last = (body["metadata"].get("finalizers") or []) == ["imagegate.dev/cleanup"]
            seconds = self._clocks.seconds("deletion", name, deleted and last)
            record.applied["deletion"] += 1
            seconds = min(seconds, elapsed() - record.truth.disturbed)
            refused = bool(record.refused_nodes()) or record.out_of_reach(name)
            if refused:
                self._refused_at = elapsed()
            # A request that was refused a moment ago is retried after a longer back-off.
            bound = DELETED if elapsed() - self._refused_at > DELETED else 900.0
            if seconds > bound + record.slack():
                record.blame(
                    "deletion", name, f"its finalizer is not removed after {seconds:.0f} s"
                )

    def _labels(self, nodes: list[Body]) -> None:
        """Labels of deleted prefetches."""
        record = self._record
        names = {b["metadata"]["name"] for b in record.truth.server.all("imageprefetches")}
        for node in nodes:
            machine = record.machine(node)
            if node["metadata"]["name"] in record.refused_nodes():
                continue
            for label in node["metadata"].get("labels") or {}:
                if label.startswith(LABEL):
                    gone = label.removeprefix(LABEL) not in names
                    subject = f"{node['metadata']['name']} {label}"
                    seconds = min(
                        self._clocks.seconds("label", subject, gone),
                        elapsed() - record.truth.disturbed,
                    )
                    if (
                        seconds > 120 + record.slack()
                        and machine is not None
                        and not (record.refused_nodes())
                    ):
                        record.blame(
                            "leftover", subject, f"its prefetch was deleted {seconds:.0f} s ago"
                        )
