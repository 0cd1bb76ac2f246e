"""The judge: reads every request as it takes effect, knows what is on every machine, and says which
promise was broken. It imports nothing of the operator.

`Safety` looks at single writes of the operator; `Liveness` at what has not happened for too long.
"""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.simulation import asks
from tests.simulation.apiserver import ApiServer, Body, Key, Request, age
from tests.simulation.asks import GROUP, LABEL, OBSERVED, PREFETCH, Ask
from tests.simulation.loop import elapsed
from tests.simulation.machines import Machine, Registry

LAG = 15.0
"""Seconds for which the operator may act on what was replaced: watches and requests take time."""
NOT_READY_FOR = 170.0
"""Seconds after which a node that is not Ready may be left out of what pulls."""
SAYS = 300.0
"""Seconds within which a kubelet says which images have gone."""
DEADLINE = 890.0
"""Seconds after which a pull may be given up, and its slot be given to another."""
RELEASE = 6.0
"""Seconds from a node that has everything to its release."""
RELEASE_AFTER_FAULT = 16.0
"""The same from the end of an outage that the leader has survived: the longest back-off of a
release is a few seconds, and the watch may have to begin anew."""
TAKEOVER = 60.0
LATE = 40.0
"""Seconds by which a timeout may be executed late, and be early by the wrong clocks of nodes."""
LABELLED = 90.0
"""Seconds from the success of the last puller pod to the label of a node in service."""
PROGRESS = 780.0
"""Seconds within which a prefetch that has work must get on: the longest back-off (300 s, and a
tenth), twice, and a pull."""
ROOM = 90.0
"""Seconds for which a node may be said to have no room for images that it lists already."""
CONVERGED = 180.0
DELETED = 150.0
STILL_LATE = 30.0
"""Seconds after a change of the lag in which events may arrive that were sent before it."""
STORM = 14
"""Puller pods for one group of one node in 10 minutes."""
LATE_WATCH = 4.0
"""Seconds of lag from which a failure that is seen does not prove that no pull is in flight."""
REPEATED = 30
"""Writes of one operator to one object in a minute."""
REFUSED = 40
"""Refused writes of the operator to one object in 10 minutes."""
TRIED_AGAIN = 360.0
"""Seconds for which a refusal for want of room may stand: the longest back-off (300 s, and a
tenth), by a figure of the disk that is 30 s old."""
SHOWN = 400.0
FIRST_POD = 12.0
"""Seconds from a new prefetch to its first puller pod: the registry is waited for 5 s."""
BLIND = 75.0
"""Seconds until it is noticed that the connection of a watch is dead: bookmarks come every 60 s."""
IDLE = 75.0
"""Seconds for which a held node that has everything may lack puller pods that say so."""
STATUS_BYTES = 16 * 1024
NAMESPACES = ("imagegate-system", "team-a", "team-b")
"""The puller namespaces that the operator is allowed."""


@dataclass(frozen=True, slots=True)
class Broken:
    at: float
    promise: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"at {self.at:.1f} s: {self.promise}: {self.subject}: {self.text}"


class Truth(Protocol):
    """The cluster, for those who judge."""

    server: ApiServer
    registry: Registry

    @property
    def machines(self) -> dict[str, Machine]: ...

    @property
    def disturbed(self) -> float:
        """When a fault that concerns every request or watch was last active (now, while it is)."""
        ...

    @property
    def relayed(self) -> float:
        """When the lag of the watches was last changed."""

    @property
    def changed(self) -> float:
        """When anybody but the operator and heartbeats last changed anything, or a fault ended."""
        ...

    @property
    def lag(self) -> float:
        """Seconds by which watches and lists may be late now, beside `LAG`."""
        ...

    def exits(self) -> list[tuple[float, str, str]]:
        """Ends of operator processes that nobody has killed: when, which, why."""
        ...

    def frozen(self, actor: str) -> bool:
        """Whether this process was stopped within the last minute."""
        ...

    def memory(self) -> dict[str, dict[str, int]]: ...


@dataclass
class Judge:
    truth: Truth
    broken: list[Broken] = field(default_factory=list)
    applied: Counter[str] = field(default_factory=Counter)
    """How often each rule was applied: one that never was proves nothing."""
    asks: dict[str, Ask] = field(default_factory=dict)
    asked_at: dict[str, float] = field(default_factory=dict)
    """When the spec of each prefetch last changed."""
    selected_at: dict[str, float] = field(default_factory=dict)
    """When the nodes that it selects last changed, or it was made."""
    made_at: dict[str, float] = field(default_factory=dict)
    targets: dict[str, dict[str, frozenset[str]]] = field(default_factory=dict)
    """By prefetch, everything that was ever a target, with what a node must hold for it."""
    keys: set[str] = field(default_factory=set)
    returned_at: dict[str, float] = field(default_factory=dict)
    """By uid, when a node was last seen to become Ready."""
    gate_at: float = 0.0
    _indexed: int = -1
    """The version of the API server's state that `_pods` is of."""
    _pods: dict[tuple[Any, Any], list[Body]] = field(default_factory=dict)
    """Pods by the names of their node and their prefetch."""
    recent: deque[Request] = field(default_factory=lambda: deque(maxlen=40_000))
    _told: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.safety = Safety(self)
        self.liveness = Liveness(self)

    # ---- what it is told

    def request(self, request: Request) -> None:
        self.recent.append(request)
        if request.applied:
            if request.resource == "imageprefetches":
                self._note_ask(request)
            if request.resource == "nodegates":
                self._note_gate(request)
            if request.resource == "nodes":
                self._note_ready(request)
        if request.actor.startswith("operator"):
            self.safety.look(request)
        self.liveness.see(request)

    def tick(self) -> None:
        self.liveness.look()

    def blame(self, promise: str, subject: str, text: str) -> None:
        if (promise, subject) not in self._told:
            self._told.add((promise, subject))
            self.broken.append(Broken(elapsed(), promise, subject, text))

    def _note_ask(self, request: Request) -> None:
        name = request.key[1]
        if request.after is None:
            self.liveness.forget(name)
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

    # ---- what is so

    def settled(self, name: str) -> bool:
        """Whether what a prefetch asks for is old enough for everybody to know."""
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
        """What a node with the gate's taint is held for. One that was in service before: only for
        what has it held again, if there is any.
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
        """Whether a pull fails, or has no room, whatever is done. For images that have no room
        beside the pulls in flight see `crowded`.
        """
        registry = self.truth.registry
        if machine.fails or any(registry.digest(image) is None for image in ask.images):
            return True
        held = set(machine.images.values())
        absent = {registry.digest(i): registry.size(i) for i in ask.images}
        needed = sum(3.5 * size for digest, size in absent.items() if digest not in held)
        # The operator may go by the sizes of what the tags meant a moment ago.
        return machine.used + needed > ask.max_usage * 1e9 * 0.85

    def crowded(self, node: Body, machine: Machine, ask: Ask) -> bool:
        """Whether the pulls in flight on a node, for whichever prefetch, may need the room that the
        images need: the operator waits for their end, and reports no failure meanwhile. Until then
        it counts them in full beside what the disk already shows of them.
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


