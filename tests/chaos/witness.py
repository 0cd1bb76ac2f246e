"""The witness: reads the history of the cluster and reports which promises were broken.

It reads the API server's history in the order of its revisions, containerd's events about the
images of each node, and the users' writes in the audit log. It shares no code with the operator.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos import history
from tests.chaos.evidence import LAG, Asked, Requests, Truth, Violation
from tests.chaos.history import Ask, Body, Entry, Seen, Snapshot

STATUS_BYTES = 16 * 1024
STATUS_FAILURES = 10

PERMANENT = re.compile(
    r"not found|manifest unknown|\b40[134]\b|unauthorized|forbidden|denied|no match for platform"
    r"|no matching manifest|invalid reference|InvalidImageName",
    re.IGNORECASE,
)
"""Permanent failures, in the messages of containerd and the kubelet."""


@dataclass(slots=True)
class Witness:
    truth: Truth
    requests: Requests
    operator: str
    """The user name of the operator's service account."""
    violations: list[Violation] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    """How often each rule was applied. A rule that was never applied proves nothing."""
    unseen: int = 0
    """Writes of the operator in a gap of the watches that were overwritten in the same gap."""
    unknown: int = 0
    """Queries of images at times without recorded events of containerd."""
    leaders: list[tuple[float, float, int]] = field(default_factory=list)
    """(since, until, number) of times when a test ran several leaders."""
    _objects: dict[str, dict[str, Body]] = field(default_factory=dict)
    _times: dict[tuple[str, str], float] = field(default_factory=dict)
    _asked: dict[str, Asked] = field(default_factory=dict)
    _joining: dict[str, bool] = field(default_factory=dict)
    """By uid of the puller pod: whether its node was held when the pod was first seen."""
    _blind: list[tuple[float, float]] = field(default_factory=list)
    """Gaps in which the existing nodes are unknown."""
    _gate: list[tuple[float, bool]] = field(default_factory=list)
    _simulated: set[tuple[str, str]] = field(default_factory=set)
    _complaints: dict[tuple[str, str], str] = field(default_factory=dict)

    def read(self, entries: Sequence[Entry]) -> None:
        """Judge the next part of the history, which must be in the order of versions."""
        names = {
            history.name(entry.body)
            for entry in entries
            if isinstance(entry, Seen) and entry.kind == "ImagePrefetch"
        }
        for entry in entries:
            if isinstance(entry, Snapshot):
                self._foresee(entry, names)
        for entry in entries:
            match entry:
                case Seen():
                    self._see(entry.kind, entry.type, entry.at, entry.body)
                    if entry.kind == "Pod" and entry.type == "ADDED":
                        self._one_puller_each(entry.at, entry.body)
                        self._parallel(entry.at, history.labels(entry.body)[history.PREFETCH])
                case Snapshot():
                    self._take(entry)

    def _foresee(self, snapshot: Snapshot, names: set[str]) -> None:
        """Record the changes in a gap before the entries are judged. A change may have happened at
        any time in the gap, and clients whose watches had no gap may have acted on it."""
        if snapshot.kind == "Node":
            self._blind.append((snapshot.since, snapshot.at))
        if snapshot.kind != "ImagePrefetch":
            return
        found = {history.name(item): history.ask(item) for item in snapshot.items}
        for name in found.keys() | self._asked.keys() | names:
            asked = self._asked.setdefault(name, Asked())
            asked.maybe.append((snapshot.since, snapshot.at, found.get(name)))

    def _take(self, snapshot: Snapshot) -> None:
        known = self._objects.setdefault(snapshot.kind, {})
        names = {history.name(item) for item in snapshot.items}
        first = not known
        for name in [name for name in known if name not in names]:
            self._see(snapshot.kind, "DELETED", snapshot.at, known[name])
        for item in snapshot.items:
            old = known.get(history.name(item))
            if old is not None and old["metadata"]["resourceVersion"] == item["metadata"].get(
                "resourceVersion"
            ):
                continue
            if not first:
                self._count_unseen(snapshot, item)
            self._see(snapshot.kind, "ADDED" if old is None else "MODIFIED", snapshot.at, item)
        if snapshot.kind == "Pod":
            for pod in list(known.values()):
                self._one_puller_each(snapshot.at, pod)
            for prefetch in {history.labels(pod)[history.PREFETCH] for pod in known.values()}:
                self._parallel(snapshot.at, prefetch)

    def _count_unseen(self, snapshot: Snapshot, item: Body) -> None:
        resource = {"Node": "nodes", "Pod": "pods", "ImagePrefetch": "imageprefetches"}
        if snapshot.kind not in resource:
            return
        since = self._times.get((snapshot.kind, history.name(item)), snapshot.at - 60.0)
        writes = self.requests.writes(
            resource[snapshot.kind], history.name(item), since, snapshot.at
        )
        self.unseen += max(0, sum(write.user == self.operator for write in writes) - 1)

    # ---- one version of one object

    def _see(self, kind: str, type_: str, at: float, body: Body) -> None:
        known, name = self._objects.setdefault(kind, {}), history.name(body)
        old = known.get(name)
        match kind:
            case "Node":
                if old is not None and history.uid(old) == history.uid(body) and type_ != "DELETED":
                    self._foreign_taints(at, old, body)
                    self._release(at, old, body)
                    self._labels(at, old, body)
            case "Pod":
                self._pull_goes_on(at, type_, old, body)
                self._remember_pod(body)
            case "ImagePrefetch":
                self._bounded(at, body)
                self._remember_ask(at, type_, name, body)
            case _:
                spec = body.get("spec") or {}
                shut = type_ != "DELETED" and not history.deleting(body)
                self._gate.append((at, shut and not spec.get("suspend", False)))
        if type_ == "DELETED":
            known.pop(name, None)
            self._times.pop((kind, name), None)
        else:
            known[name] = body
            self._times[kind, name] = at

    def _remember_pod(self, pod: Body) -> None:
        node = self._objects.get("Node", {}).get(pod["spec"].get("nodeName", ""))
        machine = history.machine(pod)
        if (
            history.succeeded(pod)
            and node is not None
            and history.SIMULATED in history.labels(node)
        ):
            self._simulated |= {(machine, image) for image in history.mounted(pod)}
        if text := history.complaint(pod):
            self._complaints[machine, history.labels(pod)[history.PREFETCH]] = text

    def _remember_ask(self, at: float, type_: str, name: str, body: Body) -> None:
        asked = self._asked.setdefault(name, Asked())
        state = None if type_ == "DELETED" else history.ask(body)
        if not asked.states or asked.now() != state:
            asked.states.append((at, state))

    # ---- the rules

    def _object(self, rule: str, at: float, what: str) -> None:
        self.violations.append(Violation(rule, at, what))

    def _apply(self, rule: str) -> str:
        self.checked[rule] = self.checked.get(rule, 0) + 1
        return rule

    def _foreign_taints(self, at: float, old: Body, new: Body) -> None:
        """Foreign taints stay, and a write that changes our taint changes no other taint."""
        rule = self._apply("foreign taints are not touched")
        if history.foreign(old) != history.foreign(new):
            self._object(
                rule,
                at,
                f"{history.name(new)}: {history.foreign(old)} became {history.foreign(new)}",
            )
        elif history.held(old) != history.held(new):
            others = [{t for t in history.taints(n) if t[0] != history.TAINT} for n in (old, new)]
            if others[0] != others[1]:
                self._object(rule, at, f"{history.name(new)}: {others[0]} became {others[1]}")

    def _release(self, at: float, old: Body, new: Body) -> None:
        if not (history.held(old) and not history.held(new)):
            return
        rule = self._apply("no release before the images are there")
        node, when = history.name(new), self._written_at("nodes", history.name(new), at)
        if not self._gate_was_shut(when):
            return
        for name, asked in self._asked.items():
            lately = asked.lately(when)
            if any(state is None or not _gates(state, new) for state in lately):
                continue
            if not any(
                state is not None and self._satisfied(name, state, new, when) for state in lately
            ):
                state = asked.now()
                missing = [
                    image
                    for image in (state.images if state is not None else ())
                    if self._present(new, image, when) is False
                ]
                self._object(rule, when, f"{node} was released without {missing} of {name}")

    def _satisfied(self, name: str, state: Ask, node: Body, when: float) -> bool:
        if all(self._present(node, image, when) is not False for image in state.images):
            return True
        if not state.fail_open:
            return False
        since = history.ready_since(node)
        if since is not None and when >= since + state.gate_timeout - 1.0:
            return True
        complaint = self._complaints.get((history.uid(node), name), "")
        return bool(PERMANENT.search(complaint))

    def _labels(self, at: float, old: Body, new: Body) -> None:
        before = history.ours(old)
        for name, target in history.ours(new).items():
            if before.get(name) == target:
                continue
            rule = self._apply("a label says what the node holds")
            when = self._written_at("nodes", history.name(new), at)
            meant = self._asked.get(name, Asked()).with_target(target, at)
            if meant is None:
                self._object(rule, at, f"{history.name(new)}: {name}={target} was never asked for")
                continue
            missing = [i for i in meant.images if self._present(new, i, when) is False]
            if missing:
                self._object(rule, at, f"{history.name(new)}: {name}={target} without {missing}")

    def _parallel(self, at: float, prefetch: str) -> None:
        """Count the existing nodes with a puller pod that still has an image to pull."""
        if any(since <= at <= until for since, until in self._blind):
            return
        rule = self._apply("at most maxParallel nodes of a prefetch pull")
        nodes = self._objects.get("Node", {})
        uids = {history.uid(node): node for node in nodes.values()}
        busy: dict[bool, dict[str, str]] = {True: {}, False: {}}
        for pod in self._objects.get("Pod", {}).values():
            node = uids.get(history.machine(pod))
            if history.labels(pod)[history.PREFETCH] != prefetch or node is None:
                continue
            # Set once per pod: a node that is released during its pull counts for neither limit.
            joining = self._joining.setdefault(history.uid(pod), history.held(node))
            released = joining and not history.held(node)
            if not (released or history.finished(pod) or self._all_present(node, pod, at)):
                busy[joining][history.name(node)] = history.name(pod)
        states = [s for s in self._asked.get(prefetch, Asked()).lately(at) if s is not None]
        if not states:
            return
        for joining, pulling in busy.items():
            matching = [sum(map(state.wants, nodes.values())) for state in states]
            cap = max(s.parallel(n, joining=joining) for s, n in zip(states, matching, strict=True))
            if len(pulling) > cap * self._leading(at):
                which = "joining nodes" if joining else "nodes in service"
                self._object(rule, at, f"{prefetch}: {len(pulling)} of {cap} {which}: {pulling}")

    def _one_puller_each(self, at: float, pod: Body) -> None:
        rule = self._apply("one puller pod per node, prefetch and group")
        if history.finished(pod) or history.deleting(pod):
            return
        same = [
            history.name(other)
            for other in self._objects.get("Pod", {}).values()
            if not history.finished(other)
            and not history.deleting(other)
            and history.machine(other) == history.machine(pod)
            and history.labels(other)[history.PREFETCH] == history.labels(pod)[history.PREFETCH]
            and history.labels(other).get(history.GROUP) == history.labels(pod).get(history.GROUP)
        ]
        if len(same) > self._leading(at):
            self._object(rule, at, f"{sorted(same)} on {pod['spec'].get('nodeName')}")

    def _pull_goes_on(self, at: float, type_: str, old: Body | None, new: Body) -> None:
        """The operator must not delete a pod while it pulls an image that its node still needs."""
        if old is None or history.finished(new) or history.deleting(old):
            return
        if type_ != "DELETED" and not history.deleting(new):
            return
        if any(since <= at <= until for since, until in self._blind):
            return
        rule = self._apply("a running pull is not cancelled")
        node = self._objects.get("Node", {}).get(new["spec"].get("nodeName", ""))
        prefetch = history.labels(new)[history.PREFETCH]
        writes = self.requests.writes("pods", history.name(new), at - 30.0, at + 1.0)
        if not any(w.user == self.operator and w.verb == "delete" for w in writes):
            return
        if history.complaint(old) or history.complaint(new):
            return
        if node is None or history.uid(node) != history.machine(new):
            return
        if history.notes(new).get(history.OBSERVED) != history.identity(node):
            return
        if self._all_present(node, new, at):
            return
        for state in self._asked.get(prefetch, Asked()).lately(at):
            if state is None or not state.wants(node):
                return
            if not set(state.images) & set(history.mounted(new)):
                return
            created = history.seconds(new["metadata"]["creationTimestamp"])
            if state.retry_timeout is not None and at >= created + state.retry_timeout - 1.0:
                return
        self._object(rule, at, f"{history.name(new)} on {history.name(node)} was deleted")

    def _bounded(self, at: float, body: Body) -> None:
        rule = self._apply("the status is bounded")
        status = body.get("status") or {}
        size, failures = len(json.dumps(status)), len(status.get("failures") or ())
        if size >= STATUS_BYTES or failures > STATUS_FAILURES:
            self._object(rule, at, f"{history.name(body)}: {size} bytes, {failures} failures")

    # ---- evidence

    def _written_at(self, resource: str, name: str, seen: float) -> float:
        """The time of the operator's write that the watch reported at ``seen``. Watch events may be
        late. Responses may be late too, so it is the last write that began before ``seen``."""
        writes = self.requests.writes(resource, name, seen - 60.0, seen + 60.0)
        own = [w.at for w in writes if w.user == self.operator and w.began <= seen]
        return min(seen, max(own, default=seen))

    def _present(self, node: Body, image: str, at: float) -> bool | None:
        if history.SIMULATED in history.labels(node):
            return (history.uid(node), image) in self._simulated
        known = self.truth.present(history.name(node), image, at)
        self.unknown += known is None
        return known

    def _all_present(self, node: Body, pod: Body, at: float) -> bool:
        return all(self._present(node, image, at) is True for image in history.mounted(pod))

    def _leading(self, at: float) -> int:
        return max((n for since, until, n in self.leaders if since <= at <= until), default=1)

    def _gate_was_shut(self, at: float) -> bool:
        """Whether a NodeGate existed and was not suspended during all of the last LAG seconds."""
        before = [shut for since, shut in self._gate if since <= at - LAG]
        within = [shut for since, shut in self._gate if at - LAG < since <= at]
        return all([before[-1] if before else bool(within), *within])

    def summary(self) -> Mapping[str, int]:
        return dict(sorted(self.checked.items()))


def _gates(state: Ask, node: Body) -> bool:
    return state.gating and state.wants(node)
