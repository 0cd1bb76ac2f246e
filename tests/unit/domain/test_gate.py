"""Which nodes are held and released when the gate itself is in an unusual state."""

from __future__ import annotations

import dataclasses

import pytest

from imagegate.api.fields import timestamp
from imagegate.domain import gate as gate_decision
from imagegate.domain.actions import ReleaseReason
from imagegate.domain.facts import GateMode, GatePolicy, GateSpec, OnReboot, Prefetch, Taint
from imagegate.domain.gate import Problem
from imagegate.domain.share import Share
from tests.unit.domain.cases import (
    GATE_TAINT,
    KEY,
    NOT_READY,
    NOW,
    START,
    decide,
    gate,
    gated,
    node,
    patches,
    pod,
    prefetch,
    view,
)

OLD_KEY = "example.com/old"
OLD_TAINT = Taint(OLD_KEY, "NoSchedule", "pending")
EARLIER = frozenset({OLD_KEY})
CLOSED = prefetch(gate=GateSpec(policy=GatePolicy.FAIL_CLOSED))
OPEN = prefetch()
HOLD = prefetch(gate=GateSpec(on_reboot=OnReboot.HOLD))


# ---- keys


@pytest.mark.parametrize("changes", [{}, {"ready": False}])
def test_a_node_with_an_earlier_key_is_released(changes: dict[str, bool]) -> None:
    on = node(taints=(NOT_READY, OLD_TAINT), **changes)
    plan = decide(view(on, Share(CLOSED, has_slot=True), earlier_keys=EARLIER))
    (patch,) = patches(plan)
    assert patch.remove == (OLD_TAINT,)
    assert patch.release is ReleaseReason.DISABLED
    assert "key" in patch.message
    assert not plan.held
    assert patches(decide(view(on, Share(CLOSED, has_slot=True)))) == [], "the key is foreign"


def test_only_the_taint_with_the_earlier_key_is_removed() -> None:
    on = node(taints=(OLD_TAINT, NOT_READY, GATE_TAINT))
    plan = decide(view(on, Share(CLOSED, has_slot=True), earlier_keys=EARLIER))
    (patch,) = patches(plan)
    assert patch.remove == (OLD_TAINT,)
    assert patch.release is None
    assert plan.held


@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute", "PreferNoSchedule"])
def test_a_taint_with_the_gates_key_holds_a_node_with_any_effect(effect: str) -> None:
    taint = Taint(KEY, effect, "true")
    on = node(taints=(taint,))
    assert decide(view(on, Share(CLOSED))).held
    done = pod(CLOSED, on, phase="Succeeded")
    (patch,) = patches(decide(view(on, Share(CLOSED, pods=(done,), has_slot=True))))
    assert patch.remove == (taint,)


def test_all_taints_with_the_gates_key_are_removed_together() -> None:
    both = (Taint(KEY, "NoExecute"), GATE_TAINT)
    on = node(taints=(both[0], NOT_READY, both[1]))
    (patch,) = patches(decide(view(on)))
    assert patch.remove == both


def test_no_node_is_tainted_before_the_first_heartbeat() -> None:
    """Until then the key is not recorded, so no operator would remove the taint."""
    unarmed = gate(status={})
    young = view(node(), Share(OPEN), taints_by_watch=True)
    assert patches(decide(young))[0].add is not None
    assert patches(decide(dataclasses.replace(young, gate=unarmed))) == []
    rebooted = node(observed="node-uid/boot-1", boot_id="boot-2")
    (patch,) = patches(decide(view(rebooted, Share(HOLD), gate=unarmed)))
    assert patch.add is None


# ---- prefetches that cannot be acted on

WHY = "NamespaceNotAllowed: spec.pullerNamespace 'x' is not one of the operator's"


def problem(of: Prefetch) -> Problem:
    return Problem(of, WHY)


def test_fail_closed_holds_a_node_while_the_spec_is_invalid() -> None:
    plan = decide(view(gated(), problems=(problem(CLOSED),)), NOW + 10_000)
    assert patches(plan) == []
    assert plan.held
    assert "NamespaceNotAllowed" in plan.holding


def test_fail_open_releases_as_failed_and_names_the_reason() -> None:
    (patch,) = patches(decide(view(gated(), problems=(problem(OPEN),))))
    assert patch.release is ReleaseReason.FAILED
    assert "NamespaceNotAllowed" in patch.message
    assert patch.set_labels == {}


def test_an_invalid_prefetch_that_does_not_gate_holds_no_node() -> None:
    never = prefetch(gate=GateSpec(mode=GateMode.NEVER, policy=GatePolicy.FAIL_CLOSED))
    (patch,) = patches(decide(view(gated(), problems=(problem(never),))))
    assert patch.release is ReleaseReason.UNMATCHED
    virtual = gated(labels={"type": "virtual-kubelet"})
    (patch,) = patches(decide(view(virtual, problems=(problem(CLOSED),))))
    assert patch.release is ReleaseReason.UNMATCHED


def test_a_prefetch_without_images_has_no_label() -> None:
    none = dataclasses.replace(OPEN, images=())
    (patch,) = patches(decide(view(gated(), Share(none))))
    assert patch.set_labels == {}
    assert patches(decide(view(node(observed="node-uid/boot-1"), Share(none)))) == []
    labelled = node(observed="node-uid/boot-1", labels={OPEN.label: OPEN.target})
    (patch,) = patches(decide(view(labelled, Share(none))))
    assert patch.drop_labels == (OPEN.label,)


# ---- the time a node has been held


def test_a_node_held_again_times_out_although_operators_restart() -> None:
    rebooted = node(observed="node-uid/boot-1", boot_id="boot-2")
    (patch,) = patches(decide(view(rebooted, Share(HOLD))))
    assert patch.add is not None
    assert patch.add.time_added == timestamp(NOW)
    held = node(observed="node-uid/boot-2", boot_id="boot-2", taints=(patch.add,))
    restarted = NOW + 599  # this operator has just started, and sees the node for the first time
    assert decide(view(held, Share(HOLD), first_ready=restarted), NOW + 599).held
    (patch,) = patches(decide(view(held, Share(HOLD), first_ready=restarted), NOW + 600))
    assert patch.release is ReleaseReason.TIMEOUT


@pytest.mark.parametrize(
    ("added", "ready", "since"),
    [
        (None, START, NOW),
        ("nonsense", START, NOW),
        (NOW - 60, START, NOW - 60),
        (NOW - 60, NOW - 20, NOW - 20),
        (NOW - 60, NOW + 9999, NOW),
        (NOW + 9999, None, NOW),
    ],
)
def test_a_node_held_again_has_a_bounded_ready_time(
    added: float | str | None, ready: float | None, since: float
) -> None:
    text = timestamp(added) if isinstance(added, float) else added
    taint = dataclasses.replace(GATE_TAINT, time_added=text)
    on = node(observed="node-uid/boot-1", ready_since=ready, taints=(taint,))
    assert gate_decision.ready_since(on, NOW, on.taints) == since
