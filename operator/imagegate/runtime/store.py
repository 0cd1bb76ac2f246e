"""What is known of the cluster now: facts by key, fed by watches and put right by resyncs.

Every change is announced to the listener; a sighting that changes nothing is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from imagegate.domain.effective import effective
from imagegate.domain.facts import LABEL_PREFIX, Gate, Listed, Node, Pod, Prefetch
from imagegate.domain.messages import PULL_ERRORS
from imagegate.domain.workloads import Found, joined
from imagegate.puller.read import Pulled
from imagegate.runtime.clock import Clock
from imagegate.runtime.watches import Watches

PodKey = tuple[str, str]

LATE = 120.0
"""Seconds for which an answer to a request of our own may be late. A tombstone is kept for as long
after the list that no longer shows the object was begun."""
TOMBSTONES = 20_000
"""How many tombstones are kept at most; the oldest are dropped first."""


class Listener(Protocol):
    """Who is told; by name of the node, prefetch, or nothing at all."""

    def node_changed(self, name: str) -> None: ...
    def prefetch_changed(self, name: str) -> None: ...
    def gate_changed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The end of an object. A list or an answer from before it must not bring the object back."""

    uid: str
    version: int
    """The resourceVersion of the deletion, or the last that was known of the object."""
    at: float
    """Monotonic."""

    returns: bool
    """Whether an object of this uid may be seen again. A puller pod whose label is removed leaves
    our watch as if it were deleted, and comes back with a newer version when the label does."""

    def covers(self, seen: Versioned) -> bool:
        if seen.uid == self.uid and not self.returns:
            return True
        return 0 < seen.version <= self.version


class Versioned(Protocol):
    @property
    def uid(self) -> str: ...
    @property
    def version(self) -> int: ...


