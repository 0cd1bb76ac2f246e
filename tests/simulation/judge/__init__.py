"""The judge: checks every request and the state of every machine, and reports broken promises. It
imports no code of the operator.

`Safety` checks each write of the operator. `Liveness` checks every few seconds whether a result is
overdue. Both ask the `Record` for the state of the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.apiserver import Request
from tests.simulation.judge.liveness import Liveness
from tests.simulation.judge.record import Broken, Record, Truth, between
from tests.simulation.judge.safety import Safety

__all__ = ["Broken", "Judge", "Truth", "between"]


@dataclass
class Judge(Record):
    """Passes each request and each tick to the rules."""

    def __post_init__(self) -> None:
        self._safety = Safety(self)
        self._liveness = Liveness(self)

    def request(self, request: Request) -> None:
        self.note(request)
        if request.resource == "imageprefetches" and request.applied and request.after is None:
            self._liveness.forget(request.key[1])
        if request.actor.startswith("operator"):
            self._safety.look(request)
        self._liveness.see(request)

    def tick(self) -> None:
        self.look()
        self._liveness.look()
