"""Observe, decide, act: one node at a time, one prefetch at a time.

A node's key decides about that node alone, whatever the number of nodes; a prefetch's key grants
places in its rollout and writes its status, a few times a second at most.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from imagegate.domain import forecast, rollout, status
from imagegate.domain import node as node_decision
from imagegate.domain.actions import DeletePod, NodePlan, PatchNode
from imagegate.domain.effective import adopted, resolved
from imagegate.domain.facts import (
    FINALIZER,
    LABEL_PREFIX,
    POLICY_VIOLATION,
    ImageFacts,
    Node,
    Prefetch,
    Refreshed,
)
from imagegate.domain.gate import Problem
from imagegate.domain.match import matches
from imagegate.domain.node import NodeView
from imagegate.domain.policy import ANYTHING, PrefetchPolicy, too_large
from imagegate.domain.share import Share
from imagegate.domain.workloads import Found, condition
from imagegate.errors import ImagegateError
from imagegate.kube.errors import Forbidden, Invalid, NotFound, NotLeader
from imagegate.kube.events import Events
from imagegate.kube.nodes import Nodes
from imagegate.kube.pods import Pods
from imagegate.kube.prefetches import Prefetches
from imagegate.metrics import Metrics
from imagegate.puller.build import PullerSettings
from imagegate.runtime import disks as disk_usage
from imagegate.runtime.actor import Actor
from imagegate.runtime.clock import Clock
from imagegate.runtime.disks import Disks
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.queue import KeyedQueue
from imagegate.runtime.start_after import StartAfter
from imagegate.runtime.store import Store

PASS_INTERVAL = 0.2
"""Seconds over which changes of one prefetch are gathered into one rollout pass."""
STATUS_INTERVAL = 2.0
"""Seconds between two writes of one status while only its counts change."""
LET_GO_AFTER = 300.0
"""Seconds after which a deleted prefetch goes although a node that answers still has its label: a
policy may refuse the change for ever."""
FORECAST_INTERVAL = 300.0
"""Seconds between two forecasts of a dry run."""


class Images(Protocol):
    """Where it is known what the registries say (`inspector.Inspector`)."""

    def known(self, prefetch: Prefetch) -> Mapping[str, ImageFacts] | None: ...
    def refreshed(self, prefetch: str) -> Refreshed | None: ...
    def look(self, prefetch: Prefetch) -> None: ...
    def meet(self, platform: str) -> None: ...
    def forget(self, prefetch: str) -> None: ...


class Workloads(Protocol):
    """Where it is known which images workloads name (`workloads.WorkloadImages`)."""

    def found(self, prefetch: Prefetch) -> Found | None: ...
    def follow(self, prefetch: Prefetch) -> None: ...
    def forget(self, name: str) -> None: ...


class Reconciler:
    """The whole loop; `app` gives it its parts and the queues their handlers."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        nodes: Nodes,
        pods: Pods,
        prefetches: Prefetches,
        start_after: StartAfter,
        events: Events,
        metrics: Metrics,
        puller: PullerSettings,
        inspector: Images,
        workloads: Workloads,
        disks: Disks,
        clock: Clock,
        taint_key: Callable[[], str],
        taints_by_watch: bool,
        policy: PrefetchPolicy = ANYTHING,
        control_planes: bool = False,
        earlier_keys: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """``earlier_keys``: keys that the gate had before, under which nodes may still be held."""
        self._store = store
        self._ledger = ledger
        self._nodes = nodes
        self._prefetches = prefetches
        self._start_after = start_after
        self._events = events
        self._metrics = metrics
        self._inspector = inspector
        self._workloads = workloads
        self._disks = disks
        self._clock = clock
        self._taint_key = taint_key
        self._earlier_keys = earlier_keys
        self._taints_by_watch = taints_by_watch
        self._control_planes = control_planes
        self._policy = policy
        self._sized: dict[str, tuple[Prefetch, Mapping[str, ImageFacts] | None, Prefetch]] = {}
        """By name: a prefetch, the sizes by which it was judged, and what came of it."""
        self._specs: dict[str, tuple[str, Prefetch]] = {}
        self._written: dict[str, float] = {}
        self._leaving: dict[str, tuple[str, float]] = {}
        """Prefetches that are being deleted: uid, and since when this process knows."""
        self.actor = Actor(
            store=store,
            ledger=ledger,
            nodes=nodes,
            pods=pods,
            events=events,
            metrics=metrics,
            puller=puller,
            clock=clock,
            again=self._again,
        )
        self.node_queue = KeyedQueue("node", self.reconcile_node, workers=32, urgent_workers=8)
        self.prefetch_queue = KeyedQueue("imageprefetch", self.reconcile_prefetch, workers=4)
        self.disk_queue = KeyedQueue("disk", self.read_disk, workers=32, urgent_workers=8)
        self.forecast_queue = KeyedQueue("forecast", self.forecast, workers=1)
        start_after.listen(self.node_changed)

    @property
    def queues(self) -> Sequence[KeyedQueue]:
        """Everything that has to be run."""
        return (self.node_queue, self.prefetch_queue, self.disk_queue, self.forecast_queue)

    # ---- store.Listener

    def node_changed(self, name: str) -> None:
        node = self._store.nodes.get(name)
        urgent = node is not None and self._held(node)
        self.node_queue.add(name, urgent=urgent)

    def prefetch_changed(self, name: str) -> None:
        self.prefetch_queue.add(name)

    def gate_changed(self) -> None:
        for name, node in self._store.nodes.items():
            held = self._held(node)
            # One that is not Ready may have to be held as soon as the gate is open no more.
            if held or self._taints_by_watch or not node.ready:
                self.node_queue.add(name, urgent=held)

    def _held(self, node: Node) -> bool:
        """Whether the node has a taint of the gate, of its present key or of an earlier one."""
        return bool(node.taints_of({self._taint_key(), *self._earlier_keys()}))

    def images_inspected(self, name: str) -> None:
        """What the registry says of a prefetch's images is known, or has changed."""
        entry = self._ledger.entries.get(name)
        for node in entry.standings if entry is not None else ():
            self.node_queue.add(node)
        self.prefetch_queue.add(name)

    # ---- nodes

    def _again(self, name: str, delay: float, *, urgent: bool = False) -> None:
        self.node_queue.add(name, delay=delay, urgent=urgent)

    async def reconcile_node(self, name: str) -> None:
        node = self._store.nodes.get(name)
        if node is None:
            self._start_after.forget(name)
            for prefetch in self._ledger.forget_node(name):
                self.prefetch_queue.add(prefetch, delay=PASS_INTERVAL)
            self._disks.forget(name)
            return
        self._inspector.meet(node.platform)
        for prefetch in self._ledger.meet(node):
            self.prefetch_queue.add(prefetch, delay=PASS_INTERVAL)
        now = self._clock.now()
        view = self.view(node)
        plan = node_decision.decide(view, now)
        if self._places_for_joining(node, plan):
            view = self.view(node)
            plan = node_decision.decide(view, now)
        self._record(node, view, plan)
        if plan.wants_usage:
            self.disk_queue.add(name, urgent=plan.held)
        self._start_after.follow(node, plan.awaits)
        if plan.requeue_at is not None:
            self.node_queue.add(name, delay=max(0.01, plan.requeue_at - now))
        await self._act(name, plan)

    async def read_disk(self, name: str) -> None:
        """Read what a decision asks for, beside the work on nodes: a kubelet that does not answer
        takes seconds, and no release may wait for it.
        """
        if name not in self._store.nodes:
            return
        # What the store knows of its images may be of before the prefetch, when nobody looked for
        # them. Before the usage is known, because that lets a pull start.
        try:
            node = await self._nodes.get(name)
        except NotFound:
            return  # the watch, or a resync, tells that it is gone
        self._store.see_node(node)
        await self._disks.read(node)
        if name not in self._store.nodes:
            self._disks.forget(name)
        elif self._disks.known(node) is None:
            self.disk_queue.add(name, delay=disk_usage.PAUSE, urgent=self._held(node))
        else:
            self.node_changed(name)

    async def _act(self, name: str, plan: NodePlan) -> None:
        """Try every action: one that fails (a webhook of one namespace, a policy) must not stop
        those of the others. Raises what failed.
        """
        # The patch first: a release is waited for, a clean-up is not.
        errors: list[Exception] = []
        open_: set[Hashable] = set()
        for action in sorted(plan.actions, key=lambda a: not isinstance(a, PatchNode)):
            request = action.request if isinstance(action, PatchNode | DeletePod) else None
            open_.add(request)  # until it is granted: no other answer undoes an earlier refusal
            if isinstance(action, DeletePod) and action.pod.namespace in self._store.unreadable:
                continue  # it would be refused; the node comes back when the namespace does
            wait = self._ledger.refused_until(name, request) - self._clock.monotonic()
            if wait > 0:
                self.node_queue.add(name, delay=max(0.01, wait), urgent=plan.held)
                continue
            try:
                await self.actor.act(action)
            except NotLeader:
                raise
            except (Forbidden, Invalid) as error:
                errors.append(error)
                if request is not None:
                    urgent = plan.held and isinstance(action, PatchNode)
                    self._ledger.refuse(name, request, self._clock.monotonic(), urgent=urgent)
            except ImagegateError as error:
                errors.append(error)
            else:
                open_.discard(request)
                if isinstance(action, PatchNode) and action.release is not None:
                    break  # the rest was decided about a held node; the node comes back at once
        self._ledger.keep_refusals(name, open_)
        if errors:
            raise ExceptionGroup(f"node {name}", errors) if len(errors) > 1 else errors[0]

    def view(self, node: Node) -> NodeView:
        """Everything that is known about one node, as of now."""
        by_prefetch: dict[str, list[Any]] = {}
        for pod in self._store.pods_on(node.name):
            by_prefetch.setdefault(pod.prefetch, []).append(pod)
        shares: list[Share] = []
        frozen: set[str] = set()
        problems: list[Problem] = []
        attempts = self._ledger.attempts.get(node.name, {})
        for name in sorted(self._store.prefetches):
            prefetch = self._judged(self._store.prefetches[name])
            if (prefetch.invalid is not None or prefetch.dry_run) and not prefetch.deleting:
                frozen.add(name)
                kept = by_prefetch.pop(name, [])
                problems += self._problem(prefetch, node)
                if prefetch.forbidden:
                    # What still pulls would go on for as long as its registry refuses it.
                    by_prefetch[name] = [pod for pod in kept if not pod.finished]
                continue
            if not prefetch.live or not matches(prefetch, node):
                continue
            problems += self._problem(prefetch, node)
            if prefetch.unread and not prefetch.images:
                frozen.add(name)
                by_prefetch.pop(name, None)
                continue
            pods = tuple(by_prefetch.pop(name, ()))
            known = self._inspector.known(prefetch)
            failed = {p.uid: self._store.failed_at(p.uid) for p in pods}
            finished = {p.uid: self._store.finished_at(p.uid) for p in pods}
            shares.append(
                Share(
                    prefetch,
                    pods=pods,
                    attempts=attempts,
                    pulled={p.uid: self._store.pulled(p.uid) for p in pods},
                    failed_at={uid: at for uid, at in failed.items() if at is not None},
                    finished_at={uid: at for uid, at in finished.items() if at is not None},
                    started=self._ledger.started.get(node.name, {}),
                    has_slot=self._has_place(node, prefetch),
                    slots=self._ledger.entry(name).slots(prefetch),
                    images=known or {},
                    inspected=known is not None and adopted(prefetch, known),
                    unready=self._start_after.unready(node, prefetch),
                )
            )
        return NodeView(
            node=node,
            taint_key=self._taint_key(),
            earlier_keys=self._earlier_keys(),
            gate=self._store.gate,
            shares=tuple(shares),
            orphans=tuple(pod for pods in by_prefetch.values() for pod in pods),
            frozen=frozenset(frozen),
            problems=tuple(problems),
            first_ready=self._store.first_ready(node),
            unready_since=self._store.unready_since(node),
            labels_since=self._store.labels_since(node),
            seen=self._store.listed(node),
            usage=self._disks.known(node),
            taints_by_watch=self._taints_by_watch,
            control_planes=self._control_planes,
        )

    def _judged(self, prefetch: Prefetch) -> Prefetch:
        """The prefetch, forbidden if its images are known to be larger than the policy allows. The
        inspector still sees it as it was, and so goes on asking for sizes.
        """
        if not self._policy.max_gigabytes_per_node or not prefetch.live:
            return prefetch
        known = self._inspector.known(prefetch)
        before = self._sized.get(prefetch.name)
        if before is not None and before[0] is prefetch and before[1] is known:
            return before[2]
        judged, why = prefetch, too_large(prefetch, known or {}, self._policy)
        if why is not None:
            judged = replace(prefetch, invalid=(POLICY_VIOLATION, why))
        self._sized[prefetch.name] = (prefetch, known, judged)
        return judged

    def _problem(self, prefetch: Prefetch, node: Node) -> Iterator[Problem]:
        """Why a prefetch that asks for the node cannot be acted on, if so. A spec that could not
        be parsed holds nobody, because nobody knows which nodes it is for; the API server's schema
        refuses such a spec.
        """
        if prefetch.dry_run or not prefetch.parsed or not matches(prefetch, node):
            return
        if prefetch.invalid is not None:
            reason, message = prefetch.invalid
            yield Problem(prefetch, f"{reason}: {message}")
        elif prefetch.unread:
            found = self._workloads.found(prefetch)
            _, reason, message = ("", "SourceNotRead", "") if found is None else condition(found)
            yield Problem(prefetch, f"{reason}: {message}")

    def _places_for_joining(self, node: Node, plan: NodePlan) -> bool:
        """Give a held node the places it wants, where there are any. True if it got one."""
        if not plan.held:
            return False
        got = False
        for name, standing in plan.standings.items():
            prefetch = self._store.prefetches[name]
            if standing.wants and self._granting(prefetch):
                got = self._ledger.entry(name).take_place(node.name, prefetch) or got
        return got

    def _has_place(self, node: Node, prefetch: Prefetch) -> bool:
        """Whether the node may start a pull. A place from before ``paused`` or before a smaller
        ``maxParallel``, or of a pull that a new prefetch of this name found in flight, is good for
        that pull and for no further one.
        """
        if prefetch.rollout.paused and node.taint(self._taint_key()) is None:
            return False
        entry = self._ledger.entry(prefetch.name)
        if not self._granting(prefetch) or node.name not in entry.places:
            return False
        return not entry.overdrawn(node.name, prefetch) or any(
            pod.prefetch == prefetch.name and not pod.finished
            for pod in self._store.pods_on(node.name)
        )

    def _granting(self, prefetch: Prefetch) -> bool:
        """Whether the places of this very spec are known: after a start or an edit, not before
        `reconcile_prefetch` has counted what pulls already.
        """
        return self._specs.get(prefetch.name) == (prefetch.uid, prefetch)

    def _record(self, node: Node, view: NodeView, plan: NodePlan) -> None:
        topology = {s.prefetch.name: s.prefetch.rollout.topology_key for s in view.shares}
        changed = self._ledger.record(
            node, plan.standings, topology, held=plan.held, holding=plan.holding
        )
        for name in changed:
            self.prefetch_queue.add(name, delay=PASS_INTERVAL)
        self._ledger.note_pods(node, view.shares)
        for share in view.shares:
            if plan.standings[share.prefetch.name].state == "cached" and share.attempts:
                # A pod that is to be put back, and is refused, keeps its back-off.
                there = {pod.group for pod in share.pods}
                groups = [group.key for group in share.prefetch.groups]
                done = [key for key in groups if key in there or not share.prefetch.keep]
                self._ledger.clear_attempts(node.name, done)
        if node.name in self._ledger.attempts:
            living = [share.prefetch for share in view.shares]
            living += [p for name in view.frozen if (p := self._store.prefetches.get(name))]
            self._ledger.keep_attempts(node.name, (g.key for p in living for g in p.groups))

    # ---- prefetches

    async def reconcile_prefetch(self, name: str) -> None:
        prefetch = self._store.prefetches.get(name)
        if prefetch is None or prefetch.deleting:
            if prefetch is None:
                self._leaving.pop(name, None)
            self._sized.pop(name, None)
            self._metrics.forget(name)
            # A node may have been decided about before its prefetch ever was.
            known = self._ledger.entries.pop(name, None) is not None
            if self._specs.pop(name, None) is not None or known or prefetch is not None:
                self._inspector.forget(name)
                self._workloads.forget(name)
                self._written.pop(name, None)
                self._look_at_holders(name, prefetch)
            if prefetch is not None:
                await self._let_go(prefetch)
            return
        if prefetch.live and FINALIZER not in prefetch.finalizers:
            await self._prefetches.add_finalizer(prefetch)
        self._workloads.follow(prefetch)
        if prefetch.searching:
            return  # what is found, or the end of patience, brings it back here
        prefetch = self._judged(prefetch)
        self._look_again_after_edit(prefetch)
        if prefetch.invalid is None and prefetch.dry_run:
            self.forecast_queue.add(name)
            return
        if prefetch.invalid is None:
            self._grant(prefetch)
        tally = self._ledger.entry(name).tally(prefetch)
        images = self._inspector.known(prefetch) or {}
        current = adopted(prefetch, images)
        if current and not tally.complete and _told(prefetch):
            return  # after a restart: what is written there stays until it is known better
        if not current:
            # New digests are written down before anything is done about them: what comes back from
            # the API server is the new target. Nobody shall read meanwhile that it is Ready.
            prefetch = replace(prefetch, images=resolved(prefetch.images, images))
            tally = replace(tally, complete=False)
        wanted = status.prefetch_status(
            prefetch,
            tally,
            self._clock.now(),
            status.Findings(
                images,
                refreshed=self._inspector.refreshed(name),
                found=self._workloads.found(prefetch),
            ),
        )
        await self._write_status(prefetch, wanted, urgent=not current)

    async def forecast(self, name: str) -> None:
        """Say in the status what a dry run would do; every few minutes anew, as nodes come and go.
        Beside the work on prefetches, because all kubelets are asked.
        """
        prefetch = self._dry_run(name)
        images = self._inspector.known(prefetch) if prefetch is not None else None
        if prefetch is None or images is None:
            return  # the answer of the registries brings the prefetch back
        nodes = [node for node in self._store.nodes.values() if matches(prefetch, node)]
        usages = await self._disks.survey(nodes) if prefetch.max_usage < 100 else {}
        current = self._dry_run(name)
        if current is None or (current.uid, current.generation) != (
            prefetch.uid,
            prefetch.generation,
        ):
            return  # it was edited or deleted meanwhile, and that brings it back
        facts = forecast.forecast(current, images, forecast.Fleet(nodes, usages))
        self.forecast_queue.add(name, delay=FORECAST_INTERVAL)
        found = self._workloads.found(current)
        wanted = status.dry_run_status(
            current, facts, self._clock.now(), status.Findings(images, found=found)
        )
        await self._write_status(current, wanted, again=self.forecast_queue)

    def _dry_run(self, name: str) -> Prefetch | None:
        """The prefetch as it is now, if it only says what it would do."""
        prefetch = self._store.prefetches.get(name)
        if prefetch is None or prefetch.deleting or prefetch.invalid is not None:
            return None
        return prefetch if prefetch.dry_run and not prefetch.searching else None

    def _look_at_holders(self, name: str, prefetch: Prefetch | None) -> None:
        """Queue every node that has something to do with a prefetch that goes or is gone; once, as
        from then on each node has a back-off of its own.
        """
        if prefetch is not None:
            if self._leaving.get(name, ("",))[0] == prefetch.uid:
                return
            self._leaving[name] = prefetch.uid, self._clock.monotonic()
        for pod in self._store.pods.values():
            if pod.prefetch == name:
                self.node_queue.add(pod.node)
        label = LABEL_PREFIX + name
        for node in self._store.nodes.values():
            held = self._held(node)
            if label in node.labels or held:
                self.node_queue.add(node.name, urgent=held)

    async def _let_go(self, prefetch: Prefetch) -> None:
        """Remove the finalizer once no node and no pod speaks of the prefetch any more.

        Only the API server is waited for, never a kubelet: a pod that is going on a node that
        is dead would hang for ever.
        """
        if FINALIZER not in prefetch.finalizers:
            return
        labelled = any(
            prefetch.label in node.labels and not node.deleting
            for node in self._store.nodes.values()
        )
        pods = any(
            pod.prefetch == prefetch.name and not pod.deleting and pod.node in self._store.nodes
            for pod in self._store.pods.values()
        )
        since = self._leaving.get(prefetch.name, ("", self._clock.monotonic()))[1]
        waited = self._clock.monotonic() - since
        if (labelled or pods) and waited < LET_GO_AFTER:
            self.prefetch_queue.add(prefetch.name, delay=0.5 if waited < 60 else 5.0)
            return
        if labelled or pods:
            self._events.prefetch(
                prefetch.name,
                prefetch.uid,
                "CleanupIncomplete",
                "labels or puller pods could not be removed: the API server refuses it. The"
                " operator goes on trying; look at its log for the nodes",
                self._clock.now(),
                warning=True,
            )
        await self._prefetches.remove_finalizer(prefetch)

    def _look_again_after_edit(self, prefetch: Prefetch) -> None:
        known = self._specs.get(prefetch.name)
        if known is not None and known[0] == prefetch.uid and known[1] == prefetch:
            return
        self._specs[prefetch.name] = (prefetch.uid, prefetch)
        if prefetch.invalid is None:
            self._inspector.look(prefetch)
        entry = self._ledger.entry(prefetch.name)
        entry.outdated = set(self._store.nodes) if prefetch.live else set()
        # What pulls has a place whatever this process remembers, and so has what was decided to:
        # its pod may be on its way to the API server. Grants of an earlier spec end.
        nodes = self._store.nodes
        decided = {name for name, standing in entry.standings.items() if standing.pulling}
        entry.places = entry.places & decided | {
            pod.node
            for pod in self._store.pods.values()
            if pod.prefetch == prefetch.name and not pod.finished
            # A machine that is gone pulls nothing, and the next of its name has to ask.
            if pod.node in nodes and nodes[pod.node].uid == pod.machine
        }
        # Who edits a spec has mended something, and does not want to wait for a back-off.
        groups = [group.key for group in prefetch.groups]
        for node in self._store.nodes:
            self._ledger.forgive(node, groups, self._clock.now())
            self.node_queue.add(node)

    def _grant(self, prefetch: Prefetch) -> None:
        entry = self._ledger.entry(prefetch.name)
        view = entry.rollout_view(prefetch)
        entry.stopped = rollout.stopped(view)
        self._metrics.rollout_allowed(prefetch.name, rollout.total_allowed(view))
        for node in rollout.grant(view):
            entry.places.add(node)
            self.node_queue.add(node, urgent=entry.wants.get(node, False))

    async def _write_status(
        self,
        prefetch: Prefetch,
        wanted: dict[str, Any],
        *,
        urgent: bool = False,
        again: KeyedQueue | None = None,
    ) -> None:
        """``again``: the queue that brings the prefetch back where it is too early to write."""
        now = self._clock.now()
        changed = status.changes(prefetch.status, wanted)
        if not changed:
            return
        before, after = _truths(prefetch.status), _truths(wanted)
        due = self._written.get(prefetch.name, 0.0) + STATUS_INTERVAL
        if before == after and now < due and not urgent:
            (again or self.prefetch_queue).add(prefetch.name, delay=due - now)
            return
        self._written[prefetch.name] = now
        try:
            self._store.see_prefetch(await self._prefetches.write_status(prefetch, changed))
        except NotFound:
            return
        self._tell(prefetch, before, after, wanted)

    def _tell(
        self,
        prefetch: Prefetch,
        before: dict[str, str],
        after: dict[str, str],
        wanted: dict[str, Any],
    ) -> None:
        """One Event when everything is cached, and one when something has failed."""
        messages = {c["type"]: (c["reason"], c["message"]) for c in wanted["conditions"]}
        for type_, warning in (("Ready", False), ("Degraded", True)):
            if after[type_] == "True" and before.get(type_) != "True":
                reason, message = messages[type_]
                self._events.prefetch(
                    prefetch.name,
                    prefetch.uid,
                    reason,
                    message,
                    self._clock.now(),
                    warning=warning,
                )


def _told(prefetch: Prefetch) -> bool:
    """Whether the status is about this very spec and target."""
    told = prefetch.status.get("observedGeneration"), prefetch.status.get("target")
    return told == (prefetch.generation, prefetch.target)


def _truths(status_: Any) -> dict[str, str]:
    conditions = status_.get("conditions") or ()
    return {c["type"]: c["status"] for c in conditions}
