"""The record: the requests so far, the state of the cluster, and the broken promises."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.simulation import asks
from tests.simulation.apiserver import ApiServer, Body, Request, age
from tests.simulation.asks import OBSERVED, PREFETCH, Ask
from tests.simulation.judge.bodies import finished, images_of, of_this_life, phase, ready
from tests.simulation.judge.bounds import LAG, READABLE, TAKEOVER
from tests.simulation.loop import elapsed
from tests.simulation.machines import Machine, Registry


@dataclass(frozen=True, slots=True)
class Broken:
    at: float
    promise: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"at {self.at:.1f} s: {self.promise}: {self.subject}: {self.text}"


class Truth(Protocol):
    """The simulated cluster, as far as the judge reads it."""

    server: ApiServer
    registry: Registry

    @property
    def machines(self) -> dict[str, Machine]: ...

    @property
    def disturbed(self) -> float:
        """When a fault of all requests or watches was last active; now, if one is active."""
        ...

    @property
    def relayed(self) -> float:
        """When the lag of the watches last changed."""

    @property
    def changed(self) -> float:
        """When an object last changed or a fault ended; without the operator and heartbeats."""
        ...

    @property
    def lag(self) -> float:
        """Seconds by which watches and lists may be late now, in addition to `LAG`."""
        ...

    def exits(self) -> list[tuple[float, str, str]]:
        """Operator processes that ended without being killed: time, process and reason."""
        ...

    def frozen(self, actor: str) -> bool:
        """Whether this process was frozen within the last minute."""
        ...

    def memory(self) -> dict[str, dict[str, int]]:
        """By replica, the number of entries of each collection in its memory."""
        ...


@dataclass
class Record:
    """The judge's memory, and its questions to the cluster. Rules report with `blame`."""

    truth: Truth
    broken: list[Broken] = field(default_factory=list)
    applied: Counter[str] = field(default_factory=Counter)
    """How often each rule was applied. A rule that was never applied proves nothing."""
    asks: dict[str, Ask] = field(default_factory=dict)
    asked_at: dict[str, float] = field(default_factory=dict)
    """When the spec of each prefetch last changed."""
    selected_at: dict[str, float] = field(default_factory=dict)
    """When the node selector of each prefetch last changed, or when the prefetch was created."""
    made_at: dict[str, float] = field(default_factory=dict)
    """When each prefetch was created."""
    targets: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)
    """By prefetch and value of the label: the images that a node with this label must hold."""
    keys: set[str] = field(default_factory=set)
    """All taint keys that the NodeGate has had."""
    returned_at: dict[str, float] = field(default_factory=dict)
    """By uid, when a node last became Ready."""
    gate_at: float = 0.0
    """When the spec of the NodeGate last changed."""
    _indexed: int = -1
    """The resourceVersion for which `_pods` was built."""
    _pods: dict[tuple[Any, Any], list[Body]] = field(default_factory=dict)
    """Pods by the name of the node and of the prefetch."""
    recent: deque[Request] = field(default_factory=lambda: deque(maxlen=40_000))
    leader: str = ""
    """The holder of the lease."""
    led_since: float = 0.0
    """When the leader got the lease."""
    _full_at: dict[tuple[str, str], float] = field(default_factory=dict)
    """By prefetch and machine, when the images last could not be pulled there."""
    forbidden_at: dict[str, float] = field(default_factory=dict)
    """By namespace, when the operator last had no right to create puller pods there."""
    _told: set[tuple[str, str]] = field(default_factory=set)

    def note(self, request: Request) -> None:
        self.recent.append(request)
        if request.applied:
            if request.resource == "imageprefetches":
                self._note_ask(request)
            if request.resource == "nodegates":
                self._note_gate(request)
            if request.resource == "nodes":
                self._note_ready(request)

    def look(self) -> None:
        """Note what no request shows. Called every few seconds."""
        for ask in self.asks.values():
            if not self.allowed(ask):
                self.forbidden_at[ask.namespace] = elapsed()

    def blame(self, promise: str, subject: str, text: str) -> None:
        if (promise, subject) not in self._told:
            self._told.add((promise, subject))
            self.broken.append(Broken(elapsed(), promise, subject, text))

    def _note_ask(self, request: Request) -> None:
        name = request.key[1]
        if request.after is None:
            self.asks.pop(name, None)
            self.asked_at[name] = elapsed()
            return
        ask, before = asks.read(request.after), self.asks.get(name)
        if before != ask:
            self.asked_at[name] = elapsed()
        if before is None or (before.uid, before.selector) != (ask.uid, ask.selector):
            self.selected_at[name] = elapsed()
        if before is None or before.uid != ask.uid:
            self.made_at[name] = elapsed()
        self.asks[name] = ask
        self.targets.setdefault(name, {})[ask.target] = ask.references

    def _note_gate(self, request: Request) -> None:
        before = (request.before or {}).get("spec")
        after = (request.after or {}).get("spec")
        if before != after:
            self.gate_at = elapsed()
        if after:
            self.keys.add(after["taintKey"])

    def _note_ready(self, request: Request) -> None:
        uid = ((request.after or request.before or {}).get("metadata") or {}).get("uid", "")
        if request.after is None:
            self.returned_at.pop(uid, None)
        elif ready(request.after) and not (request.before and ready(request.before)):
            self.returned_at[uid] = elapsed()

    # ---- the state of the cluster

    def settled(self, name: str) -> bool:
        """Whether the last edit of a prefetch is old enough that every replica has received it."""
        return elapsed() - self.asked_at.get(name, 0.0) > LAG + self.truth.lag

    def gate(self) -> Body | None:
        return self.truth.server.get("nodegates", "default")

    def gate_open(self) -> bool:
        gate = self.gate()
        return gate is None or bool(gate["spec"].get("suspend"))

    def taints(self, node: Body) -> list[str]:
        return [t["key"] for t in node["spec"].get("taints") or () if t["key"] in self.keys]

    def machine(self, node: Body) -> Machine | None:
        machine = self.truth.machines.get(node["metadata"]["name"])
        return machine if machine and machine.uid == node["metadata"]["uid"] else None

    def holds(self, machine: Machine, ask: Ask) -> bool:
        return ask.references <= machine.images.keys()

    def holding(self, node: Body) -> list[Ask]:
        """The prefetches for which a node with the gate's taint is held. For a node that was in
        service before, only prefetches with ``onReboot: Hold``, if any match.
        """
        asking = [
            ask
            for ask in self.asks.values()
            if ask.gates and not ask.deleting and not ask.dry and ask.matches(node)
        ]
        again = [ask for ask in asking if ask.again]
        before = OBSERVED in (node["metadata"].get("annotations") or {})
        return again if before and again else asking

    def hopeless(self, machine: Machine, ask: Ask) -> bool:
        """Whether every attempt must fail: the pull itself, or the disk guard's check. `crowded`
        covers the case that only the pulls in flight take the room.
        """
        registry = self.truth.registry
        if machine.fails or any(registry.digest(image) is None for image in ask.images):
            return True
        held = set(machine.images.values())
        absent = {registry.digest(i): registry.size(i) for i in ask.images}
        needed = sum(3.5 * size for digest, size in absent.items() if digest not in held)
        # The operator may use the sizes of images to which the tags pointed a moment ago.
        return machine.used + needed > ask.max_usage * 1e9 * 0.85

    def crowded(self, node: Body, machine: Machine, ask: Ask) -> bool:
        """Whether the pulls in flight on a node, of all prefetches, may leave too little room for
        the images. The operator then waits for the end of these pulls, and reports no failure. It
        counts their full size, although the disk usage contains a part of it already.
        """
        registry = self.truth.registry
        names = {name for image in node["status"].get("images") or () for name in image["names"]}
        flying = set[str]()
        for pod in self.truth.server.all("pods"):
            owners = {owner["uid"] for owner in pod["metadata"].get("ownerReferences", ())}
            if machine.uid not in owners or PREFETCH not in (pod["metadata"].get("labels") or {}):
                continue
            if phase(pod) == "Succeeded":
                names |= images_of(pod)
            elif not finished(pod):
                flying |= images_of(pod)
        pulled = {registry.digest(image): registry.size(image) for image in flying - names}
        wanted = {registry.digest(i): registry.size(i) for i in ask.images if i not in names}
        if ask.max_usage >= 100 or not pulled or wanted.keys() <= pulled.keys():
            return False
        needed = 3.5 * sum({**pulled, **wanted}.values())
        return machine.used + needed > ask.max_usage * 1e9 * 0.85

    def pods(self, node: str, prefetch: str) -> list[Body]:
        server = self.truth.server
        if self._indexed != server.version:
            self._indexed, self._pods = server.version, {}
            for pod in server.all("pods"):
                owner = (pod["metadata"].get("labels") or {}).get(PREFETCH)
                self._pods.setdefault((pod["spec"].get("nodeName"), owner), []).append(pod)
        return self._pods.get((node, prefetch), [])

    def asked_for(self, prefetch: str) -> float:
        """Seconds since the last edit of a prefetch."""
        return elapsed() - self.asked_at.get(prefetch, 0.0)

    def slack(self) -> float:
        """Seconds to add to each bound: for late watches, and for a takeover."""
        slack = self.truth.lag
        if elapsed() - self.led_since < TAKEOVER or not self.leader:
            slack += TAKEOVER
        return slack

    def done(self, machine: Machine, ask: Ask) -> bool:
        """Whether the machine holds every image, and puller pods of the present spec succeeded.
        With ``onReboot: Hold``, pods of an earlier boot do not count.
        """
        asked = self.asked_at.get(ask.name, 0.0)
        pods = [
            pod
            for pod in self.pods(machine.name, ask.name)
            if "deletionTimestamp" not in pod["metadata"]
            and of_this_life(pod, machine, ask)
            and age(pod["metadata"]["creationTimestamp"]) < elapsed() - asked
        ]
        pulled = set[str]().union(*(images_of(pod) for pod in pods if phase(pod) == "Succeeded"))
        return bool(ask.images) and ask.references <= pulled and self.holds(machine, ask)

    def busy(self, ask: Ask, waiting: Machine) -> bool:
        """Whether other nodes pull for this prefetch, so that a node may wait for a slot."""
        return any(
            not finished(pod) and pod["spec"].get("nodeName") != waiting.name
            for pod in self.truth.server.all("pods")
            if (pod["metadata"].get("labels") or {}).get(PREFETCH) == ask.name
        )

    def without_room(self, node: Body, machine: Machine, ask: Ask) -> bool:
        """Whether the disk guard may refuse the pull now, or could do so at any time since the last
        edit of the prefetch: after a refusal, the next attempt may wait for the longest back-off.
        """
        since = elapsed() - self.asked_at[ask.name]
        return self.full_within(since, machine, ask) or self.crowded(node, machine, ask)

    def full_within(self, seconds: float, machine: Machine, ask: Ask) -> bool:
        """Whether `hopeless` is true now, or was true in a check within the last seconds."""
        which = ask.name, machine.uid
        if self.hopeless(machine, ask):
            self._full_at[which] = elapsed()
        return elapsed() - self._full_at.get(which, -math.inf) <= seconds

    def allowed(self, ask: Ask, method: str = "POST") -> bool:
        """Whether the operator may create the prefetch's puller pods, or list them (`LIST`)."""
        return self.permitted(method, ask.namespace)

    def blocked(self, ask: Ask) -> bool:
        """Whether the operator may not know that it can reach the prefetch's puller pods."""
        forbidden_at = self.forbidden_at.get(ask.namespace, -math.inf)
        return not self.allowed(ask) or elapsed() - forbidden_at < READABLE

    def permitted(self, method: str, namespace: str) -> bool:
        server = self.truth.server
        request = Request(elapsed(), "operator-x/0", method, "pods", (namespace, ""), 200)
        if ("", namespace) not in server.objects["namespaces"]:
            return False
        try:
            server.admit(request)
        except Exception:  # noqa: BLE001
            return False
        return True

    def out_of_reach(self, name: str) -> bool:
        """Whether a pod of the prefetch is in a namespace where the operator cannot delete it."""
        return any(
            (pod["metadata"].get("labels") or {}).get(PREFETCH) == name
            and not self.permitted("DELETE", pod["metadata"]["namespace"])
            for pod in self.truth.server.all("pods")
        )

    def refused_nodes(self) -> set[str]:
        """Nodes that the operator cannot patch, because an admission policy refuses it."""
        return getattr(self.truth, "refused_nodes", set())


def between(requests: Iterator[Request], subject: str) -> list[str]:
    """The requests that concern a subject, as text for the report."""
    words = [word for word in subject.split() if word]
    return [str(r) for r in requests if any(word in str(r) for word in words)]
