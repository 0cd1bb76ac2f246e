"""The slots of joining nodes, and the removal of records."""

from __future__ import annotations

import dataclasses

from imagegate.domain.actions import Postpone, Standing
from imagegate.domain.facts import Attempts, GateSpec, NodeState, Prefetch, RolloutSpec
from imagegate.domain.share import Share
from imagegate.domain.throttle import Throttle
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.ledger_entry import Entry
from tests.unit.domain.cases import NOW, decide, node, pod, prefetch, view

WANTS = Standing(NodeState.PENDING, wants=True)


def bound(parallel: int) -> Prefetch:
    gate = GateSpec(max_parallel=parallel, percent=False)
    return Prefetch("llm", "uid", 1, 1, gate=gate, rollout=RolloutSpec(1, percent=False))


def test_a_slot_goes_to_the_joining_node_that_has_waited_longest() -> None:
    entry = Entry()
    entry.slots.add("pulling")
    entry.held.add("pulling")
    for name in ("first", "second"):
        assert not entry.take_slot(name, bound(1))
        entry.record(name, "", WANTS, held=True)
    entry.slots.clear()
    assert not entry.take_slot("new", bound(1)), "the slot is the first node's"
    assert not entry.take_slot("second", bound(1))
    assert entry.take_slot("first", bound(1))


def test_joining_node_gets_a_slot_if_earlier_nodes_leave_one_free() -> None:
    entry = Entry()
    entry.record("first", "", WANTS, held=True)
    assert not entry.take_slot("second", bound(1))
    assert entry.take_slot("second", bound(2))


def test_refusing_registry_limits_joining_nodes_and_nodes_in_service_together() -> None:
    entry = Entry(throttle=Throttle(limit=2))
    entry.slots.add("in-service")
    assert entry.take_slot("first", bound(100))
    assert not entry.take_slot("second", bound(100))
    assert entry.wanted_slot(bound(100)) == (
        "a slot: the registry refuses, so 2 nodes may pull at a time"
    )
    entry.slots.discard("in-service")
    assert entry.take_slot("second", bound(100))


def test_nodes_in_service_do_not_delay_a_joining_node() -> None:
    entry = Entry()
    entry.record("in-service", "", WANTS, held=False)
    assert entry.take_slot("joining", bound(1))


def test_attempts_of_unwanted_groups_are_forgotten() -> None:
    ledger = Ledger()
    for group in ("old", "new"):
        ledger.remember("n1", group, Attempts(count=1, reason="ImageNotFound"))
    ledger.keep_attempts("n1", ["new"])
    assert ledger.attempts["n1"].keys() == {"new"}
    ledger.keep_attempts("n1", [])
    ledger.keep_attempts("unknown", [])
    assert ledger.attempts == {}


def test_an_edit_forgets_the_failures_but_not_how_many_pods_there_were() -> None:
    ledger = Ledger()
    ledger.remember("n1", "g", Attempts(count=5, next_at=900.0, reason="TransferBroken", pods=3))
    ledger.forgive("n1", ["g"], now=10.0)
    assert ledger.attempts["n1"]["g"] == Attempts(pods=3)
    assert ledger.attempts["n1"]["g"].number == 4
    ledger.clear_attempts("n1", ["g"])
    assert ledger.attempts == {}


def test_pod_in_an_unwanted_namespace_does_not_count_as_removed() -> None:
    """Found by the simulation: each decision counted one more removal of an existing pod."""
    on = node()
    before = prefetch()
    pulling = pod(before, on)
    ledger = Ledger()
    ledger.note_pods(on, [Share(before, pods=(pulling,))])
    assert ledger.started == {on.name: {pulling.group: pulling.uid}}
    ledger.ended(on.name, pulling.group)
    moved = dataclasses.replace(before, namespace="elsewhere")
    ledger.note_pods(on, [Share(moved, pods=(pulling,))])
    assert ledger.started == {}


def test_unfinished_pod_of_an_earlier_boot_does_not_count_as_removed() -> None:
    """Found by the simulation: each decision counted one more removal, and delayed the retry."""
    on, after = node(), node(boot_id="boot-2")
    made = prefetch()
    pulling = pod(made, on)
    ledger = Ledger()
    ledger.note_pods(on, [Share(made, pods=(pulling,))])
    started = ledger.started[on.name]
    assert started == {pulling.group: pulling.uid}
    share = Share(made, pods=(pulling,), started=started)
    plan = decide(view(after, share), NOW)
    assert plan.standings[made.name].failure is None
    assert not [each for each in plan.actions if isinstance(each, Postpone)]
    ledger.ended(on.name, pulling.group)
    ledger.note_pods(after, [Share(made, pods=(pulling,))])
    assert ledger.started == {}
