"""Safety: effects that no write of the operator may have."""

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
    LISTED,
    NOT_READY_FOR,
    REFUSED,
    REPEATED,
    RETRIED,
    STATUS_BYTES,
    STILL_LATE,
    STORM,
)
from tests.simulation.judge.record import Record
from tests.simulation.loop import elapsed
from tests.simulation.machines import Machine


class Safety:
    """Checks each write of the operator."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._creates: dict[tuple[str, str, str], deque[float]] = {}
        self._writes: dict[tuple[str, str, str, Key], deque[float]] = {}
        self._refusals: dict[tuple[str, str, Key], deque[float]] = {}
        self._matching: dict[str, deque[tuple[float, int]]] = {}
        self._for_joining: set[str] = set()
        """Uids of puller pods that were created while their node was held."""
        self._late: dict[tuple[str, str], float] = {}
        """By node and prefetch, when the create of a frozen leader arrived after its lease. The
        pod takes a slot, and the next leader lets the node's other groups pull in it."""
        self._creators: dict[str, str] = {}
        """By uid of a puller pod, the process that created it."""

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
        # A status is written at most every 2 s, but immediately when a condition changes.
        if count > (1.5 * REPEATED if request.resource == "imageprefetches" else REPEATED):
            record.blame("request-storm", what, f"{count} times in a minute by {actor}")
        if request.status >= 400 and request.status != 429:
            count = self._count(self._refusals, (request.method, what, request.key), 600.0)
            # The release of a held node is retried every 3 s.
            if count > (3 * REFUSED if request.resource == "nodes" else REFUSED):
                text = f"refused {count} times in 10 minutes, last with {request.status}"
                record.blame("refused-for-ever", what, text)

    def _lease(self, request: Request) -> None:
        record, holder = self._record, self._record.leader
        record.applied["write-without-lease"] += 1
        if holder and holder != request.actor and not record.truth.frozen(request.actor):
            record.blame(
                "write-without-lease", request.actor, f"{holder} holds the lease: {request}"
            )

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
            # A leader that was frozen after it had checked its lease may send one late write, which
            # the next leader puts right: the rule about leases judges it.
            elif label not in new and record.leader in ("", request.actor):
                self._label_dropped(before, label.removeprefix(LABEL), old[label])

    def _released(self, node: Body) -> None:
        record = self._record
        machine = record.machine(node)
        if machine is None or record.gate_open() or elapsed() - record.gate_at < LAG:
            return
        gate = record.gate()
        if gate is not None and gate["spec"]["taintKey"] not in record.taints(node):
            return  # an earlier key of the gate, whose taint holds no node
        for ask in record.holding(node):
            name = ask.name
            if not record.settled(name):
                continue
            record.applied["released-early"] += 1
            if ask.images and record.holds(machine, ask):
                continue
            if elapsed() - machine.wiped_at < LISTED or self._just_back(node, machine):
                continue  # the kubelet may not have reported the removed images yet
            since = elapsed() - (machine.ready_at if machine.ready_at is not None else elapsed())
            if OBSERVED in (node["metadata"].get("annotations") or {}):
                # Held again while it was not Ready: the timeout counts from its return.
                since = min(since, elapsed() - record.returned_at.get(machine.uid, -math.inf))
            if (
                abs(machine.skew) > LAG
            ):  # with such a clock the timeout counts from the creation of the Node
                since = age(node["metadata"]["creationTimestamp"])
            text = f"{name}: {sorted(ask.references - machine.images.keys())} absent"
            text += f", {since:.0f} s after Ready"
            if ask.fail_closed:
                record.blame("released-early", node["metadata"]["name"], f"FailClosed {text}")
            elif since < ask.timeout - LATE and not (
                record.blocked(ask) or record.full_within(RETRIED, machine, ask)
            ):
                record.blame("released-early", node["metadata"]["name"], f"FailOpen {text}")

    @staticmethod
    def _just_back(node: Body, machine: Machine) -> bool:
        """Whether a node in service lost images while it was not Ready, and returned so recently
        that the operator may not have received its new list of images.
        """
        if OBSERVED not in (node["metadata"].get("annotations") or {}) or machine.wiped_at < 0:
            return False
        conditions = node["status"].get("conditions") or ()
        return any(
            condition["type"] == "Ready" and age(condition["lastTransitionTime"]) < LISTED
            for condition in conditions
        )

    def _label_set(self, node: Body, name: str, target: str) -> None:
        record, machine = self._record, self._record.machine(node)
        # If the kubelet lists images under other names, the operator cannot see a removal.
        unknown = 7200 if machine is not None and machine.spelled else LISTED
        if machine is None or elapsed() - machine.wiped_at < unknown:
            return
        record.applied["false-label"] += 1
        wanted = record.targets.get(name, {}).get(target)
        subject = f"{node['metadata']['name']} {name}"
        if wanted is None:
            record.blame("false-label", subject, f"no spec had the value {target}")
        elif not wanted:
            record.blame("false-label", subject, "a label for a prefetch without images")
        elif not wanted <= machine.images.keys():
            record.blame(
                "false-label", subject, f"absent: {sorted(wanted - machine.images.keys())}"
            )

    def _label_dropped(self, node: Body, name: str, target: str) -> None:
        record, machine = self._record, self._record.machine(node)
        ask = record.asks.get(name)
        observed = (node["metadata"].get("annotations") or {}).get(OBSERVED)
        # An edit of the images removes no label: the new value replaces it after the pull.
        if machine is None or ask is None or ask.deleting:
            return
        if elapsed() - record.selected_at.get(name, 0.0) < LAG + record.truth.lag:
            return
        if observed != machine.identity or not ask.matches(node) or ask.target != target:
            return
        record.applied["label-taken-back"] += 1
        if record.holds(machine, ask) and elapsed() - machine.wiped_at > LISTED:
            record.blame("label-taken-back", f"{machine.name} {name}", "the node holds every image")

    # ---- pods

    def _created(self, pod: Body, actor: str) -> None:
        record = self._record
        labels = pod["metadata"]["labels"]
        name, node, group = labels[PREFETCH], pod["spec"]["nodeName"], labels[GROUP]
        record.applied["pod-storm"] += 1
        body = record.truth.server.get("nodes", node) or {"metadata": {"uid": ""}}
        # The count restarts with an edit of the prefetch, and with a new machine of the same name.
        which = (node, body["metadata"]["uid"], name, group, record.asked_at.get(name))
        if (count := self._count(self._creates, which, 600.0)) > STORM:
            text = f"{count} puller pods in 10 minutes"
            record.blame("pod-storm", f"{node} {name}", text)
        served = record.truth.server.get("nodes", node)
        if served is not None and record.taints(served):
            self._for_joining.add(pod["metadata"]["uid"])
        if record.leader and record.leader != actor:
            self._late[node, name] = elapsed()
        self._single(pod, actor)
        self._parallel(name)

    def _single(self, pod: Body, actor: str) -> None:
        """A process creates no second puller pod while its first pod for the same images may pull.
        The late create of a frozen leader cannot be prevented, so pods of two processes pass.
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
                text = f"{metadata['name']} was created although {theirs['name']} is unfinished"
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
            for_joining = metadata["uid"] in self._for_joining
            # A node that was released, or held again, during the pull counts in neither group.
            if elapsed() - self._late.get((node["metadata"]["name"], name), -math.inf) < DEADLINE:
                continue
            if record.taints(node) and for_joining:
                joining.add(node["metadata"]["name"])
            elif not record.taints(node) and not for_joining:
                busy.add(node["metadata"]["name"])
        record.applied["max-parallel"] += 1
        for pulling, which in ((joining, True), (busy, False)):
            limit = ask.bound(most, joining=which)
            if len(pulling) > limit and record.settled(name):
                if record.truth.disturbed < elapsed() - 60:
                    text = f"{len(pulling)} nodes pull, limit {limit}: {pulling}, joining: {which}"
                    record.blame("max-parallel", name, text)

    @staticmethod
    def _counts(node: Body) -> bool:
        """Whether the pull on a node counts: the node is Ready, or was until a short time ago. A
        node that returned within the last minute does not count: its slot was freed, but its pull
        continues.
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
            # With a late watch, the kubelet may retry before the operator receives the failure.
            # Events that were sent before the lag ended still arrive late.
            known = record.truth.lag < LATE_WATCH and elapsed() - record.truth.relayed > STILL_LATE
            if metadata["uid"] in machine.pulling.values() and young and known:
                text = f"{metadata['name']} was deleted while it pulls {sorted(wanted)}"
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
            text = f"no other pod pins {sorted(images_of(pod) - others)}"
            record.blame("pin-deleted", f"{machine.name} {ask.name}", text)

    # ---- prefetches

    def _prefetch(self, before: Body, after: Body) -> None:
        record, name = self._record, before["metadata"]["name"]
        record.applied["status-size"] += 1
        size = len(json.dumps(after.get("status") or {}))
        if size > STATUS_BYTES or len((after.get("status") or {}).get("failures") or ()) > 10:
            record.blame(
                "status-size", name, f"the status has {size} bytes, or more than 10 failures"
            )
        mine = {"imagegate.dev/cleanup"}
        old, new = (
            set(body["metadata"].get("finalizers") or ()) - mine for body in (before, after)
        )
        if old != new or before["spec"] != after["spec"]:
            record.blame("foreign", name, f"finalizers {old} became {new}")
