"""Which taints are the gate's, and which nodes the operator taints itself."""

from __future__ import annotations

from typing import Protocol

from imagegate.domain.facts import Gate, Node
from imagegate.domain.gate import ready_since
from imagegate.runtime.store import Store


class Keys(Protocol):
    """The keys of the gate's taint (`taint_keys.TaintKeys`)."""

    @property
    def current(self) -> str: ...
    @property
    def earlier(self) -> frozenset[str]: ...
    def see(self, gate: Gate | None) -> None: ...


class GateTaint:
    """``by_watch``: the operator taints joining nodes itself, because no admission policy does;
    ``control_planes``: also those of the control plane.
    """

    def __init__(
        self, store: Store, keys: Keys, *, by_watch: bool, control_planes: bool = False
    ) -> None:
        self._store = store
        self._keys = keys
        self.by_watch = by_watch
        self.control_planes = control_planes

    @property
    def key(self) -> str:
        """The key of the NodeGate as the store knows it now."""
        self._keys.see(self._store.gate)
        return self._keys.current

    @property
    def earlier_keys(self) -> frozenset[str]:
        """Keys that the gate had before. Nodes may still have a taint with one of them."""
        self._keys.see(self._store.gate)
        return self._keys.earlier

    def held_for(self, node: Node, now: float) -> float:
        """For how many seconds a held node has been Ready; 0.0: it is not Ready. ``now``: in
        seconds since the epoch.
        """
        if not node.ready:
            return 0.0
        first_seen = self._store.node_history.first_ready(node)
        taints = node.taints_of({self.key, *self.earlier_keys})
        return max(0.0, now - ready_since(node, first_seen, taints))

    def holds(self, node: Node) -> bool:
        """Whether the node has a taint with the current key of the gate or with an earlier key."""
        return bool(node.taints_of({self.key, *self.earlier_keys}))
