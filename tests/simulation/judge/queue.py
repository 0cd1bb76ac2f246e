"""The order in which joining nodes get slots."""

from __future__ import annotations

from collections import Counter

from tests.simulation.apiserver import Body
from tests.simulation.asks import Ask
from tests.simulation.judge.bodies import ready
from tests.simulation.judge.clocks import Clocks
from tests.simulation.judge.record import Record
from tests.simulation.machines import Machine


class Queue:
    """Joining nodes get slots in the order of their requests."""

    def __init__(self, record: Record, clocks: Clocks) -> None:
        self._record = record
        self._clocks = clocks
        self._served: set[tuple[str, str]] = set()
        """Joining machines for which a puller pod of a prefetch was requested."""
        self._jumped: Counter[tuple[str, str]] = Counter()
        """By machine and prefetch, how many nodes got a slot earlier but requested it later."""

    def request(self, name: str, node: str) -> None:
        """The operator requests a puller pod. With its first pod a node has had its turn, even if
        the API server refuses the pod: the node requests a slot again after a back-off, behind
        the nodes that requested a slot meanwhile.
        """
        record = self._record
        ask, server = record.asks.get(name), record.truth.server
        served = server.get("nodes", node)
        mine = record.machine(served) if served is not None else None
        if ask is None or served is None or mine is None or mine.ready_at is None:
            return
        self._served.add((mine.uid, name))
        if not record.taints(served) or not record.settled(name):
            return
        since = self._clocks.since("asks", f"{name} {mine.uid}")
        for other in server.all("nodes"):
            machine = record.machine(other)
            if machine is None or machine is mine or not self._asks(other, machine, ask):
                continue
            if (machine.uid, name) in self._served or machine.ready_at is None:
                continue  # this node has had its turn
            asked = self._clocks.since("asks", f"{name} {machine.uid}")
            if asked < since - 30 and record.truth.disturbed < machine.ready_at:
                record.applied["queue"] += 1
                self._jumped[machine.uid, name] += 1
                if (count := self._jumped[machine.uid, name]) > 2:
                    text = f"{name}: {count} nodes that requested a slot later were served first"
                    record.blame("queue-jumped", machine.name, text)

    def look(self, name: str, ask: Ask, nodes: list[Body]) -> None:
        """Start a clock for each joining node that requests a slot. Each leader starts anew."""
        for node in nodes:
            if (machine := self._record.machine(node)) is not None:
                asks = self._asks(node, machine, ask)
                self._clocks.seconds("asks", f"{name} {machine.uid}", asks)
                if not asks:
                    self._jumped.pop((machine.uid, name), None)

    def _asks(self, node: Body, machine: Machine, ask: Ask) -> bool:
        """Whether a joining node without a slot requests one: no other reason delays its pull."""
        return (
            bool(self._record.taints(node))
            and bool(ask.images)
            and ask.matches(node)
            and ready(node)
            and self._record.allowed(ask, "LIST")
            and not self._record.without_room(node, machine, ask)
        )
