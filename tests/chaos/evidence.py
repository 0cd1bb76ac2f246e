"""What the witness judges by beside the history of objects, and what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from tests.chaos.history import Ask

LAG = 5.0
"""Seconds. Who acts on a state of the cluster that was replaced less than this ago is not blamed:
no client of an API server can know better."""


class Truth(Protocol):
    """containerd's word."""

    def present(self, node: str, image: str, at: float) -> bool | None:
        """Whether the node held the image at that moment; None: nobody was listening."""
        ...


@dataclass(frozen=True, slots=True)
class Write:
    """A request that changed something, from the audit log."""

    at: float
    """When it was answered: what it did was done by then."""
    user: str
    verb: str
    resource: str
    """With the subresource, as in `nodes/status`."""
    name: str
    began: float = 0.0
    """When it was received."""


class Requests(Protocol):
    """The audit log."""

    def writes(self, resource: str, name: str, since: float, until: float) -> list[Write]: ...


@dataclass(frozen=True, slots=True)
class Violation:
    rule: str
    at: float
    what: str

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.at, UTC).strftime("%H:%M:%S.%f")[:-3]
        return f"VIOLATION at {when}: {self.rule}: {self.what}"


@dataclass(slots=True)
class Asked:
    """One ImagePrefetch by name: what it asked for, and since when."""

    states: list[tuple[float, Ask | None]] = field(default_factory=list)
    maybe: list[tuple[float, float, Ask | None]] = field(default_factory=list)
    """(since, until, state): somewhere in this gap of the watch it came to be so."""

    def now(self) -> Ask | None:
        return self.states[-1][1] if self.states else None

    def lately(self, at: float) -> list[Ask | None]:
        """Everything that it asked for within LAG before; None: it was not there."""
        before = [state for since, state in self.states if since <= at - LAG]
        within = [state for since, state in self.states if at - LAG < since]
        maybe = [state for since, until, state in self.maybe if since <= at <= until + LAG]
        return [before[-1] if before else None, *within, *maybe]
