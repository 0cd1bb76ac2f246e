"""A joining node pulls only when the DaemonSets of ``startAfter`` are Ready on it."""

from __future__ import annotations

import dataclasses
from typing import Any

from imagegate.domain import status
from imagegate.domain.actions import ReleaseReason
from imagegate.domain.facts import DaemonSetRef, GatePolicy, GateSpec, NodeState
from imagegate.domain.share import Share
from imagegate.domain.status import Tally
from tests.unit.domain.cases import (
    NOW,
    START,
    creates,
    decide,
    gated,
    node,
    patches,
    pod,
    prefetch,
    view,
)

MIRROR = DaemonSetRef("mirrors", "spegel")
AGENT = DaemonSetRef("kube-system", "agent")
LLM = prefetch(start_after=(MIRROR, AGENT))
ABSENT = {MIRROR: "it has no pod there"}
WAITS = "DaemonSet mirrors/spegel to be Ready on the node (it has no pod there)"


def share(unready: dict[DaemonSetRef, str], **changes: Any) -> Share:
    return Share(LLM, unready=unready, **changes)


def test_a_waiting_node_takes_no_slot_and_names_the_daemon_set() -> None:
    plan = decide(view(gated(), share(ABSENT, has_slot=True)))
    assert plan.actions == ()
    assert plan.awaits == {MIRROR}
    standing = plan.standings["llm"]
    assert standing.state is NodeState.PENDING
    assert not standing.wants
    assert not standing.pulling
    assert standing.waits_for == WAITS
    assert plan.holding == f"waiting for llm, which waits for {WAITS}"


def test_a_node_waits_also_before_the_first_check() -> None:
    plan = decide(view(gated(), share({MIRROR: "", AGENT: ""}, has_slot=True)))
    assert plan.actions == ()
    assert plan.awaits == {MIRROR, AGENT}
    assert plan.standings["llm"].waits_for == (
        "DaemonSet mirrors/spegel to be Ready on the node,"
        " DaemonSet kube-system/agent to be Ready on the node"
    )


def test_a_node_requests_a_slot_once_the_daemon_sets_are_ready() -> None:
    plan = decide(view(gated(), share({})))
    assert plan.standings["llm"].wants
    assert plan.awaits == frozenset()
    assert len(creates(decide(view(gated(), share({}, has_slot=True))))) == 1


def test_a_new_node_waits_and_a_node_in_service_does_not() -> None:
    assert creates(decide(view(node(), share(ABSENT, has_slot=True)))) == []
    recorded = node(observed="node-uid/boot-1")
    plan = decide(view(recorded, share(ABSENT, has_slot=True)))
    assert len(creates(plan)) == 1
    assert plan.awaits == frozenset()
    assert not plan.standings["llm"].waits_for


def test_a_running_pull_continues_and_counts() -> None:
    on = gated()
    running = pod(LLM, on)
    plan = decide(view(on, share(ABSENT, pods=(running,), has_slot=True)))
    assert plan.actions == ()
    assert plan.standings["llm"].state is NodeState.PULLING
    done = dataclasses.replace(running, phase="Succeeded", finished_at=NOW)
    (patch,) = patches(decide(view(on, share(ABSENT, pods=(done,)))))
    assert patch.release is ReleaseReason.CACHED


def test_an_unsettled_node_waits_for_no_daemon_set() -> None:
    plan = decide(view(gated(ready=False), share(ABSENT)))
    assert plan.awaits == frozenset()
    assert not plan.standings["llm"].waits_for


def test_fail_open_releases_at_the_timeout_and_names_the_daemon_set() -> None:
    late = START + 10 + 600
    assert decide(view(gated(), share(ABSENT))).requeue_at == late
    (patch,) = patches(decide(view(gated(), share(ABSENT)), late))
    assert patch.release is ReleaseReason.TIMEOUT
    assert patch.message == f"llm: not cached within 600 s of Ready; it waited for {WAITS}"


def test_fail_closed_continues_to_hold_and_names_the_reason() -> None:
    closed = dataclasses.replace(LLM, gate=GateSpec(policy=GatePolicy.FAIL_CLOSED))
    plan = decide(view(gated(), Share(closed, unready=ABSENT)), START + 10_000)
    assert patches(plan) == []
    assert plan.holding == f"waiting for llm (FailClosed), which waits for {WAITS}"


def test_start_after_changes_neither_target_nor_groups() -> None:
    assert LLM.target == prefetch().target
    assert [g.key for g in LLM.groups] == [g.key for g in prefetch().groups]


def test_the_condition_names_a_node_and_its_daemon_set() -> None:
    counts = dict.fromkeys(NodeState, 0) | {NodeState.PENDING: 3}
    tally = Tally(counts, gated=2, waiting=2, waits_for=("n1", WAITS))

    def progressing(tally: Tally) -> tuple[str, str]:
        conditions = status.prefetch_status(LLM, tally, NOW)["conditions"]
        (found,) = (c for c in conditions if c["type"] == "Progressing")
        return found["reason"], found["message"]

    text = f"2 joining nodes wait for spec.startAfter; n1: {WAITS}"
    assert progressing(tally) == ("WaitingForDaemonSet", text)
    pulling = dataclasses.replace(tally, counts=counts | {NodeState.PULLING: 1})
    assert progressing(pulling) == ("Pulling", f"1 nodes pulling, 3 pending; {text}")
    none = dataclasses.replace(tally, waiting=0, waits_for=("", ""))
    assert progressing(none)[0] == "Waiting"
