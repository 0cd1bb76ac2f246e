"""Observes, decides and acts for one node at a time."""

from __future__ import annotations

from collections.abc import Hashable

from imagegate.domain import node as node_decision
from imagegate.domain.actions import Action, DeletePod, PatchNode
from imagegate.domain.facts import Node
from imagegate.domain.node import NodePlan, NodeView
from imagegate.errors import ImagegateError
from imagegate.kube.errors import Forbidden, Invalid, NotLeader
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queues import Queues
from imagegate.runtime.reconcile.actor import Actor
from imagegate.runtime.reconcile.node_views import NodeViews
from imagegate.runtime.reconcile.slots import Slots


class NodeReconciler:
    def __init__(
        self, known: Knowledge, views: NodeViews, slots: Slots, actor: Actor, queues: Queues
    ) -> None:
        self._known = known
        self._store = known.store
        self._ledger = known.ledger
        self._clock = known.clock
        self._views = views
        self._slots = slots
        self._actor = actor
        self._queues = queues

    async def reconcile(self, name: str) -> None:
        node = self._store.nodes.get(name)
        if node is None:
            self._forget(name)
            return
        now = self._clock.now()
        plan = self.decide(node, now)
        if plan.wants_usage:
            self._queues.disks.add(name, urgent=plan.held)
        self._known.start_after.follow(node, plan.awaits)
        if plan.requeue_at is not None:
            self._queues.nodes.add(name, delay=max(0.01, plan.requeue_at - now))
        await self._act(name, plan)

    def decide(self, node: Node, now: float) -> NodePlan:
        """Decide about the node, and record the decision. Writes nothing to the API server."""
        self._known.images.meet(node.platform)
        self._queues.plan_passes(self._ledger.meet(node))
        view, plan = self._decide(node, now)
        if self._slots.take(node, plan):
            view, plan = self._decide(node, now)
        self._record(node, view, plan)
        return plan

    def _decide(self, node: Node, now: float) -> tuple[NodeView, NodePlan]:
        view = self._views.of(node)
        plan = node_decision.decide(view, now)
        self._views.remember(node, plan)
        return view, plan

    def _forget(self, name: str) -> None:
        """The node was deleted."""
        self._views.forget(name)
        self._known.start_after.forget(name)
        self._queues.plan_passes(self._ledger.forget_node(name))
        self._known.disks.forget(name)

    def _record(self, node: Node, view: NodeView, plan: NodePlan) -> None:
        """Record in the ledger the decision, and the facts from which it was made."""
        topology = {s.prefetch.name: s.prefetch.rollout.topology_key for s in view.shares}
        self._queues.plan_passes(
            self._ledger.record(
                node, plan.standings, topology, held=plan.held, holding=plan.holding
            )
        )
        self._ledger.note_pods(node, view.shares)
        for share in view.shares:
            if plan.standings[share.prefetch.name].state == "cached" and share.attempts:
                # A missing pod whose creation is refused keeps its back-off.
                there = {pod.group for pod in share.pods}
                groups = [group.key for group in share.prefetch.groups]
                done = [key for key in groups if key in there or not share.prefetch.keep]
                self._ledger.clear_attempts(node.name, done)
        if node.name in self._ledger.attempts:
            living = [share.prefetch for share in view.shares]
            living += [p for name in view.frozen if (p := self._store.prefetches.get(name))]
            self._ledger.keep_attempts(node.name, (g.key for p in living for g in p.groups))

    async def _act(self, name: str, plan: NodePlan) -> None:
        """Try every action, because a failed action (a webhook of one namespace, a policy) must not
        stop the others. Raises the errors at the end.
        """
        # The patch first, because a release is urgent and a clean-up is not.
        errors: list[Exception] = []
        open_: set[Hashable] = set()
        # A node that this plan releases is held until the release succeeds.
        held = plan.held or any(isinstance(a, PatchNode) and a.release for a in plan.actions)
        for action in sorted(plan.actions, key=lambda a: not isinstance(a, PatchNode)):
            request = action.request if isinstance(action, PatchNode | DeletePod) else None
            open_.add(request)  # until it succeeds: other errors do not undo an earlier refusal
            if not self._may_try(name, action, request, held=held):
                continue
            try:
                await self._actor.act(action)
            except NotLeader:
                raise
            except (Forbidden, Invalid) as error:
                errors.append(error)
                if request is not None:
                    urgent = held and isinstance(action, PatchNode)
                    self._ledger.refuse(name, request, self._clock.monotonic(), urgent=urgent)
            except ImagegateError as error:
                errors.append(error)
            else:
                open_.discard(request)
                if isinstance(action, PatchNode) and action.release is not None:
                    break  # the rest was decided for a held node; the node is queued again at once
        self._ledger.keep_refusals(name, open_)
        if errors:
            raise ExceptionGroup(f"node {name}", errors) if len(errors) > 1 else errors[0]

    def _may_try(self, name: str, action: Action, request: Hashable, *, held: bool) -> bool:
        """False if the API server would refuse the action again; the node is queued for later."""
        if isinstance(action, DeletePod) and action.pod.namespace in self._store.unreadable:
            return False  # the node is queued again when the namespace can be read
        wait = self._ledger.refused_until(name, request) - self._clock.monotonic()
        if wait > 0:
            self._queues.nodes.add(name, delay=max(0.01, wait), urgent=held)
        return wait <= 0
