"""The life of a node, one decision at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from imagegate.api.fields import timestamp
from imagegate.domain.actions import ReleaseReason
from imagegate.domain.facts import (
    Attempts,
    Gate,
    GateMode,
    GatePolicy,
    GateSpec,
    Node,
    NodeState,
    OnReboot,
    Operator,
    Requirement,
    Taint,
)
from imagegate.domain.match import matches
from imagegate.domain.share import Share
from tests.unit.domain.cases import (
    GATE_TAINT,
    KEY,
    NOT_READY,
    NOW,
    START,
    creates,
    decide,
    deletes,
    gate,
    gated,
    node,
    patches,
    pod,
    prefetch,
    view,
)

HELD_NOW = dataclasses.replace(GATE_TAINT, time_added=timestamp(NOW))
LLM = prefetch()
CLOSED = prefetch(gate=GateSpec(policy=GatePolicy.FAIL_CLOSED))


def labelled(**changes: Any) -> dict[str, Any]:
    """A node that holds LLM's target, as this operator records it."""
    return {
        "labels": {LLM.label: LLM.target},
        "observed": "node-uid/boot-1",
        **changes,
    }


# ---- join and wait


@pytest.mark.parametrize(
    "changes",
    [
        {"ready": False},
        {"taints": (GATE_TAINT, Taint("karpenter.sh/unregistered", "NoExecute"))},
        {"taints": (GATE_TAINT, Taint("node.cloudprovider.kubernetes.io/uninitialized", "X"))},
    ],
)
def test_an_unsettled_node_is_held_and_no_pull_starts(changes: dict[str, Any]) -> None:
    on = dataclasses.replace(gated(), **changes)
    plan = decide(view(on, Share(LLM, has_slot=True)))
    assert plan.actions == ()
    assert plan.held
    assert "waiting for the node" in plan.holding


def test_a_gated_node_requests_a_slot_and_then_pulls() -> None:
    without = decide(view(gated(), Share(LLM)))
    assert creates(without) == []
    assert without.standings["llm"].wants
    plan = decide(view(gated(), Share(LLM, has_slot=True)))
    assert [c.attempt for c in creates(plan)] == [1]
    assert plan.standings["llm"].state is NodeState.PULLING
    assert plan.held


def test_a_pulling_node_is_held_and_checked_again_at_the_timeout() -> None:
    on = gated()
    plan = decide(view(on, Share(LLM, pods=(pod(LLM, on),), has_slot=True)))
    assert plan.actions == ()
    assert plan.requeue_at == START + 10 + 600


# ---- release


def test_the_release_is_one_patch_of_label_annotation_and_taint() -> None:
    on = gated()
    done = pod(LLM, on, phase="Succeeded", finished_at=NOW)
    (patch,) = patches(decide(view(on, Share(LLM, pods=(done,), has_slot=True))))
    assert patch.set_labels == {LLM.label: LLM.target}
    assert patch.observed == "node-uid/boot-1"
    assert patch.remove == (GATE_TAINT,)
    assert patch.release is ReleaseReason.CACHED


def test_a_node_is_released_when_the_kubelet_has_reported_every_image() -> None:
    two = prefetch("llm", "reg.test/a:1", "reg.test/b:1")
    on = gated()
    running = pod(two, on)
    half = Share(two, pods=(running,), pulled={running.uid: frozenset({"reg.test/a:1"})})
    assert patches(decide(view(on, half))) == []
    both = Share(two, pods=(running,), pulled={running.uid: frozenset(two.groups[0].images)})
    (patch,) = patches(decide(view(on, both)))
    assert patch.release is ReleaseReason.CACHED


