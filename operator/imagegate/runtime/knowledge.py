"""Everything that this process knows: of the cluster, registries, kubelets and its own work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from imagegate.domain.facts import ImageFacts, Prefetch, Refreshed
from imagegate.domain.repositories import Selected
from imagegate.domain.workloads import Found
from imagegate.runtime.clock import Clock
from imagegate.runtime.disks import Disks
from imagegate.runtime.gate_taint import GateTaint
from imagegate.runtime.image_volumes import ImageVolumes
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.size_limit import SizeLimit
from imagegate.runtime.start_after import StartAfter
from imagegate.runtime.store import Store


class Images(Protocol):
    """What the registries say (`inspector.Inspector`)."""

    def known(self, prefetch: Prefetch) -> Mapping[str, ImageFacts] | None: ...
    def refreshed(self, prefetch: str) -> Refreshed | None: ...
    def look(self, prefetch: Prefetch) -> None: ...
    def meet(self, platform: str) -> None: ...
    def forget(self, prefetch: str) -> None: ...


class Workloads(Protocol):
    """Which images workloads name (`workloads.WorkloadImages`)."""

    def found(self, prefetch: Prefetch) -> Found | None: ...
    def follow(self, prefetch: Prefetch) -> None: ...
    def forget(self, name: str) -> None: ...


class Repositories(Protocol):
    """Which tags are chosen (`repositories.RepositoryTags`)."""

    def selected(self, prefetch: Prefetch) -> Selected | None: ...
    def follow(self, prefetch: Prefetch) -> None: ...
    def forget(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Knowledge:
    clock: Clock
    store: Store
    """The objects of the API server."""
    gate: GateTaint
    """Which taints are the gate's."""
    ledger: Ledger
    """What earlier decisions have recorded."""
    images: Images
    size_limit: SizeLimit
    workloads: Workloads
    repositories: Repositories
    disks: Disks
    """How full the nodes' disks are."""
    start_after: StartAfter
    """Which DaemonSets are Ready on which joining nodes."""
    image_volumes: ImageVolumes
    """How puller pods may name their images."""
