"""The objects of the API server that the operator reads and writes, one client for each kind."""

from __future__ import annotations

from dataclasses import dataclass

from imagegate.kube.events import Events
from imagegate.kube.gates import Gates
from imagegate.kube.nodes import Nodes
from imagegate.kube.pods import Pods
from imagegate.kube.prefetches import Prefetches


@dataclass(frozen=True, slots=True)
class Cluster:
    """The `store` holds what is known of these objects."""

    nodes: Nodes
    pods: Pods
    prefetches: Prefetches
    gates: Gates
    events: Events