def test_two_prefetches_gate_a_node_until_both_are_cached() -> None:
    other = prefetch("data", "reg.test/data:1")
    on = gated()
    done = Share(LLM, pods=(pod(LLM, on, phase="Succeeded"),))
    half = decide(view(on, Share(other, pods=(pod(other, on),)), done))
    assert patches(half) == []
    assert half.holding == "waiting for data"
    assert half.standings["llm"].state is NodeState.CACHED
    whole = Share(other, pods=(pod(other, on, phase="Succeeded"),))
    (patch,) = patches(decide(view(on, whole, done)))
    assert set(patch.set_labels) == {LLM.label, other.label}


def test_a_node_that_no_prefetch_gates_is_released_immediately() -> None:
    (patch,) = patches(decide(view(gated())))
    assert patch.release is ReleaseReason.UNMATCHED
    never = prefetch(gate=GateSpec(mode=GateMode.NEVER))
    (patch,) = patches(decide(view(gated(), Share(never))))
    assert patch.release is ReleaseReason.UNMATCHED
    assert patch.set_labels == {}


@pytest.mark.parametrize("absent", [None, gate(suspend=True), gate(deleting=True)])
def test_without_an_active_gate_every_held_node_is_released(absent: Gate | None) -> None:
    (patch,) = patches(decide(view(gated(ready=False), Share(CLOSED), gate=absent)))
    assert patch.release is ReleaseReason.DISABLED


def test_only_our_taint_is_removed() -> None:
    foreign = Taint(KEY + "-not", "NoSchedule", "x")
    on = node(taints=(foreign, GATE_TAINT, NOT_READY))
    (patch,) = patches(decide(view(on)))
    assert patch.remove == (GATE_TAINT,)


# ---- failures


def failing(text: str = "rpc error: not found") -> tuple[Node, Share]:
    on = gated()
    bad = pod(LLM, on, waiting="ErrImagePull", waiting_message=f'"reg.test/llm:1": {text}')
    return on, Share(LLM, pods=(bad,), has_slot=True, failed_at={bad.uid: NOW})


def test_the_pod_is_deleted_if_its_failure_is_new() -> None:
    on, share = failing("unexpected EOF")
    plan = decide(view(on, share))
    (delete,) = deletes(plan)
    assert delete.remember is not None
    assert delete.remember.reason == "TransferBroken"
    assert delete.remember.count == 1
    assert 9 <= delete.remember.next_at - NOW <= 11
    assert plan.held


@pytest.mark.parametrize("seen", [{}, {"llm-pod-uid": NOW - 6}])
def test_the_pod_stays_if_its_failure_may_hide_a_running_pull(
    seen: dict[str, float],
) -> None:
    on, share = failing("unexpected EOF")
    plan = decide(view(on, dataclasses.replace(share, failed_at=seen)))
    assert deletes(plan) == []


def test_fail_open_releases_at_once_when_the_failure_is_permanent() -> None:
    on, share = failing("manifest unknown: not found")
    plan = decide(view(on, share))
    (patch,) = patches(plan)
    assert patch.release is ReleaseReason.FAILED
    assert "ImageNotFound" in patch.message
    assert patch.set_labels == {}


def test_fail_open_releases_at_the_timeout_and_not_before() -> None:
    on = gated()
    share = Share(LLM, pods=(pod(LLM, on),), has_slot=True)
    deadline = START + 10 + 600
    assert patches(decide(view(on, share), deadline - 1)) == []
    (patch,) = patches(decide(view(on, share), deadline))
    assert patch.release is ReleaseReason.TIMEOUT


def test_fail_closed_holds_until_the_image_is_cached() -> None:
    on = gated()
    lost = Attempts(count=9, permanent=True, reason="ImageNotFound", next_at=NOW + 9e9)
    share = Share(CLOSED, attempts={CLOSED.groups[0].key: lost}, has_slot=True)
    plan = decide(view(on, share), NOW + 9e8)
    assert patches(plan) == []
    assert plan.held
    assert plan.standings["llm"].state is NodeState.FAILED


