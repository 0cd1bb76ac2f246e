"""What must be deleted with its prefetch, or after it has moved."""

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
        """When changes of a Node or pod were refused last."""

    def look(self, nodes: list[Body]) -> None:
        self._misplaced(nodes)
        self._deletions()
        self._labels(nodes)

    def _misplaced(self, nodes: list[Body]) -> None:
        """Puller pods in a namespace that their prefetch has left."""
        record = self._record
        alive = {m.name for n in nodes if (m := record.machine(n)) and m.alive and ready(n)}
        for pod in record.truth.server.all("pods"):
            ask = record.asks.get((pod["metadata"].get("labels") or {}).get(PREFETCH, ""))
            if ask is None or ask.namespace not in NAMESPACES:
                continue
            other = pod["metadata"]["namespace"] != ask.namespace and finished(pod)
            other = other and pod["spec"]["nodeName"] in alive and record.allowed(ask)
            other = other and not ask.paused and not self._idle_reason(pod, ask)
            node = record.truth.server.get("nodes", pod["spec"]["nodeName"]) or {"metadata": {}}
            labels = node["metadata"].get("labels") or {}
            # Until the node has its turn in the rollout, the pod pins what was there before.
            other = other and labels.get(LABEL + ask.name) == ask.target
            subject = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            seconds = min(
                self._clocks.seconds("misplaced", subject, other),
                elapsed() - record.truth.disturbed,
            )
            record.applied["misplaced"] += 1
            if min(seconds, record.asked_for(ask.name)) > PROGRESS + record.truth.lag:
                record.blame("leftover", subject, f"{ask.name} is in {ask.namespace} now")

    def _idle_reason(self, pod: Body, ask: Ask) -> bool:
        machine = self._record.truth.machines.get(pod["spec"]["nodeName"])
        return machine is None or machine.stalled or self._record.hopeless(machine, ask)

    def _deletions(self) -> None:
        record = self._record
        for body in record.truth.server.all("imageprefetches"):
            name = body["metadata"]["name"]
            going = "deletionTimestamp" in body["metadata"]
            ours = (body["metadata"].get("finalizers") or []) == ["imagegate.dev/cleanup"]
            seconds = self._clocks.seconds("deletion", name, going and ours)
            record.applied["deletion"] += 1
            seconds = min(seconds, elapsed() - record.truth.disturbed)
            refused = bool(record.refused_nodes()) or record.out_of_reach(name)
            if refused:
                self._refused_at = elapsed()
            # What was refused until a moment ago is tried again within a minute.
            bound = DELETED if elapsed() - self._refused_at > DELETED else 900.0
            if seconds > bound + record.slack():
                record.blame("deletion", name, f"its finalizer is there after {seconds:.0f} s")

    def _labels(self, nodes: list[Body]) -> None:
        """Labels and pods of prefetches that are gone."""
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
                        record.blame("leftover", subject, f"for {seconds:.0f} s")
