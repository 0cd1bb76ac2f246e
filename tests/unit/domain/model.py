"""A cluster without I/O for ``test_lives``: an API server, kubelets, and the operator's own loop.

Facts are the operator's frozen records; a Node is JSON only while a patch is applied to it. The
operator is the real store, ledger and reconciler, driven step by step: nothing waits, and nothing
runs by itself. A witness sees every write at the moment at which it takes effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import jsonpatch
from prometheus_client import CollectorRegistry

from imagegate.api.fields import timestamp
from imagegate.domain.actions import PatchNode
from imagegate.domain.disk import Usage
from imagegate.domain.facts import OBSERVED, DaemonSetRef, Gate, Node, Pod, Prefetch, Taint
from imagegate.domain.policy import ANYTHING
from imagegate.errors import ImagegateError
from imagegate.kube import nodes
from imagegate.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound, Unavailable
from imagegate.metrics import Metrics
from imagegate.puller import read
from imagegate.puller.build import PullerSettings
from imagegate.runtime.clock import Clock
from imagegate.runtime.cluster import Cluster as ClusterApi
from imagegate.runtime.disks import Disks
from imagegate.runtime.gate_taint import GateTaint
from imagegate.runtime.image_volumes import ImageVolumes
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.queues import Queues
from imagegate.runtime.reconcile.changes import Changes
from imagegate.runtime.reconcile.controllers import Controllers
from imagegate.runtime.size_limit import SizeLimit
from imagegate.runtime.start_after import StartAfter
from imagegate.runtime.store import Store
from tests.unit.domain.cases import KEY, START
from tests.unit.memory_api import merge
from tests.unit.runtime import world

NAMESPACE = "imagegate-system"
LIVE = 3.0
"""Seconds after which a lagging watch counts as broken: the changes that it missed are not live."""
KUBELET_BACK_OFF = 10.0
"""Seconds from a failed pull to the kubelet's next try: the first and so the shortest."""
NEXT_SYNC = 6.0
"""Seconds from a reported ImagePullBackOff to the kubelet's next look at the pod, at least."""

T = TypeVar("T")
METRICS = Metrics(CollectorRegistry(), version="test")


class Died(Exception):
    """The operator's process ends between two steps of its work."""


class Witness(Protocol):
    """Receives every decision, and every write at the moment at which it takes effect."""

    def deciding(self, operator: Operator, node: Node) -> None: ...
    def granted(self, operator: Operator, prefetch: str, node: str) -> None: ...
    def patched(self, by: Operator, patch: PatchNode, before: Node, after: Node) -> None: ...
    def created(self, by: Operator, pod: Pod) -> None: ...
    def deleted(self, by: Operator, pod: Pod) -> None: ...


@dataclass(slots=True)
class Machine:
    """The machine of a Node: its true state, which the operator may not know."""

    uid: str
    skew: float = 0.0
    """Seconds by which its clock is ahead."""
    boot: int = 1
    holds: dict[str, int] = field(default_factory=dict)
    """Images that its kubelet had, with the last boot in which it had them."""
    ready_at: dict[int, float] = field(default_factory=dict)
    """By boot: when the machine was first Ready."""
    denied: set[str] = field(default_factory=set)
    """Groups of images for which a pull has failed permanently."""
    forged: set[str] = field(default_factory=set)
    """The operator's labels that another client has written."""
    daemons: set[DaemonSetRef] = field(default_factory=set)
    """DaemonSets whose pods are Ready on it now."""
    were_ready: set[DaemonSetRef] = field(default_factory=set)
    """DaemonSets whose pods have been Ready on it since its last boot."""