def test_a_new_pod_is_created_only_after_the_back_off() -> None:
    once = Attempts(count=1, next_at=NOW + 5, reason="TransferBroken", pods=1)
    share = Share(LLM, attempts={LLM.groups[0].key: once}, has_slot=True)
    waiting = decide(view(node(), share))
    assert waiting.actions == ()
    assert waiting.requeue_at == NOW + 5
    assert not waiting.standings["llm"].pulling, "a node that waits keeps no slot"
    (create,) = creates(decide(view(node(), share), NOW + 5))
    assert create.attempt == 2


@pytest.mark.parametrize(
    "reason", ["OutOfpods", "OutOfcpu", "OutOfmemory", "Evicted", "TaintToleration", "NodeAffinity"]
)
def test_a_rejected_pod_is_tried_again_later(reason: str) -> None:
    on = node()
    rejected = pod(LLM, on, phase="Failed", reason=reason, message="as the kubelet says")
    plan = decide(view(on, Share(LLM, pods=(rejected,), has_slot=True)))
    (delete,) = deletes(plan)
    remembered = delete.remember
    assert remembered is not None
    assert (remembered.reason, remembered.permanent) == ("PodRejected", False)
    assert remembered.message == f"{reason}: as the kubelet says"
    assert creates(plan) == [], "only after the deletion and the back-off"
    later = Share(LLM, attempts={LLM.groups[0].key: remembered}, has_slot=True)
    assert creates(decide(view(on, later), remembered.next_at - 0.1)) == []
    assert len(creates(decide(view(on, later), remembered.next_at))) == 1


def test_a_pull_is_given_up_at_its_timeout_or_after_two_hours() -> None:
    limited = prefetch(retry=dataclasses.replace(LLM.retry, timeout=100.0))
    on = node()
    share = Share(limited, pods=(pod(limited, on),), has_slot=True)
    assert deletes(decide(view(on, share), START + 119)) == []
    assert len(deletes(decide(view(on, share), START + 120))) == 1
    patient = Share(LLM, pods=(pod(LLM, on),), has_slot=True)
    assert deletes(decide(view(on, patient), START + 20 + 7199)) == []
    assert len(deletes(decide(view(on, patient), START + 20 + 7200))) == 1


def test_a_pull_in_time_keeps_the_slot_although_another_pull_is_late() -> None:
    two = prefetch(
        "llm",
        *(f"reg.test/{n}:1" for n in range(12)),
        retry=dataclasses.replace(LLM.retry, timeout=600.0),
    )
    on = node()
    first, second = two.groups[:2]
    failing = {"waiting": "ImagePullBackOff", "waiting_message": "connection refused"}
    late = dict(created_at=START, **failing)
    for overdue in (first, second):
        pods = tuple(
            pod(two, on, name=group.key, uid=group.key, group=group.key, images=group.references)
            if group is not overdue
            else pod(
                two,
                on,
                name=group.key,
                uid=group.key,
                group=group.key,
                images=group.references,
                **late,
            )
            for group in (first, second)
        )
        standing = decide(view(on, Share(two, pods=pods)), START + 610).standings["llm"]
        assert standing.pulling


# ---- clocks


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0])
def test_a_node_clock_that_is_a_day_off_neither_opens_nor_prolongs_the_gate(skew: float) -> None:
    on = gated(ready_since=START + 10 + skew)
    share = Share(LLM, pods=(pod(LLM, on),), has_slot=True)
    assert patches(decide(view(on, share), START + 500)) == []
    assert len(patches(decide(view(on, share), START + 10 + 600))) == 1


# ---- in service


def test_a_settled_node_gets_no_write() -> None:
    on = node(**labelled())
    done = pod(LLM, on, phase="Succeeded", finished_at=NOW)
    plan = decide(view(on, Share(LLM, pods=(done,))))
    assert plan.actions == ()
    assert plan.requeue_at is None
    assert plan.standings["llm"].state is NodeState.CACHED


def test_a_deleted_pin_is_created_again_when_there_is_a_slot() -> None:
    on = node(**labelled())
    assert decide(view(on, Share(LLM))).standings["llm"].wants
    plan = decide(view(on, Share(LLM, has_slot=True)))
    assert len(creates(plan)) == 1
    assert plan.standings["llm"].state is NodeState.CACHED


