"""Whether the status of a prefetch agrees with the cluster."""

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
    """When the API server refused a pod for the first time since it last accepted one."""
    last: dict[str, float] = field(default_factory=dict)
    """When the API server last refused a pod."""

    def forget(self, prefetch: str) -> None:
        self.since.pop(prefetch, None)
        self.last.pop(prefetch, None)


class StatusRules:
    """Compares status fields with labels, pods and machines."""

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
            # The images of a node count even if a policy refuses the label on that node.
            refused = [n for n in matching if n["metadata"]["name"] in record.refused_nodes()]
            unlabelled = len(refused)
            # If a policy refuses its removal, a label of an earlier boot stays, and does not count.
            outlived = sum(of_another_life(node) for node in refused)
            wrong = said is not None and not cached - outlived <= said <= cached + unlabelled
            if wrong and ask.images and not held:
                text = f"status.nodes.cached is {said}, but {cached} nodes have the label"
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
                text = (
                    f"{pulling} nodes pull by the status, {len(unfinished)} have an unfinished pod"
                )
                record.blame("status-truth", name, text)
            missing = cached + unlabelled < sum(ready(node) for node in matching)
            if conditions.get("Ready", {}).get("status") == "True" and missing and not held:
                if self._clocks.seconds("ready", name, true=True) > 60:
                    record.blame(
                        "status-truth",
                        name,
                        "the condition Ready is True although nodes lack images",
                    )
            else:
                self._clocks.seconds("ready", name, true=False)
        for failure in status.get("failures") or ():
            machine = truth.machines.get(failure["node"])
            wrong = (
                failure["reason"] == "DiskFull"
                and machine is not None
                and not machine.spelled  # this kubelet lists images under other names
                and (record.holds(machine, ask))
            )
            seconds = self._clocks.seconds("full", f"{name} {failure['node']}", wrong)
            if min(seconds, record.asked_for(name)) > PROGRESS + truth.lag:
                text = f"DiskFull is reported for {failure['node']}, which holds every image"
                record.blame("status-truth", name, text)
            node = truth.server.get("nodes", failure["node"])
            # A failure without an image is from the disk guard. A failure with an image is from the
            # container runtime, and stays until the next attempt.
            wrong = wrong and not failure.get("image") and node is not None
            wrong = wrong and listed(node or {}, ask) and record.allowed(ask, "LIST")
            seconds = self._clocks.seconds("room", f"{name} {failure['node']}", wrong)
            seconds = min(seconds, record.asked_for(name), elapsed() - truth.disturbed)
            record.applied["room"] += 1
            if seconds > ROOM + record.slack():
                text = f"DiskFull is reported for {failure['node']}, which lists every image"
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
            self._refusals.since.pop(name, None)  # this reason is shown instead, and is more exact
        trouble = elapsed() - self._refusals.since.get(name, elapsed())
        # An edit resets the bound. An operator that makes no more attempts has nothing to report.
        trouble = min(trouble, record.asked_for(name))
        trying = elapsed() - self._refusals.last.get(name, 0.0) < 360
        # A new leader does not know the refused attempts of the leader before.
        trying = trying and self._refusals.last.get(name, 0.0) > record.led_since
        trying = trying and elapsed() - record.led_since > TAKEOVER
        degraded = conditions.get("Degraded", {}).get("status") == "True"
        if trouble > SHOWN and trying and not (degraded or status.get("failures")):
            record.blame(
                "trouble-not-shown",
                name,
                f"the API server has refused its pods for {trouble:.0f} s",
            )
