"""Liveness: results that the operator must reach within a bound."""

from __future__ import annotations

import math
from collections import Counter

from tests.simulation.apiserver import Body, Request, age
from tests.simulation.asks import LABEL, PREFETCH, Ask
from tests.simulation.judge.bodies import finished, ready, substance
from tests.simulation.judge.bounds import (
    DEAD_WATCH,
    DEADLINE,
    FIRST_POD,
    LABELLED,
    PROGRESS,
    RETRIED,
)
from tests.simulation.judge.clocks import Clocks
from tests.simulation.judge.leftovers import LeftoverRules
from tests.simulation.judge.nodes import NodeRules
from tests.simulation.judge.queue import Queue
from tests.simulation.judge.record import Record
from tests.simulation.judge.status import Refusals, StatusRules
from tests.simulation.loop import elapsed


class Liveness:
    """Checks every few seconds whether a result is overdue."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._clocks = Clocks()
        self._refusals = Refusals()
        self._queue = Queue(record, self._clocks)
        self._nodes = NodeRules(record, self._clocks)
        self._status = StatusRules(record, self._clocks, self._refusals)
        self._leftovers = LeftoverRules(record, self._clocks)
        self._progress: dict[str, float] = {}
        self._rest_writes: Counter[str] = Counter()
        self._exits: Counter[str] = Counter()
        self._begun: set[str] = set()

    # ---- requests

    def see(self, request: Request) -> None:
        operator = request.actor.startswith("operator")
        if request.resource == "leases" and request.applied and request.after:
            holder = request.after["spec"].get("holderIdentity", "")
            if holder != self._record.leader:
                self._record.leader, self._record.led_since = holder, elapsed()
                # A new leader does not know which nodes requested a slot first.
                self._clocks.stop("asks")
        pulls = request.resource == "pods" and request.method == "POST" and operator
        # The probe for image volumes is a dry run of a pod without a node. It pulls nothing.
        if pulls and "nodeName" in request.sent["spec"]:
            labels = (request.sent or {}).get("metadata", {}).get("labels") or {}
            name = labels.get(PREFETCH, "")
            if node := request.sent["spec"].get("nodeName"):
                self._queue.request(name, node)
            if request.applied:
                self._begun.add(name)
                self._refusals.since.pop(name, None)
                self._progress[name] = elapsed()
            elif request.status not in (409, 429):
                self._refusals.since.setdefault(name, elapsed())
                self._refusals.last[name] = elapsed()
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
        """While the cluster does not change for minutes, the operator has nothing to write."""
        record = self._record
        # While the API server refuses the pods of a prefetch, its status counts each attempt.
        still = min(elapsed() - record.truth.changed, elapsed() - record.truth.disturbed)
        if still < 600 or self._refusals.since:
            self._rest_writes.clear()
            return
        if request.resource == "imageprefetches" and request.before != request.after:
            # The status also counts refreshes from the registry and further attempts.
            if substance(request.before or {}) == substance(request.after or {}):
                return
        record.applied["quiet"] += 1
        subject = f"{request.resource} {request.key[1]}"
        self._rest_writes[subject] += 1
        if self._rest_writes[subject] > 3:
            record.blame(
                "quiet", subject, f"written repeatedly although nothing changes: {request}"[:300]
            )

    # ---- ticks

    def look(self) -> None:
        record = self._record
        nodes = record.truth.server.all("nodes")
        self._clocks.begin_tick()
        self._processes()
        self._nodes.look(nodes)
        for name, ask in list(record.asks.items()):
            if not ask.deleting and not ask.dry:
                self._prefetch(name, ask, nodes)
                self._first_pod(name, ask, nodes)
                self._queue.look(name, ask, nodes)
        self._leftovers.look(nodes)
        self._heartbeat()
        self._growth(len(nodes))
        self._clocks.end_tick()

    def forget(self, prefetch: str) -> None:
        """Forget a deleted prefetch, so that a new one with this name starts afresh."""
        self._clocks.forget(prefetch)
        self._refusals.forget(prefetch)
        self._begun.discard(prefetch)

    def _processes(self) -> None:
        record = self._record
        for at, actor, why in record.truth.exits():
            record.applied["process"] += 1
            if record.truth.frozen(actor) and "LeadershipLost" in why:
                continue
            if at - record.truth.disturbed > 90 or "prob" in why:
                self._exits[actor.partition("/")[0]] += 1
                if self._exits[actor.partition("/")[0]] >= 2:
                    record.blame(
                        "process", actor.partition("/")[0], f"ended a second time: {why}"[:300]
                    )

    def _prefetch(self, name: str, ask: Ask, nodes: list[Body]) -> None:
        record, registry = self._record, self._record.truth.registry
        matching = [node for node in nodes if ask.matches(node)]
        waiting: list[str] = []
        pulling = False
        for node in matching:
            machine = record.machine(node)
            if machine is None or not machine.alive or not ready(node):
                self._clocks.seconds("labelled", f"{name} {node['metadata']['name']}", true=False)
                continue
            label = (node["metadata"].get("labels") or {}).get(LABEL + name)
            held = bool(record.taints(node))
            done = record.done(machine, ask) and label != ask.target and not held
            done = (
                done and record.allowed(ask, "LIST") and machine.name not in record.refused_nodes()
            )
            seconds = self._clocks.seconds("labelled", f"{name} {machine.name}", done)
            record.applied["labelled"] += 1
            quiet = min(seconds, elapsed() - record.truth.disturbed)
            if quiet > LABELLED + record.slack() and record.settled(name):
                text = f"its puller pods succeeded {seconds:.0f} s ago"
                record.blame("not-labelled", f"{machine.name} {name}", text)
            stuck = machine.stalled or machine.spelled or record.hopeless(machine, ask)
            stuck = stuck or record.crowded(node, machine, ask)
            stuck = stuck or (machine.name in record.refused_nodes() and record.holds(machine, ask))
            stuck = stuck or (
                held and record.holds(machine, ask)
            )  # another prefetch holds the node
            if label != ask.target and not stuck and (held or not ask.paused):
                waiting.append(machine.name)
            mine = {pod["metadata"]["uid"] for pod in record.pods(machine.name, name)}
            pulling = pulling or (not stuck and bool(mine & set(machine.pulling.values())))
        # A pull that hangs keeps its slot until its deadline, and there may be only one slot.
        alive = {node["metadata"]["name"]: node for node in matching if ready(node)}
        pulling = pulling or any(
            pod["spec"]["nodeName"] in alive
            and not finished(pod)
            and age(pod["metadata"]["creationTimestamp"])
            < self._deadline(alive[pod["spec"]["nodeName"]])
            for pod in record.truth.server.all("pods")
            if (pod["metadata"].get("labels") or {}).get(PREFETCH) == name
        )
        # A pod that the operator can no longer read keeps its slot until its deadline, which was
        # computed from the sizes at that time.
        pulling = pulling or record.out_of_reach(name)
        possible = (
            bool(waiting)
            and bool(ask.images)
            and not registry.down
            and all(registry.digest(image) is not None for image in ask.images)
            and record.allowed(ask)
        )
        if pulling or not possible:
            self._progress[name] = elapsed()
        last = max(
            self._progress.get(name, 0.0), record.asked_at.get(name, 0.0), record.truth.disturbed
        )
        record.applied["progress"] += 1
        if elapsed() - last > PROGRESS:
            text = f"no progress for {elapsed() - last:.0f} s; waiting: {sorted(waiting)[:6]}"
            record.blame("no-progress", name, text)
        self._status.look(name, ask, matching)

    def _deadline(self, node: Body) -> float:
        """Seconds after which the deadline of a pull has certainly passed: at 5 MB/s for all images
        of the node, which may be pulled one after the other, plus 2 minutes for its detection.
        """
        record, registry = self._record, self._record.truth.registry
        queued = {
            i: registry.size(i) for a in record.asks.values() if a.matches(node) for i in a.images
        }
        return max(DEADLINE, 600 + sum(queued.values()) / 5e6) + 120

    def _first_pod(self, name: str, ask: Ask, nodes: list[Body]) -> None:
        """A new prefetch gets its first pod independently of other prefetches."""
        record, since = self._record, elapsed() - self._record.made_at.get(name, 0.0)
        if name in self._begun or since > 300:
            self._begun.add(name)
            return
        server = record.truth.server
        if any(
            (p["metadata"].get("labels") or {}).get(PREFETCH) == name for p in server.all("pods")
        ):
            self._begun.add(name)
            return
        if elapsed() - self._refusals.last.get(name, -math.inf) < RETRIED:
            return  # a pod was refused, and the back-off is not over
        able = [
            n
            for n in nodes
            if ask.matches(n)
            and ready(n)
            and not record.taints(n)
            and (m := record.machine(n))
            and m.alive
            and m.ready_at is not None
            and not record.without_room(n, m, ask)
            and elapsed() - m.ready_at > 60
        ]
        # A watch whose connection is silently dead is started again after a minute.
        calm = elapsed() - record.truth.disturbed - DEAD_WATCH
        calm = min(since, calm, elapsed() - record.asked_at[name])
        calm = min(calm, self._clocks.seconds("able", name, bool(able)))
        record.applied["first-pod"] += 1
        # A namespace that could not be read is read again after half a minute.
        allowed = self._clocks.seconds(
            "allowed", name, record.allowed(ask, "LIST") and record.allowed(ask)
        )
        if able and not ask.paused and ask.images and allowed > min(calm, 60.0):
            if calm > FIRST_POD + record.slack():
                record.blame("first-pod", name, f"no puller pod after {since:.0f} s")

    def _heartbeat(self) -> None:
        record = self._record
        gate = record.gate()
        if gate is None or gate["spec"].get("suspend"):
            return
        beat = (gate.get("status") or {}).get("heartbeat")
        stale = beat is None or age(beat) > 150
        blind = getattr(record.truth, "blind_since", None)
        record.applied["heartbeat"] += 1
        if blind is not None and elapsed() - blind > 480 and not stale:
            text = f"the heartbeat is fresh {elapsed() - blind:.0f} s after the watch of Nodes died"
            record.blame("armed-while-blind", "default", text)
        if blind is None:
            seconds = self._clocks.seconds("beat", "default", stale)
            seconds = min(seconds, elapsed() - record.truth.disturbed, elapsed() - record.gate_at)
            if seconds > 120 + record.slack():
                record.blame(
                    "not-armed", "default", f"the heartbeat has been too old for {seconds:.0f} s"
                )

    def _growth(self, nodes: int) -> None:
        """While nothing changes, the number of objects limits the entries in a process's memory."""
        record = self._record
        if elapsed() - record.truth.changed < 900 or elapsed() - record.truth.disturbed < 900:
            return
        living = nodes + len(record.asks) + len(record.truth.server.all("pods"))
        # A map for each node has an entry for each image, by tag and by digest.
        names = 2 * nodes * len(set[str]().union(*(ask.references for ask in record.asks.values())))
        for replica, counts in record.truth.memory().items():
            for path, count in counts.items():
                record.applied["growth"] += 1
                limit = 3 * living + 150 + (names if path.endswith(".*") else 0)
                if count > limit and "metrics" not in path:
                    record.blame(
                        "growth",
                        f"{replica.partition('/')[0]} {path}",
                        f"{count} entries for {living} objects",
                    )
