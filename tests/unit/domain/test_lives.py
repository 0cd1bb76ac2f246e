"""Random lives of nodes: the guarantees of the core hold for any events in any order.

A rule is one event: of a node, of a kubelet, of an ImagePrefetch or of the operator. The guarantees
are computed here from the true state of the machines, never by the code under test. They are
checked at every decision, at every write, and when all work is done.

``IMAGEGATE_LIVES=long`` runs many more lives; ``IMAGEGATE_LIVES=<number>`` runs this number.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from imagegate.domain.actions import PatchNode
from imagegate.domain.facts import (
    LABEL_PREFIX,
    DaemonSetRef,
    GateMode,
    GatePolicy,
    GateSpec,
    Image,
    Node,
    NodeState,
    OnReboot,
    Operator,
    Pod,
    Prefetch,
    Requirement,
    RetrySpec,
    RolloutSpec,
    Taint,
)
from tests.unit.domain import cases, model
from tests.unit.domain.cases import GATE_TAINT, NOT_READY

# ---- the arguments of the rules, with names that make a failing life readable

NODES = ("n1", "n2", "n3", "n4")
PREFETCHES = ("llm", "data")
TYPO = "reg.test/typo:1"
"""An image that no registry has until it is pushed."""
A, B = Image("reg.test/a:1"), Image("reg.test/b:1")
SECRET, WRONG = Image("reg.test/c:1", ("pull",)), Image(TYPO)
IMAGES = {
    "a": (A,),
    "b": (B,),
    "a+b": (A, B),
    "a+secret": (A, SECRET),
    "typo": (WRONG,),
    "a+typo": (A, WRONG),
    "secret+typo": (SECRET, WRONG),
    "a was": (A.resolved(f"sha256:{'0' * 64}"),),
    "a is": (A.resolved(f"sha256:{'1' * 64}"),),
    "a is+b": (A.resolved(f"sha256:{'1' * 64}"), B),
}
"""An image with a digest is a followed tag that was resolved."""
GPU = Requirement("pool", Operator.IN, frozenset({"gpu"}))
NOT_GPU = Requirement("pool", Operator.NOT_IN, frozenset({"gpu"}))
SELECTORS = {"all": (), "gpu": (GPU,), "others": (NOT_GPU,)}
MIRROR, AGENT = DaemonSetRef("mirrors", "spegel"), DaemonSetRef("kube-system", "agent")
DAEMON_SETS = {"none": (), "mirror": (MIRROR,), "both": (MIRROR, AGENT)}
LABELS = {
    "none": {},
    "gpu": {"pool": "gpu"},
    "zone": {"zone": "z1"},
    "gpu in zone": {"pool": "gpu", "zone": "z2"},
    "virtual": {"type": "virtual-kubelet"},
}
TAINTS = {
    "gate": GATE_TAINT,
    "not-ready": NOT_READY,
    "unregistered": Taint("karpenter.sh/unregistered", "NoExecute"),
    "uninitialized": Taint("node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule", "true"),
    "leaving": Taint("ToBeDeletedByClusterAutoscaler", "NoSchedule", "17"),
    "like ours": Taint(cases.KEY + "-not", "NoSchedule", "pending"),
    "our key": Taint(cases.KEY, "NoExecute", "pending"),
    "old": Taint("somebody.example/old", "NoSchedule", None, "2026-01-01T00:00:00Z"),
}
UNSETTLED = (TAINTS["unregistered"].key, TAINTS["uninitialized"].key)
ARRIVING = (
    "gate",
    "not-ready gate",
    "not-ready unregistered gate",
    "gate uninitialized",
    "unregistered",
    "not-ready",
    "",
)
CHANGES: dict[str, tuple[Any, ...]] = {
    "images": tuple(IMAGES),
    "selector": tuple(SELECTORS),
    "keep": (True, False),
    "invalid": (False, True),
    "searching": (False, True),
    "start_after": tuple(DAEMON_SETS),
    "gate.mode": tuple(GateMode),
    "gate.policy": tuple(GatePolicy),
    "gate.timeout": (30.0, 600.0),
    "gate.on_reboot": tuple(OnReboot),
    "rollout.max_parallel": (1, 2, 50),
    "gate.max_parallel": (1, 2, 100),
    "rollout.percent": (False, True),
    "rollout.fanout": (1, 2),
    "rollout.topology_key": ("topology.kubernetes.io/zone", "zone"),
    "rollout.paused": (False, True),
    "retry.timeout": (None, 60.0),
    "retry.limit": (2, 6),
}
Change = tuple[str, Any]
change = st.sampled_from([(name, value) for name, values in CHANGES.items() for value in values])
joining = st.fixed_dictionaries(
    {
        "taints": st.sampled_from(ARRIVING),
        "labels": st.sampled_from(tuple(LABELS)),
        "ready": st.booleans(),
        "annotated": st.booleans(),
        "skew": st.sampled_from((0.0, -86_400.0, 86_400.0)),
    }
)
nodes = st.sampled_from(NODES)
prefetches = st.sampled_from(PREFETCHES)
index = st.integers(0, 7)
yes_or_no = st.booleans()


def changed(prefetch: Prefetch, name: str, value: Any) -> Prefetch:
    match name:
        case "images":
            value = IMAGES[value]
        case "selector":
            value = SELECTORS[value]
        case "start_after":
            value = DAEMON_SETS[value]
        case "invalid":
            value = ("InvalidSpec", "correct it") if value else None
        case _:
            pass
    section, _, inner = name.rpartition(".")
    if section:
        value = dataclasses.replace(getattr(prefetch, section), **{inner: value})
    return dataclasses.replace(prefetch, **{section or name: value})


# ---- the guarantees, in the words of the contract


def asked(prefetches_: Mapping[str, Prefetch], node: Node) -> list[Prefetch]:
    """The prefetches with a valid spec that select this node."""
    return [
        p for p in prefetches_.values() if not p.deleting and p.invalid is None and selects(p, node)
    ]


def closed_to(prefetch: Prefetch, node: Node) -> bool:
    """Whether a prefetch with an invalid spec holds the node until the spec is corrected."""
    return (
        prefetch.invalid is not None
        and not prefetch.deleting
        and (prefetch.gate.policy, prefetch.gate.mode)
        == (GatePolicy.FAIL_CLOSED, GateMode.NEW_NODES)
        and selects(prefetch, node)
        and not virtual(node)
    )


def selects(prefetch: Prefetch, node: Node) -> bool:
    gpu = node.labels.get("pool") == "gpu"
    return {(): True, (GPU,): gpu, (NOT_GPU,): not gpu}[prefetch.selector]


def unsettled(node: Node) -> bool:
    return not node.ready or any(taint.key in UNSETTLED for taint in node.taints)


def virtual(node: Node) -> bool:
    return node.labels.get("type") == "virtual-kubelet"


def aside(node: Node) -> bool:
    """Whether the node is skipped at present."""
    cordoned = node.unschedulable and model.ours(node) is None
    leaving = TAINTS["leaving"] in node.taints
    return node.deleting or node.disk_pressure or virtual(node) or leaving or cordoned


def limit(prefetch: Prefetch, nodes_: int, *, joining: bool) -> int:
    spec = prefetch.gate if joining else prefetch.rollout
    return max(1, nodes_ * spec.max_parallel // 100 if spec.percent else spec.max_parallel)


def joins(operator: model.Operator, node: str) -> bool:
    """Whether the node is a joining node, as far as this operator knows."""
    known = operator.store.nodes.get(node)
    return known is not None and model.ours(known) is not None


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cluster = model.Cluster()
        self.cluster.witness = self
        self.operator: model.Operator | None = None
        self.former: model.Operator | None = None
        """A leader that has lost its lease, gets no events any more and may not know it yet."""
        self.by_watch = False
        self.keeps_up = True
        self.two_wrote = False
        self.targets: dict[str, tuple[str, ...]] = {}
        """Every target that has existed, with its images."""
        self.promised: dict[tuple[str, str], int] = {}
        """By prefetch and node, the largest maxParallel since the node was given a slot."""

    @initialize(
        by_watch=yes_or_no,
        joining=st.lists(joining, min_size=1, max_size=4),
        changes=st.lists(change, max_size=4),
    )
    def start(self, by_watch: bool, joining: list[dict[str, Any]], changes: list[Change]) -> None:
        self.by_watch = by_watch
        self.cluster.put_gate()
        self.start_operator()
        self.prefetch_is_applied(PREFETCHES[0], changes)
        for name, node in zip(NODES, joining, strict=False):
            self.joins(name, node)

    @invariant()
    def and_then(self) -> None:
        """Let time pass. If the operator keeps up, it does all due work."""
        self.cluster.now += 0.01
        if self.keeps_up and self.operator is not None:
            self.work_off(self.operator)
        self.valid_labels_are_true()
        if self.operator is not None:
            self.limits_last_as_long_as_slots(self.operator)
            self.the_ledger_agrees_with_itself(self.operator)

    # ---- nodes

    @property
    def machines(self) -> dict[str, model.Machine]:
        return self.cluster.machines

    @rule(name=nodes, node=joining)
    def joins(self, name: str, node: dict[str, Any]) -> None:
        """A node with this name joins. If there was such a node, the new node is a new machine."""
        self.goes(name)
        taints = tuple(TAINTS[taint] for taint in node["taints"].split())
        facts = {**node, "taints": taints, "labels": LABELS[node["labels"]]}
        self.cluster.join(name, **facts)

    def goes(self, name: str) -> None:
        if name in self.cluster.nodes:
            self.cluster.remove_node(name)
        self.promised = {key: most for key, most in self.promised.items() if key[1] != name}

    @precondition(lambda self: self.cluster.nodes)
    @rule(
        name=nodes,
        what=st.sampled_from(
            (
                *("ready", "not ready", "reboot", "reboot while Ready", "settled", "cordon"),
                *("uncordon", "full", "not full", "goes", "is deleted", "forget annotation"),
            )
        ),
    )
    def something_happens_to_a_node(self, name: str, what: str) -> None:
        cluster, node = self.cluster, self.cluster.nodes.get(name)
        if node is None:
            return
        match what:
            case "ready" | "not ready":
                cluster.set_ready(name, ready=what == "ready")
            case "reboot" | "reboot while Ready":
                cluster.reboot(name, ready=what != "reboot")
            case "settled":
                taints = tuple(t for t in node.taints if t.key not in UNSETTLED)
                cluster.change_node(name, taints=taints)
            case "cordon" | "uncordon":
                cluster.change_node(name, unschedulable=what == "cordon")
            case "full" | "not full":
                cluster.change_node(name, disk_pressure=what == "full")
            case "goes":
                self.goes(name)
            case "is deleted":
                cluster.change_node(name, deleting=True)
            case "forget annotation":
                annotated = node.annotated and not node.observed
                cluster.change_node(name, observed="", annotated=annotated)
            case _:
                raise AssertionError(what)

    @precondition(lambda self: self.cluster.nodes)
    @rule(name=nodes, labels=st.sampled_from(tuple(LABELS)))
    def a_node_is_relabelled(self, name: str, labels: str) -> None:
        if node := self.cluster.nodes.get(name):
            kept = {k: v for k, v in node.labels.items() if k.startswith(LABEL_PREFIX)}
            self.cluster.change_node(name, labels={**LABELS[labels], **kept})

    @precondition(lambda self: self.cluster.nodes)
    @rule(name=nodes, taint=st.sampled_from(tuple(TAINTS)), at=st.integers(0, 3))
    def somebody_taints(self, name: str, taint: str, at: int) -> None:
        """A user adds the taint, or removes it if the node has it."""
        if node := self.cluster.nodes.get(name):
            entry = TAINTS[taint]
            taints = [t for t in node.taints if (t.key, t.effect) != (entry.key, entry.effect)]
            if len(taints) == len(node.taints):
                taints.insert(at, entry)
            self.cluster.change_node(name, taints=tuple(taints))

    @precondition(lambda self: self.cluster.nodes)
    @rule(name=nodes, daemon_set=st.sampled_from((MIRROR, AGENT)), ready=yes_or_no)
    def a_daemon_changes(self, name: str, daemon_set: DaemonSetRef, ready: bool) -> None:
        if name in self.cluster.nodes:
            self.cluster.set_daemon(name, daemon_set, ready=ready)

    @precondition(lambda self: self.cluster.nodes)
    @rule(name=nodes, prefetch=prefetches, what=st.sampled_from(("drop", "nonsense", "target")))
    def somebody_changes_our_label(self, name: str, prefetch: str, what: str) -> None:
        node = self.cluster.nodes.get(name)
        if node is None:
            return
        key = LABEL_PREFIX + prefetch
        labels = {k: v for k, v in node.labels.items() if k != key}
        known = self.cluster.prefetches.get(prefetch)
        if what == "nonsense":
            labels[key] = what
        elif what == "target" and known is not None:
            labels[key] = known.target
            self.machines[name].forged.add(key)
        self.cluster.change_node(name, labels=labels)

    # ---- puller pods

    @precondition(lambda self: self.cluster.pods)
    @rule(index=index)
    def somebody_deletes_a_pod(self, index: int) -> None:
        pods = sorted(self.cluster.pods)
        self.cluster.delete_pod(self.cluster.pods[pods[index % len(pods)]])

    def pulling(self) -> list[Pod]:
        return [
            pod
            for _, pod in sorted(self.cluster.pods.items())
            if pod.node in self.machines and not pod.finished
        ]

    @precondition(lambda self: self.pulling())
    @rule(index=index, image=index)
    def one_image_is_pulled(self, index: int, image: int) -> None:
        pods = self.pulling()
        pod = pods[index % len(pods)]
        name = pod.images[image % len(pod.images)]
        if name != TYPO:
            self.cluster.report_pulled(pod, name)

    @precondition(lambda self: self.pulling())
    @rule(index=index)
    def a_pod_succeeds(self, index: int) -> None:
        pods = [pod for pod in self.pulling() if TYPO not in pod.images]
        if pods:
            self.cluster.succeed(pods[index % len(pods)])

    @precondition(lambda self: self.pulling())
    @rule(index=index, image=index, permanent=yes_or_no)
    def a_pull_fails(self, index: int, image: int, permanent: bool) -> None:
        pods = self.pulling()
        pod = pods[index % len(pods)]
        self.fail(pod, pod.images[image % len(pod.images)], permanent=permanent)

    def fail(self, pod: Pod, image: str, *, permanent: bool) -> None:
        why = "manifest unknown" if permanent else "unexpected EOF"
        self.cluster.fail(pod, f'failed to pull "{image}": {why}', permanent=permanent)

    @precondition(lambda self: self.pulling())
    @rule(index=index)
    def a_pod_is_rejected(self, index: int) -> None:
        pods = self.pulling()
        self.cluster.reject(pods[index % len(pods)])

    def ending(self) -> list[Pod]:
        """Deleted pods, which only their kubelet ends, and pods of deleted machines."""
        return [
            pod
            for pod in self.cluster.pods.values()
            if pod.deleting
            or pod.node not in self.machines
            or pod.observed.partition("/")[0] != self.machines[pod.node].uid
        ]

    @precondition(lambda self: self.ending())
    @rule()
    def what_is_deleted_ends(self) -> None:
        for pod in self.ending():
            self.cluster.end(pod)

    # ---- ImagePrefetches and the NodeGate

    @rule(name=prefetches, changes=st.lists(change, min_size=1, max_size=3))
    def prefetch_is_applied(self, name: str, changes: list[Change]) -> None:
        known = self.cluster.prefetches.get(name)
        if known is not None and known.deleting:
            return
        made = known or Prefetch(
            name,
            f"{name}-{self.cluster.next_version()}",
            version=0,
            generation=0,
            created_at=float(int(self.cluster.now)),
            images=(A,),
            namespace=model.NAMESPACE,
            gate=GateSpec(),
            rollout=RolloutSpec(2, percent=False),
            retry=RetrySpec(limit=2, maximum=60.0),
        )
        for one in changes:
            made = changed(made, *one)
        made = dataclasses.replace(made, generation=made.generation + 1)
        pulled = tuple(each for group in made.groups for each in group.references)
        self.targets[made.target] = pulled
        self.cluster.put_prefetch(made)

    @precondition(lambda self: self.cluster.prefetches)
    @rule(name=prefetches)
    def prefetch_is_deleted(self, name: str) -> None:
        if name in self.cluster.prefetches:
            self.cluster.delete_prefetch(name)

    @rule(what=st.sampled_from(("suspend", "resume", "delete")))
    def gate_changes(self, what: str) -> None:
        if what != "delete":
            self.cluster.put_gate(suspend=what == "suspend")
        elif self.cluster.gate is not None:
            self.cluster.drop_gate()

    # ---- the operator

    @property
    def running(self) -> model.Operator:
        assert self.operator is not None
        return self.operator

    def start_operator(self) -> None:
        self.cluster.now += 0.01
        self.promised.clear()
        self.operator = model.Operator(self.cluster, by_watch=self.by_watch)
        self.cluster.operators = [self.operator]

    @rule(how=st.sampled_from(("restart", "stop", "lose the lease")))
    def the_operator_changes(self, how: str) -> None:
        """``lose the lease``: the operator gets no events any more and may not know it yet, and
        another operator leads.
        """
        if how == "stop":
            self.stop_operator()
        else:
            self.former = self.operator if how == "lose the lease" else None
            self.start_operator()

    def stop_operator(self) -> None:
        self.operator = None
        self.cluster.operators = []

    @rule(value=yes_or_no)
    def the_operator_keeps_up(self, value: bool) -> None:
        self.keeps_up = value

    @precondition(lambda self: self.operator and self.operator.due())
    @rule(index=index)
    def one_thing_is_done(self, index: int) -> None:
        due = self.running.due()
        self.work(self.running, *due[index % len(due)])

    @precondition(lambda self: self.former and self.former.due())
    @rule(index=index)
    def the_former_leader_does_one_more_thing(self, index: int) -> None:
        assert self.former is not None
        due = self.former.due()
        self.work(self.former, *due[index % len(due)])

    @precondition(lambda self: self.operator)
    @rule(node=st.none() | nodes, prefetch=st.none() | prefetches)
    def something_is_looked_at_again(self, node: str | None, prefetch: str | None) -> None:
        if node is not None:
            self.running.node_queue.add(node)
        if prefetch is not None:
            self.running.prefetch_queue.add(prefetch)

    def work_off(self, operator: model.Operator) -> None:
        for _ in range(500):
            due = operator.due()
            if not due or operator.dead:
                return
            self.work(operator, *due[0])
            self.cluster.now += 0.001
        raise AssertionError(f"the work never ends: {operator.due()}")

    def work(self, operator: model.Operator, kind: str, key: str) -> None:
        operator.work(kind, key)
        if operator.dead and operator is self.operator:
            self.stop_operator()
        if operator.dead and operator is self.former:
            self.former = None

    @rule(
        kind=st.sampled_from(("patch", "create", "delete", "status", "finalizer")),
        how=st.sampled_from(
            ("unavailable", "unanswered", "killed before", "killed after", "special")
        ),
    )
    def the_next_write_goes_wrong(self, kind: str, how: str) -> None:
        special = {"patch": "conflict", "create": "forbidden"}
        self.cluster.faults[kind] = special.get(kind, "unavailable") if how == "special" else how

    @precondition(lambda self: self.operator)
    @rule(kind=st.sampled_from(("nodes", "pods", "prefetches", "gate", "events")))
    def a_watch_lags(self, kind: str) -> None:
        self.running.lagging.add(kind)

    @precondition(lambda self: self.operator and self.operator.lagging)
    @rule(swapped=yes_or_no)
    def the_watches_catch_up(self, swapped: bool) -> None:
        self.running.catch_up(swapped=swapped)

    @precondition(lambda self: self.operator)
    @rule()
    def a_resync_runs(self) -> None:
        self.running.resync()

    @rule(seconds=st.sampled_from((0.3, 4.0, 11.0, 61.0, 400.0, 4000.0)))
    def time_passes(self, seconds: float) -> None:
        self.cluster.now += seconds

    # ---- Witness: checked at every decision and at every write

    def deciding(self, operator: model.Operator, node: Node) -> None:
        now = self.cluster.now
        plan = cases.decide(operator.controllers.views.of(node), now)
        assert plan.requeue_at is None or plan.requeue_at > now, "the next decision is in the past"
        wanted = {p.name for p in asked(operator.store.prefetches, node)}
        assert set(plan.standings) == wanted
        assert plan.held <= (model.ours(node) is not None)
        if plan.held and not node.deleting:
            assert plan.holding, "held without a reason"
        for name, standing in plan.standings.items():
            assert (standing.state is NodeState.SKIPPED) is bool(standing.skipped), name
            assert not (standing.waits_for and standing.wants), "a slot for a node that waits"
            if standing.state is NodeState.SKIPPED:
                away = not node.ready and standing.skipped == "NodeNotReady"
                assert aside(node) or away, "skipped without a reason"
            if standing.state is NodeState.FAILED:
                assert standing.failure is not None, "failed without a reason"
                assert standing.failure.reason

    def granted(self, operator: model.Operator, prefetch: str, node: str) -> None:
        spec = operator.store.prefetches[prefetch]
        self.promised[prefetch, node] = self.limit(operator, spec, node)
        pods = operator.store.pods_on(node)
        found = any(not pod.finished and pod.prefetch == prefetch for pod in pods)
        if spec.rollout.paused and not found:
            assert model.ours(operator.store.nodes[node]), "a slot in a paused rollout"

    def limit(self, operator: model.Operator, prefetch: Prefetch, node: str) -> int:
        known = operator.store.nodes.values()
        return limit(
            prefetch,
            sum(bool(asked({"": prefetch}, n)) and not aside(n) for n in known),
            joining=joins(operator, node),
        )

    def limits_last_as_long_as_slots(self, operator: model.Operator) -> None:
        lasting = {}
        for (name, node), most in self.promised.items():
            spec, entry = operator.store.prefetches.get(name), operator.ledger.entries.get(name)
            if spec is not None and entry is not None and node in entry.slots:
                lasting[name, node] = max(most, self.limit(operator, spec, node))
        self.promised = lasting

    def created(self, by: model.Operator, pod: Pod) -> None:
        prefetch, node = by.store.prefetches[pod.prefetch], by.store.nodes[pod.node]
        assert prefetch in asked(by.store.prefetches, node), "no prefetch selects the node"
        assert not aside(node), "a pod for a skipped node"
        assert not unsettled(node), "a pod for an unsettled node"
        assert pod.group in {group.key for group in prefetch.groups}
        assert not prefetch.searching, "begun before the images are known"
        if model.ours(node) or node.observed != node.identity:
            self.began_after(prefetch, node)
        for other in self.cluster.pods.values():
            same = (other.node, other.group, other.observed) == (pod.node, pod.group, pod.observed)
            assert not same or other not in by.store.pods.values(), "a second pod for one pull"
        if by is not self.operator:
            self.two_wrote = True
        if self.two_wrote:
            return
        busy = {
            other.node
            for other in self.cluster.pods.values()
            if other.prefetch == pod.prefetch and not other.finished and not other.deleting
            # A pull is over when its kubelet has reported all images, even before the pod ends.
            if not by.store.pod_history.pulled.get(other.uid, frozenset()).issuperset(other.images)
            if other.node in self.machines
            and other.observed.startswith(self.machines[other.node].uid + "/")
            and other.node in by.store.nodes
            and prefetch in asked(by.store.prefetches, by.store.nodes[other.node])
            and joins(by, other.node) is joins(by, pod.node)
            and not self.gave_its_slot_back(by, prefetch, other)
        }
        if pod.node not in busy:
            assert model.ours(node) or not prefetch.rollout.paused, "begun while paused"
            now = self.limit(by, prefetch, pod.node)
            most = max(self.promised.get((pod.prefetch, pod.node), 0), now)
            assert len(busy) < most, f"{sorted(busy)} pull already, and the limit is {most}"
        self.promised.setdefault((pod.prefetch, pod.node), self.limit(by, prefetch, pod.node))

    def gave_its_slot_back(self, by: model.Operator, prefetch: Prefetch, pod: Pod) -> bool:
        """Whether the pull's deadline has passed, or its node has not been Ready for minutes."""
        view, now = by.store.nodes[pod.node], self.cluster.now
        since = by.store.node_history.unready_since(view)
        over = pod.created_at + (prefetch.retry.timeout or 7200.0)
        return now >= over or (since is not None and now >= since + 180.0)

    def began_after(self, prefetch: Prefetch, view: Node) -> None:
        """A joining node pulls only after all of ``startAfter`` have been Ready on it."""
        machine = self.machines.get(view.name)
        if machine is not None and view.identity == f"{machine.uid}/boot-{machine.boot}":
            assert machine.were_ready.issuperset(prefetch.start_after), "it did not wait"

    def deleted(self, by: model.Operator, pod: Pod) -> None:
        prefetch, node = by.store.prefetches.get(pod.prefetch), by.store.nodes.get(pod.node)
        if prefetch is None or node is None or prefetch.deleting:
            return
        assert prefetch.invalid is None, "a pod of a prefetch with an invalid spec"
        if prefetch not in asked(by.store.prefetches, node) or not alive(pod.observed, node):
            return
        assert not prefetch.searching, "deleted before the images are known"
        wanted = {image.reference for image in prefetch.images}
        if self.cluster.in_flight(pod) and not wanted.isdisjoint(pod.images):
            late = self.cluster.now >= pod.created_at + (prefetch.retry.timeout or 7200.0)
            assert late, "a running pull was cancelled"
        if pod.phase == "Succeeded" and alive(pod.observed, node, prefetch):
            self.unpinned(pod, prefetch, node)

    def unpinned(self, pod: Pod, prefetch: Prefetch, node: Node) -> None:
        """Check the deletion of a finished pod of this boot, because such a pod pins images."""
        if pod.group not in {group.key for group in prefetch.groups}:
            assert node.labels.get(prefetch.label) == prefetch.target, "not replaced yet"
            return
        others = [
            other
            for other in self.cluster.pods.values()
            if other.uid != pod.uid
            and (other.node, other.group) == (pod.node, pod.group)
            and alive(other.observed, node, prefetch)
        ]
        if not others:
            assert not prefetch.keep, "a pin of a wanted image was deleted"
            assert pod.finished_at is not None
            assert self.cluster.now >= pod.finished_at + 360

    def patched(self, by: model.Operator, patch: PatchNode, before: Node, after: Node) -> None:
        assert before.uid == patch.node.uid, "written to another machine"
        same: dict[str, Any] = {"labels": {}, "annotated": True, "observed": "", "taints": ()}
        assert dataclasses.replace(before, **same) == dataclasses.replace(after, **same)
        assert foreign(before) == foreign(after), "a foreign label or taint was changed"
        machine, view = self.machines[before.name], patch.node
        if after.observed != before.observed:
            assert after.observed == f"{before.uid}/{view.boot_id}"
            self.vouched(by, machine, patch, before)
        for key in before.labels.keys() - after.labels.keys():
            self.label_dropped(by, key, view)
            machine.forged.discard(key)
        for key, target in patch.set_labels.items():
            self.label_set(by, key, target, machine, view)
            machine.forged.discard(key)
        if model.ours(before) and not model.ours(after):
            self.released(by, patch, machine)
        if model.ours(after) and not model.ours(before):
            self.held(by, view)

    def vouched(
        self, by: model.Operator, machine: model.Machine, patch: PatchNode, before: Node
    ) -> None:
        """With onReboot Ignore, images from before a reboot count as present after it."""
        for prefetch in asked(by.store.prefetches, patch.node):
            kept = prefetch.label not in patch.drop_labels and prefetch.label in before.labels
            if kept and prefetch.gate.on_reboot is OnReboot.IGNORE:
                for image in self.targets.get(before.labels[prefetch.label], ()):
                    if image in machine.holds:
                        machine.holds[image] = max(machine.holds[image], boot(patch.node))

    def label_set(
        self, by: model.Operator, key: str, target: str, machine: model.Machine, view: Node
    ) -> None:
        (prefetch,) = (p for p in asked(by.store.prefetches, view) if p.label == key)
        assert target == prefetch.target
        assert not prefetch.searching, "labelled before the images are known"
        assert holds(machine, view, prefetch), f"a label for images that the node never had: {key}"

    def label_dropped(self, by: model.Operator, key: str, view: Node) -> None:
        prefetch = by.store.prefetches.get(key.removeprefix(LABEL_PREFIX))
        if prefetch is None or prefetch.deleting:
            return
        if prefetch.invalid is not None or prefetch in asked(by.store.prefetches, view):
            assert view.observed, "a label was dropped without a reason"
            assert not alive(view.observed, view, prefetch), "a label was dropped without a reason"

    def released(self, by: model.Operator, patch: PatchNode, machine: model.Machine) -> None:
        gate, view, now = by.store.gate, patch.node, self.cluster.now
        if gate is None or gate.suspend:
            return
        assert not unsettled(view), "released before its labels are complete"
        gating = [
            prefetch
            for prefetch in asked(by.store.prefetches, view)
            if prefetch.gate.mode is GateMode.NEW_NODES and not virtual(view)
        ]
        assert not any(closed_to(p, view) for p in by.store.prefetches.values()), (
            "released although a spec is invalid"
        )
        # A node that was in service before is held for the prefetches that hold it again.
        again = [p for p in gating if p.gate.on_reboot is OnReboot.HOLD]
        gating = again if view.observed and again else gating
        for prefetch in gating:
            had = holds(machine, view, prefetch) or prefetch.label in machine.forged
            if had and not prefetch.searching:
                continue
            assert prefetch.gate.policy is GatePolicy.FAIL_OPEN, (
                "released although the policy is FailClosed"
            )
            failed = not prefetch.searching and any(
                group.key in machine.denied
                and not any(
                    (pod.group, pod.phase) == (group.key, "Succeeded")
                    and alive(pod.observed, view, prefetch)
                    for pod in by.store.pods_on(view.name)
                )
                for group in prefetch.groups
            )
            late = now >= ready_at(machine, view) + prefetch.gate.timeout
            assert failed or late, f"released without {prefetch.name}"
        if patch.release == "cached":
            for prefetch in gating:
                label = patch.set_labels.get(prefetch.label, view.labels.get(prefetch.label))
                assert label == prefetch.target, "released without its label"

    def held(self, by: model.Operator, view: Node) -> None:
        gate = by.store.gate
        assert gate is not None
        assert not gate.suspend
        gating = [
            prefetch
            for prefetch in asked(by.store.prefetches, view)
            if prefetch.gate.mode is GateMode.NEW_NODES
        ]
        if view.observed:
            assert alive(view.observed, view), "held as another machine"
            again = [p for p in gating if p.gate.on_reboot is OnReboot.HOLD]
            assert again
            if view.observed == view.identity:
                assert not view.ready, "held in service"
                assert any(view.labels.get(p.label) == p.target for p in again)
        else:
            assert self.by_watch, "tainted although a policy does that"
            assert any(p.created_at < view.created_at for p in gating)

    # ---- checked at any moment

    def valid_labels_are_true(self) -> None:
        for node in self.cluster.nodes.values():
            machine = self.machines[node.name]
            for prefetch in asked(self.cluster.prefetches, node):
                if (
                    node.labels.get(prefetch.label) == prefetch.target
                    and alive(node.observed, node, prefetch)
                    and prefetch.label not in machine.forged
                ):
                    assert holds(machine, node, prefetch), f"{node.name} never had {prefetch.name}"

    def the_ledger_agrees_with_itself(self, operator: model.Operator) -> None:
        for name, entry in operator.ledger.entries.items():
            known = entry.standings.keys()
            counts = Counter(standing.state for standing in entry.standings.values())
            assert +entry.counts == counts, name
            assert entry.domains.keys() == known, name
            assert entry.held <= known, name
            # After a start or an edit, a node that pulls has a slot before the first decision about
            # it, also if it does not match any more.
            pods = operator.store.pods.values()
            pulling = {pod.node for pod in pods if pod.prefetch == name and not pod.finished}
            assert entry.slots <= known | entry.outdated | pulling, name
            assert entry.wants.keys() <= known, name
            assert entry.failures.keys() <= known, name
            waiting = {n: s.waits_for for n, s in entry.standings.items() if s.waits_for}
            assert entry.waiting == waiting, name

    # ---- checked when all work is done

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None:
            return  # this life has failed already, and further checks would hide the cause
        self.settle()
        self.check()
        self.everything_is_deleted()

    @rule()
    def what_can_succeed_does(self) -> None:
        """Pulls of an image that no registry has fail again and again. All other work ends."""
        self.finish_all_work(pushed=False, rounds=80)
        self.check(pushed=False)

    def settle(self) -> None:
        self.finish_all_work(pushed=True, rounds=300)
        writes = self.cluster.writes
        for hours in (0.0, 1.0):
            self.cluster.now += hours * 3600
            self.running.look_at_everything()
            self.work_off(self.running)
            assert self.cluster.writes == writes, "a settled cluster was written to"
            assert self.running.next_at() is None

    def finish_all_work(self, *, pushed: bool, rounds: int) -> None:
        cluster = self.cluster
        cluster.faults.clear()
        self.former = None
        if self.operator is None:
            self.start_operator()
        self.running.catch_up()
        for prefetch in list(cluster.prefetches.values()):
            if prefetch.searching:
                cluster.put_prefetch(dataclasses.replace(prefetch, searching=False))
        for _ in range(rounds):
            self.work_off(self.running)
            if self.kubelets_work(pushed=pushed):
                continue
            at = self.running.next_at()
            if at is None:
                return
            cluster.now = max(cluster.now, at)
        assert not pushed, f"the work never ends: {self.running.next_at()}"

    def kubelets_work(self, *, pushed: bool) -> bool:
        moved = False
        self.what_is_deleted_ends()
        for name in self.machines:
            for daemon_set in (MIRROR, AGENT):
                self.cluster.set_daemon(name, daemon_set, ready=True)
        for pod in self.pulling():
            moved = True
            if TYPO in pod.images and not pushed:
                self.fail(pod, TYPO, permanent=True)
            else:
                self.cluster.succeed(pod)
        return moved or bool(self.running.due())

    def check(self, *, pushed: bool = True) -> None:
        for node in self.cluster.nodes.values():
            wanted = asked(self.cluster.prefetches, node)
            for prefetch in wanted:
                self.check_share(prefetch, node, pushed=pushed)
            self.check_taint(node, wanted, pushed=pushed)
            self.check_leftovers(node, wanted)
        for prefetch in self.cluster.prefetches.values():
            if prefetch.invalid is None and pushed:
                self.check_books(prefetch)

    def check_share(self, prefetch: Prefetch, node: Node, *, pushed: bool) -> None:
        standing = self.running.ledger.entry(prefetch.name).standings[node.name]
        state, where = standing.state, f"{prefetch.name} on {node.name}: {standing}"
        if state is NodeState.CACHED and not node.deleting and not model.ours(node):
            assert node.labels.get(prefetch.label) == prefetch.target, where
        if aside(node):
            assert state in (NodeState.SKIPPED, NodeState.CACHED), where
        elif unsettled(node) or (prefetch.rollout.paused and not model.ours(node)):
            away = standing.skipped == "NodeNotReady" and not node.ready
            assert away or state in (NodeState.PENDING, NodeState.CACHED, NodeState.FAILED), where
        elif Image(TYPO) in prefetch.images and not pushed:
            # Or the node waits for the seeds of its domain, which fail again and again.
            assert state in (NodeState.FAILED, NodeState.CACHED) or standing.wants, where
        else:
            assert state is NodeState.CACHED, where
            if not model.ours(node):  # the labels and pins of a held node wait for its release
                self.check_pins(prefetch, node)

    def check_pins(self, prefetch: Prefetch, node: Node) -> None:
        pods = [
            pod
            for pod in self.cluster.pods.values()
            if (pod.prefetch, pod.node) == (prefetch.name, node.name)
        ]
        groups = [group.key for group in prefetch.groups] if prefetch.keep else []
        assert sorted(pod.group for pod in pods) == sorted(groups), "pins"

    def check_taint(self, node: Node, wanted: list[Prefetch], *, pushed: bool) -> None:
        held = model.ours(node) is not None
        assert held is (node.name in self.running.ledger.holding)
        if not held or node.deleting:
            return
        assert self.cluster.gate is not None
        assert not self.cluster.gate.suspend
        assert (
            unsettled(node)
            or any(closed_to(prefetch, node) for prefetch in self.cluster.prefetches.values())
            or any(
                prefetch.gate.policy is GatePolicy.FAIL_CLOSED
                and prefetch.gate.mode is GateMode.NEW_NODES
                and (aside(node) or (Image(TYPO) in prefetch.images and not pushed))
                for prefetch in wanted
            )
            or (aside(node) and not pushed)
        ), f"{node.name} is held without a reason"

    def check_leftovers(self, node: Node, wanted: list[Prefetch]) -> None:
        known = {p.name for p in wanted}
        known |= {p.name for p in self.cluster.prefetches.values() if p.invalid is not None}
        for pod in self.cluster.pods.values():
            assert pod.node != node.name or pod.prefetch in known, "a pod of no prefetch here"
        if not node.deleting:
            labels = {k for k in node.labels if k.startswith(LABEL_PREFIX)}
            assert labels <= {LABEL_PREFIX + name for name in known}, "labels of no prefetch here"

    def check_books(self, prefetch: Prefetch) -> None:
        entry = self.running.ledger.entry(prefetch.name)
        matching = [n for n in self.cluster.nodes.values() if asked({"": prefetch}, n)]
        assert entry.standings.keys() == {node.name for node in matching}
        assert not entry.slots, "a slot that is not used"
        assert not entry.wants or prefetch.rollout.paused, "a node waits for a slot"
        counts: Any = prefetch.status["nodes"]
        for state in NodeState:
            assert counts[state] == sum(s.state is state for s in entry.standings.values())
        assert counts["gated"] == sum(model.ours(node) is not None for node in matching)

    def everything_is_deleted(self) -> None:
        for name in list(self.cluster.prefetches):
            self.cluster.delete_prefetch(name)
        self.settle()
        assert not self.cluster.prefetches, "a finalizer was not removed"
        self.check()
        assert not self.running.ledger.entries
        assert not [pod for pod in self.cluster.pods.values() if pod.node in self.cluster.nodes]


