"""The witness's evidence in addition to the history of objects, and the violations."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from tests.chaos.history import Ask

LAG = 5.0
"""Seconds for which an action may be based on a replaced state without a violation, because a
client of the API server gets every change late."""


class Truth(Protocol):
    """The images on the nodes, from containerd's events."""

    def present(self, node: str, image: str, at: float) -> bool | None:
        """Whether the node had the image at that time; None if no events were recorded then."""
        ...


@dataclass(frozen=True, slots=True)
class Write:
    """A request that changed something, from the audit log."""

    at: float
    """The time of the response. The change was done by then."""
    user: str
    verb: str
    resource: str
    """With the subresource, as in `nodes/status`."""
    name: str
    began: float = 0.0
    """The time when the API server received it."""


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
    """The states of one ImagePrefetch by name, each with the time since which it applied."""

    states: list[tuple[float, Ask | None]] = field(default_factory=list)
    maybe: list[tuple[float, float, Ask | None]] = field(default_factory=list)
    """(since, until, state): the state began at some time in this gap of the watch."""

    def now(self) -> Ask | None:
        return self.states[-1][1] if self.states else None

    def with_target(self, target: str, at: float) -> Ask | None:
        """Its newest state with this target that may have begun by then."""
        states = [state for since, _, state in self.maybe if since <= at]
        states += [state for _, state in self.states]
        return next((s for s in reversed(states) if s is not None and s.target == target), None)

    def lately(self, at: float) -> list[Ask | None]:
        """All its states of the last LAG seconds; None: it did not exist."""
        before = [state for since, state in self.states if since <= at - LAG]
        within = [state for since, state in self.states if at - LAG < since]
        maybe = [state for since, until, state in self.maybe if since <= at <= until + LAG]
        return [before[-1] if before else None, *within, *maybe]
