"""The parts of an ImagePrefetch's spec."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Operator(StrEnum):
    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class DaemonSetRef:
    """A DaemonSet that joining nodes wait for."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Place(NamedTuple):
    """The scope of one list request and of one watch: one kind in one namespace, and the fields
    that are read.
    """

    kind: str
    namespace: str
    api_version: str = ""
    """Empty: that of a built-in kind."""
    pod_templates: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    """Paths (`api.paths`). Without any, those of a known kind (`api.kinds`)."""

    @property
    def title(self) -> str:
        """The kind as messages and sources of images name it: with its group, unless built in."""
        group = self.api_version.partition("/")[0]
        return f"{self.kind}.{group}" if group else self.kind

    def __str__(self) -> str:
        return f"{self.title}/{self.namespace}"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Objects whose images are wanted besides those of the spec."""

    kind: str
    namespace: str
    selector: tuple[Requirement, ...] = ()
    api_version: str = ""
    pod_templates: tuple[str, ...] = ()
    images: tuple[str, ...] = ()

    @property
    def place(self) -> Place:
        return Place(self.kind, self.namespace, self.api_version, self.pod_templates, self.images)


class TagOrder(StrEnum):
    SEMVER = "semver"
    NUMERICAL = "numerical"
    ALPHABETICAL = "alphabetical"


@dataclass(frozen=True, slots=True)
class TagPolicy:
    """Which tags of a repository are wanted (`domain.tags`)."""

    order: TagOrder
    pattern: str = ""
    """Empty: all tags take part."""
    extract: str = ""
    versions: str = ""
    """Range of versions, for `TagOrder.SEMVER`."""
    descending: bool = False
    """Whether the lowest is the newest tag."""
    keep: int = 2
    """How many of the newest tags are wanted."""


@dataclass(frozen=True, slots=True)
class RepositorySpec:
    """A repository whose newest tags are wanted."""

    repository: str
    """As the user wrote it."""
    tags: TagPolicy
    pull_secrets: tuple[str, ...] = ()


class GateMode(StrEnum):
    NEW_NODES = "NewNodes"
    NEVER = "Never"


class GatePolicy(StrEnum):
    FAIL_OPEN = "FailOpen"
    FAIL_CLOSED = "FailClosed"


class OnReboot(StrEnum):
    IGNORE = "Ignore"
    VERIFY = "Verify"
    HOLD = "Hold"


@dataclass(frozen=True, slots=True)
class GateSpec:
    mode: GateMode = GateMode.NEW_NODES
    max_parallel: int = 100
    percent: bool = True
    """Whether ``max_parallel`` is a percentage of the matching nodes."""
    policy: GatePolicy = GatePolicy.FAIL_OPEN
    timeout: float = 600.0
    on_reboot: OnReboot = OnReboot.VERIFY

    def parallel(self, nodes: int) -> int:
        """How many joining nodes may pull at once if this number of nodes match: at least 1."""
        return _share(self.max_parallel, nodes, percent=self.percent)


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    max_parallel: int = 10
    percent: bool = True
    """Whether ``max_parallel`` is a percentage of the matching nodes."""
    seeds: int = 1
    fanout: int = 2
    topology_key: str = "topology.kubernetes.io/zone"
    paused: bool = False

    def parallel(self, nodes: int) -> int:
        """How many nodes in service may pull at once if this number of nodes match: at least 1."""
        return _share(self.max_parallel, nodes, percent=self.percent)


def _share(bound: int, nodes: int, *, percent: bool) -> int:
    return max(1, bound * nodes // 100 if percent else bound)


@dataclass(frozen=True, slots=True)
class RetrySpec:
    limit: int = 6
    minimum: float = 10.0
    maximum: float = 300.0
    timeout: float | None = None
    """Seconds after which an attempt counts as failed; None: by the size (`retry.deadline`). The
    kubelet continues the pull itself, even after the pod was deleted (kubernetes#113606)."""


@dataclass(frozen=True, slots=True)
class RefreshSpec:
    """Tags are followed: if a tag resolves to a new digest at the registry, that is a new
    target.
    """

    interval: float = 300.0
    """Seconds between two checks."""