def alive(identity: str, node: Node, prefetch: Prefetch | None = None) -> bool:
    """Whether a record with this identity is about this machine, and with a prefetch, whether the
    record is still valid for the prefetch.
    """
    if prefetch is None or prefetch.gate.on_reboot is OnReboot.IGNORE:
        return identity.partition("/")[0] == node.uid
    return identity == f"{node.uid}/{node.boot_id}"


def boot(node: Node) -> int:
    return int(node.boot_id.removeprefix("boot-"))


def holds(machine: model.Machine, view: Node, prefetch: Prefetch) -> bool:
    """Whether the machine really had every image: since this boot, unless reboots are ignored."""
    since = 0 if prefetch.gate.on_reboot is OnReboot.IGNORE else boot(view)
    return all(machine.holds.get(image.reference, -1) >= since for image in prefetch.images)


def ready_at(machine: model.Machine, view: Node) -> float:
    """The earliest moment from which the gate's timeout may be counted."""
    seen = machine.ready_at[boot(view)]
    if view.observed:
        times = [t.time_added for t in view.taints if t.key == cases.KEY and t.time_added]
        added = min(datetime.fromisoformat(each).timestamp() for each in times) if times else seen
        return min(max(added, view.ready_since or 0.0), seen)
    if view.ready_since is None:
        return seen
    return min(max(view.ready_since, view.created_at), seen)


def foreign(node: Node) -> tuple[list[Taint], dict[str, str]]:
    """The taints and labels of the node that are not ours."""
    taints = [t for t in node.taints if t.key != cases.KEY]
    return taints, {k: v for k, v in node.labels.items() if not k.startswith(LABEL_PREFIX)}


# ---- the number of lives

LONG = 3000
EFFORT = os.environ.get("IMAGEGATE_LIVES", "500")
SETTINGS = settings(
    max_examples=LONG if EFFORT == "long" else int(EFFORT),
    stateful_step_count=40,
    deadline=None,
    derandomize=EFFORT == "500",
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


@pytest.mark.timeout(0)
def test_the_guarantees_hold_in_random_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every node reuses outcomes, and `cases.decide` compares each plan with one that reuses none.
    monkeypatch.setattr("imagegate.runtime.reconcile.node_views.MANY", 1)
    run_state_machine_as_test(Lives, settings=SETTINGS)