class Cluster:
    def __init__(self) -> None:
        self.now = START
        self.witness: Witness
        self.version = 100
        self.writes = 0
        self.nodes: dict[str, Node] = {}
        self.machines: dict[str, Machine] = {}
        self.pods: dict[str, Pod] = {}
        self.prefetches: dict[str, Prefetch] = {}
        self.gate: Gate | None = None
        self.operators: list[Operator] = []
        self.resumes: dict[str, float] = {}
        """By pod uid, when the kubelet pulls again after a failure."""
        self.faults: dict[str, str] = {}
        """The fault of the next write, by the kind of the write."""

    def next_version(self) -> int:
        self.version += 1
        return self.version

    # ---- nodes

    def join(self, name: str, *, skew: float, ready: bool, **facts: Any) -> None:
        uid = f"{name}-{self.next_version()}"
        machine = self.machines[name] = Machine(uid, skew)
        node = Node(name, uid, self.version, boot_id="boot-1", created_at=float(int(self.now)))
        self._put_node(self._readied(dataclasses.replace(node, **facts), machine, ready=ready))

    def change_node(self, name: str, **changes: Any) -> None:
        node = dataclasses.replace(self.nodes[name], version=self.next_version(), **changes)
        self._put_node(node)

    def set_ready(self, name: str, *, ready: bool) -> None:
        node = dataclasses.replace(self.nodes[name], version=self.next_version())
        self._put_node(self._readied(node, self.machines[name], ready=ready))

    def reboot(self, name: str, *, ready: bool) -> None:
        machine = self.machines[name]
        machine.boot += 1
        machine.daemons.clear()
        machine.were_ready.clear()
        node = dataclasses.replace(
            self.nodes[name], boot_id=f"boot-{machine.boot}", version=self.next_version()
        )
        self._put_node(self._readied(node, machine, ready=ready))

    def set_daemon(self, name: str, daemon_set: DaemonSetRef, *, ready: bool) -> None:
        machine = self.machines[name]
        if ready:
            machine.daemons.add(daemon_set)
            machine.were_ready.add(daemon_set)
        else:
            machine.daemons.discard(daemon_set)

    def _readied(self, node: Node, machine: Machine, *, ready: bool) -> Node:
        if ready:
            machine.ready_at.setdefault(machine.boot, self.now)
        if ready is node.ready and node.ready_since is not None:
            return node
        since = float(int(self.now + machine.skew))
        return dataclasses.replace(node, ready=ready, ready_since=since)

    def remove_node(self, name: str) -> None:
        node = self.nodes.pop(name)
        del self.machines[name]
        self._notify("nodes", node, gone=True)

    def _put_node(self, node: Node) -> None:
        self.nodes[node.name] = node
        self._notify("nodes", node)

    # ---- puller pods, as kubelets treat them

    def in_flight(self, pod: Pod) -> bool:
        """Whether its node may have a pull for it in flight at this moment."""
        return (
            pod.node in self.machines
            and not pod.finished
            and not pod.deleting
            and self.now >= self.resumes.get(pod.uid, 0.0)
        )

    def report_pulled(self, pod: Pod, image: str) -> None:
        """One image is pulled, and an Event reports it. The pod continues with the others."""
        self._have(pod, (image,))
        for operator in self.operators:
            operator.see("events", read.Pulled(pod.uid, pod.name, image, 1.0))

    def succeed(self, pod: Pod) -> None:
        self._have(pod, pod.images)
        at = float(int(self.now))
        self._change_pod(pod, phase="Succeeded", finished_at=at, waiting="", waiting_message="")

    def _have(self, pod: Pod, images: tuple[str, ...]) -> None:
        machine = self.machines[pod.node]
        machine.holds.update(dict.fromkeys(images, machine.boot))

    def fail(self, pod: Pod, text: str, *, permanent: bool = False) -> None:
        """The pull has failed. If it had failed before, the kubelet reports that it waits."""
        waits = pod.waiting == "ErrImagePull" and self.now < self.resumes.get(pod.uid, 0.0)
        pause = NEXT_SYNC if waits else KUBELET_BACK_OFF
        self.resumes[pod.uid] = max(self.resumes.get(pod.uid, 0.0), self.now + pause)
        if permanent:
            self.machines[pod.node].denied.add(pod.group)
        reason = "ImagePullBackOff" if waits else "ErrImagePull"
        self._change_pod(pod, waiting=reason, waiting_message=text)

    def reject(self, pod: Pod) -> None:
        self._change_pod(pod, phase="Failed", reason="OutOfpods", message="Node has no room")

    def end(self, pod: Pod) -> None:
        """The API server removes the pod."""
        del self.pods[pod.name]
        self._notify("pods", pod, gone=True)

    def _change_pod(self, pod: Pod, **changes: Any) -> None:
        self._put_pod(dataclasses.replace(pod, version=self.next_version(), **changes))

    def _put_pod(self, pod: Pod) -> None:
        self.pods[pod.name] = pod
        self._notify("pods", pod)

    def delete_pod(self, pod: Pod) -> Pod | None:
        """Remove a finished pod immediately, and any other pod when its kubelet has ended it."""
        if pod.finished:
            self.end(pod)
            return None
        if not pod.deleting:
            self._change_pod(pod, deleting=True)
        return self.pods[pod.name]

    # ---- ImagePrefetches and the NodeGate

    def put_prefetch(self, prefetch: Prefetch) -> None:
        made = dataclasses.replace(prefetch, version=self.next_version())
        self.prefetches[made.name] = made
        self._notify("prefetches", made)

    def delete_prefetch(self, name: str) -> None:
        prefetch = self.prefetches[name]
        if prefetch.finalizers:
            self.put_prefetch(dataclasses.replace(prefetch, deleting=True))
        else:
            self.drop_prefetch(prefetch)

    def drop_prefetch(self, prefetch: Prefetch) -> None:
        del self.prefetches[prefetch.name]
        self._notify("prefetches", prefetch, gone=True)

    def put_gate(self, *, suspend: bool = False) -> None:
        version = self.next_version()
        uid = self.gate.uid if self.gate is not None else f"gate-{version}"
        self.gate = Gate(uid, version, KEY, suspend, status={"heartbeat": "x"})
        self._notify("gate", self.gate)

    def drop_gate(self) -> None:
        gate, self.gate = self.gate, None
        self._notify("gate", gate, gone=True)

    def _notify(self, kind: str, facts: Any, *, gone: bool = False) -> None:
        for operator in self.operators:
            operator.see(kind, facts, gone=gone)


