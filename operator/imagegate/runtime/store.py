"""The known state of the cluster: objects by key, updated by watches and corrected by resyncs.

Every change is announced to the listener; a sighting that changes nothing is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from imagegate.domain import repositories, workloads
from imagegate.domain.effective import effective
from imagegate.domain.facts import Gate, Node, Pod, Prefetch
from imagegate.domain.repositories import Selected
from imagegate.domain.workloads import Found
from imagegate.puller.read import Pulled
from imagegate.runtime.clock import Clock
from imagegate.runtime.history import NodeHistory, PodHistory
from imagegate.runtime.tombstones import Tombstones
from imagegate.runtime.watches import Watches

PodKey = tuple[str, str]


class Listener(Protocol):
    """Receives change notifications from the store (`reconcile.changes.Changes`)."""

    def node_changed(self, name: str) -> None: ...
    def prefetch_changed(self, name: str) -> None: ...
    def status_changed(self, name: str) -> None:
        """Nothing but the status of this prefetch has changed."""

    def gate_changed(self) -> None: ...


class Store:
    def __init__(self, clock: Clock) -> None:
        self._listener: Listener | None = None
        self._order = Tombstones(clock)
        self._nodes: dict[str, Node] = {}
        self._pods: dict[PodKey, Pod] = {}
        self._by_node: dict[str, dict[PodKey, Pod]] = {}
        self._declared: dict[str, Prefetch] = {}
        self._prefetches: dict[str, Prefetch] = {}
        self._found: dict[str, tuple[object, Found]] = {}
        self._selected: dict[str, tuple[object, Selected]] = {}
        self._wanted: frozenset[str] = frozenset()
        self.node_history = NodeHistory(clock)
        self.pod_history = PodHistory(clock)
        self.unreadable: Mapping[str, str] = {}
        """Puller namespaces whose pods cannot be read now, each with the reason."""
        self.gate: Gate | None = None
        self.watches = Watches(clock)

    def listen(self, listener: Listener) -> None:
        """The first resync is done: announce every change from now on. Nothing is decided earlier,
        because a missing object may only not be listed yet.
        """
        self._listener = listener

    @property
    def complete(self) -> bool:
        """Whether the first resync is done."""
        return self._listener is not None

    # ---- reading

    @property
    def nodes(self) -> Mapping[str, Node]:
        return self._nodes

    @property
    def prefetches(self) -> Mapping[str, Prefetch]:
        """The effective prefetches (`domain.effective`), by name."""
        return self._prefetches

    @property
    def pods(self) -> Mapping[PodKey, Pod]:
        return self._pods

    def pods_on(self, node: str) -> Iterator[Pod]:
        return iter(self._by_node.get(node, {}).values())

    @property
    def wanted(self) -> frozenset[str]:
        """The names under which nodes list the images of all prefetches."""
        return self._wanted

    def prefetch_of(self, namespace: str, pod: str) -> str:
        """The prefetch that a puller pod works for; empty when the pod is not known."""
        known = self._pods.get((namespace, pod))
        return known.prefetch if known is not None else ""

    # ---- sightings

    def see_node(self, node: Node) -> None:
        old = self._nodes.get(node.name)
        if self._order.stale("node", node.name, old, node):
            return
        self._order.see("node", node.name)
        self.node_history.see(node, old, self._relabelled(node, old))
        self._nodes[node.name] = node
        if old != node and self._listener is not None:
            self._listener.node_changed(node.name)

    def lose_node(self, name: str, uid: str | None = None, version: int = 0) -> None:
        old = self._nodes.get(name)
        if not self._order.end("node", name, old, uid, version) or old is None:
            return
        del self._nodes[name]
        self.node_history.forget(name)
        self._order.forget("node", name)
        if self._listener is not None:
            self._listener.node_changed(name)

    def _relabelled(self, node: Node, old: Node | None) -> frozenset[str]:
        """The names that nodes list for the prefetches whose label on the node has changed."""
        if old is None or old.labels == node.labels:
            return frozenset()
        return frozenset(
            name
            for prefetch in self._prefetches.values()
            if old.labels.get(prefetch.label) != node.labels.get(prefetch.label)
            for name in _names(prefetch)
        )

    def _want(self) -> None:
        wanted = frozenset(
            name for prefetch in self._prefetches.values() for name in _names(prefetch)
        )
        if wanted != self._wanted:  # else every Node keeps the set that it was parsed with
            self._wanted = wanted

    def see_pod(self, pod: Pod, *, live: bool = False) -> None:
        """``live``: the change was reported by a watch, and not found in a list."""
        key = (pod.namespace, pod.name)
        old = self._pods.get(key)
        if not pod.owned:
            if old is not None and old.uid == pod.uid:
                self.lose_pod(pod.namespace, pod.name, pod.uid, pod.version)
            return
        if self._order.stale("pod", key, old, pod):
            return
        self._order.see("pod", key)
        if old is not None and old.uid != pod.uid:
            self._forget_pod(old)
        self.pod_history.see(pod, old, live=live)
        if old is not None and old.node != pod.node:
            self._by_node.get(old.node, {}).pop(key, None)
        self._pods[key] = pod
        self._by_node.setdefault(pod.node, {})[key] = pod
        if old != pod and self._listener is not None:
            self._listener.node_changed(pod.node)

    def lose_pod(self, namespace: str, name: str, uid: str | None = None, version: int = 0) -> None:
        old = self._pods.get((namespace, name))
        if not self._order.end("pod", (namespace, name), old, uid, version) or old is None:
            return
        self._forget_pod(old)
        if self._listener is not None:
            self._listener.node_changed(old.node)

    def _forget_pod(self, pod: Pod) -> None:
        key = (pod.namespace, pod.name)
        self._pods.pop(key, None)
        self._order.forget("pod", key)
        on_node = self._by_node.get(pod.node, {})
        on_node.pop(key, None)
        if not on_node:
            self._by_node.pop(pod.node, None)
        self.pod_history.forget(pod.uid)

    def see_pulled(self, namespace: str, pulled: Pulled) -> bool:
        """A kubelet's Pulled event. False if it was known already, or if its pod is not known."""
        pod = self._pods.get((namespace, pulled.pod_name))
        if pod is None or pod.uid != pulled.pod_uid or pulled.image not in pod.images:
            return False
        if not self.pod_history.see_pulled(pod, pulled.image):
            return False
        if self._listener is not None:
            self._listener.node_changed(pod.node)
        return True

    def declared(self, name: str) -> Prefetch | None:
        """A prefetch as its spec declares it."""
        return self._declared.get(name)

    def see_prefetch(self, declared: Prefetch) -> None:
        old = self._declared.get(declared.name)
        if self._order.stale("prefetch", declared.name, old, declared):
            return
        self._order.see("prefetch", declared.name)
        self._declared[declared.name] = declared
        self._resolve(declared)

    def found_images(self, declared: Prefetch, found: Found) -> None:
        """The images to which ``imagesFrom`` resolves. They are valid for the current spec only."""
        self._found[declared.name] = (_asked(declared), found)
        self._resolve(declared)

    def chose_tags(self, declared: Prefetch, selected: Selected) -> None:
        """The chosen tags of ``repositories``. They are valid for the current spec only."""
        self._selected[declared.name] = (_tags_asked(declared), selected)
        self._resolve(declared)

    def _resolve(self, declared: Prefetch) -> None:
        """Compute the effective prefetch again."""
        name = declared.name
        old, new = self._prefetches.get(name), effective(self._joined(declared))
        why = self.unreadable.get(new.namespace)
        if why is not None and new.invalid is None and not new.deleting:
            text = (
                f"the operator cannot read pods in spec.pullerNamespace {new.namespace!r}: create"
                f" the namespace, or install the chart again so that its Role is there ({why})"
            )
            new = replace(new, invalid=("NamespaceNotReadable", text))
        self._prefetches[name] = new
        self._want()
        if self._listener is None:
            return
        if old is None or old != new:
            self._listener.prefetch_changed(name)
        elif old.status != new.status:
            self._listener.status_changed(name)

    def _joined(self, declared: Prefetch) -> Prefetch:
        """The prefetch with the images of its workloads and repositories, as far as known."""
        asked, found = self._found.get(declared.name, (None, None))
        tags_asked, selected = self._selected.get(declared.name, (None, None))
        return repositories.joined(
            workloads.joined(declared, found if asked == _asked(declared) else None),
            selected if tags_asked == _tags_asked(declared) else None,
        )

    def lose_prefetch(self, name: str, uid: str | None = None, version: int = 0) -> None:
        old = self._declared.get(name)
        if not self._order.end("prefetch", name, old, uid, version) or old is None:
            return
        del self._declared[name], self._prefetches[name]
        self._found.pop(name, None)
        self._selected.pop(name, None)
        self._want()
        self._order.forget("prefetch", name)
        if self._listener is not None:
            self._listener.prefetch_changed(name)

    def see_gate(self, gate: Gate | None, *, since: float | None = None) -> None:
        """None: it is deleted, or a read did not find it; ``since``: when that read began."""
        old = self.gate
        if gate is None:
            if since is not None and self._order.seen_since("gate", "", since):
                return
            self._order.end("gate", "", old, None, 0)
        elif self._order.stale("gate", "", old, gate):
            return
        else:
            self._order.see("gate", "")
        self.gate = gate
        # The first heartbeat arms the gate; later heartbeats change nothing.
        changed = old != gate or _beats(old) != _beats(gate)
        if changed and self._listener is not None:
            self._listener.gate_changed()

    def lose_gate(self, uid: str, version: int) -> None:
        """The watch saw the deletion of this NodeGate."""
        if not self._order.end("gate", "", self.gate, uid, version):
            return
        self.gate = None
        if self._listener is not None:
            self._listener.gate_changed()

    def see_unreadable(self, namespaces: Mapping[str, str]) -> None:
        """The puller namespaces that cannot be read now, and why. What is known of their pods is
        kept, and their prefetches are not acted on.
        """
        changed = namespaces.keys() ^ self.unreadable.keys()
        self.unreadable = dict(namespaces)
        for declared in list(self._declared.values()):
            if declared.namespace in changed:
                self._resolve(declared)
        if self._listener is not None:
            for node in {pod.node for pod in self._pods.values() if pod.namespace in changed}:
                self._listener.node_changed(node)

    # ---- resync

    def prune(
        self,
        *,
        since: float,
        nodes: Iterable[Node],
        pods: Iterable[Pod],
        prefetches: Iterable[Prefetch],
    ) -> Mapping[str, int]:
        """Take complete lists that began at ``since`` (monotonic), and drop unlisted objects.

        kopf does not report objects that were deleted while its watch was broken. An object that
        was seen after the lists began is kept, because it may be newer than the lists.
        """
        node_names, pod_keys, names = set[str](), set[PodKey](), set[str]()
        for node in nodes:
            node_names.add(node.name)
            self.see_node(node)
        for pod in pods:
            pod_keys.add((pod.namespace, pod.name))
            self.see_pod(pod)
        for prefetch in prefetches:
            names.add(prefetch.name)
            self.see_prefetch(prefetch)
        gone_nodes = [n for n in self._nodes if n not in node_names and self._old("node", n, since)]
        gone_pods = [
            k
            for k in self._pods
            if k not in pod_keys and k[0] not in self.unreadable and self._old("pod", k, since)
        ]
        gone = [n for n in self._prefetches if n not in names and self._old("prefetch", n, since)]
        for name in gone_nodes:
            self.lose_node(name)
        for namespace, name in gone_pods:
            self.lose_pod(namespace, name)
        for name in gone:
            self.lose_prefetch(name)
        self._order.prune(since)
        return {"Node": len(gone_nodes), "Pod": len(gone_pods), "ImagePrefetch": len(gone)}

    def _old(self, kind: str, key: object, since: float) -> bool:
        return not self._order.seen_since(kind, key, since)


def _names(prefetch: Prefetch) -> frozenset[str]:
    names = (name for image in prefetch.images for name in (image.listed_as, image.tagged_as))
    return frozenset(sys.intern(name) for name in names if name)


def _beats(gate: Gate | None) -> bool:
    return gate is not None and "heartbeat" in gate.status


def _asked(declared: Prefetch) -> object:
    """The fields of the spec on which the images of ``imagesFrom`` depend."""
    reserved = declared.reserved
    return declared.uid, declared.images, declared.images_from, declared.pull_secrets, reserved


def _tags_asked(declared: Prefetch) -> object:
    """The fields of the spec on which the tags of ``repositories`` depend."""
    return declared.uid, declared.namespace, declared.repositories