def test_a_pin_that_is_deleted_repeatedly_waits_longer_each_time() -> None:
    on, key = node(**labelled()), LLM.groups[0].key
    first = creates(decide(view(on, Share(LLM, has_slot=True))))[0].remember
    assert first is not None
    soon = decide(view(on, Share(LLM, has_slot=True, attempts={key: first})), NOW + 30)
    assert creates(soon) == []
    assert soon.requeue_at == first.next_at
    assert soon.standings["llm"].failure is None
    (second,) = creates(
        decide(view(on, Share(LLM, has_slot=True, attempts={key: first})), NOW + 70)
    )
    assert second.remember is not None
    assert second.remember.next_at - (NOW + 70) > 100


def test_a_refused_pin_is_reported_although_the_node_is_cached() -> None:
    on, key = node(**labelled()), LLM.groups[0].key
    refused = Attempts(
        2, NOW + 20, "PodNotCreated", "failed calling webhook", "", permanent=False, at=NOW
    )
    plan = decide(view(on, Share(LLM, has_slot=True, attempts={key: refused})))
    assert creates(plan) == []
    assert plan.standings["llm"].state is NodeState.CACHED
    assert plan.standings["llm"].failure == refused
    there = pod(LLM, on, phase="Succeeded", finished_at=NOW)
    plan = decide(view(on, Share(LLM, pods=(there,), attempts={key: refused})))
    assert plan.standings["llm"].failure is None


def test_retention_release_deletes_the_pod_after_six_minutes() -> None:
    loose = prefetch(keep=False)
    on = node(labels={loose.label: loose.target}, observed="node-uid/boot-1")
    done = pod(loose, on, phase="Succeeded", finished_at=NOW)
    plan = decide(view(on, Share(loose, pods=(done,))))
    assert plan.actions == ()
    assert plan.requeue_at == NOW + 360
    assert len(deletes(decide(view(on, Share(loose, pods=(done,))), NOW + 360))) == 1
    assert decide(view(on, Share(loose))).actions == (), "the pod is not created again"


def test_an_edit_does_not_cancel_a_pull_of_images_that_are_still_wanted() -> None:
    before = prefetch("llm", "reg.test/a:1", "reg.test/b:1")
    after = prefetch("llm", "reg.test/a:1", "reg.test/c:1")
    on = node()
    running = pod(before, on)
    plan = decide(view(on, Share(after, pods=(running,), has_slot=True)))
    assert plan.actions == ()
    assert plan.standings["llm"].pulling
    assert plan.requeue_at is not None, "its slot is freed at its deadline"
    late = decide(view(on, Share(after, pods=(running,), has_slot=True)), plan.requeue_at)
    assert not late.standings["llm"].pulling
    unwanted = prefetch("llm", "reg.test/x:1")
    plan = decide(view(on, Share(unwanted, pods=(running,), has_slot=True)))
    assert len(deletes(plan)) == 1


def test_pins_of_the_old_target_stay_until_the_new_target_is_cached() -> None:
    before, after = prefetch("llm", "reg.test/a:1"), prefetch("llm", "reg.test/a:2")
    on = node(labels={before.label: before.target}, observed="node-uid/boot-1")
    old = pod(before, on, name="old", phase="Succeeded")
    plan = decide(view(on, Share(after, pods=(old,), has_slot=True)))
    assert deletes(plan) == []
    assert len(creates(plan)) == 1
    new = pod(after, on, name="new", uid="new", phase="Succeeded")
    (patch,) = patches(decide(view(on, Share(after, pods=(old, new), has_slot=True))))
    assert patch.set_labels == {after.label: after.target}
    current = node(labels={after.label: after.target}, observed="node-uid/boot-1")
    plan = decide(view(current, Share(after, pods=(old, new))))
    assert [d.pod.name for d in deletes(plan)] == ["old"]