class Api:
    """The API client of one operator: its writes and its requests."""

    def __init__(self, cluster: Cluster, operator: Operator) -> None:
        self._cluster = cluster
        self._operator = operator

    def _write(self, kind: str, effect: Callable[[], T]) -> T:
        self._cluster.writes += 1
        fault = self._cluster.faults.pop(kind, "")
        match fault:
            case "killed before":
                raise Died
            case "unavailable":
                raise Unavailable(kind, 503, "try again later")
            case "conflict":
                raise Conflict(kind, 409, "another client was faster")
            case "forbidden":
                raise Forbidden(kind, 403, "exceeded quota")
            case _:
                pass
        result = effect()
        match fault:
            case "killed after":
                raise Died
            case "unanswered":
                raise Unavailable(kind, 0, "the connection broke")
            case _:
                pass
        return result

    # ---- Nodes

    async def get(self, *key: str) -> Node | Pod | Prefetch:
        """A Node or ImagePrefetch by its name (in this model all names differ), or a puller pod by
        namespace and name.
        """
        cluster = self._cluster
        kind, there = "pod", cast("Mapping[str, Node | Pod | Prefetch]", cluster.pods)
        if len(key) == 1:
            kind, there = "object", {**cluster.nodes, **cluster.prefetches}
        if key[-1] not in there:
            raise NotFound(kind, 404, key[-1])
        return there[key[-1]]

    async def apply(self, patch: PatchNode) -> Node:
        return self._write("patch", lambda: self._patch(patch))

    def _patch(self, patch: PatchNode) -> Node:
        cluster, name = self._cluster, patch.node.name
        if name not in cluster.nodes:
            raise NotFound("node", 404, name)
        before = cluster.nodes[name]
        body = _render(before)
        try:
            jsonpatch.apply_patch(body, nodes.operations(patch), in_place=True)
        except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
            raise Conflict("node", 422, str(error)) from error
        body["metadata"]["resourceVersion"] = str(cluster.version + 1)
        after = nodes.parse(body)
        cluster.witness.patched(self._operator, patch, before, after)
        if after != before:
            changes = {f: getattr(after, f) for f in ("labels", "annotated", "taints", "observed")}
            cluster.change_node(name, **changes)
        return cluster.nodes[name]

    # ---- DaemonSets

    async def unready(self, node: str, refs: Collection[DaemonSetRef]) -> dict[DaemonSetRef, str]:
        machine = self._cluster.machines.get(node)
        there = machine.daemons if machine is not None else set()
        return {ref: "its pod is not Ready" for ref in sorted(refs, key=str) if ref not in there}

    # ---- puller pods

    async def create(self, manifest: Mapping[str, Any]) -> Pod:
        return self._write("create", lambda: self._create(manifest))

    def _create(self, manifest: Mapping[str, Any]) -> Pod:
        cluster = self._cluster
        made = read.pod(manifest)
        if made.name in cluster.pods:
            raise AlreadyExists("pod", 409, made.name)
        version = cluster.next_version()
        made = dataclasses.replace(
            made, uid=f"pod-{version}", created_at=float(int(cluster.now)), version=version
        )
        cluster.witness.created(self._operator, made)
        cluster._put_pod(made)
        return made

    async def delete(self, pod: Pod, *, unchanged: bool = False) -> Pod | None:
        return self._write("delete", lambda: self._delete(pod, unchanged=unchanged))

    def _delete(self, pod: Pod, *, unchanged: bool) -> Pod | None:
        there = self._cluster.pods.get(pod.name)
        if there is None:
            raise NotFound("pod", 404, pod.name)
        if there.uid != pod.uid:
            raise Conflict("pod", 409, "the UID in the precondition does not match")
        if unchanged and there.version != pod.version:
            raise Conflict("pod", 409, "the resourceVersion in the precondition does not match")
        self._cluster.witness.deleted(self._operator, there)
        return self._cluster.delete_pod(there)

    # ---- ImagePrefetches

    async def add_finalizer(self, prefetch: Prefetch) -> Prefetch:
        self._write("finalizer", lambda: self._finalizers(prefetch, ("imagegate.dev/cleanup",)))
        there = self._cluster.prefetches.get(prefetch.name)
        if there is None:
            raise NotFound("imageprefetch", 404, prefetch.name)
        return there

    async def remove_finalizer(self, prefetch: Prefetch) -> None:
        self._write("finalizer", lambda: self._finalizers(prefetch, ()))

    def _finalizers(self, prefetch: Prefetch, wanted: tuple[str, ...]) -> None:
        there = self._cluster.prefetches.get(prefetch.name)
        if there is None or (there.uid, there.finalizers) != (prefetch.uid, prefetch.finalizers):
            return  # kube.prefetches ignores a conflict in the same way
        if there.deleting and wanted:
            return  # the API server adds no finalizer to an object that is being deleted
        if there.deleting:
            self._cluster.drop_prefetch(there)
        else:
            self._cluster.put_prefetch(dataclasses.replace(there, finalizers=wanted))

    async def write_status(self, prefetch: Prefetch, status: Mapping[str, Any]) -> Prefetch:
        return self._write("status", lambda: self._status(prefetch, status))

    def _status(self, prefetch: Prefetch, status: Mapping[str, Any]) -> Prefetch:
        there = self._cluster.prefetches.get(prefetch.name)
        if there is None:
            raise NotFound("imageprefetch", 404, prefetch.name)
        if there.uid != prefetch.uid:
            raise Conflict("imageprefetch", 409, "the UID in the precondition does not match")
        if there.version != prefetch.version:
            raise Conflict("imageprefetch", 409, "the resourceVersion does not match")
        merged = merge(there.status, status)
        self._cluster.put_prefetch(dataclasses.replace(there, status=merged))
        return self._cluster.prefetches[prefetch.name]