def phase(pod: Body) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def _substance(prefetch: Body) -> Any:
    """What a status says, without attempts that are counted and times that pass."""
    status = prefetch.get("status") or {}
    return {
        **{k: v for k, v in status.items() if k not in ("refresh", "failures", "conditions")},
        # Of many nodes that fail, the last ten to have been tried.
        "failures": sorted({f["reason"] for f in status.get("failures") or ()}),
        "conditions": [(c["type"], c["status"], c["reason"]) for c in status.get("conditions", ())],
    }


def finished(pod: Body) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def images_of(pod: Body) -> set[str]:
    volumes = pod["spec"].get("volumes") or ()
    return {volume["image"]["reference"] for volume in volumes if "image" in volume}


def _of_another_life(node: Body) -> bool:
    """Whether its labels were true for an earlier boot, or for another machine."""
    observed = (node["metadata"].get("annotations") or {}).get(OBSERVED)
    identity = f"{node['metadata']['uid']}/{node['status']['nodeInfo']['bootID']}"
    return observed is not None and observed != identity


def _of_this_life(pod: Body, machine: Machine, ask: Ask) -> bool:
    """Whether a puller pod was made for this machine, and for this boot if boots matter."""
    observed = str((pod["metadata"].get("annotations") or {}).get(OBSERVED))
    return observed == machine.identity or (
        not ask.again and observed.startswith(f"{machine.uid}/")
    )


def ready(node: Body) -> bool:
    conditions = node["status"].get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