class Store:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listener: Listener | None = None
        self._nodes: dict[str, Node] = {}
        self._pods: dict[PodKey, Pod] = {}
        self._by_node: dict[str, dict[PodKey, Pod]] = {}
        self._declared: dict[str, Prefetch] = {}
        self._prefetches: dict[str, Prefetch] = {}
        self._found: dict[str, tuple[object, Found]] = {}
        self._pulled: dict[str, frozenset[str]] = {}
        self._failed_at: dict[str, float] = {}
        self._first_ready: dict[str, tuple[str, float]] = {}
        self._unready_since: dict[str, tuple[str, float]] = {}
        self._finished_at: dict[str, float] = {}
        self._labels_since: dict[str, tuple[object, float]] = {}
        self._listed: dict[str, Mapping[str, Listed]] = {}
        self._wanted: frozenset[str] = frozenset()
        self._seen: dict[object, float] = {}
        self._ended: dict[tuple[str, object], Tombstone] = {}
        self.unreadable: Mapping[str, str] = {}
        """Puller namespaces whose pods cannot be read now, and why."""
        self.gate: Gate | None = None
        self.complete = False
        """Whether the first resync is done: before, nothing may be concluded from absence."""
        self.watches = Watches(clock)

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    # ---- reading

    @property
    def nodes(self) -> Mapping[str, Node]:
        return self._nodes

    @property
    def prefetches(self) -> Mapping[str, Prefetch]:
        """What they come to (`domain.effective`)."""
        return self._prefetches

    @property
    def pods(self) -> Mapping[PodKey, Pod]:
        return self._pods

    def pods_on(self, node: str) -> Iterator[Pod]:
        return iter(self._by_node.get(node, {}).values())

    def pulled(self, pod_uid: str) -> frozenset[str]:
        """The images that the kubelet reported as pulled for this pod."""
        return self._pulled.get(pod_uid, frozenset())

    def failed_at(self, pod_uid: str) -> float | None:
        """When this process watched this pod's pull fail the last time."""
        return self._failed_at.get(pod_uid)

    def first_ready(self, node: Node) -> float:
        """When this process first saw the node Ready since its last boot, or, where the node is in
        service, since it was not Ready the last time; now, if that is not known.
        """
        known = self._first_ready.get(node.name)
        return known[1] if known and known[0] == node.identity else self._clock.now()

    def unready_since(self, node: Node) -> float | None:
        """Since when this process has seen the machine not Ready; None: it is Ready."""
        known = self._unready_since.get(node.name)
        return known[1] if known and known[0] == node.uid and not node.ready else None

    def finished_at(self, pod_uid: str) -> float | None:
        """When this process first saw this pod finished."""
        return self._finished_at.get(pod_uid)

    def labels_since(self, node: Node) -> float | None:
        """Since when our labels on the node have been as they are; None: it has none."""
        known = self._labels_since.get(node.name)
        return known[1] if known is not None else None

    def listed(self, node: Node) -> Mapping[str, Listed]:
        """The wanted names that the node has listed since its label for them is as it is."""
        return self._listed.get(node.name, {})

    @property
    def wanted(self) -> frozenset[str]:
        """The names under which nodes list the images of all prefetches."""
        return self._wanted

    def prefetch_of(self, namespace: str, pod: str) -> str:
        """The prefetch that a puller pod works for; empty when the pod is not known."""
        known = self._pods.get((namespace, pod))
        return known.prefetch if known is not None else ""

    # ---- order

    def _stale(self, kind: str, key: object, old: Versioned | None, seen: Versioned) -> bool:
        """Whether ``seen`` is older than what is known. The resourceVersions of one kind are one
        sequence, so that they are compared whatever the uid. 0 is a version that is not known.
        """
        if old is not None and 0 < seen.version < old.version:
            return True
        ended = self._ended.get((kind, key))
        return ended is not None and ended.covers(seen)

    def _end(
        self, kind: str, key: object, old: Versioned | None, uid: str | None, version: int
    ) -> bool:
        """Note the end of an object. False where the store knows another object of that name."""
        if old is not None and uid is not None and old.uid != uid:
            return False
        if old is not None:
            uid, version = old.uid, max(version, old.version)
        before = self._ended.get((kind, key))
        if uid and (before is None or before.uid == uid or before.version <= version):
            self._ended.pop((kind, key), None)
            self._ended[kind, key] = Tombstone(
                uid,
                # A deletion that is told twice, once without its version, lowers nothing.
                max(version, before.version) if before is not None else version,
                self._clock.monotonic(),
                returns=kind == "pod",
            )
            if len(self._ended) > TOMBSTONES:
                del self._ended[next(iter(self._ended))]
        return old is not None

    # ---- sightings

    def see_node(self, node: Node) -> None:
        old = self._nodes.get(node.name)
        if self._stale("node", node.name, old, node):
            return
        self._seen["node", node.name] = self._clock.monotonic()
        if node.ready and self._first_ready.get(node.name, ("",))[0] != node.identity:
            self._first_ready[node.name] = (node.identity, self._clock.now())
        if node.ready:
            self._unready_since.pop(node.name, None)
        else:
            if self._unready_since.get(node.name, ("",))[0] != node.uid:
                self._unready_since[node.name] = (node.uid, self._clock.now())
            if node.observed:
                # In service, and so held again when it comes back: the gate's timeout begins then.
                self._first_ready.pop(node.name, None)
        self._note_labels(node)
        self._note_listed(node, old)
        self._nodes[node.name] = node
        if old != node and self._listener is not None:
            self._listener.node_changed(node.name)

    def lose_node(self, name: str, uid: str | None = None, version: int = 0) -> None:
        old = self._nodes.get(name)
        if not self._end("node", name, old, uid, version) or old is None:
            return
        del self._nodes[name]
        self._first_ready.pop(name, None)
        self._unready_since.pop(name, None)
        self._labels_since.pop(name, None)
        self._listed.pop(name, None)
        self._seen.pop(("node", name), None)
        if self._listener is not None:
            self._listener.node_changed(name)

    def _note_labels(self, node: Node) -> None:
        ours = sorted(item for item in node.labels.items() if item[0].startswith(LABEL_PREFIX))
        if not ours:
            self._labels_since.pop(node.name, None)
            return
        known, state = self._labels_since.get(node.name), (node.identity, ours)
        if known is None or known[0] != state:
            self._labels_since[node.name] = (state, self._clock.now())

    def _note_listed(self, node: Node, old: Node | None) -> None:
        """Remember which names the node has listed: only what was listed can be missed. A label
        that has changed starts anew for the names of its prefetch.
        """
        seen = self._listed.get(node.name, {})
        if old is None or old.identity != node.identity:
            seen = {}
        kept = seen.keys() & node.wanted
        if old is not None and old.labels != node.labels:
            for prefetch in self._prefetches.values():
                if old.labels.get(prefetch.label) != node.labels.get(prefetch.label):
                    kept -= _names(prefetch)
        seen = {**{name: seen[name] for name in kept}, **node.listed}
        self._listed[node.name] = node.listed if seen == node.listed else seen

    def _want(self) -> None:
        wanted = frozenset(
            name for prefetch in self._prefetches.values() for name in _names(prefetch)
        )
        if wanted != self._wanted:  # else every Node keeps the set that it was parsed with
            self._wanted = wanted

    def see_pod(self, pod: Pod, *, live: bool = False) -> None:
        """``live``: a change that was watched happening, rather than found in a list."""
        key = (pod.namespace, pod.name)
        old = self._pods.get(key)
        if not pod.owned:
            if old is not None and old.uid == pod.uid:
                self.lose_pod(pod.namespace, pod.name, pod.uid, pod.version)
            return
        if self._stale("pod", key, old, pod):
            return
        self._seen["pod", key] = self._clock.monotonic()
        if old is not None and old.uid != pod.uid:
            self._forget_pod(old)
        if pod.finished:
            self._finished_at.setdefault(pod.uid, self._clock.now())
        if live and _started_failing(old, pod):
            self._failed_at[pod.uid] = self._clock.now()
        if old is not None and old.node != pod.node:
            self._by_node.get(old.node, {}).pop(key, None)
        self._pods[key] = pod
        self._by_node.setdefault(pod.node, {})[key] = pod
        if old != pod and self._listener is not None:
            self._listener.node_changed(pod.node)

    def lose_pod(self, namespace: str, name: str, uid: str | None = None, version: int = 0) -> None:
        old = self._pods.get((namespace, name))
        if not self._end("pod", (namespace, name), old, uid, version) or old is None:
            return
        self._forget_pod(old)
        if self._listener is not None:
            self._listener.node_changed(old.node)

    def _forget_pod(self, pod: Pod) -> None:
        key = (pod.namespace, pod.name)
        self._pods.pop(key, None)
        self._seen.pop(("pod", key), None)
        on_node = self._by_node.get(pod.node, {})
        on_node.pop(key, None)
        if not on_node:
            self._by_node.pop(pod.node, None)
        self._pulled.pop(pod.uid, None)
        self._failed_at.pop(pod.uid, None)
        self._finished_at.pop(pod.uid, None)

    def see_pulled(self, namespace: str, pulled: Pulled) -> bool:
        """A kubelet's Pulled event. False when it is old news, or of a pod that is not known."""
        pod = self._pods.get((namespace, pulled.pod_name))
        if pod is None or pod.uid != pulled.pod_uid or pulled.image not in pod.images:
            return False
        known = self._pulled.get(pod.uid, frozenset())
        if pulled.image in known:
            return False
        self._pulled[pod.uid] = known | {pulled.image}
        if self._listener is not None:
            self._listener.node_changed(pod.node)
        return True

    def declared(self, name: str) -> Prefetch | None:
        """A prefetch as its spec has it."""
        return self._declared.get(name)

    def see_prefetch(self, declared: Prefetch) -> None:
        old = self._declared.get(declared.name)
        if self._stale("prefetch", declared.name, old, declared):
            return
        self._seen["prefetch", declared.name] = self._clock.monotonic()
        self._declared[declared.name] = declared
        self._come_to(declared)

    def found_images(self, declared: Prefetch, found: Found) -> None:
        """What ``imagesFrom`` comes to; until the next change of what it depends on."""
        self._found[declared.name] = (_asked(declared), found)
        self._come_to(declared)

    def _come_to(self, declared: Prefetch) -> None:
        """Work out anew what a prefetch comes to."""
        name = declared.name
        asked, found = self._found.get(name, (None, None))
        known = found if asked == _asked(declared) else None
        old, new = self._prefetches.get(name), effective(joined(declared, known))
        why = self.unreadable.get(new.namespace)
        if why is not None and new.invalid is None and not new.deleting:
            text = (
                f"the operator cannot read pods in spec.pullerNamespace {new.namespace!r}: create"
                f" the namespace, or install the chart again so that its Role is there ({why})"
            )
            new = replace(new, invalid=("NamespaceNotReadable", text))
        self._prefetches[name] = new
        self._want()
        if old != new and self._listener is not None:
            self._listener.prefetch_changed(name)

    def lose_prefetch(self, name: str, uid: str | None = None, version: int = 0) -> None:
        old = self._declared.get(name)
        if not self._end("prefetch", name, old, uid, version) or old is None:
            return
        del self._declared[name], self._prefetches[name]
        self._found.pop(name, None)
        self._want()
        self._seen.pop(("prefetch", name), None)
        if self._listener is not None:
            self._listener.prefetch_changed(name)

    def see_gate(self, gate: Gate | None, *, since: float | None = None) -> None:
        """None: it is deleted, or was absent when it was read; ``since``: when that began."""
        old = self.gate
        if gate is None:
            if since is not None and self._seen.get(("gate", ""), 0.0) >= since:
                return
            self._end("gate", "", old, None, 0)
        elif self._stale("gate", "", old, gate):
            return
        else:
            self._seen["gate", ""] = self._clock.monotonic()
        self.gate = gate
        # The first heartbeat arms it; the others change nothing.
        changed = old != gate or _beats(old) != _beats(gate)
        if changed and self._listener is not None:
            self._listener.gate_changed()

    def lose_gate(self, uid: str, version: int) -> None:
        """The watch saw the deletion of this NodeGate."""
        if not self._end("gate", "", self.gate, uid, version):
            return
        self.gate = None
        if self._listener is not None:
            self._listener.gate_changed()

    def see_unreadable(self, namespaces: Mapping[str, str]) -> None:
        """The puller namespaces that cannot be read now, and why: what is known of their pods stays
        as it was, and their prefetches are not acted on.
        """
        changed = namespaces.keys() ^ self.unreadable.keys()
        self.unreadable = dict(namespaces)
        for declared in list(self._declared.values()):
            if declared.namespace in changed:
                self._come_to(declared)
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
        """Take complete lists that were begun at ``since`` (monotonic) and drop what is not there.

        kopf says nothing of objects that vanished while a watch was broken. What was seen after
        the lists were begun may simply be newer than them, and stays.
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
        for ended in [k for k, stone in self._ended.items() if stone.at < since - LATE]:
            del self._ended[ended]
        return {"Node": len(gone_nodes), "Pod": len(gone_pods), "ImagePrefetch": len(gone)}

    def _old(self, kind: str, key: object, since: float) -> bool:
        return self._seen.get((kind, key), 0.0) < since


def _names(prefetch: Prefetch) -> frozenset[str]:
    names = (name for image in prefetch.images for name in (image.listed_as, image.tagged_as))
    return frozenset(sys.intern(name) for name in names if name)


def _beats(gate: Gate | None) -> bool:
    return gate is not None and "heartbeat" in gate.status


def _asked(declared: Prefetch) -> object:
    """What decides the images that ``imagesFrom`` comes to, as far as the spec is concerned."""
    return declared.uid, declared.images, declared.images_from, declared.pull_secrets


def _started_failing(old: Pod | None, pod: Pod) -> bool:
    """Whether a pull was just reported as failed (again).

    Both reasons do: ErrImagePull right after the attempt, ImagePullBackOff when the kubelet
    refuses to try again yet. At either moment nothing is being pulled.
    """
    if pod.waiting not in PULL_ERRORS:
        return False
    return old is None or (old.waiting, old.waiting_message) != (pod.waiting, pod.waiting_message)