def test_labels_and_pods_of_a_deleted_prefetch_are_removed() -> None:
    on = node(**labelled())
    plan = decide(view(on, orphans=(pod(LLM, on, phase="Succeeded"),)))
    (patch,) = patches(plan)
    assert patch.drop_labels == (LLM.label,)
    assert len(deletes(plan)) == 1


def test_labels_of_a_prefetch_with_an_invalid_spec_stay() -> None:
    on = node(**labelled())
    assert decide(view(on, frozen=frozenset({"llm"}))).actions == ()


# ---- reboots


def test_after_a_reboot_verify_drops_the_label_and_pulls_again() -> None:
    on = node(**labelled(boot_id="boot-2"))
    stale = pod(LLM, on, observed="node-uid/boot-1", phase="Succeeded")
    (patch,) = patches(decide(view(on, Share(LLM, pods=(stale,), has_slot=True))))
    assert patch.drop_labels == (LLM.label,)
    assert patch.observed == "node-uid/boot-2"
    assert patch.add is None
    recorded = node(labels={}, observed="node-uid/boot-2", boot_id="boot-2")
    plan = decide(view(recorded, Share(LLM, pods=(stale,), has_slot=True)))
    assert len(creates(plan)) == 1
    assert len(deletes(plan)) == 1


def test_after_a_reboot_ignore_keeps_the_label() -> None:
    ignore = prefetch(gate=GateSpec(on_reboot=OnReboot.IGNORE))
    on = node(**labelled(boot_id="boot-2"))
    done = pod(ignore, on, observed="node-uid/boot-1", phase="Succeeded")
    (patch,) = patches(decide(view(on, Share(ignore, pods=(done,)))))
    assert patch.drop_labels == ()
    assert patch.observed == "node-uid/boot-2"


@pytest.mark.parametrize("policy", OnReboot)
def test_a_pull_that_a_reboot_has_interrupted_starts_again(policy: OnReboot) -> None:
    """The kubelet may leave such a pod Pending for ever: seen with a real kubelet."""
    asked = prefetch(gate=GateSpec(on_reboot=policy))
    on = node(labels={}, observed="node-uid/boot-2", boot_id="boot-2")
    stuck = pod(asked, on, observed="node-uid/boot-1", began=True)
    first = decide(view(on, Share(asked, pods=(stuck,), has_slot=True)))
    assert [action.pod for action in deletes(first)] == [stuck]
    assert creates(first) == [], "only after the old pod is deleted"
    pulling = dataclasses.replace(stuck, began=False)
    assert decide(view(on, Share(asked, pods=(pulling,), has_slot=True))).actions == ()
    going = dataclasses.replace(stuck, deleting=True)
    assert creates(decide(view(on, Share(asked, pods=(going,), has_slot=True)))) == []
    assert creates(decide(view(on, Share(asked, has_slot=True))))


def test_after_a_reboot_hold_adds_the_taint_again() -> None:
    hold = prefetch(gate=GateSpec(on_reboot=OnReboot.HOLD))
    on = node(**labelled(boot_id="boot-2"))
    (patch,) = patches(decide(view(on, Share(hold))))
    assert patch.add == HELD_NOW
    (patch,) = patches(decide(view(on, Share(hold), gate=gate(suspend=True))))
    assert patch.add is None


def test_an_incomplete_image_is_requested_from_the_registry_again() -> None:
    on = gated()
    (group,) = LLM.groups
    for waiting, reason in (
        ("CreateContainerError", "NodeStoreDamaged"),
        ("CreateContainerConfigError", "ContainerNotCreated"),
    ):
        message = "content digest sha256:bb: not found" if "Store" in reason else "no"
        made = pod(LLM, on, waiting=waiting, waiting_message=message)
        plan = decide(view(on, Share(LLM, pods=(made,), has_slot=True)))
        (delete,) = deletes(plan)
        assert delete.remember is not None
        assert delete.remember.reason == reason
        assert plan.held
        attempts = {group.key: dataclasses.replace(delete.remember, next_at=0.0)}
        (again,) = creates(decide(view(on, Share(LLM, has_slot=True, attempts=attempts))))
        assert again.afresh