class Safety:
    """What no write of the operator may do."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._creates: dict[tuple[str, str, str], deque[float]] = {}
        self._writes: dict[tuple[str, str, str, Key], deque[float]] = {}
        self._refusals: dict[tuple[str, str, Key], deque[float]] = {}
        self._matching: dict[str, deque[tuple[float, int]]] = {}
        self._for_joining: set[str] = set()
        """The puller pods that were made for nodes that were held then."""
        self._creators: dict[str, str] = {}
        """The process that created each puller pod, by uid."""

    def look(self, request: Request) -> None:
        if request.method in ("LIST", "WATCH", "GET") or request.resource in ("leases", "events"):
            return
        self._storm(request)
        if not request.applied:
            return
        self._lease(request)
        match request.resource:
            case "nodes" if request.before and request.after:
                self._foreign(request)
                self._node(request, request.before, request.after)
            case "pods" if request.method == "POST" and request.after:
                self._created(request.after, request.actor)
            case "pods" if request.method == "DELETE" and request.before:
                self._deleted(request.before)
            case "imageprefetches" if request.before and request.after:
                self._prefetch(request.before, request.after)

    def _count(self, counts: dict[Any, deque[float]], key: Any, seconds: float) -> int:
        times = counts.setdefault(key, deque(maxlen=500))
        times.append(elapsed())
        while times[0] < elapsed() - seconds:
            times.popleft()
        return len(times)

    def _storm(self, request: Request) -> None:
        judge, actor = self._judge, request.actor.partition("/")[0]
        judge.applied["request-storm"] += 1
        what = f"{request.method} {request.resource} {'/'.join(filter(None, request.key))}"
        if request.method == "POST" and request.resource == "pods":
            what += (request.sent or {}).get("metadata", {}).get("name", "")
        key = (actor, request.method, what, request.key)
        count = self._count(self._writes, key, 60.0)
        # A status may be written every 2 s, and at once where a condition turns.
        if count > (1.5 * REPEATED if request.resource == "imageprefetches" else REPEATED):
            judge.blame("request-storm", what, f"{count} times in a minute by {actor}")
        if request.status >= 400 and request.status != 429:
            count = self._count(self._refusals, (request.method, what, request.key), 600.0)
            # What holds a node is asked for every 3 s.
            if count > (3 * REFUSED if request.resource == "nodes" else REFUSED):
                text = f"refused {count} times in 10 minutes, last with {request.status}"
                judge.blame("refused-for-ever", what, text)

    def _lease(self, request: Request) -> None:
        judge = self._judge
        lease = judge.truth.server.get("leases", "imagegate", "imagegate-system")
        holder = ((lease or {}).get("spec") or {}).get("holderIdentity")
        judge.applied["write-without-lease"] += 1
        if holder and holder != request.actor and not judge.truth.frozen(request.actor):
            judge.blame("write-without-lease", request.actor, f"{holder} leads: {request}")

    def _foreign(self, request: Request) -> None:
        judge = self._judge
        judge.applied["foreign"] += 1
        before, after = request.before or {}, request.after or {}

        def others(body: Body) -> Any:
            metadata = body["metadata"]
            return (
                [t for t in body["spec"].get("taints") or () if t["key"] not in judge.keys],
                {k: v for k, v in (metadata.get("labels") or {}).items() if LABEL not in k},
                {k: v for k, v in (metadata.get("annotations") or {}).items() if k != OBSERVED},
                {k: v for k, v in body["spec"].items() if k != "taints"},
            )

        if others(before) != others(after):
            text = f"{others(before)} became {others(after)}"
            judge.blame("foreign", request.key[1], text[:400])

    # ---- nodes

    def _node(self, request: Request, before: Body, after: Body) -> None:
        judge = self._judge
        if judge.taints(before) and not judge.taints(after):
            self._released(before)
        old, new = before["metadata"].get("labels") or {}, after["metadata"].get("labels") or {}
        for label in {k for k in old.keys() | new.keys() if k.startswith(LABEL)}:
            if label in new and old.get(label) != new[label]:
                self._label_set(after, label.removeprefix(LABEL), new[label])
            elif label not in new:
                self._label_dropped(before, label.removeprefix(LABEL), old[label])

    def _released(self, node: Body) -> None:
        judge = self._judge
        machine = judge.machine(node)
        if machine is None or judge.gate_open() or elapsed() - judge.gate_at < LAG:
            return
        gate = judge.gate()
        if gate is not None and gate["spec"]["taintKey"] not in judge.taints(node):
            return  # an earlier key of the gate, which holds nobody
        for ask in judge.holding(node):
            name = ask.name
            if not judge.settled(name):
                continue
            judge.applied["released-early"] += 1
            if ask.images and judge.holds(machine, ask):
                continue
            if elapsed() - machine.wiped_at < SAYS or self._just_back(node, machine):
                continue  # nobody can know yet that images have gone
            since = elapsed() - (machine.ready_at if machine.ready_at is not None else elapsed())
            if OBSERVED in (node["metadata"].get("annotations") or {}):
                # Held again while it was away: the timeout counts from its return.
                since = min(since, elapsed() - judge.returned_at.get(machine.uid, -math.inf))
            if abs(machine.skew) > LAG:  # by such a clock it became Ready when it was created
                since = age(node["metadata"]["creationTimestamp"])
            text = f"{name}: {sorted(ask.references - machine.images.keys())} absent"
            text += f", {since:.0f} s after Ready"
            blocked = not judge.liveness.allowed(ask)
            if ask.fail_closed:
                judge.blame("released-early", node["metadata"]["name"], f"FailClosed {text}")
            elif since < ask.timeout - LATE and not (
                blocked or judge.liveness.full_within(TRIED_AGAIN, machine, ask)
            ):
                judge.blame("released-early", node["metadata"]["name"], f"FailOpen {text}")

    @staticmethod
    def _just_back(node: Body, machine: Machine) -> bool:
        """Whether a node in service was away when images were taken from it, and has been back for
        so short a time that what it says of them need not have been seen.
        """
        if OBSERVED not in (node["metadata"].get("annotations") or {}) or machine.wiped_at < 0:
            return False
        conditions = node["status"].get("conditions") or ()
        return any(
            condition["type"] == "Ready" and age(condition["lastTransitionTime"]) < SAYS
            for condition in conditions
        )

    def _label_set(self, node: Body, name: str, target: str) -> None:
        judge, machine = self._judge, self._judge.machine(node)
        # Where images are listed under other names, nobody can know that one has gone.
        unknown = 7200 if machine is not None and machine.spelled else SAYS
        if machine is None or elapsed() - machine.wiped_at < unknown:
            return
        judge.applied["false-label"] += 1
        wanted = judge.targets.get(name, {}).get(target)
        subject = f"{node['metadata']['name']} {name}"
        if wanted is None:
            judge.blame("false-label", subject, f"{target} was never a target")
        elif not wanted:
            judge.blame("false-label", subject, "a label for no image at all")
        elif not wanted <= machine.images.keys():
            judge.blame("false-label", subject, f"absent: {sorted(wanted - machine.images.keys())}")

    def _label_dropped(self, node: Body, name: str, target: str) -> None:
        judge, machine = self._judge, self._judge.machine(node)
        ask = judge.asks.get(name)
        observed = (node["metadata"].get("annotations") or {}).get(OBSERVED)
        # An edit of the images alone takes no label away: it is replaced once they are there.
        if machine is None or ask is None or ask.deleting:
            return
        if elapsed() - judge.selected_at.get(name, 0.0) < LAG + judge.truth.lag:
            return
        if observed != machine.identity or not ask.matches(node) or ask.target != target:
            return
        judge.applied["label-taken-back"] += 1
        if judge.holds(machine, ask) and elapsed() - machine.wiped_at > SAYS:
            judge.blame("label-taken-back", f"{machine.name} {name}", "it holds every image")

    # ---- pods

    def _created(self, pod: Body, actor: str) -> None:
        judge = self._judge
        labels = pod["metadata"]["labels"]
        name, node, group = labels[PREFETCH], pod["spec"]["nodeName"], labels[GROUP]
        judge.applied["pod-storm"] += 1
        body = judge.truth.server.get("nodes", node) or {"metadata": {"uid": ""}}
        # An edit is a new beginning, and so is a new machine under the name.
        which = (node, body["metadata"]["uid"], name, group, judge.asked_at.get(name))
        if (count := self._count(self._creates, which, 600.0)) > STORM:
            text = f"{count} puller pods in 10 minutes"
            judge.blame("pod-storm", f"{node} {name}", text)
        served = judge.truth.server.get("nodes", node)
        if served is not None and judge.taints(served):
            self._for_joining.add(pod["metadata"]["uid"])
        self._single(pod, actor)
        self._parallel(name)

    def _single(self, pod: Body, actor: str) -> None:
        """A process creates no puller pod while its earlier pod for the same images may pull. The
        late create of a stopped leader cannot be prevented.
        """
        judge, metadata = self._judge, pod["metadata"]
        judge.applied["pod-twice"] += 1
        self._creators[metadata["uid"]] = actor
        labels, node = metadata["labels"], pod["spec"]["nodeName"]
        for other in judge.pods(node, labels[PREFETCH]):
            theirs = other["metadata"]
            if (
                theirs["uid"] != metadata["uid"]
                and self._creators.get(theirs["uid"]) == actor
                and theirs["namespace"] == metadata["namespace"]
                and theirs["labels"].get(GROUP) == labels[GROUP]
                and theirs["ownerReferences"] == metadata["ownerReferences"]
                and theirs["annotations"].get(OBSERVED) == metadata["annotations"].get(OBSERVED)
                and "deletionTimestamp" not in theirs
                and not finished(other)
            ):
                text = f"{metadata['name']} beside {theirs['name']}"
                judge.blame("pod-twice", f"{node} {labels[PREFETCH]}", text)

    def _parallel(self, name: str) -> None:
        judge, server = self._judge, self._judge.truth.server
        ask = judge.asks.get(name)
        if ask is None:
            return
        nodes = {n["metadata"]["name"]: n for n in server.all("nodes")}
        matching = sum(ask.matches(node) for node in nodes.values())
        seen = self._matching.setdefault(name, deque(maxlen=200))
        seen.append((elapsed(), matching))
        most = max(count for at, count in seen if at >= elapsed() - 120)
        busy, joining = set[str](), set[str]()
        for pod in server.all("pods"):
            metadata = pod["metadata"]
            if (metadata.get("labels") or {}).get(PREFETCH) != name or finished(pod):
                continue
            node = nodes.get(pod["spec"]["nodeName"])
            owners = {owner["uid"] for owner in metadata.get("ownerReferences", ())}
            if node is None or node["metadata"]["uid"] not in owners or not ask.matches(node):
                continue
            machine = judge.machine(node)
            if machine is None or images_of(pod) <= machine.images.keys():
                continue
            if age(metadata["creationTimestamp"]) > DEADLINE or not self._counts(node):
                continue
            if judge.taints(node):  # it joins, or is held again
                joining.add(node["metadata"]["name"])
            elif metadata["uid"] not in self._for_joining:  # else it was released while it pulled
                busy.add(node["metadata"]["name"])
        judge.applied["max-parallel"] += 1
        for pulling, which in ((joining, True), (busy, False)):
            limit = ask.bound(most, joining=which)
            if len(pulling) > limit and judge.settled(name):
                if judge.truth.disturbed < elapsed() - 60:
                    text = f"{len(pulling)} nodes pull, {limit} may: {pulling}, joining: {which}"
                    judge.blame("max-parallel", name, text)

    @staticmethod
    def _counts(node: Body) -> bool:
        """Whether its kubelet is there, or has not been away for long. One that has just come back
        had returned its slot, and its pull goes on.
        """
        for condition in node["status"].get("conditions") or ():
            if condition["type"] != "Ready":
                continue
            since = age(condition["lastTransitionTime"])
            if condition["status"] != "True":
                return since < NOT_READY_FOR
            in_service = OBSERVED in (node["metadata"].get("annotations") or {})
            return not (in_service and since < 60)
        return True

    def _deleted(self, pod: Body) -> None:
        judge, metadata = self._judge, pod["metadata"]
        name = (metadata.get("labels") or {}).get(PREFETCH, "")
        ask = judge.asks.get(name)
        node = judge.truth.server.get("nodes", pod["spec"]["nodeName"])
        if ask is None or ask.deleting or node is None or not judge.settled(name):
            return
        machine = judge.machine(node)
        owners = {owner["uid"] for owner in metadata.get("ownerReferences", ())}
        wanted = images_of(pod) & ask.references
        if machine is None or machine.uid not in owners or not wanted or not ask.matches(node):
            return
        if not finished(pod):
            judge.applied["pull-cancelled"] += 1
            young = age(metadata["creationTimestamp"]) < DEADLINE
            # Behind a late watch the kubelet's own back-off may have ended before the failure is
            # seen; what was under way when the lag ended still arrives late.
            known = judge.truth.lag < LATE_WATCH and elapsed() - judge.truth.relayed > STILL_LATE
            if metadata["uid"] in machine.pulling.values() and young and known:
                text = f"{metadata['name']} still pulls {sorted(wanted)}"
                judge.blame("pull-cancelled", machine.name, text)
        elif phase(pod) == "Succeeded" and ask.keep and images_of(pod) <= ask.references:
            self._pin(pod, machine, ask, node)

    def _pin(self, pod: Body, machine: Machine, ask: Ask, node: Body) -> None:
        judge = self._judge
        observed = (pod["metadata"].get("annotations") or {}).get(OBSERVED)
        if observed != machine.identity or elapsed() - machine.wiped_at < 300:
            return
        judge.applied["pin-deleted"] += 1
        others = set[str]()
        for other in judge.pods(machine.name, ask.name):
            same = other["metadata"]["uid"] == pod["metadata"]["uid"]
            if (
                not same
                and phase(other) == "Succeeded"
                and "deletionTimestamp" not in other["metadata"]
            ):
                others |= images_of(other)
        if not images_of(pod) <= others and images_of(pod) <= machine.images.keys():
            text = f"{sorted(images_of(pod) - others)} are pinned by no other pod"
            judge.blame("pin-deleted", f"{machine.name} {ask.name}", text)

    # ---- prefetches

    def _prefetch(self, before: Body, after: Body) -> None:
        judge, name = self._judge, before["metadata"]["name"]
        judge.applied["status-size"] += 1
        size = len(json.dumps(after.get("status") or {}))
        if size > STATUS_BYTES or len((after.get("status") or {}).get("failures") or ()) > 10:
            judge.blame("status-size", name, f"{size} bytes")
        mine = {"imagegate.dev/cleanup"}
        old, new = (
            set(body["metadata"].get("finalizers") or ()) - mine for body in (before, after)
        )
        if old != new or before["spec"] != after["spec"]:
            judge.blame("foreign", name, f"finalizers {old} became {new}")


class Liveness:
    """What must happen within a bound. Looked at every few seconds."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._since: dict[tuple[str, str], float] = {}
        self._looked_at: set[tuple[str, str]] = set()
        """The clocks that this tick has looked at."""
        self._progress: dict[str, float] = {}
        self._refused_pods: dict[str, float] = {}
        self._registry_at = -math.inf
        """When there was no registry last."""
        self._refused_at = -math.inf
        """When changes of a Node or pod were refused last."""
        self._last_refused: dict[str, float] = {}
        self._served: set[tuple[str, str]] = set()
        """Joining machines for which a puller pod of a prefetch was requested."""
        self._rest_writes: Counter[str] = Counter()
        self._jumped: Counter[tuple[str, str]] = Counter()
        """By machine and prefetch, how many nodes that asked later went before it."""
        self._exits: Counter[str] = Counter()
        self._led_since = 0.0
        self._leader = ""
        self._begun: set[str] = set()
        self._full_at: dict[tuple[str, str], float] = {}
        """By prefetch and machine, when the images last had no room there."""

    # ---- requests

    def see(self, request: Request) -> None:
        operator = request.actor.startswith("operator")
        if request.resource == "leases" and request.applied and request.after:
            holder = request.after["spec"].get("holderIdentity", "")
            if holder != self._leader:
                self._leader, self._led_since = holder, elapsed()
                # A leader knows the order of those alone that ask while it leads.
                self._since = {key: at for key, at in self._since.items() if key[0] != "asks"}
        pulls = request.resource == "pods" and request.method == "POST" and operator
        # The probe for image volumes is a pod for no node.
        if pulls and "nodeName" in request.sent["spec"]:
            labels = (request.sent or {}).get("metadata", {}).get("labels") or {}
            name = labels.get(PREFETCH, "")
            # The probe of the leader names no node, because it is only a dry run.
            if node := request.sent["spec"].get("nodeName"):
                self._queue(name, node)
            if request.applied:
                self._begun.add(name)
                self._refused_pods.pop(name, None)
                self._progress[name] = elapsed()
            elif request.status not in (409, 429):
                self._refused_pods.setdefault(name, elapsed())
                self._last_refused[name] = elapsed()
        if request.resource == "nodes" and request.applied and operator:
            self._label_progress(request)
        if (
            operator
            and request.applied
            and request.resource not in ("leases", "nodegates", "events")
        ):
            self._at_rest(request)

    def _label_progress(self, request: Request) -> None:
        old = ((request.before or {}).get("metadata") or {}).get("labels") or {}
        new = ((request.after or {}).get("metadata") or {}).get("labels") or {}
        for label in new:
            if label.startswith(LABEL) and old.get(label) != new[label]:
                self._progress[label.removeprefix(LABEL)] = elapsed()

    def _at_rest(self, request: Request) -> None:
        """Nobody has changed anything for minutes: there is nothing to write."""
        judge = self._judge
        # While the pods of a prefetch are refused, each attempt is counted in its status.
        still = min(elapsed() - judge.truth.changed, elapsed() - judge.truth.disturbed)
        if still < 600 or self._refused_pods:
            self._rest_writes.clear()
            return
        if request.resource == "imageprefetches" and request.before != request.after:
            # Looks at the registry and further attempts are counted in the status.
            if _substance(request.before or {}) == _substance(request.after or {}):
                return
        judge.applied["quiet"] += 1
        subject = f"{request.resource} {request.key[1]}"
        self._rest_writes[subject] += 1
        if self._rest_writes[subject] > 3:
            judge.blame("quiet", subject, f"written again and again at rest: {request}"[:300])

    # ---- ticks

    def look(self) -> None:
        judge, server = self._judge, self._judge.truth.server
        nodes = server.all("nodes")
        self._looked_at.clear()
        if judge.truth.registry.down or judge.truth.registry.mute:
            self._registry_at = elapsed()
        self._processes()
        for node in nodes:
            self._held(node)
            self._away(node)
        for name, ask in list(judge.asks.items()):
            if not ask.deleting and not ask.dry:
                self._prefetch(name, ask, nodes)
                self._first_pod(name, ask, nodes)
                self._waits(name, ask, nodes)
        self._misplaced(nodes)
        self._deletions()
        self._heartbeat()
        self._leftovers(nodes)
        self._growth(len(nodes))
        # The subject of any other clock is gone, or its rule does not apply now.
        self._since = {key: at for key, at in self._since.items() if key in self._looked_at}

    def _for(self, kind: str, subject: str, true: bool) -> float:
        """For how many seconds something has been so without a break. A tick that does not ask is
        a break, too.
        """
        self._looked_at.add((kind, subject))
        if not true:
            self._since.pop((kind, subject), None)
            return 0.0
        return elapsed() - self._since.setdefault((kind, subject), elapsed())

    def forget(self, prefetch: str) -> None:
        """A prefetch is gone: its clocks count for no other of its name."""
        for kind, subject in list(self._since):
            if subject.partition(" ")[0] == prefetch:
                del self._since[kind, subject]
        self._refused_pods.pop(prefetch, None)
        self._last_refused.pop(prefetch, None)
        self._begun.discard(prefetch)

    def _asked_for(self, prefetch: str) -> float:
        """For how many seconds a prefetch has asked for what it asks for now."""
        return elapsed() - self._judge.asked_at.get(prefetch, 0.0)

    def _slack(self) -> float:
        """Seconds more than usual: a takeover, an outage that has just ended, late watches."""
        judge = self._judge
        slack = judge.truth.lag
        if elapsed() - self._led_since < TAKEOVER or not self._leader:
            slack += TAKEOVER
        return slack

    def _processes(self) -> None:
        judge = self._judge
        for at, actor, why in judge.truth.exits():
            judge.applied["process"] += 1
            if judge.truth.frozen(actor) and "LeadershipLost" in why:
                continue
            if at - judge.truth.disturbed > 90 or "prob" in why:
                self._exits[actor.partition("/")[0]] += 1
                if self._exits[actor.partition("/")[0]] >= 2:
                    judge.blame("process", actor.partition("/")[0], f"ended again: {why}"[:300])

    def _held(self, node: Body) -> None:
        judge, machine = self._judge, self._judge.machine(node)
        name = node["metadata"]["name"]
        taints = judge.taints(node)
        if name in self._refused():
            return
        granted = self._for("granted", name, true=True)
        if machine is None or not taints or not machine.alive or not ready(node):
            for kind in ("complete", "idle", "open", "key"):
                self._for(kind, name, true=False)
            return
        gate = judge.gate()
        asking = judge.holding(node)
        complete = bool(asking) and all(self._done(machine, ask) for ask in asking)
        idle = bool(asking) and all(
            judge.holds(machine, ask)
            and ask.images
            and not judge.truth.registry.down
            and self._listed(node, ask)
            and not self._busy(ask, machine)
            and judge.settled(ask.name)
            and self.allowed(ask)
            for ask in asking
        )
        seconds = min(self._for("idle", name, idle), elapsed() - judge.truth.disturbed)
        # A pull that has found no registry is tried again within 5 minutes.
        late = 330.0 if elapsed() - self._registry_at < 600 else 0.0
        if seconds > IDLE + late + self._slack():
            judge.blame("held-too-long", name, f"it has had all images for {seconds:.0f} s")
        seconds = self._for("complete", name, complete)
        judge.applied["held"] += 1
        quiet = elapsed() - judge.truth.disturbed
        bound = RELEASE if quiet > 60 else RELEASE_AFTER_FAULT
        if min(seconds, quiet) > bound + self._slack():
            judge.blame("held-too-long", name, f"for {seconds:.0f} s although all is there")
        opened = judge.gate_open()
        seconds = min(self._for("open", name, opened), quiet)
        if seconds > 75 + self._slack():
            judge.blame("kill-switch", name, f"held for {seconds:.0f} s without a NodeGate")
        old = gate is not None and any(key != gate["spec"]["taintKey"] for key in taints)
        seconds = min(self._for("key", name, old), quiet)
        if seconds > 120 + self._slack():
            judge.blame("old-key", name, f"{taints} for {seconds:.0f} s")
        open_ = [a for a in asking if not a.fail_closed and judge.settled(a.name)]
        if len(open_) == len(asking) and machine.ready_at is not None and asking:
            # A node that was away is back since then only, whether or not it has booted.
            began = max(machine.ready_at, judge.returned_at.get(machine.uid, 0.0))
            over = elapsed() - began - max(a.timeout for a in asking)
            newest = max(judge.asked_at.get(a.name, 0.0) for a in asking)
            # A leader that was not there then knows when it became Ready by the node's own clock.
            over = min(over, quiet, granted, elapsed() - newest) - max(0.0, machine.skew)
            if over > LATE + self._slack():
                judge.blame("timeout-late", name, f"held {over:.0f} s after its timeout")

    @staticmethod
    def _listed(node: Body, ask: Ask) -> bool:
        """Whether its kubelet has said that the images are there: else they may have no room."""
        names = {name for image in node["status"].get("images") or () for name in image["names"]}
        return ask.references <= names

    def _away(self, node: Body) -> None:
        """With onReboot Hold, a node in service that is not Ready gets the taint."""
        judge, name = self._judge, node["metadata"]["name"]
        labels = node["metadata"].get("labels") or {}
        machine = judge.machine(node)
        observed = (node["metadata"].get("annotations") or {}).get(OBSERVED, "")
        wanted = (
            not ready(node)
            and not judge.taints(node)
            and not judge.gate_open()
            and machine is not None
            and observed.endswith(f"/{node['status']['nodeInfo']['bootID']}")
            and name not in self._refused()
            and any(
                ask.again and not ask.dry and labels.get(LABEL + ask.name) == ask.target
                for ask in judge.holding(node)
                if judge.settled(ask.name) and ask.images and self.allowed(ask, "LIST")
            )
        )
        judge.applied["held-while-away"] += 1
        seconds = min(self._for("away", name, wanted), elapsed() - judge.truth.disturbed)
        seconds = min(seconds, elapsed() - judge.gate_at)
        if seconds > RELEASE_AFTER_FAULT + BLIND + self._slack():
            judge.blame("not-held-while-away", name, f"not Ready for {seconds:.0f} s, no taint")

    def _done(self, machine: Machine, ask: Ask) -> bool:
        """Whether everything is on the machine, and the pods of this very spec have said so. With
        onReboot Hold, pods of an earlier boot say nothing.
        """
        judge = self._judge
        asked = judge.asked_at.get(ask.name, 0.0)
        pods = [
            p
            for p in judge.pods(machine.name, ask.name)
            if "deletionTimestamp" not in p["metadata"]
            and _of_this_life(p, machine, ask)
            and age(p["metadata"]["creationTimestamp"]) < elapsed() - asked
        ]
        said = set[str]().union(*(images_of(pod) for pod in pods if phase(pod) == "Succeeded"))
        return bool(ask.images) and ask.references <= said and judge.holds(machine, ask)

    def _busy(self, ask: Ask, but: Machine) -> bool:
        """Whether other nodes pull for this prefetch: a slot may have to be waited for."""
        return any(
            not finished(pod) and pod["spec"].get("nodeName") != but.name
            for pod in self._judge.truth.server.all("pods")
            if (pod["metadata"].get("labels") or {}).get(PREFETCH) == ask.name
        )

    def _prefetch(self, name: str, ask: Ask, nodes: list[Body]) -> None:
        judge, registry = self._judge, self._judge.truth.registry
        matching = [node for node in nodes if ask.matches(node)]
        waiting: list[str] = []
        pulling = False
        for node in matching:
            machine = judge.machine(node)
            if machine is None or not machine.alive or not ready(node):
                self._for("labelled", f"{name} {node['metadata']['name']}", true=False)
                continue
            label = (node["metadata"].get("labels") or {}).get(LABEL + name)
            held = bool(judge.taints(node))
            done = self._done(machine, ask) and label != ask.target and not held
            done = done and self.allowed(ask, "LIST") and machine.name not in self._refused()
            seconds = self._for("labelled", f"{name} {machine.name}", done)
            judge.applied["labelled"] += 1
            quiet = min(seconds, elapsed() - judge.truth.disturbed)
            if quiet > LABELLED + self._slack() and judge.settled(name):
                text = f"its puller pods succeeded {seconds:.0f} s ago"
                judge.blame("not-labelled", f"{machine.name} {name}", text)
            stuck = machine.stalled or machine.spelled or judge.hopeless(machine, ask)
            stuck = stuck or judge.crowded(node, machine, ask)
            stuck = stuck or (machine.name in self._refused() and judge.holds(machine, ask))
            stuck = stuck or (held and judge.holds(machine, ask))  # another one holds the node
            if label != ask.target and not stuck and (held or not ask.paused):
                waiting.append(machine.name)
            mine = {pod["metadata"]["uid"] for pod in judge.pods(machine.name, name)}
            pulling = pulling or (not stuck and bool(mine & set(machine.pulling.values())))
        # A pull that hangs has its slot until its deadline, and there may be only one slot.
        alive = {node["metadata"]["name"]: node for node in matching if ready(node)}
        pulling = pulling or any(
            pod["spec"]["nodeName"] in alive
            and not finished(pod)
            and age(pod["metadata"]["creationTimestamp"])
            < self._deadline(alive[pod["spec"]["nodeName"]])
            for pod in judge.truth.server.all("pods")
            if (pod["metadata"].get("labels") or {}).get(PREFETCH) == name
        )
        # What cannot be read any more has its slot until its deadline, by the sizes of then.
        pulling = pulling or self._out_of_reach(name)
        possible = (
            bool(waiting)
            and bool(ask.images)
            and not registry.down
            and all(registry.digest(image) is not None for image in ask.images)
            and self.allowed(ask)
        )
        if pulling or not possible:
            self._progress[name] = elapsed()
        last = max(
            self._progress.get(name, 0.0), judge.asked_at.get(name, 0.0), judge.truth.disturbed
        )
        judge.applied["progress"] += 1
        if elapsed() - last > PROGRESS:
            text = f"nothing for {elapsed() - last:.0f} s; waiting: {sorted(waiting)[:6]}"
            judge.blame("no-progress", name, text)
        self._status(name, ask, matching)

    def _first_pod(self, name: str, ask: Ask, nodes: list[Body]) -> None:
        """A new prefetch begins, whatever the others do."""
        judge, since = self._judge, elapsed() - self._judge.made_at.get(name, 0.0)
        if name in self._begun or since > 300:
            self._begun.add(name)
            return
        server = judge.truth.server
        if any(
            (p["metadata"].get("labels") or {}).get(PREFETCH) == name for p in server.all("pods")
        ):
            self._begun.add(name)
            return
        able = [
            n
            for n in nodes
            if ask.matches(n)
            and ready(n)
            and not judge.taints(n)
            and (m := judge.machine(n))
            and m.alive
            and m.ready_at is not None
            and not self._without_room(n, m, ask)
            and elapsed() - m.ready_at > 60
        ]
        # A watch whose connection broke without a word is begun anew after a minute.
        calm = elapsed() - judge.truth.disturbed - BLIND
        calm = min(since, calm, elapsed() - judge.asked_at[name])
        calm = min(calm, self._for("able", name, bool(able)))
        judge.applied["first-pod"] += 1
        # A namespace that could not be read is looked at again after half a minute.
        allowed = self._for("allowed", name, self.allowed(ask, "LIST") and self.allowed(ask))
        if able and not ask.paused and ask.images and allowed > min(calm, 60.0):
            if calm > FIRST_POD + self._slack():
                judge.blame("first-pod", name, f"no puller pod after {since:.0f} s")

    def _without_room(self, node: Body, machine: Machine, ask: Ask) -> bool:
        """Whether the disk guard may keep the images from a node: now, or since what the prefetch
        asks for last changed, because a refusal is tried again after the longest back-off only.
        """
        since = elapsed() - self._judge.asked_at[ask.name]
        return self.full_within(since, machine, ask) or self._judge.crowded(node, machine, ask)

    def full_within(self, seconds: float, machine: Machine, ask: Ask) -> bool:
        """Whether a pull fails on a machine, or has no room, now or when it was looked at within so
        many seconds.
        """
        which = ask.name, machine.uid
        if self._judge.hopeless(machine, ask):
            self._full_at[which] = elapsed()
        return elapsed() - self._full_at.get(which, -math.inf) <= seconds

    def _misplaced(self, nodes: list[Body]) -> None:
        """Puller pods in a namespace that their prefetch has left."""
        judge = self._judge
        alive = {m.name for n in nodes if (m := judge.machine(n)) and m.alive and ready(n)}
        for pod in judge.truth.server.all("pods"):
            ask = judge.asks.get((pod["metadata"].get("labels") or {}).get(PREFETCH, ""))
            if ask is None or ask.namespace not in NAMESPACES:
                continue
            other = pod["metadata"]["namespace"] != ask.namespace and finished(pod)
            other = other and pod["spec"]["nodeName"] in alive and self.allowed(ask)
            other = other and not ask.paused and not self._idle_reason(pod, ask)
            node = judge.truth.server.get("nodes", pod["spec"]["nodeName"]) or {"metadata": {}}
            labels = node["metadata"].get("labels") or {}
            # Until the node has its turn in the rollout, the pod pins what was there before.
            other = other and labels.get(LABEL + ask.name) == ask.target
            subject = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            seconds = min(self._for("misplaced", subject, other), elapsed() - judge.truth.disturbed)
            judge.applied["misplaced"] += 1
            if min(seconds, self._asked_for(ask.name)) > PROGRESS + judge.truth.lag:
                judge.blame("leftover", subject, f"{ask.name} is in {ask.namespace} now")

    def _idle_reason(self, pod: Body, ask: Ask) -> bool:
        machine = self._judge.truth.machines.get(pod["spec"]["nodeName"])
        return machine is None or machine.stalled or self._judge.hopeless(machine, ask)

    def allowed(self, ask: Ask, method: str = "POST") -> bool:
        """Whether puller pods can be made for it at all; or read."""
        return self._permitted(method, ask.namespace)

    def _permitted(self, method: str, namespace: str) -> bool:
        server = self._judge.truth.server
        request = Request(elapsed(), "operator-x/0", method, "pods", (namespace, ""), 200)
        if ("", namespace) not in server.objects["namespaces"]:
            return False
        try:
            server.admit(request)
        except Exception:  # noqa: BLE001
            return False
        return True

    def _status(self, name: str, ask: Ask, matching: list[Body]) -> None:
        judge, truth = self._judge, self._judge.truth
        body = truth.server.get("imageprefetches", name)
        status = (body or {}).get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or ()}
        still = min(elapsed() - truth.changed, elapsed() - truth.disturbed)
        if still > CONVERGED + self._slack() and judge.settled(name) and self.allowed(ask):
            judge.applied["status-truth"] += 1
            cached = sum(
                (n["metadata"].get("labels") or {}).get(LABEL + name) == ask.target
                for n in matching
            )
            said = (status.get("nodes") or {}).get("cached")
            held = sum(bool(judge.taints(node)) for node in matching)
            # Of a node that refuses its label, the images that it has count all the same.
            refused = [n for n in matching if n["metadata"]["name"] in self._refused()]
            unlabelled = len(refused)
            # Where the removal is refused, a label of an earlier boot stays and does not count.
            outlived = sum(_of_another_life(node) for node in refused)
            off = said is not None and not cached - outlived <= said <= cached + unlabelled
            if off and ask.images and not held:
                text = f"says {said} cached, labels say {cached}"
                if self._for("status", name, true=True) > 60:
                    judge.blame("status-truth", name, text)
            else:
                self._for("status", name, true=False)
            pulling = (status.get("nodes") or {}).get("pulling") or 0
            unfinished = {
                pod["spec"]["nodeName"]
                for pod in truth.server.all("pods")
                if (pod["metadata"].get("labels") or {}).get(PREFETCH) == name
                and phase(pod) != "Succeeded"
            }
            if self._for("pulling", name, pulling > len(unfinished)) > 60:
                text = f"says {pulling} pulling, and {len(unfinished)} have an unfinished pod"
                judge.blame("status-truth", name, text)
            missing = cached + unlabelled < sum(ready(node) for node in matching)
            if conditions.get("Ready", {}).get("status") == "True" and missing and not held:
                if self._for("ready", name, true=True) > 60:
                    judge.blame("status-truth", name, "Ready although nodes lack images")
            else:
                self._for("ready", name, true=False)
        for failure in status.get("failures") or ():
            machine = truth.machines.get(failure["node"])
            wrong = (
                failure["reason"] == "DiskFull"
                and machine is not None
                and not machine.spelled  # nobody can know what it lists under other names
                and (judge.holds(machine, ask))
            )
            seconds = self._for("full", f"{name} {failure['node']}", wrong)
            if min(seconds, self._asked_for(name)) > PROGRESS + truth.lag:
                text = f"{failure['node']} holds every image, and is said to be full"
                judge.blame("status-truth", name, text)
            node = truth.server.get("nodes", failure["node"])
            # The disk guard blames no single image; what a runtime has said stands until it is
            # tried again.
            wrong = wrong and not failure.get("image") and node is not None
            wrong = wrong and self._listed(node or {}, ask) and self.allowed(ask, "LIST")
            seconds = self._for("room", f"{name} {failure['node']}", wrong)
            seconds = min(seconds, self._asked_for(name), elapsed() - truth.disturbed)
            judge.applied["room"] += 1
            if seconds > ROOM + self._slack():
                text = f"{failure['node']} lists every image, and is said to be full"
                judge.blame("status-truth", name, text)
        message = (status.get("refresh") or {}).get("message")
        up = (
            not truth.registry.down
            and not truth.registry.mute
            and all(truth.registry.digest(image) is not None for image in ask.images)
        )
        seconds = min(self._for("message", name, bool(message) and up), self._asked_for(name))
        if seconds > 2 * (ask.refresh or 0) + 700:
            judge.blame("status-truth", name, f"refresh.message for {seconds:.0f} s: {message}")
        if conditions.get("Ready", {}).get("reason") == "NamespaceNotReadable":
            self._refused_pods.pop(name, None)  # shown, and more to the point
        trouble = elapsed() - self._refused_pods.get(name, elapsed())
        # An edit is a new beginning, and who does not try any more has nothing to report.
        trouble = min(trouble, self._asked_for(name))
        trying = elapsed() - self._last_refused.get(name, 0.0) < 360
        # A new leader does not know of attempts of the one before that it has no reason to repeat.
        trying = trying and self._last_refused.get(name, 0.0) > self._led_since
        trying = trying and elapsed() - self._led_since > TAKEOVER
        degraded = conditions.get("Degraded", {}).get("status") == "True"
        if trouble > SHOWN and trying and not (degraded or status.get("failures")):
            judge.blame("trouble-not-shown", name, f"its pods are refused for {trouble:.0f} s")

    def _queue(self, name: str, node: str) -> None:
        """Joining nodes pull in the order in which they asked. A node has had its turn with the
        first request for a puller pod, also where that is refused: it asks again after a back-off,
        behind the nodes that have asked meanwhile.
        """
        judge = self._judge
        ask, server = judge.asks.get(name), judge.truth.server
        served = server.get("nodes", node)
        mine = judge.machine(served) if served is not None else None
        if ask is None or served is None or mine is None or mine.ready_at is None:
            return
        self._served.add((mine.uid, name))
        if not judge.taints(served) or not judge.settled(name):
            return
        since = self._since.get(("asks", f"{name} {mine.uid}"), elapsed())
        for other in server.all("nodes"):
            machine = judge.machine(other)
            if machine is None or machine is mine or not self._asks(other, machine, ask):
                continue
            if (machine.uid, name) in self._served or machine.ready_at is None:
                continue  # it has had its turn, and failed
            asked = self._since.get(("asks", f"{name} {machine.uid}"), elapsed())
            if asked < since - 30 and judge.truth.disturbed < machine.ready_at:
                judge.applied["queue"] += 1
                self._jumped[machine.uid, name] += 1
                if (count := self._jumped[machine.uid, name]) > 2:
                    text = f"{name}: {count} nodes that joined later went before it"
                    judge.blame("queue-jumped", machine.name, text)

    def _waits(self, name: str, ask: Ask, nodes: list[Body]) -> None:
        """Since when each joining node asks for a slot, as far as the present leader can know."""
        for node in nodes:
            if (machine := self._judge.machine(node)) is not None:
                asks = self._asks(node, machine, ask)
                self._for("asks", f"{name} {machine.uid}", asks)
                if not asks:
                    self._jumped.pop((machine.uid, name), None)

    def _asks(self, node: Body, machine: Machine, ask: Ask) -> bool:
        """Whether a joining node asks for a slot, if it has none: nothing else is in its way."""
        return (
            bool(self._judge.taints(node))
            and bool(ask.images)
            and ask.matches(node)
            and ready(node)
            and self.allowed(ask, "LIST")
            and not self._without_room(node, machine, ask)
        )

    def _out_of_reach(self, name: str) -> bool:
        """Whether pods of it are where the operator may not delete them any more."""
        return any(
            (pod["metadata"].get("labels") or {}).get(PREFETCH) == name
            and not self._permitted("DELETE", pod["metadata"]["namespace"])
            for pod in self._judge.truth.server.all("pods")
        )

    def _deletions(self) -> None:
        judge = self._judge
        for body in judge.truth.server.all("imageprefetches"):
            name = body["metadata"]["name"]
            going = "deletionTimestamp" in body["metadata"]
            ours = (body["metadata"].get("finalizers") or []) == ["imagegate.dev/cleanup"]
            seconds = self._for("deletion", name, going and ours)
            judge.applied["deletion"] += 1
            seconds = min(seconds, elapsed() - judge.truth.disturbed)
            refused = bool(self._refused()) or self._out_of_reach(name)
            if refused:
                self._refused_at = elapsed()
            # What was refused until a moment ago is tried again within a minute.
            bound = DELETED if elapsed() - self._refused_at > DELETED else 900.0
            if seconds > bound + self._slack():
                judge.blame("deletion", name, f"its finalizer is there after {seconds:.0f} s")

    def _deadline(self, node: Body) -> float:
        """Seconds after which a pull is surely past its deadline: by 5 MB/s for all that the node
        may have to pull before, and some for noticing.
        """
        judge, registry = self._judge, self._judge.truth.registry
        queued = {
            i: registry.size(i) for a in judge.asks.values() if a.matches(node) for i in a.images
        }
        return max(DEADLINE, 600 + sum(queued.values()) / 5e6) + 120

    def _refused(self) -> set[str]:
        """Nodes whose changes a policy refuses."""
        return getattr(self._judge.truth, "refused_nodes", set())

    def _heartbeat(self) -> None:
        judge = self._judge
        gate = judge.gate()
        if gate is None or gate["spec"].get("suspend"):
            return
        beat = (gate.get("status") or {}).get("heartbeat")
        stale = beat is None or age(beat) > 150
        blind = getattr(judge.truth, "blind_since", None)
        judge.applied["heartbeat"] += 1
        if blind is not None and elapsed() - blind > 480 and not stale:
            text = f"armed {elapsed() - blind:.0f} s after the watch of Nodes died"
            judge.blame("armed-while-blind", "default", text)
        if blind is None:
            seconds = self._for("beat", "default", stale)
            seconds = min(seconds, elapsed() - judge.truth.disturbed, elapsed() - judge.gate_at)
            if seconds > 120 + self._slack():
                judge.blame("not-armed", "default", f"no heartbeat for {seconds:.0f} s more")

    def _leftovers(self, nodes: list[Body]) -> None:
        """Labels and pods of prefetches that are gone."""
        judge = self._judge
        names = {b["metadata"]["name"] for b in judge.truth.server.all("imageprefetches")}
        for node in nodes:
            machine = judge.machine(node)
            if node["metadata"]["name"] in self._refused():
                continue
            for label in node["metadata"].get("labels") or {}:
                if label.startswith(LABEL):
                    gone = label.removeprefix(LABEL) not in names
                    subject = f"{node['metadata']['name']} {label}"
                    seconds = min(
                        self._for("label", subject, gone), elapsed() - judge.truth.disturbed
                    )
                    if (
                        seconds > 120 + self._slack()
                        and machine is not None
                        and not (self._refused())
                    ):
                        judge.blame("leftover", subject, f"for {seconds:.0f} s")

    def _growth(self, nodes: int) -> None:
        """At rest, what a process remembers is bounded by what there is."""
        judge = self._judge
        if elapsed() - judge.truth.changed < 900 or elapsed() - judge.truth.disturbed < 900:
            return
        living = nodes + len(judge.asks) + len(judge.truth.server.all("pods"))
        for replica, counts in judge.truth.memory().items():
            for path, count in counts.items():
                judge.applied["growth"] += 1
                if count > 3 * living + 150 and "metrics" not in path:
                    judge.blame(
                        "growth",
                        f"{replica.partition('/')[0]} {path}",
                        f"{count} entries for {living} objects",
                    )


def between(requests: Iterator[Request], subject: str) -> list[str]:
    """The requests that are about a subject, for people."""
    words = [word for word in subject.split() if word]
    return [str(r) for r in requests if any(word in str(r) for word in words)]
