"""What the operator decides about every node now, for `imagegate status` and `explain`.

Reads the cluster once, as an operator that starts does, and runs the operator's own decisions
(`runtime.reconcile`), but none of the actions. A running operator knows more: failures of which
the pod is gone (here: only those in the status), and what registries and kubelets have answered
(here: nothing, so that sizes, platforms and disks do not count).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagegate import __version__
from imagegate.api import fields
from imagegate.domain import failures, repositories, workloads
from imagegate.domain.disk import NOT_READ, Usage
from imagegate.domain.facts import Attempts, Gate, ImageFacts, Node, Prefetch, Refreshed
from imagegate.domain.gate import heartbeat_is_fresh
from imagegate.domain.node import NodePlan
from imagegate.domain.policy import ANYTHING
from imagegate.domain.repositories import Selected
from imagegate.domain.rollout import RolloutView
from imagegate.domain.workloads import Found, Listing
from imagegate.errors import ImagegateError
from imagegate.kube import installed
from imagegate.kube.client import Client
from imagegate.kube.daemonsets import DaemonSets
from imagegate.kube.errors import Forbidden, NotFound
from imagegate.kube.events import Events
from imagegate.kube.gates import Gates
from imagegate.kube.leases import LeaseRecord, Leases
from imagegate.kube.nodes import Nodes
from imagegate.kube.pods import Pods
from imagegate.kube.prefetches import Prefetches, Reader
from imagegate.puller.build import PullerSettings
from imagegate.runtime.clock import Clock
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.disks import Disks
from imagegate.runtime.gate_taint import GateTaint
from imagegate.runtime.image_volumes import ImageVolumes
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.process import Process
from imagegate.runtime.reconcile.changes import Changes
from imagegate.runtime.reconcile.controllers import Controllers
from imagegate.runtime.resync import Resync
from imagegate.runtime.size_limit import SizeLimit
from imagegate.runtime.start_after import StartAfter
from imagegate.runtime.store import Store

PULLERS = "imagegate-pullers"
"""The chart's default namespace of puller pods."""
TAINT_KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
SILENCE = 300.0
"""Seconds, where no NodeGate has a `silenceSeconds`."""
ROUNDS = 2
"""How often decisions that wait for a fact are taken again: a node that gets a slot in the first
round needs its disk usage in the second."""
PARALLEL = 16
"""Requests in flight about DaemonSets."""


class NotInstalled(ImagegateError):
    """There is no Imagegate in the cluster."""


@dataclass(frozen=True, slots=True)
class Installed:
    """How Imagegate is installed."""

    namespace: str
    lease_name: str
    taint_key: str
    puller_namespaces: tuple[str, ...]
    by_watch: bool
    certain: bool
    """Whether the Deployment or the user has named the puller namespaces."""

    @classmethod
    async def find(
        cls, client: Client, namespace: str, puller_namespaces: tuple[str, ...] = ()
    ) -> Installed:
        """From the operator's Deployment; without it, and without the right to read it, the
        defaults. ``puller_namespaces`` are used instead of the Deployment's, if there are any.
        Raises a KubeError.
        """
        try:
            given = await installed.arguments(client, namespace)
        except Forbidden:
            given = {}
        names = tuple(given.get("--puller-namespaces", PULLERS).split(","))
        return cls(
            namespace,
            given.get("--lease-name", "imagegate"),
            given.get("--gate-taint-key", TAINT_KEY),
            puller_namespaces or names,
            by_watch=given.get("--gate-source") == "watch",
            certain=bool(given or puller_namespaces),
        )


@dataclass(frozen=True, slots=True)
class Survey:
    now: float
    """By the clock of the API server."""
    gate: Gate | None
    lease: LeaseRecord
    keys: frozenset[str]
    """Every key of the gate's taint, of now and of before."""
    store: Store
    ledger: Ledger
    """Has the standing of every node that a prefetch matches."""
    plans: Mapping[str, NodePlan]
    """By node: the operator's decision."""
    rollouts: Mapping[str, RolloutView]
    """By prefetch: the slots of its rollout."""

    def held(self, node: Node) -> bool:
        return bool(node.taints_of(self.keys))

    @property
    def heartbeat(self) -> float | None:
        """When an operator was last heard of; None: never. Without a NodeGate there is no
        heartbeat, and the Lease counts.
        """
        if self.gate is None:
            return fields.seconds(self.lease.renew_time)
        return fields.seconds(self.gate.status.get("heartbeat"))

    @property
    def alive(self) -> bool:
        """Whether an operator was heard of lately."""
        silence = SILENCE if self.gate is None else self.gate.silence
        return heartbeat_is_fresh(self.heartbeat or 0.0, self.now, silence)


