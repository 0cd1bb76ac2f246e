"""The cluster around the operator: an API server with up to 100,000 Nodes, and their kubelets.

Kubelets are callbacks of the event loop, not tasks, so that an idle node needs no CPU time.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks import objects
from benchmarks.memory.meter import Meter
from imagegate.domain.disk import Usage
from imagegate.domain.facts import OBSERVED, Node, Prefetch
from imagegate.kube import nodes
from imagegate.puller import build
from tests.simulation.apiserver import (
    ApiServer,
    Body,
    Change,
    Key,
    Request,
    Stored,
    Watch,
    timestamp,
)
from tests.simulation.loop import elapsed
from tests.simulation.transport import Network, Transport

HISTORY = 100_000
"""The number of changes of one kind after which a watch can still be resumed. Kubernetes' watch
cache has the same limit."""
HEARTBEAT = 300
"""Seconds between two status updates of a kubelet that has nothing to report."""
STARTS = 1.0
"""Seconds from the creation of a puller pod until its container is being created."""
PULLS = 10.0
"""Seconds from the creation of a puller pod until its images are pulled."""
LISTS = 30.0
"""Seconds until a kubelet lists an image that it has pulled."""
BOOTS = 15.0
"""Seconds from the registration of a node until it is Ready."""
FLAPS = 45.0
"""Seconds for which a flapping node is not Ready."""
NOT_READY = "node.kubernetes.io/not-ready"


class Rendered(Stored):
    """Encodes a Node at each read, because 100,000 encoded Nodes would need 1.5 GB. The encoded
    list of images is shared by all Nodes.
    """

    __slots__ = ()

    def bytes(self) -> bytes:
        status: Body = self.body.get("status") or {}
        images = status.get("images")
        if not isinstance(images, objects.Shared):
            return _json(self.body)
        body = {key: value for key, value in self.body.items() if key != "status"}
        rest = {key: value for key, value in status.items() if key != "images"}
        return b"".join(
            (
                _json(body)[:-1],
                b',"status":',
                _json(rest)[:-1],
                b',"images":',
                images.encoded,
                b"}}",
            )
        )


class Api(ApiServer):
    """The simulation's API server with faster lists and encoding. `Meter` measures its time."""

    stored = Rendered

    def __init__(self, meter: Meter, rng: random.Random) -> None:
        super().__init__(rng, HISTORY)
        self._sorted: dict[str, tuple[int, list[Stored]]] = {}
        self.told: Counter[str] = Counter()
        """Watch events by resource."""
        for method in ("handle", "listed", "watch", "change"):
            setattr(self, method, meter.api(getattr(self, method)))

    def listed(
        self, actor: str, resource: str, namespace: str, query: Mapping[str, str]
    ) -> tuple[list[Stored], str, str]:
        """Sort the objects for the first page, and take the other pages from the same list.
        Selectors are ignored, because all objects match the operator's selectors.
        """
        self._observe(Request(0.0, actor, "LIST", resource, (namespace, ""), 200))
        token = query.get("continue", "")
        if not token:
            stored = [self.objects[resource][key] for key in sorted(self.objects[resource])]
            self._sorted[resource] = self.version, stored
        version, found = self._sorted[resource]
        start, limit = int(token or 0), int(query.get("limit", 0)) or len(found) + 1
        more = str(start + limit) if start + limit < len(found) else ""
        if not more:
            del self._sorted[resource]
        return found[start : start + limit], str(version), more

    def watch(
        self,
        actor: str,
        resource: str,
        namespace: str,
        query: Mapping[str, str],
        tell: Callable[[Change], None],
    ) -> Watch:
        def counted(change: Change) -> None:
            self.told[resource] += 1
            tell(change)

        return super().watch(actor, resource, namespace, query, counted)

    def plant(self, resource: str, body: Body) -> Body:
        """Add an object that exists before the operator starts."""
        self.version += 1
        metadata = body["metadata"]
        metadata.setdefault("uid", f"{self._rng.getrandbits(128):032x}")
        metadata.setdefault("creationTimestamp", timestamp())
        metadata["resourceVersion"] = str(self.version)
        key = (metadata.get("namespace", ""), metadata["name"])
        self.objects[resource][key] = Rendered(body)
        return body