@pytest.mark.parametrize(
    "mark",
    [
        {"labels": {"node-role.kubernetes.io/control-plane": ""}},
        {"taints": (Taint("node-role.kubernetes.io/control-plane", "NoSchedule"),)},
    ],
)
def test_the_watch_taints_the_control_plane_if_configured(mark: dict[str, Any]) -> None:
    """As in the policy: by the label or the taint, because kubeadm adds the label later."""
    young = view(node(**mark), Share(LLM), taints_by_watch=True)
    assert patches(decide(young)) == []
    (patch,) = patches(decide(dataclasses.replace(young, control_planes=True)))
    assert patch.add is not None


HOLD = prefetch(gate=GateSpec(on_reboot=OnReboot.HOLD))


def test_under_hold_a_node_in_service_is_held_as_soon_as_it_is_not_ready() -> None:
    away = node(**labelled(ready=False))
    (patch,) = patches(decide(view(away, Share(HOLD))))
    assert patch.add == HELD_NOW
    assert not patch.drop_labels
    assert patches(decide(view(away, Share(LLM)))) == [], "without Hold the node is not held"
    assert patches(decide(view(away, Share(HOLD), gate=gate(suspend=True)))) == []
    unlabelled = node(labels={}, observed=away.observed, ready=False)
    assert patches(decide(view(unlabelled, Share(HOLD)))) == [], "it had no images before"
    leaving = node(**labelled(ready=False, taints=(Taint("karpenter.sh/disrupted", "NoSchedule"),)))
    assert patches(decide(view(leaving, Share(HOLD)))) == []


def test_a_refused_taint_is_the_same_request_in_the_next_decision() -> None:
    away = view(node(**labelled(ready=False)), Share(HOLD))
    (first,), (second,) = patches(decide(away, NOW)), patches(decide(away, NOW + 1))
    assert first.add != second.add
    assert first.request == second.request


def test_a_node_that_did_not_reboot_is_released_once_it_is_ready() -> None:
    """Also if another ImagePrefetch is not cached yet, because that prefetch did not hold it."""
    held = labelled(taints=(HELD_NOW,))
    pods = (pod(HOLD, node(**held), phase="Succeeded"),)
    other = prefetch("other", gate=GateSpec())
    for ready in (False, True):
        on = node(**held, ready=ready)
        found = patches(decide(view(on, Share(HOLD, pods=pods), Share(other))))
        assert [patch.release for patch in found] == ([ReleaseReason.CACHED] if ready else [])


def test_a_wiped_node_is_held_until_it_is_verified() -> None:
    back = node(**labelled(taints=(HELD_NOW,), boot_id="boot-2"))
    old = pod(HOLD, back, observed="node-uid/boot-1", phase="Succeeded")
    (patch,) = patches(decide(view(back, Share(HOLD, pods=(old,)))))
    assert patch.drop_labels == (HOLD.label,)
    assert patch.remove == ()
    recorded = node(labels={}, observed="node-uid/boot-2", boot_id="boot-2", taints=(HELD_NOW,))
    assert decide(view(recorded, Share(HOLD, pods=(old,), has_slot=True))).held
    done = pod(HOLD, recorded, phase="Succeeded")
    (patch,) = patches(decide(view(recorded, Share(HOLD, pods=(done,)))))
    assert patch.release is ReleaseReason.CACHED
    assert patch.set_labels == {HOLD.label: HOLD.target}


def test_a_new_machine_with_the_same_name_loses_the_label() -> None:
    ignore = prefetch(gate=GateSpec(on_reboot=OnReboot.IGNORE))
    on = node(**labelled(uid="another"))
    (patch,) = patches(decide(view(on, Share(ignore))))
    assert patch.drop_labels == (LLM.label,)


