"""The ImagePrefetches as the operator reports them: `imagegate status` and `wait`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imagegate import tables
from imagegate.api import fields
from imagegate.domain import disk, forecast

NONE = "There is no ImagePrefetch."
STATES = ("desired", "cached", "pulling", "pending", "failed", "skipped", "gated")


@dataclass(frozen=True, slots=True)
class Progress:
    """One ImagePrefetch, as its status reports it."""

    name: str
    created: float
    """When the object was created, in seconds since the epoch."""
    nodes: Mapping[str, int]
    """By `STATES`."""
    ready: str
    """``True``, ``False`` or ``Unknown``. A status of an earlier spec is ``Unknown``."""
    reason: str
    message: str
    target: str = ""
    node_bytes: int = 0
    """Compressed bytes that a node without the images pulls; 0: not known."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Progress:
        metadata, status = body.get("metadata") or {}, body.get("status") or {}
        counts = status.get("nodes") or {}
        condition = _condition(status, "Ready")
        current = status.get("observedGeneration") == metadata.get("generation")
        waits = "the operator has not reported about this spec yet"
        return cls(
            name=metadata.get("name", ""),
            created=fields.seconds(metadata.get("creationTimestamp")) or 0.0,
            nodes={state: int(counts.get(state) or 0) for state in STATES},
            ready=condition.get("status", "Unknown") if current else "Unknown",
            reason=condition.get("reason", "") if current else "NotObserved",
            message=condition.get("message", "") if current else waits,
            target=status.get("target") or "",
            node_bytes=sum(
                int(image.get("compressedBytes") or 0) for image in status.get("images") or ()
            ),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ready": self.ready,
            "reason": self.reason,
            "message": self.message,
            "target": self.target,
            "nodes": dict(self.nodes),
            "bytesPerNode": self.node_bytes or None,
        }


def _condition(status: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    conditions = status.get("conditions") or ()
    return next((each for each in conditions if each.get("type") == type_), {})


def table(all_: Sequence[Progress], now: float, width: int, *, wide: bool) -> str:
    """The columns of ``kubectl get imageprefetches``."""
    if not all_:
        return NONE
    columns = ("desired", "cached", "pulling", "failed", "gated")
    head = ("NAME", *(column.upper() for column in columns), "READY", "AGE")
    rows = [
        (
            each.name,
            *(str(each.nodes[column]) for column in columns),
            each.ready,
            age(now - each.created),
        )
        for each in all_
    ]
    if not wide:
        return "\n".join(tables.aligned([head, *rows]))
    more = [(*row, each.target, each.message) for row, each in zip(rows, all_, strict=True)]
    return "\n".join(tables.wrapped([(*head, "TARGET", "MESSAGE"), *more], width))


def age(seconds: float) -> str:
    """As kubectl writes it, with one unit: ``45s``, ``12m``, ``7h``, ``3d``."""
    for unit, size, until in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172800)):
        if seconds < until:
            return f"{max(0, int(seconds // size))}{unit}"
    return f"{int(seconds // 86400)}d"


@dataclass(slots=True)
class Pace:
    """How fast the nodes of one ImagePrefetch become cached, as seen since the first look."""

    _seen: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, cached nodes) at the first look, and at each change since."""

    def see(self, at: float, cached: int) -> None:
        """``at``: monotonic seconds. If there are fewer nodes than before, the target is new, and
        the count begins again.
        """
        if self._seen and cached < self._seen[-1][1]:
            self._seen.clear()
        if not self._seen or self._seen[-1][1] != cached:
            self._seen.append((at, cached))

    def per_second(self, now: float) -> float:
        """Nodes a second since the first look; 0.0 until a node was cached."""
        (began, first), (_, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if last > first and now > began else 0.0


def line(progress: Progress, pace: Pace, now: float) -> str:
    """Nodes, bytes, rate and time left, as far as known. ``now``: monotonic seconds."""
    cached, desired = progress.nodes["cached"], progress.nodes["desired"]
    parts = [f"{cached}/{desired} nodes"]
    size, rate = progress.node_bytes, pace.per_second(now)
    if size:
        parts.append(f"{disk.size(cached * size)} of {disk.size(desired * size)}")
    if rate and cached < desired:
        parts.append(f"{disk.size(int(rate * size))}/s" if size else f"{rate * 60:.1f} nodes/min")
        parts.append(f"{forecast.duration((desired - cached) / rate)} left")
    if progress.nodes["failed"]:
        parts.append(f"{progress.nodes['failed']} failed")
    if progress.ready == "True":
        parts.append("ready")
    elif progress.ready == "Unknown":
        parts.append("not reported yet")
    return ", ".join(parts)