async def take(client: Client, found: Installed, clock: Clock) -> Survey:
    """Read the cluster, and decide. ``clock``: of the API server. Raises a KubeError, and
    `NotInstalled`, also where it is not known in which namespaces puller pods run.
    """
    if not found.certain:
        raise NotInstalled(
            f"there is no operator of Imagegate in the namespace {found.namespace!r}, or you may"
            " not read its Deployment: give its namespace by --namespace, or the namespaces of the"
            " puller pods by --puller-namespaces"
        )
    try:
        lease = await Leases(client, found.namespace, found.lease_name).get()
    except NotFound:
        lease = LeaseRecord()
    surveyor = _Surveyor(client, found, lease, clock)
    try:
        await surveyor.resync.once()
    except NotFound as error:
        raise NotInstalled(
            "the API server does not serve imagegate.dev: install Imagegate's chart, or choose"
            f" another cluster by --context ({error})"
        ) from error
    return await surveyor.survey()


class _Surveyor:
    """The parts of the operator that know and decide, as `app` creates them."""

    def __init__(self, client: Client, found: Installed, lease: LeaseRecord, clock: Clock) -> None:
        self.lease, self.clock = lease, clock
        process = Process.create(clock, version=__version__)
        self.store = store = process.store
        self.ledger = ledger = Ledger()
        reader = Reader(found.puller_namespaces)
        cluster = Cluster(
            Nodes(client, lambda: store.wanted),
            Pods(client),
            Prefetches(client, reader),
            Gates(client),
            Events(client, component="imagegate", instance="cli"),
        )
        keys = _Keys(found.taint_key, frozenset(lease.taint_keys))
        gate = GateTaint(store, keys, by_watch=found.by_watch)
        changes = Changes(process.queues, store, ledger, gate)
        nothing = _NoRegistries()
        self.known = Knowledge(
            clock=clock,
            store=store,
            ledger=ledger,
            gate=gate,
            images=nothing,
            size_limit=SizeLimit(nothing.known, ANYTHING),
            workloads=_Recorded(),
            repositories=_RecordedTags(),
            disks=Disks(_NoKubelets(), clock),
            start_after=StartAfter(
                DaemonSets(client), process.queues.start_after, changes.node_changed
            ),
            image_volumes=ImageVolumes(cluster.pods, PullerSettings("", ""), found.namespace),
        )
        self.controllers = Controllers(
            cluster, self.known, process.queues, changes, process.metrics
        )
        self.resync = Resync(
            cluster, self.known, process.metrics, namespaces=found.puller_namespaces, period=300
        )

    async def survey(self) -> Survey:
        store = self.store
        for name in list(store.prefetches):
            declared = store.declared(name)
            found = None if declared is None else self.known.workloads.found(declared)
            if declared is not None and found is not None:
                store.found_images(declared, found)
            chosen = None if declared is None else self.known.repositories.selected(declared)
            if declared is not None and chosen is not None:
                store.chose_tags(declared, chosen)
        for prefetch in store.prefetches.values():
            self.controllers.slots.count(prefetch)
            self._remember(prefetch)
        now = self.clock.now()
        # Nodes that have waited longer get a slot first.
        nodes = sorted(
            store.nodes.values(),
            key=lambda node: (not self.known.gate.holds(node), node.ready_since or 0, node.name),
        )
        plans = {node.name: self.controllers.nodes.decide(node, now) for node in nodes}
        for _ in range(ROUNDS):
            plans |= await self._look(plans, now)
        return Survey(
            now=now,
            gate=store.gate,
            lease=self.lease,
            keys=frozenset({self.known.gate.key, *self.known.gate.earlier_keys}),
            store=store,
            ledger=self.ledger,
            plans=plans,
            rollouts={
                name: self.ledger.entry(name).rollout_view(prefetch)
                for name, prefetch in store.prefetches.items()
            },
        )

    def _remember(self, prefetch: Prefetch) -> None:
        """The failures that the operator has written to the status."""
        failed = prefetch.status.get("failures")
        for failure in failed if isinstance(failed, list) else ():
            image = failure.get("image", "")
            groups = [group.key for group in prefetch.groups if image in group.references]
            if len(groups) == 1:
                self.ledger.remember(failure["node"], groups[0], _attempts(failure))

    async def _look(self, plans: Mapping[str, NodePlan], now: float) -> dict[str, NodePlan]:
        """Decide again about nodes whose decision needs one more fact: which DaemonSets are Ready
        there, (always unknown here) how full the disk is, or, for a joining node without a slot,
        how many nodes match, because ``gate.maxParallel`` is a share of them.
        """
        turn = asyncio.Semaphore(PARALLEL)

        async def one(name: str) -> NodePlan:
            node, plan = self.store.nodes[name], plans[name]
            if plan.wants_usage:
                await self.known.disks.read(node)
            if plan.awaits:
                self.known.start_after.follow(node, plan.awaits)
                async with turn:
                    await self.known.start_after.look(name)
            return self.controllers.nodes.decide(node, now)

        names = [name for name, plan in plans.items() if _waits(plan)]
        return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


