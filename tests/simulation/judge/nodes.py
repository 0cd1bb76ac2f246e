"""How long a node may be held, and when it must be held."""

from __future__ import annotations

import math

from tests.simulation.apiserver import Body
from tests.simulation.asks import LABEL, OBSERVED
from tests.simulation.judge.bodies import listed, ready
from tests.simulation.judge.bounds import (
    DEAD_WATCH,
    IDLE,
    LATE,
    RELEASE,
    RELEASE_AFTER_FAULT,
)
from tests.simulation.judge.clocks import Clocks
from tests.simulation.judge.record import Record
from tests.simulation.loop import elapsed


class NodeRules:
    def __init__(self, record: Record, clocks: Clocks) -> None:
        self._record = record
        self._clocks = clocks
        self._registry_at = -math.inf
        """When the registry was last down or did not answer."""

    def look(self, nodes: list[Body]) -> None:
        registry = self._record.truth.registry
        if registry.down or registry.mute:
            self._registry_at = elapsed()
        for node in nodes:
            self._held(node)
            self._away(node)

    def _held(self, node: Body) -> None:
        record, machine = self._record, self._record.machine(node)
        name = node["metadata"]["name"]
        taints = record.taints(node)
        if name in record.refused_nodes():
            return
        granted = self._clocks.seconds("granted", name, true=True)
        if machine is None or not taints or not machine.alive or not ready(node):
            for kind in ("complete", "idle", "open", "key"):
                self._clocks.seconds(kind, name, true=False)
            return
        gate = record.gate()
        asking = record.holding(node)
        complete = bool(asking) and all(
            record.done(machine, ask) and not record.blocked(ask) for ask in asking
        )
        idle = bool(asking) and all(
            record.holds(machine, ask)
            and ask.images
            and not record.truth.registry.down
            and listed(node, ask)
            and not record.busy(ask, machine)
            and record.settled(ask.name)
            and record.allowed(ask)
            for ask in asking
        )
        seconds = min(self._clocks.seconds("idle", name, idle), elapsed() - record.truth.disturbed)
        # A pull that failed because of the registry is retried within 5 minutes.
        late = 330.0 if elapsed() - self._registry_at < 600 else 0.0
        if seconds > IDLE + late + record.slack():
            record.blame(
                "held-too-long", name, f"held although it has had all images for {seconds:.0f} s"
            )
        seconds = self._clocks.seconds("complete", name, complete)
        record.applied["held"] += 1
        quiet = elapsed() - record.truth.disturbed
        bound = RELEASE if quiet > 60 else RELEASE_AFTER_FAULT
        if min(seconds, quiet) > bound + record.slack():
            record.blame(
                "held-too-long", name, f"held {seconds:.0f} s after its last puller pod succeeded"
            )
        opened = record.gate_open()
        seconds = min(self._clocks.seconds("open", name, opened), quiet)
        if seconds > 75 + record.slack():
            record.blame("kill-switch", name, f"held for {seconds:.0f} s without a NodeGate")
        old = gate is not None and any(key != gate["spec"]["taintKey"] for key in taints)
        seconds = min(self._clocks.seconds("key", name, old), quiet)
        if seconds > 120 + record.slack():
            record.blame("old-key", name, f"the old taint {taints} is there for {seconds:.0f} s")
        fail_open = [a for a in asking if not a.fail_closed and record.settled(a.name)]
        if len(fail_open) == len(asking) and machine.ready_at is not None and asking:
            # After a time without Ready, the timeout counts from the return of the node.
            began = max(machine.ready_at, record.returned_at.get(machine.uid, 0.0))
            over = elapsed() - began - max(a.timeout for a in asking)
            newest = max(record.asked_at.get(a.name, 0.0) for a in asking)
            # A later leader knows the time of Ready only from the node's clock, which may be wrong.
            over = min(over, quiet, granted, elapsed() - newest) - max(0.0, machine.skew)
            if over > LATE + record.slack():
                record.blame("timeout-late", name, f"held {over:.0f} s after its timeout")

    def _away(self, node: Body) -> None:
        """With ``onReboot: Hold``, the operator taints a node in service that is not Ready."""
        record, name = self._record, node["metadata"]["name"]
        labels = node["metadata"].get("labels") or {}
        machine = record.machine(node)
        observed = (node["metadata"].get("annotations") or {}).get(OBSERVED, "")
        wanted = (
            not ready(node)
            and not record.taints(node)
            and not record.gate_open()
            and machine is not None
            and observed.endswith(f"/{node['status']['nodeInfo']['bootID']}")
            and name not in record.refused_nodes()
            and any(
                ask.again and not ask.dry and labels.get(LABEL + ask.name) == ask.target
                for ask in record.holding(node)
                if record.settled(ask.name) and ask.images and record.allowed(ask, "LIST")
            )
        )
        record.applied["held-while-away"] += 1
        seconds = min(
            self._clocks.seconds("away", name, wanted), elapsed() - record.truth.disturbed
        )
        seconds = min(seconds, elapsed() - record.gate_at)
        if seconds > RELEASE_AFTER_FAULT + DEAD_WATCH + record.slack():
            record.blame(
                "not-held-while-away", name, f"not Ready for {seconds:.0f} s, and without the taint"
            )
