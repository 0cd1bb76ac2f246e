"""Safety: what no write of the operator may do."""

from __future__ import annotations

import json
import math
from collections import deque
from typing import Any

from tests.simulation.apiserver import Body, Key, Request, age
from tests.simulation.asks import GROUP, LABEL, OBSERVED, PREFETCH, Ask
from tests.simulation.judge.bodies import finished, images_of, phase
from tests.simulation.judge.bounds import (
    DEADLINE,
    LAG,
    LATE,
    LATE_WATCH,
    NOT_READY_FOR,
    REFUSED,
    REPEATED,
    SAYS,
    STATUS_BYTES,
    STILL_LATE,
    STORM,
    TRIED_AGAIN,
)
from tests.simulation.judge.record import Record
from tests.simulation.loop import elapsed
from tests.simulation.machines import Machine


class Safety:
    """What no write of the operator may do."""

    def __init__(self, record: Record) -> None:
        self._record = record
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
        record, actor = self._record, request.actor.partition("/")[0]
        record.applied["request-storm"] += 1
        what = f"{request.method} {request.resource} {'/'.join(filter(None, request.key))}"
        if request.method == "POST" and request.resource == "pods":
            what += (request.sent or {}).get("metadata", {}).get("name", "")
        key = (actor, request.method, what, request.key)
        count = self._count(self._writes, key, 60.0)
        # A status may be written every 2 s, and at once where a condition turns.
        if count > (1.5 * REPEATED if request.resource == "imageprefetches" else REPEATED):
            record.blame("request-storm", what, f"{count} times in a minute by {actor}")
        if request.status >= 400 and request.status != 429:
            count = self._count(self._refusals, (request.method, what, request.key), 600.0)
            # What holds a node is asked for every 3 s.
            if count > (3 * REFUSED if request.resource == "nodes" else REFUSED):
                text = f"refused {count} times in 10 minutes, last with {request.status}"
                record.blame("refused-for-ever", what, text)

    def _lease(self, request: Request) -> None:
        record = self._record
        lease = record.truth.server.get("leases", "imagegate", "imagegate-system")
        holder = ((lease or {}).get("spec") or {}).get("holderIdentity")
        record.applied["write-without-lease"] += 1
        if holder and holder != request.actor and not record.truth.frozen(request.actor):
            record.blame("write-without-lease", request.actor, f"{holder} leads: {request}")

    def _foreign(self, request: Request) -> None:
        record = self._record
        record.applied["foreign"] += 1
        before, after = request.before or {}, request.after or {}

        def others(body: Body) -> Any:
            metadata = body["metadata"]
            return (
                [t for t in body["spec"].get("taints") or () if t["key"] not in record.keys],
                {k: v for k, v in (metadata.get("labels") or {}).items() if LABEL not in k},
                {k: v for k, v in (metadata.get("annotations") or {}).items() if k != OBSERVED},
                {k: v for k, v in body["spec"].items() if k != "taints"},
            )

        if others(before) != others(after):
            text = f"{others(before)} became {others(after)}"
            record.blame("foreign", request.key[1], text[:400])

    # ---- nodes

    def _node(self, request: Request, before: Body, after: Body) -> None:
        record = self._record
        if record.taints(before) and not record.taints(after):
            self._released(before)
        old, new = before["metadata"].get("labels") or {}, after["metadata"].get("labels") or {}
        for label in {k for k in old.keys() | new.keys() if k.startswith(LABEL)}:
            if label in new and old.get(label) != new[label]:
                self._label_set(after, label.removeprefix(LABEL), new[label])
            elif label not in new:
                self._label_dropped(before, label.removeprefix(LABEL), old[label])

    def _released(self, node: Body) -> None:
        record = self._record
        machine = record.machine(node)
        if machine is None or record.gate_open() or elapsed() - record.gate_at < LAG:
            return
        gate = record.gate()
        if gate is not None and gate["spec"]["taintKey"] not in record.taints(node):
            return  # an earlier key of the gate, which holds nobody
        for ask in record.holding(node):
            name = ask.name
            if not record.settled(name):
                continue
            record.applied["released-early"] += 1
            if ask.images and record.holds(machine, ask):
                continue
            if elapsed() - machine.wiped_at < SAYS or self._just_back(node, machine):
                continue  # nobody can know yet that images have gone
            since = elapsed() - (machine.ready_at if machine.ready_at is not None else elapsed())
            if OBSERVED in (node["metadata"].get("annotations") or {}):
                # Held again while it was away: the timeout counts from its return.
                since = min(since, elapsed() - record.returned_at.get(machine.uid, -math.inf))
            if abs(machine.skew) > LAG:  # by such a clock it became Ready when it was created
                since = age(node["metadata"]["creationTimestamp"])
            text = f"{name}: {sorted(ask.references - machine.images.keys())} absent"
            text += f", {since:.0f} s after Ready"
            blocked = not record.allowed(ask)
            if ask.fail_closed:
                record.blame("released-early", node["metadata"]["name"], f"FailClosed {text}")
            elif since < ask.timeout - LATE and not (
                blocked or record.full_within(TRIED_AGAIN, machine, ask)
            ):
                record.blame("released-early", node["metadata"]["name"], f"FailOpen {text}")

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
        record, machine = self._record, self._record.machine(node)
        # Where images are listed under other names, nobody can know that one has gone.
        unknown = 7200 if machine is not None and machine.spelled else SAYS
        if machine is None or elapsed() - machine.wiped_at < unknown:
            return
        record.applied["false-label"] += 1
        wanted = record.targets.get(name, {}).get(target)
        subject = f"{node['metadata']['name']} {name}"
        if wanted is None:
            record.blame("false-label", subject, f"{target} was never a target")
        elif not wanted:
            record.blame("false-label", subject, "a label for no image at all")
        elif not wanted <= machine.images.keys():
            record.blame(
                "false-label", subject, f"absent: {sorted(wanted - machine.images.keys())}"
            )

    def _label_dropped(self, node: Body, name: str, target: str) -> None:
        record, machine = self._record, self._record.machine(node)
        ask = record.asks.get(name)
        observed = (node["metadata"].get("annotations") or {}).get(OBSERVED)
        # An edit of the images alone takes no label away: it is replaced once they are there.
        if machine is None or ask is None or ask.deleting:
            return
        if elapsed() - record.selected_at.get(name, 0.0) < LAG + record.truth.lag:
            return
        if observed != machine.identity or not ask.matches(node) or ask.target != target:
            return
        record.applied["label-taken-back"] += 1
        if record.holds(machine, ask) and elapsed() - machine.wiped_at > SAYS:
            record.blame("label-taken-back", f"{machine.name} {name}", "it holds every image")

    # ---- pods

    def _created(self, pod: Body, actor: str) -> None:
        record = self._record
        labels = pod["metadata"]["labels"]
        name, node, group = labels[PREFETCH], pod["spec"]["nodeName"], labels[GROUP]
        record.applied["pod-storm"] += 1
        body = record.truth.server.get("nodes", node) or {"metadata": {"uid": ""}}
        # An edit is a new beginning, and so is a new machine under the name.
        which = (node, body["metadata"]["uid"], name, group, record.asked_at.get(name))
        if (count := self._count(self._creates, which, 600.0)) > STORM:
            text = f"{count} puller pods in 10 minutes"
            record.blame("pod-storm", f"{node} {name}", text)
        served = record.truth.server.get("nodes", node)
        if served is not None and record.taints(served):
            self._for_joining.add(pod["metadata"]["uid"])
        self._single(pod, actor)
        self._parallel(name)

    def _single(self, pod: Body, actor: str) -> None:
        """A process creates no puller pod while its earlier pod for the same images may pull. The
        late create of a stopped leader cannot be prevented.
        """
        record, metadata = self._record, pod["metadata"]
        record.applied["pod-twice"] += 1
        self._creators[metadata["uid"]] = actor
        labels, node = metadata["labels"], pod["spec"]["nodeName"]
        for other in record.pods(node, labels[PREFETCH]):
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
                record.blame("pod-twice", f"{node} {labels[PREFETCH]}", text)

    def _parallel(self, name: str) -> None:
        record, server = self._record, self._record.truth.server
        ask = record.asks.get(name)
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
            machine = record.machine(node)
            if machine is None or images_of(pod) <= machine.images.keys():
                continue
            if age(metadata["creationTimestamp"]) > DEADLINE or not self._counts(node):
                continue
            if record.taints(node):  # it joins, or is held again
                joining.add(node["metadata"]["name"])
            elif metadata["uid"] not in self._for_joining:  # else it was released while it pulled
                busy.add(node["metadata"]["name"])
        record.applied["max-parallel"] += 1
        for pulling, which in ((joining, True), (busy, False)):
            limit = ask.bound(most, joining=which)
            if len(pulling) > limit and record.settled(name):
                if record.truth.disturbed < elapsed() - 60:
                    text = f"{len(pulling)} nodes pull, {limit} may: {pulling}, joining: {which}"
                    record.blame("max-parallel", name, text)

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
        record, metadata = self._record, pod["metadata"]
        name = (metadata.get("labels") or {}).get(PREFETCH, "")
        ask = record.asks.get(name)
        node = record.truth.server.get("nodes", pod["spec"]["nodeName"])
        if ask is None or ask.deleting or node is None or not record.settled(name):
            return
        machine = record.machine(node)
        owners = {owner["uid"] for owner in metadata.get("ownerReferences", ())}
        wanted = images_of(pod) & ask.references
        if machine is None or machine.uid not in owners or not wanted or not ask.matches(node):
            return
        if not finished(pod):
            record.applied["pull-cancelled"] += 1
            young = age(metadata["creationTimestamp"]) < DEADLINE
            # Behind a late watch the kubelet's own back-off may have ended before the failure is
            # seen; what was under way when the lag ended still arrives late.
            known = record.truth.lag < LATE_WATCH and elapsed() - record.truth.relayed > STILL_LATE
            if metadata["uid"] in machine.pulling.values() and young and known:
                text = f"{metadata['name']} still pulls {sorted(wanted)}"
                record.blame("pull-cancelled", machine.name, text)
        elif phase(pod) == "Succeeded" and ask.keep and images_of(pod) <= ask.references:
            self._pin(pod, machine, ask, node)

    def _pin(self, pod: Body, machine: Machine, ask: Ask, node: Body) -> None:
        record = self._record
        observed = (pod["metadata"].get("annotations") or {}).get(OBSERVED)
        if observed != machine.identity or elapsed() - machine.wiped_at < 300:
            return
        record.applied["pin-deleted"] += 1
        others = set[str]()
        for other in record.pods(machine.name, ask.name):
            same = other["metadata"]["uid"] == pod["metadata"]["uid"]
            if (
                not same
                and phase(other) == "Succeeded"
                and "deletionTimestamp" not in other["metadata"]
            ):
                others |= images_of(other)
        if not images_of(pod) <= others and images_of(pod) <= machine.images.keys():
            text = f"{sorted(images_of(pod) - others)} are pinned by no other pod"
            record.blame("pin-deleted", f"{machine.name} {ask.name}", text)

    # ---- prefetches

    def _prefetch(self, before: Body, after: Body) -> None:
        record, name = self._record, before["metadata"]["name"]
        record.applied["status-size"] += 1
        size = len(json.dumps(after.get("status") or {}))
        if size > STATUS_BYTES or len((after.get("status") or {}).get("failures") or ()) > 10:
            record.blame("status-size", name, f"{size} bytes")
        mine = {"imagegate.dev/cleanup"}
        old, new = (
            set(body["metadata"].get("finalizers") or ()) - mine for body in (before, after)
        )
        if old != new or before["spec"] != after["spec"]:
            record.blame("foreign", name, f"finalizers {old} became {new}")