def _waits(plan: NodePlan) -> bool:
    wants = plan.held and any(standing.wants for standing in plan.standings.values())
    return wants or plan.wants_usage or bool(plan.awaits)


def _attempts(failure: Mapping[str, Any]) -> Attempts:
    reason = failure.get("reason", "")
    due = fields.seconds(failure.get("nextAttempt"))
    return Attempts(
        count=failure.get("attempts", 0),
        next_at=due or 0.0,
        reason=reason,
        message=failure.get("message", ""),
        image=failure.get("image", ""),
        permanent=failures.of_reason(reason).permanent,
    )


class _Keys:
    """The keys of the gate's taint (`gate_taint.Keys`)."""

    def __init__(self, configured: str, recorded: frozenset[str]) -> None:
        self.current = configured
        self._recorded = recorded

    @property
    def earlier(self) -> frozenset[str]:
        return self._recorded - {self.current}

    def see(self, gate: Gate | None) -> None:
        if gate is not None and gate.taint_key:
            self.current = gate.taint_key


class _NoRegistries:
    """Registries that nobody asks (`knowledge.Images`)."""

    def __init__(self) -> None:
        self._nothing: dict[str, ImageFacts] = {}

    def known(self, _: Prefetch) -> Mapping[str, ImageFacts]:
        return self._nothing

    def refreshed(self, _: str) -> Refreshed | None:
        return None

    def look(self, prefetch: Prefetch) -> None: ...
    def meet(self, platform: str) -> None: ...
    def forget(self, prefetch: str) -> None: ...


class _Recorded:
    """The images of workloads that the operator has recorded in the status
    (`knowledge.Workloads`).
    """

    def found(self, prefetch: Prefetch) -> Found | None:
        if not prefetch.images_from:
            return None
        unread = Listing(problem="workloads are read by the operator alone")
        places = {source.place for source in prefetch.images_from}
        return workloads.find(prefetch, dict.fromkeys(places, unread))

    def follow(self, prefetch: Prefetch) -> None: ...
    def forget(self, name: str) -> None: ...


class _RecordedTags:
    """The tags that the operator has recorded in the status (`knowledge.Repositories`)."""

    def selected(self, prefetch: Prefetch) -> Selected | None:
        if not prefetch.repositories:
            return None
        return Selected(
            tuple(repositories.recorded(prefetch, spec)[0] for spec in prefetch.repositories)
        )

    def follow(self, prefetch: Prefetch) -> None: ...
    def forget(self, name: str) -> None: ...


class _NoKubelets:
    """Kubelets that nobody asks (`disks.Source`)."""

    async def usage(self, _: Node) -> Usage:
        return NOT_READ
