"""Nodes: taints, listed images, and what else decisions need of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Taint:
    """One entry of ``spec.taints``, complete, because a JSON patch tests it by equality."""

    key: str
    effect: str
    value: str | None = None
    time_added: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """An image in a Node's ``status.images``."""

    size: int
    """Bytes, as the runtime says."""
    digests: frozenset[str] = frozenset()

    def may_be(self, other: Listed) -> bool:
        """Whether both may be one image: by a digest, or by their size where one has none."""
        if self.digests and other.digests:
            return not self.digests.isdisjoint(other.digests)
        return self.size == other.size


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    uid: str
    version: int = field(compare=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotated: bool = False
    """Whether ``metadata.annotations`` exists at all; a JSON patch must know."""
    taints: tuple[Taint, ...] = ()
    observed: str = ""
    boot_id: str = ""
    kubelet: tuple[int, int] = (0, 0)
    """Major and minor version of its kubelet; zeros where it is not known."""
    runtime: tuple[str, int, int] = ("", 0, 0)
    """Its container runtime: name, major and minor version."""
    created_at: float = 0.0
    ready: bool = False
    ready_since: float | None = None
    """The Ready condition's lastTransitionTime, by the clock of the node itself."""
    disk_pressure: bool = False
    unschedulable: bool = False
    deleting: bool = False
    platform: str = ""
    """``os/architecture``, as the kubelet reports it."""
    address: str = ""
    """The InternalIP, at which the kubelet serves its figures."""
    kubelet_port: int = 10250
    capacity: int = 0
    """Bytes of the file system that the kubelet roots in; 0: unknown."""
    listed: Mapping[str, Listed] = field(default_factory=dict)
    """Those of the wanted images that ``status.images`` lists, by their normalized names."""
    tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of the wanted tags among them, the digests that the node lists for the same image."""
    wanted: frozenset[str] = frozenset()
    """The names that were looked for in that list: the absence of any other is not known."""
    smallest_listed: int | None = None
    """Bytes of the smallest image in that list, which the kubelet cuts off below a number of
    images: only of a larger one does absence prove anything. None: nothing is listed."""
    cut_off: tuple[Listed, ...] = ()
    """The images of which the kubelet lists five names, and so maybe not all."""

    @property
    def identity(self) -> str:
        """What the labels of this node are true for: this machine since this boot."""
        return f"{self.uid}/{self.boot_id}"

    def taints_of(self, keys: Collection[str]) -> tuple[Taint, ...]:
        """The taints with one of these keys, whatever their effect or value."""
        return tuple(taint for taint in self.taints if taint.key in keys)

    def taint(self, key: str) -> Taint | None:
        """The first taint with this key, as evidence that it is there."""
        return next(iter(self.taints_of((key,))), None)


class NodeState(StrEnum):
    """Where a node stands with one ImagePrefetch."""

    CACHED = "cached"
    PULLING = "pulling"
    PENDING = "pending"
    FAILED = "failed"
    SKIPPED = "skipped"