class Silent:
    """Drops the Events, because no test reads them."""

    def node(self, *_: Any, **__: Any) -> None: ...
    def prefetch(self, *_: Any, **__: Any) -> None: ...


class Queue:
    """`KeyedQueue` without an event loop: the test asks for the keys that are due."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ready: dict[str, None] = {}
        self._due: dict[str, float] = {}

    def add(self, key: str, *, delay: float = 0.0, urgent: bool = False) -> None:
        if delay <= 0:
            self._due.pop(key, None)
            self._ready[key] = None
        else:
            when = self._clock() + delay
            self._due[key] = min(when, self._due.get(key, when))

    def due(self) -> list[str]:
        now = self._clock()
        timed = (key for key, when in self._due.items() if when <= now)
        return list(dict.fromkeys((*self._ready, *timed)))

    def take(self, key: str) -> None:
        if self._due.get(key, self._clock() + 1) <= self._clock():
            del self._due[key]
        self._ready.pop(key, None)

    def next_at(self) -> float | None:
        return self._clock() if self._ready else min(self._due.values(), default=None)


class Operator:
    """One process of the operator: its store, its memory and its queues."""

    def __init__(self, cluster: Cluster, *, by_watch: bool) -> None:
        self.cluster = cluster
        self.dead = False
        self.lagging: set[str] = set()
        self._backlog: list[tuple[str, Any, bool, float]] = []
        clock = Clock(now=lambda: cluster.now, monotonic=lambda: cluster.now)
        self.store, self.ledger = Store(clock), Ledger()
        api: Any = Api(cluster, self)
        events: Any = Silent()
        parts: list[Any] = [Queue(clock.now) for _ in dataclasses.fields(Queues)]
        queues = Queues(*parts)
        self.node_queue: Queue = parts[0]
        self.prefetch_queue: Queue = parts[1]
        self.disk_queue: Queue = parts[2]
        self.start_queue: Queue = parts[5]
        registries, puller = world.Registries(), PullerSettings(image="pause")
        gate = GateTaint(self.store, world.OneKey(), by_watch=by_watch)
        self.changes = changes = Changes(queues, self.store, self.ledger, gate)
        self.start_after = StartAfter(api, queues.start_after, changes.node_changed)
        known = Knowledge(
            clock=clock,
            store=self.store,
            ledger=self.ledger,
            gate=gate,
            images=registries,
            size_limit=SizeLimit(registries.known, ANYTHING),
            workloads=world.NoWorkloads(),
            repositories=world.NoRepositories(),
            disks=Disks(world.Full(Usage(capacity=1, used=0)), clock),
            start_after=self.start_after,
            image_volumes=ImageVolumes(api, puller, NAMESPACE),
        )
        cluster_api = ClusterApi(nodes=api, pods=api, prefetches=api, gates=api, events=events)
        self.controllers = Controllers(cluster_api, known, queues, changes, METRICS)
        if cluster.gate is None:
            cluster.put_gate()
        self.resync()
        self.store.listen(self.changes)
        self.look_at_everything()

    def look_at_everything(self) -> None:
        for name in self.store.prefetches:
            self.prefetch_queue.add(name)
        for name in self.store.nodes:
            self.node_queue.add(name)

    def resync(self) -> None:
        cluster = self.cluster
        self.store.see_gate(cluster.gate)
        self.store.prune(
            since=cluster.now,
            nodes=list(cluster.nodes.values()),
            pods=list(cluster.pods.values()),
            prefetches=list(cluster.prefetches.values()),
        )

    # ---- watches

    def see(self, kind: str, facts: Any, *, gone: bool = False) -> None:
        if kind in self.lagging:
            self._backlog.append((kind, facts, gone, self.cluster.now))
        else:
            self._take_in(kind, facts, gone=gone, live=True)

    def catch_up(self, *, swapped: bool = False) -> None:
        """Let the watches deliver their backlog: the last state of each object, as kopf batches it.

        ``swapped``: two objects with the same name have separate workers, and the worker of the
        later object may be faster.
        """
        last = {(kind, facts.uid if kind != "events" else facts): (kind, facts, gone, at)
                for kind, facts, gone, at in self._backlog}  # fmt: skip
        self._backlog.clear()
        self.lagging.clear()
        for kind, facts, gone, at in reversed(last.values()) if swapped else last.values():
            self._take_in(kind, facts, gone=gone, live=self.cluster.now - at <= LIVE)

    def _take_in(self, kind: str, facts: Any, *, gone: bool, live: bool) -> None:
        store = self.store
        match kind, gone:
            case "nodes", False:
                store.see_node(facts)
            case "nodes", True:
                store.lose_node(facts.name, facts.uid)
            case "pods", False:
                store.see_pod(facts, live=live)
            case "pods", True:
                store.lose_pod(facts.namespace, facts.name, facts.uid)
            case "prefetches", False:
                store.see_prefetch(facts)
            case "prefetches", True:
                store.lose_prefetch(facts.name, facts.uid)
            case "gate", _:
                store.see_gate(None if gone else facts)
            case "events", _:
                store.see_pulled(NAMESPACE, facts)
            case _:
                raise AssertionError(kind)

    # ---- work

    def due(self) -> list[tuple[str, str]]:
        return [
            *(("node", key) for key in self.node_queue.due()),
            *(("prefetch", key) for key in self.prefetch_queue.due()),
            *(("disk", key) for key in self.disk_queue.due()),
            *(("start", key) for key in self.start_queue.due()),
        ]

    def next_at(self) -> float | None:
        queues = (self.node_queue, self.prefetch_queue, self.disk_queue, self.start_queue)
        return min((at for queue in queues if (at := queue.next_at()) is not None), default=None)

    def work(self, kind: str, key: str) -> None:
        """Process one key, as a worker does. After an error the key is due again soon."""
        queues = {
            "node": self.node_queue,
            "prefetch": self.prefetch_queue,
            "disk": self.disk_queue,
        }
        queue = queues.get(kind, self.start_queue)
        queue.take(key)
        node = self.store.nodes.get(key) if kind == "node" else None
        if node is not None:
            self.cluster.witness.deciding(self, node)
        before = set(self.ledger.entry(key).slots) if key in self.ledger.entries else set()
        try:
            match kind:
                case "node":
                    _finish(self.controllers.nodes.reconcile(key))
                case "prefetch":
                    _finish(self.controllers.prefetches.reconcile(key))
                case "disk":
                    _finish(self.controllers.disks.read(key))
                case _:
                    _finish(self.start_after.look(key))
        except Died:
            self.dead = True
        except (ImagegateError, ExceptionGroup):
            queue.add(key, delay=0.1)
        if kind == "prefetch" and key in self.ledger.entries:
            for granted in self.ledger.entry(key).slots - before:
                self.cluster.witness.granted(self, key, granted)


def _finish(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise AssertionError("the loop waited for something that is not in this model")


def _render(node: Node) -> dict[str, Any]:
    """A Node as the API server keeps it, without empty fields."""
    metadata: dict[str, Any] = {
        "name": node.name,
        "uid": node.uid,
        "resourceVersion": str(node.version),
        "creationTimestamp": timestamp(node.created_at),
    }
    if node.labels:
        metadata["labels"] = dict(node.labels)
    if node.annotated:
        other = {} if node.observed else {"somebody.example/note": "1"}
        metadata["annotations"] = other or {OBSERVED: node.observed}
    spec: dict[str, Any] = {"unschedulable": True} if node.unschedulable else {}
    if node.taints:
        spec["taints"] = [_taint(taint) for taint in node.taints]
    ready = {"type": "Ready", "status": "True" if node.ready else "False"}
    if node.ready_since is not None:
        ready["lastTransitionTime"] = timestamp(node.ready_since)
    pressure = {"type": "DiskPressure", "status": "True" if node.disk_pressure else "False"}
    if node.deleting:
        metadata["deletionTimestamp"] = timestamp(node.created_at)
    status = {"nodeInfo": {"bootID": node.boot_id}, "conditions": [ready, pressure]}
    return {"kind": "Node", "metadata": metadata, "spec": spec, "status": status}


def _taint(taint: Taint) -> dict[str, str]:
    entry = {"key": taint.key, "effect": taint.effect}
    if taint.value is not None:
        entry["value"] = taint.value
    if taint.time_added is not None:
        entry["timeAdded"] = taint.time_added
    return entry


def ours(node: Node) -> Taint | None:
    """The gate's taint, also if another client has added it."""
    return node.taint(KEY)
