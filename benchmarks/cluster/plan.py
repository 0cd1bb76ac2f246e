"""Writes for the bare client: those of the operator, taken from the audit log.

The writes about one node are a chain. The client makes them one after the other, and what follows
the creation of a puller pod only after that pod has succeeded, because no controller can do
otherwise. Nodes in service start as the spec allows (`rollout`): that is the user's wish and not a
cost of the operator. Chains are independent, and all share the connections.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Write:
    method: str
    path: str
    body: str = ""
    content_type: str = "application/json"
    pod: str = ""
    """The name of the pod that this write creates."""


@dataclass(frozen=True, slots=True)
class Chain:
    node: str
    zone: str
    uid: str
    """The node's uid in the bodies."""
    joins: bool
    """Whether the node joins while the plan is played."""
    writes: list[Write] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rollout:
    """``spec.rollout`` of the ImagePrefetch."""

    parallel: int
    """Nodes: ``maxParallel``."""
    seeds: int
    fanout: int


@dataclass(frozen=True, slots=True)
class Joining:
    """Nodes that join while the plan is played."""

    numbers: tuple[int, int]
    """The first, and the one after the last."""
    after: int
    """How many puller pods have succeeded before the first node joins."""
    seconds: float
    """From the first to the last."""
    taint: str
    """The key of the gate's taint."""


@dataclass(frozen=True, slots=True)
class Plan:
    chains: list[Chain] = field(default_factory=list)
    others: list[tuple[int, Write]] = field(default_factory=list)
    """Writes about no node (the status of the ImagePrefetch, Events), each with the number of
    writes before it."""
    lists: list[str] = field(default_factory=list)
    """Paths of collections that are listed, all pages, before any write."""
    rollout: Rollout | None = None
    joining: Joining | None = None
    zones: dict[str, int] = field(default_factory=dict)
    """Nodes in service by zone."""

    @property
    def empty(self) -> bool:
        return not (self.chains or self.others or self.lists)

    def __iter__(self) -> Iterator[Write]:
        for chain in self.chains:
            yield from chain.writes
        for _, write in self.others:
            yield write

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Plan:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rollout, joining = content.pop("rollout"), content.pop("joining")
        chains = [
            Chain(**{**chain, "writes": [Write(**write) for write in chain["writes"]]})
            for chain in content.pop("chains")
        ]
        others = [(before, Write(**write)) for before, write in content.pop("others")]
        return cls(
            chains,
            others,
            rollout=Rollout(**rollout) if rollout else None,
            joining=Joining(**{**joining, "numbers": tuple(joining["numbers"])})
            if joining
            else None,
            **content,
        )


class Slots:
    """Which nodes in service may start now: the rule of ``spec.rollout``, and nothing else."""

    def __init__(self, rollout: Rollout | None, zones: dict[str, int]) -> None:
        self._rollout = rollout
        self._nodes = zones
        self._cached = dict.fromkeys(zones, 0)
        self._busy = dict.fromkeys(zones, 0)
        self._waiting: dict[str, list[Chain]] = {zone: [] for zone in zones}

    def add(self, chain: Chain) -> None:
        self._waiting[chain.zone].append(chain)

    def succeeded(self, chain: Chain) -> None:
        self._cached[chain.zone] += 1
        self._busy[chain.zone] -= 1

    def start(self) -> Iterator[Chain]:
        """The chains that start now, one zone after the other."""
        for queue in self._waiting.values():
            queue.reverse()  # `pop` takes the last
        try:
            started = True
            while started:
                started = False
                for zone, queue in self._waiting.items():
                    if queue and self._room(zone) > 0:
                        self._busy[zone] += 1
                        started = True
                        yield queue.pop()
        finally:
            for queue in self._waiting.values():
                queue.reverse()

    def _room(self, zone: str) -> int:
        rollout = self._rollout
        if rollout is None:
            return 1
        total = sum(self._nodes.values())
        share = max(1, -(-rollout.parallel * self._nodes[zone] // total))
        allowed = min(share, max(rollout.seeds, rollout.fanout * self._cached[zone]))
        return min(allowed - self._busy[zone], rollout.parallel - sum(self._busy.values()))