class Wire(Transport):
    """The operator's connection. The time to answer and to encode counts for the API server."""

    def __init__(self, meter: Meter, server: Api, network: Network, actor: str) -> None:
        super().__init__(server, network, actor)
        for method in ("_answer", "_watch"):
            setattr(self, method, meter.api(getattr(self, method)))


class Kubelets:
    """All machines. The time of each callback counts for the API server."""

    def __init__(self, meter: Meter, server: Api) -> None:
        self._meter, self._server = meter, server
        self._pulled: dict[str, frozenset[str]] = {}
        self.released: list[float] = []
        """For each node whose gate taint was removed: virtual seconds since it has the images."""
        self._pulled_at: dict[str, float] = {}
        self._beating = False
        server.observers.append(self._see)

    # ---- nodes

    def plant(self, numbers: Iterable[int], prefetches: Iterable[Prefetch] = ()) -> None:
        """Add nodes in service that already hold the images of these prefetches."""
        prefetches, settings = tuple(prefetches), build.PullerSettings(image="registry.test/pause")
        held = frozenset(i.reference for prefetch in prefetches for i in prefetch.images)
        labels = {prefetch.label: prefetch.target for prefetch in prefetches}
        for number in numbers:
            body = objects.node(number, timestamp())
            body["metadata"]["labels"].update(labels)
            body["status"]["images"] = objects.images(held)
            self._pulled[objects.name(number)] = held
            self._server.plant("nodes", body)
            if not prefetches:
                continue
            fact = nodes.parse(body)
            body["metadata"]["annotations"][OBSERVED] = fact.identity
            for prefetch in prefetches:
                for group in prefetch.groups:
                    pod = build.build(prefetch, fact, group, 1, settings)
                    self._server.plant("pods", {**pod, "status": _succeeded()})

    def join(self, number: int, taint: str) -> None:
        """A node registers with the gate's taint, and is Ready some seconds later."""
        name = objects.name(number)
        body = objects.node(number, timestamp(), ready=False)
        body["spec"]["taints"] = [
            {"key": NOT_READY, "effect": "NoSchedule"},
            {"key": taint, "value": "pending", "effect": "NoSchedule"},
        ]
        self._server.do("kubelet", "POST", "nodes", ("", name), body)
        self._later(BOOTS, self._ready, name, True)

    def beat(self, *, flapping: float) -> None:
        """Let every node report its status every 5 minutes, spread evenly. ``flapping`` is the
        fraction of nodes that are not Ready for `FLAPS` seconds after each report.
        """
        self._beating = True
        self._tick(0, round(1 / flapping) if flapping else 0)

    def rest(self) -> None:
        self._beating = False

    def _tick(self, second: int, flapping: int) -> None:
        if not self._beating:
            return
        names = list(self._server.objects["nodes"])[second % HEARTBEAT :: HEARTBEAT]
        for index, (_, name) in enumerate(names):
            flaps = flapping and (index + second // HEARTBEAT) % flapping == 0
            self._ready(name, not flaps)
            if flaps:
                self._later(FLAPS, self._ready, name, True)
        self._later(1.0, self._tick, second + 1, flapping)

    def _ready(self, name: str, ready: bool) -> None:
        """Update a Node's status, and let the node lifecycle controller set its taint."""
        images = objects.images(self._pulled.get(name, frozenset()))
        changed: list[bool] = []

        def report(body: Body) -> None:
            before = body["status"]["conditions"][-1]
            now = timestamp()
            changed.append((before["status"] == "True") is not ready)
            since = now if changed[0] else before["lastTransitionTime"]
            body["status"]["conditions"] = objects.conditions(now, since, ready=ready)
            body["status"]["images"] = images

        def taint(body: Body) -> None:
            taints = [t for t in body["spec"].get("taints", ()) if t["key"] != NOT_READY]
            if not ready:
                taints.append({"key": NOT_READY, "effect": "NoSchedule"})
            body["spec"]["taints"] = taints

        self._server.change("kubelet", "nodes", ("", name), report)
        if any(changed):
            self._server.change("node-controller", "nodes", ("", name), taint)

    # ---- puller pods

    def _see(self, request: Request) -> None:
        if request.resource == "nodes" and request.before is not None and request.after is not None:
            gate = [t for t in request.before["spec"].get("taints", ()) if "imagegate" in t["key"]]
            left = request.after["spec"].get("taints", ())
            if gate and not any(t in left for t in gate):
                self.released.append(elapsed() - self._pulled_at[request.key[1]])
        if request.resource != "pods" or request.method != "POST" or request.after is None:
            return
        metadata = request.after["metadata"]
        key = (metadata["namespace"], metadata["name"])
        self._later(STARTS, self._status, key, {"phase": "Pending", **_waiting()})
        self._later(PULLS, self._finish, key)

    def _finish(self, key: Key) -> None:
        pod = self._server.get("pods", key[1], key[0])
        if pod is None:
            return
        node, uid = pod["spec"]["nodeName"], pod["metadata"]["uid"]
        wanted = {v["image"]["reference"] for v in pod["spec"]["volumes"] if "image" in v}
        self._pulled[node] = self._pulled.get(node, frozenset()) | wanted
        self._pulled_at[node] = elapsed()
        for index, image in enumerate(sorted(wanted)):
            self._server.do("kubelet", "POST", "events", *_pulled_event(key, uid, index, image))
        self._later(1.0, self._status, key, _succeeded())
        self._later(LISTS, self._ready, node, True)

    def _status(self, key: Key, status: Body) -> None:
        self._server.change("kubelet", "pods", key, lambda body: body.update(status=status))

    def _later(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, self._meter.api(what), *args)

    # ---- `runtime.disks.Source`

    async def usage(self, _: Node) -> Usage:
        await asyncio.sleep(0.01)
        return Usage(capacity=100 * 10**9, used=30 * 10**9)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _waiting() -> Body:
    state = {"waiting": {"reason": "ContainerCreating"}}
    return {"containerStatuses": [{"name": build.HOLD, "image": "pause", "state": state}]}


def _succeeded() -> Body:
    now = timestamp()
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
    container = {
        "name": build.HOLD,
        "image": "registry.test/pause",
        "imageID": objects.digest("pause"),
        "containerID": f"containerd://{objects.digest(now)[7:]}",
        "state": {"terminated": ended},
    }
    conditions = [
        {"type": type_, "status": "True", "lastProbeTime": None, "lastTransitionTime": now}
        for type_ in ("PodReadyToStartContainers", "Initialized", "PodScheduled")
    ]
    return {
        "phase": "Succeeded",
        "conditions": conditions,
        "hostIP": "10.0.0.1",
        "podIP": "10.1.0.1",
        "qosClass": "Burstable",
        "startTime": now,
        "containerStatuses": [container],
    }


def _pulled_event(pod: Key, uid: str, index: int, image: str) -> tuple[Key, Body]:
    """The key and body of a kubelet's Event."""
    took = "9.104s (9.104s including waiting). Image size: 314572800 bytes."
    name = f"{pod[1]}.{uid[:8]}{index:02}"
    return (pod[0], name), {
        "metadata": {"name": name},
        "involvedObject": {"kind": "Pod", "namespace": pod[0], "name": pod[1], "uid": uid},
        "reason": "Pulled",
        "source": {"component": "kubelet", "host": "node"},
        "message": f'Successfully pulled image "{image}" in {took}',
        "type": "Normal",
    }