def test_a_machine_does_not_inherit_the_slot_of_a_deleted_machine() -> None:
    """Found by `make chaos`: the pod of the deleted machine counted as a pull on the new machine.
    So the new machine had a slot without a request, and maxParallel was exceeded.
    """
    on = gated(uid="another")
    for deleting in (False, True):
        stale = pod(LLM, node(), deleting=deleting)
        plan = decide(view(on, Share(LLM, pods=(stale,))))
        assert not plan.standings["llm"].pulling
        assert plan.standings["llm"].wants
        assert [gone.pod for gone in deletes(plan)] == ([] if deleting else [stale])
        assert len(creates(decide(view(on, Share(LLM, pods=(stale,), has_slot=True))))) == 1


# ---- skipped


@pytest.mark.parametrize(
    "changes",
    [
        {"deleting": True},
        {"disk_pressure": True},
        {"unschedulable": True},
        {"taints": (Taint("ToBeDeletedByClusterAutoscaler", "NoSchedule"),)},
        {"taints": (Taint("karpenter.sh/disrupted", "NoSchedule"),)},
        {"labels": {"eks.amazonaws.com/compute-type": "fargate"}},
        {"labels": {"liqo.io/type": "virtual-node"}},
        {"labels": {"type": "kwok"}},
        {"taints": (Taint("virtual-kubelet.io/provider", "NoSchedule", "azure"),)},
        {"labels": {"kubernetes.io/os": "windows"}},
    ],
)
def test_a_leaving_or_unsuitable_node_is_skipped_and_counted(changes: dict[str, Any]) -> None:
    plan = decide(view(node(**changes), Share(LLM, has_slot=True)))
    assert plan.actions == ()
    assert plan.standings["llm"].state is NodeState.SKIPPED
    assert plan.standings["llm"].skipped


def test_a_cordoned_node_is_served_while_it_is_gated() -> None:
    plan = decide(view(gated(unschedulable=True), Share(LLM, has_slot=True)))
    assert len(creates(plan)) == 1


@pytest.mark.parametrize("label", ["type=virtual-kubelet", "kubernetes.io/os=windows"])
def test_a_node_is_not_held_for_images_that_it_can_never_hold(label: str) -> None:
    on = gated(labels=dict([label.split("=")]))
    (patch,) = patches(decide(view(on, Share(CLOSED))))
    assert patch.release is ReleaseReason.UNMATCHED


# ---- tainting by watch


def test_the_watch_taints_only_new_nodes_that_were_never_recorded() -> None:
    young = view(node(), Share(LLM), taints_by_watch=True)
    (patch,) = patches(decide(young))
    assert patch.add == HELD_NOW
    for other in (
        dataclasses.replace(young, taints_by_watch=False),
        dataclasses.replace(young, gate=gate(suspend=True)),
        dataclasses.replace(young, node=node(observed="node-uid/boot-1")),
        dataclasses.replace(young, node=node(created_at=NOW - 301)),
        dataclasses.replace(young, node=node(labels={"node-role.kubernetes.io/control-plane": ""})),
        dataclasses.replace(young, shares=(Share(prefetch(created_at=START + 1)),)),
    ):
        assert patches(decide(other)) == []


def test_selectors_match_as_in_kubernetes() -> None:
    on = node(labels={"pool": "gpu"})
    table = [
        (Operator.IN, {"gpu"}, True),
        (Operator.IN, {"cpu"}, False),
        (Operator.NOT_IN, {"cpu"}, True),
        (Operator.NOT_IN, {"gpu"}, False),
        (Operator.EXISTS, set(), True),
        (Operator.DOES_NOT_EXIST, set(), False),
    ]
    for operator, values, expected in table:
        asked = prefetch(selector=(Requirement("pool", operator, frozenset(values)),))
        assert matches(asked, on) is expected, operator
    absent = Requirement("zone", Operator.NOT_IN, frozenset({"a"}))
    assert matches(prefetch(selector=(absent,)), on)
