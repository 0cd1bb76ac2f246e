"""Nodes: their taints, the images that they list, and the other facts that decisions need."""

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
    """Bytes, as the runtime reports them."""
    digests: frozenset[str] = frozenset()

    def may_be(self, other: Listed) -> bool:
        """Whether both may be the same image: they share a digest, or, if the digests of one are
        not known, they have the same size.
        """
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
    """Whether ``metadata.annotations`` exists. If not, a JSON patch must create it first."""
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
    """The InternalIP, at which the kubelet serves its statistics."""
    kubelet_port: int = 10250
    capacity: int = 0
    """Bytes of the file system that has the kubelet's root directory; 0: unknown."""
    listed: Mapping[str, Listed] = field(default_factory=dict)
    """The wanted images that ``status.images`` lists, by their normalized names."""
    tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """For each wanted tag that is listed: the digests that the node lists for the same image."""
    wanted: frozenset[str] = frozenset()
    """The names that were searched for in ``status.images``. Whether the node lists any other name
    is not known."""
    smallest_listed: int | None = None
    """Bytes of the smallest image in ``status.images``. The absence of an image proves something
    only if the image is larger than this, because the kubelet lists only a number of the largest
    images. None: nothing is listed."""
    cut_off: tuple[Listed, ...] = ()
    """The images with five listed names. They may have more names, because the kubelet lists at
    most five."""

    @property
    def identity(self) -> str:
        """The machine and the boot for which the labels of this node are valid."""
        return f"{self.uid}/{self.boot_id}"

    def taints_of(self, keys: Collection[str]) -> tuple[Taint, ...]:
        """The taints with one of these keys, with any effect and any value."""
        return tuple(taint for taint in self.taints if taint.key in keys)

    def taint(self, key: str) -> Taint | None:
        """The first taint with this key, as evidence that it is there."""
        return next(iter(self.taints_of((key,))), None)


class NodeState(StrEnum):
    """The state of one node for one ImagePrefetch."""

    CACHED = "cached"
    PULLING = "pulling"
    PENDING = "pending"
    FAILED = "failed"
    SKIPPED = "skipped"
