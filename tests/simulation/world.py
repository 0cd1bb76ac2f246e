"""One simulated cluster: API server, machines, controllers, registry, replicas, the judge."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

from imagegate.kube.client import Client
from imagegate.puller import build
from imagegate.runtime.clock import Clock
from imagegate.runtime.installation import Installation
from imagegate.runtime.watchdog import Watchdog
from tests.simulation.apiserver import ApiServer, Body, Key, Refused, Request, age, timestamp
from tests.simulation.judge import Judge
from tests.simulation.loop import EPOCH, elapsed
from tests.simulation.machines import GB, Kubelet, Machine, Registry
from tests.simulation.replica import LEASE, NAMESPACE, Replica
from tests.simulation.transport import Network, Transport

TEAMS = (NAMESPACE, "team-a", "team-b")
KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
ZONES = ("a", "b")
TICK = 5.0
UNREACHABLE = 40.0
"""Seconds without a heartbeat after which the node lifecycle controller marks a node unreachable.
The kubelets' Leases, renewed every 10 s, are not simulated; only this consequence is."""


class World:
    def __init__(self, seed: int, *, replicas: int = 2) -> None:
        self.rng = random.Random(seed)
        self.server = ApiServer(random.Random(seed + 1))
        self.registry = Registry()
        self.kubelets: dict[str, Kubelet] = {}
        self.refused_nodes: set[str] = set()
        """Nodes whose changes by the operator a policy refuses."""
        self.nodes_failing = False
        """Whether every change of a Node by the operator is answered with 503."""
        self.webhook_down: set[str] = set()
        """Namespaces in which an admission webhook fails."""
        self.roleless: set[str] = set()
        """Namespaces in which the operator's Role is deleted."""
        self._calm: dict[str, float] = {}
        self._disturbed = -1e9
        self._changed = 0.0
        self._relayed = -1e9
        self._frozen: dict[str, float] = {}
        self.replicas = [
            Replica(n, self.server, self.registry, self.kubelets, TEAMS, self.rng)
            for n in range(replicas)
        ]
        self.server.admit = self._admit
        self.server.admit_node = self._admit_node
        self.server.confirm = self._confirm
        self.judge = Judge(self)
        self.server.observers.append(self._observe)
        self.digest = hashlib.sha256()
        """Hash of every request so far, which is equal for two runs of one seed."""
        self.requests = 0
        self.events = 0
        self._background: set[asyncio.Task[Any]] = set()
        self._errors: list[BaseException] = []
        """Of the simulation itself: an operator must not take them for its own."""
        for namespace in (*TEAMS, "default"):
            self.server.do("person", "POST", "namespaces", ("", namespace), _named(namespace))
        policy = "mutatingadmissionpolicies"
        self.server.do("person", "POST", policy, ("", "imagegate"), _named("imagegate"))
        for index in range(8):
            for tag in range(1, 4):
                size = int(self.rng.uniform(0.05, 4) * GB)
                self.registry.push(f"registry.test/app-{index}:{tag}", f"{index}/{tag}", size)

    # ---- for the judge

    @property
    def machines(self) -> dict[str, Machine]:
        return {name: kubelet.machine for name, kubelet in self.kubelets.items()}

    @property
    def disturbed(self) -> float:
        network = [replica.network for replica in self.replicas]
        if self.nodes_failing or any(
            n.away or n.failing or n.throttled or n.lost_answers or n.leaseless for n in network
        ):
            self._disturbed = elapsed()
        return self._disturbed

    @property
    def changed(self) -> float:
        return self._changed

    @property
    def relayed(self) -> float:
        return self._relayed

    @property
    def lag(self) -> float:
        lags = [lag for replica in self.replicas for lag in replica.network.lag.values()]
        slow = max(replica.network.slow_lists for replica in self.replicas)
        patches = max(replica.network.slow_patches for replica in self.replicas)
        return 8 * max(lags, default=0.0) + 10 * slow + 3 * patches

    def exits(self) -> list[tuple[float, str, str]]:
        found = []
        for replica in self.replicas:
            found += [(at, replica.actor, why) for at, why in replica.exits]
            replica.exits.clear()
        return found

    def frozen(self, actor: str) -> bool:
        return self._frozen.get(actor.partition("/")[0], -1e9) > elapsed() - 60

    def memory(self) -> dict[str, dict[str, int]]:
        return {replica.actor: dict(replica.memory()) for replica in self.replicas}

    # ---- the API server's rules

    def _admit(self, request: Request) -> None:
        if not request.actor.startswith("operator"):
            return
        resource, namespace = request.resource, request.key[0]
        if resource in ("pods", "events") and namespace not in ("", "default"):
            if ("", namespace) not in self.server.objects["namespaces"] or (
                namespace in self.roleless
            ):
                raise Refused(403, "Forbidden", f"pods is forbidden in the namespace {namespace!r}")
            if request.method == "POST" and namespace in self.webhook_down:
                raise Refused(500, "InternalError", 'failed calling webhook "policy.test"')
        if resource == "nodes" and request.method == "PATCH":
            if self.nodes_failing:
                raise Refused(503, "ServiceUnavailable", "no endpoints available for a webhook")
            if request.key[1] in self.refused_nodes:
                raise Refused(422, "Invalid", "ValidatingAdmissionPolicy 'nodes' denied request")
        if resource == "imageprefetches" and request.method == "PATCH":
            for condition in (
                ((request.sent or {}).get("status") or {}).get("conditions", ())
                if (isinstance(request.sent, dict))
                else ()
            ):
                if len(condition["message"]) > 32768:
                    raise Refused(422, "Invalid", "conditions[].message: Too long")

    def _admit_node(self, body: Body) -> None:
        """The chart's MutatingAdmissionPolicy, with its dead-man's switch."""
        gate = self.server.get("nodegates", "default")
        if gate is None or gate["spec"].get("suspend"):
            return
        beat = (gate.get("status") or {}).get("heartbeat")
        if beat is None or age(beat) > gate["spec"].get("silenceSeconds", 300):
            return
        taint = {"key": gate["spec"]["taintKey"], "value": "pending", "effect": "NoSchedule"}
        body["spec"].setdefault("taints", []).append(taint)

    def _confirm(self, pod: Body) -> bool:
        """Whether the deletion of the pod waits for its kubelet, alive or not. A finished pod is
        deleted immediately.
        """
        done = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        return bool(pod["spec"].get("nodeName")) and not done

    def _observe(self, request: Request) -> None:
        self.requests += 1
        self.digest.update(str(request).encode())
        if request.applied:
            self.events += 1
            self._react(request)
            quiet = request.actor.startswith("operator") or request.resource in ("leases", "events")
            if not quiet and not self._heartbeat(request):
                self._changed = elapsed()
        try:
            self.judge.request(request)
        except Exception as error:
            self._errors.append(error)
            raise

    @staticmethod
    def _heartbeat(request: Request) -> bool:
        if request.resource != "nodes" or request.before is None or request.after is None:
            return False

        def timeless(body: Body) -> Any:
            status = {k: v for k, v in body["status"].items() if k != "conditions"}
            states = [(c["type"], c["status"]) for c in body["status"].get("conditions", ())]
            meta = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
            return status, states, meta, body["spec"]

        return bool(timeless(request.before) == timeless(request.after))

    def _react(self, request: Request) -> None:
        """Kubelets see the pods of their nodes."""
        if request.resource == "pods" and request.after is not None:
            kubelet = self.kubelets.get(request.after["spec"].get("nodeName", ""))
            if kubelet is not None:
                kubelet.sees(request.after)

    # ---- the cluster at work

    async def run(
        self, story: Callable[[World], Coroutine[Any, Any, None]], seconds: float
    ) -> None:
        """Run until the story ends, a promise is broken, or the time is over."""
        loop = asyncio.get_running_loop()
        for replica in self.replicas:
            self.spawn(replica.run())
        self.spawn(self._control())
        self.spawn(self._judge_it())
        telling = loop.create_task(story(self))
        try:
            while elapsed() < seconds and not (self.judge.broken or self._errors or telling.done()):
                await asyncio.wait([telling], timeout=min(TICK, seconds - elapsed() + 0.001))
            if self._errors:
                raise self._errors[0]
            if telling.done() and not telling.cancelled():
                telling.result()
        finally:
            telling.cancel()
            for task in self._background:
                task.cancel()
            await asyncio.gather(telling, *self._background, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def _judge_it(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.judge.tick()

    async def _control(self) -> None:
        """The other controllers: node lifecycle, garbage collection, etcd's compaction."""
        gone: dict[str, float] = {}
        compacted = 0.0
        while True:
            await asyncio.sleep(5.0)
            for name, kubelet in list(self.kubelets.items()):
                self._lifecycle(name, kubelet, gone)
            self._collect()
            if elapsed() - compacted > 300:
                compacted = elapsed()
                for resource in ("events", "leases"):
                    self._expire(resource)

    def _lifecycle(self, name: str, kubelet: Kubelet, gone: dict[str, float]) -> None:
        if kubelet.machine.alive:
            gone.pop(name, None)
            return
        since = gone.setdefault(name, elapsed())
        if elapsed() - since < UNREACHABLE:
            return
        node = self.server.get("nodes", name)
        if node is None or node["metadata"]["uid"] != kubelet.machine.uid:
            return

        def unknown(body: Body) -> None:
            for condition in body["status"]["conditions"]:
                if condition["type"] == "Ready" and condition["status"] != "Unknown":
                    condition.update(status="Unknown", lastTransitionTime=timestamp())
            taints = body["spec"].setdefault("taints", [])
            if not any(t["key"] == "node.kubernetes.io/unreachable" for t in taints):
                for effect in ("NoSchedule", "NoExecute"):
                    taints.append({"key": "node.kubernetes.io/unreachable", "effect": effect})

        self.server.change("node-controller", "nodes", ("", name), unknown)

    def _collect(self) -> None:
        """Delete the pods whose Node was deleted."""
        nodes = {node["metadata"]["uid"] for node in self.server.all("nodes")}
        for pod in self.server.all("pods"):
            owners = [owner["uid"] for owner in pod["metadata"].get("ownerReferences", ())]
            if owners and not nodes & set(owners) and self.rng.random() < 0.3:
                options = {"gracePeriodSeconds": 0}
                self.server.do("gc", "DELETE", "pods", _key(pod), options)

    def _expire(self, resource: str) -> None:
        if resource == "events":
            for key, stored in list(self.server.objects["events"].items()):
                if age(stored.body["metadata"]["creationTimestamp"]) > 3600:
                    self.server.do("etcd", "DELETE", "events", key)

    async def watch_over(self) -> int:
        """One run of the chart's watchdog."""
        api: Any = Transport(self.server, Network(self.rng), "watchdog/0")
        clock = Clock(now=lambda: EPOCH + elapsed())
        return await Watchdog(
            Client(api), Installation(NAMESPACE, LEASE, KEY), after=900, clock=clock
        ).run()

    # ---- events: nodes

    def join(self, name: str, *, labels: dict[str, str] | None = None, **how: Any) -> Kubelet:
        """A machine with this name joins. An earlier machine with the name leaves."""
        if name in self.kubelets:
            self.leave(name)
        machine = Machine(name, **how)
        kubelet = self.kubelets[name] = Kubelet(self.server, self.registry, machine, self.rng)
        zone = {"topology.kubernetes.io/zone": self.rng.choice(ZONES)}
        kubelet.join({**zone, **(labels or {})})
        return kubelet

    def leave(self, name: str) -> None:
        """The autoscaler removes a node: power off, and its Node is deleted."""
        kubelet = self.kubelets.pop(name, None)
        if kubelet is not None:
            kubelet.power_off()
        self.server.do("autoscaler", "DELETE", "nodes", ("", name))

    def settle(self) -> None:
        """A fault has ended now."""
        self._changed = elapsed()

    # ---- events: a user with kubectl

    def apply(self, name: str, *images: str, **spec: Any) -> None:
        """Create an ImagePrefetch, or replace its spec."""
        wanted: Body = {"images": [{"image": image} for image in images], **spec}
        existing = self.server.get("imageprefetches", name)
        if existing is None:
            body = {
                "apiVersion": "imagegate.dev/v1alpha1",
                "metadata": {"name": name},
                "spec": wanted,
            }
            self.server.do("person", "POST", "imageprefetches", ("", name), body)
        elif "deletionTimestamp" not in existing["metadata"]:

            def edit(body: Body) -> None:
                body["spec"] = wanted

            self.server.change("person", "imageprefetches", ("", name), edit)

    def edit(self, name: str, **spec: Any) -> None:
        def change(body: Body) -> None:
            body["spec"].update(spec)

        self.server.change("person", "imageprefetches", ("", name), change)

    def delete(self, name: str) -> None:
        self.server.do("person", "DELETE", "imageprefetches", ("", name))

    def gate(self, **spec: Any) -> None:
        """Create or change the NodeGate."""
        if self.server.get("nodegates", "default") is None:
            body = {
                "metadata": {"name": "default"},
                "spec": {"taintKey": KEY, "suspend": False, "silenceSeconds": 300, **spec},
            }
            self.server.do("person", "POST", "nodegates", ("", "default"), body)
        else:
            self.server.change(
                "person", "nodegates", ("", "default"), lambda body: body["spec"].update(spec)
            )

    def ungate(self) -> None:
        self.server.do("person", "DELETE", "nodegates", ("", "default"))

    def delete_namespace(self, namespace: str) -> None:
        for pod in self.server.all("pods"):
            if pod["metadata"]["namespace"] == namespace:
                self.server.do("person", "DELETE", "pods", _key(pod), {"gracePeriodSeconds": 0})
        self.server.do("person", "DELETE", "namespaces", ("", namespace))

    def make_namespace(self, namespace: str) -> None:
        self.server.do("person", "POST", "namespaces", ("", namespace), _named(namespace))

    def puller_pods(self, *, done: bool | None = None) -> list[Body]:
        found = [
            pod
            for pod in self.server.all("pods")
            if (pod["metadata"].get("labels") or {}).get(build.MANAGED_BY) == build.MANAGER
        ]
        if done is None:
            return found
        return [p for p in found if ((p.get("status") or {}).get("phase") == "Succeeded") is done]

    def remove_pod(self, pod: Body, actor: str = "person") -> None:
        self.server.do(actor, "DELETE", "pods", _key(pod), {"gracePeriodSeconds": 0})

    # ---- events: the operator and its network

    @property
    def blind_since(self) -> float | None:
        """Since when a watch of the leader stays open without reports; None: all watches work."""
        return self.leader.blind_since if self.leader is not None else None

    @property
    def leader(self) -> Replica | None:
        lease = self.server.get("leases", LEASE, NAMESPACE)
        holder = ((lease or {}).get("spec") or {}).get("holderIdentity", "")
        return next((r for r in self.replicas if r.actor == holder), None)

    def freeze(self, replica: Replica, seconds: float) -> None:
        replica.freeze(seconds)
        self._frozen[replica.actor.partition("/")[0]] = elapsed() + seconds

    def disturb(self, **network: Any) -> None:
        """Change every replica's network to the API server."""
        for replica in self.replicas:
            for name, value in network.items():
                setattr(replica.network, name, copy.copy(value))
        self._relayed = elapsed() if "lag" in network else self._relayed
        self._disturbed = elapsed() if any(network.values()) else self._disturbed
        self._changed = elapsed()

    def restart_apiserver(self) -> None:
        """Every watch breaks."""
        for replica in self.replicas:
            replica.network.breaks += 1
        self._disturbed = self._changed = elapsed()

    def failing(self, seconds: float) -> None:
        """Every request is answered with 503 for so many seconds."""
        self.disturb(failing=True)

        async def end() -> None:
            await asyncio.sleep(seconds)
            self.disturb(failing=False)

        self.spawn(end())

    async def until(self, condition: Callable[[], bool], timeout: float = 3600.0) -> bool:
        end = elapsed() + timeout
        while not condition() and elapsed() < end:
            await asyncio.sleep(1.0)
        return condition()

    def labelled(self, node: str, name: str) -> bool:
        body = self.server.get("nodes", node)
        return f"cached.imagegate.dev/{name}" in (
            (body or {}).get("metadata", {}).get("labels") or {}
        )

    def holds(self, node: str, image: str) -> bool:
        """Whether the node's machine has an image under this name."""
        return image in self.machines[node].images

    def cached(self, name: str) -> bool:
        return all(
            self.labelled(node["metadata"]["name"], name) for node in self.server.all("nodes")
        )


def _named(name: str) -> Body:
    return {"metadata": {"name": name}}


def _key(body: Body) -> Key:
    return body["metadata"].get("namespace", ""), body["metadata"]["name"]
