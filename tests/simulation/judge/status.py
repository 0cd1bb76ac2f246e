"""Whether the status of a prefetch says the truth."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulation.apiserver import Body
from tests.simulation.asks import LABEL, PREFETCH, Ask
from tests.simulation.judge.bodies import listed, of_another_life, phase, ready
from tests.simulation.judge.bounds import (
    CONVERGED,
    PROGRESS,
    ROOM,
    SHOWN,
    TAKEOVER,
)
from tests.simulation.judge.clocks import Clocks
from tests.simulation.judge.record import Record
from tests.simulation.loop import elapsed


@dataclass(frozen=True, slots=True)
class Refusals:
    """Puller pods that the API server refuses, by prefetch."""

    since: dict[str, float] = field(default_factory=dict)
    """When the first pod after the last created pod was refused."""
    last: dict[str, float] = field(default_factory=dict)
    """When a pod was last refused."""

    def forget(self, prefetch: str) -> None:
        self.since.pop(prefetch, None)
        self.last.pop(prefetch, None)


class StatusRules:
    def __init__(self, record: Record, clocks: Clocks, refusals: Refusals) -> None:
        self._record = record
        self._clocks = clocks
        self._refusals = refusals

    def look(self, name: str, ask: Ask, matching: list[Body]) -> None:
        record, truth = self._record, self._record.truth
        body = truth.server.get("imageprefetches", name)
        status = (body or {}).get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or ()}
        still = min(elapsed() - truth.changed, elapsed() - truth.disturbed)
        if still > CONVERGED + record.slack() and record.settled(name) and record.allowed(ask):
            record.applied["status-truth"] += 1
            cached = sum(
                (n["metadata"].get("labels") or {}).get(LABEL + name) == ask.target
                for n in matching
            )
            said = (status.get("nodes") or {}).get("cached")
            held = sum(bool(record.taints(node)) for node in matching)
            # Of a node that refuses its label, the images that it has count all the same.
            refused = [n for n in matching if n["metadata"]["name"] in record.refused_nodes()]
            unlabelled = len(refused)
            # Where the removal is refused, a label of an earlier boot stays and does not count.
            outlived = sum(of_another_life(node) for node in refused)
            off = said is not None and not cached - outlived <= said <= cached + unlabelled
            if off and ask.images and not held:
                text = f"says {said} cached, labels say {cached}"
                if self._clocks.seconds("status", name, true=True) > 60:
                    record.blame("status-truth", name, text)
            else:
                self._clocks.seconds("status", name, true=False)
            pulling = (status.get("nodes") or {}).get("pulling") or 0
            unfinished = {
                pod["spec"]["nodeName"]
                for pod in truth.server.all("pods")
                if (pod["metadata"].get("labels") or {}).get(PREFETCH) == name
                and phase(pod) != "Succeeded"
            }
            if self._clocks.seconds("pulling", name, pulling > len(unfinished)) > 60:
                text = f"says {pulling} pulling, and {len(unfinished)} have an unfinished pod"
                record.blame("status-truth", name, text)
            missing = cached + unlabelled < sum(ready(node) for node in matching)
            if conditions.get("Ready", {}).get("status") == "True" and missing and not held:
                if self._clocks.seconds("ready", name, true=True) > 60:
                    record.blame("status-truth", name, "Ready although nodes lack images")
            else:
                self._clocks.seconds("ready", name, true=False)
        for failure in status.get("failures") or ():
            machine = truth.machines.get(failure["node"])
            wrong = (
                failure["reason"] == "DiskFull"
                and machine is not None
                and not machine.spelled  # nobody can know what it lists under other names
                and (record.holds(machine, ask))
            )
            seconds = self._clocks.seconds("full", f"{name} {failure['node']}", wrong)
            if min(seconds, record.asked_for(name)) > PROGRESS + truth.lag:
                text = f"{failure['node']} holds every image, and is said to be full"
                record.blame("status-truth", name, text)
            node = truth.server.get("nodes", failure["node"])
            # The disk guard blames no single image; what a runtime has said stands until it is
            # tried again.
            wrong = wrong and not failure.get("image") and node is not None
            wrong = wrong and listed(node or {}, ask) and record.allowed(ask, "LIST")
            seconds = self._clocks.seconds("room", f"{name} {failure['node']}", wrong)
            seconds = min(seconds, record.asked_for(name), elapsed() - truth.disturbed)
            record.applied["room"] += 1
            if seconds > ROOM + record.slack():
                text = f"{failure['node']} lists every image, and is said to be full"
                record.blame("status-truth", name, text)
        message = (status.get("refresh") or {}).get("message")
        up = (
            not truth.registry.down
            and not truth.registry.mute
            and all(truth.registry.digest(image) is not None for image in ask.images)
        )
        seconds = min(
            self._clocks.seconds("message", name, bool(message) and up), record.asked_for(name)
        )
        if seconds > 2 * (ask.refresh or 0) + 700:
            record.blame("status-truth", name, f"refresh.message for {seconds:.0f} s: {message}")
        if conditions.get("Ready", {}).get("reason") == "NamespaceNotReadable":
            self._refusals.since.pop(name, None)  # shown, and more to the point
        trouble = elapsed() - self._refusals.since.get(name, elapsed())
        # An edit is a new beginning, and who does not try any more has nothing to report.
        trouble = min(trouble, record.asked_for(name))
        trying = elapsed() - self._refusals.last.get(name, 0.0) < 360
        # A new leader does not know of attempts of the one before that it has no reason to repeat.
        trying = trying and self._refusals.last.get(name, 0.0) > record.led_since
        trying = trying and elapsed() - record.led_since > TAKEOVER
        degraded = conditions.get("Degraded", {}).get("status") == "True"
        if trouble > SHOWN and trying and not (degraded or status.get("failures")):
            record.blame("trouble-not-shown", name, f"its pods are refused for {trouble:.0f} s")
