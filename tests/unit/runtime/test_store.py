"""The store takes the newest of lists, watches and answers, in any order of arrival."""

from __future__ import annotations

from dataclasses import replace

import pytest

from imagegate.domain.facts import Gate, Node, Pod
from imagegate.runtime.clock import Clock
from imagegate.runtime.store import Store
from tests.unit.runtime.world import World


def node(uid: str, version: int) -> Node:
    return Node(name="n1", uid=uid, version=version)


def pod(version: int, *, deleting: bool = False) -> Pod:
    return Pod(name="p", namespace="ns", uid="u", version=version, node="n1", deleting=deleting)


def take_list(store: Store, *nodes: Node, pods: tuple[Pod, ...] = (), since: float) -> None:
    store.prune(since=since, nodes=nodes, pods=pods, prefetches=())


def test_objects_deleted_between_list_and_delivery_stay_deleted() -> None:
    store, since = Store(Clock()), Clock().monotonic()
    store.see_node(node("a", 5))
    store.see_pod(pod(6))
    store.lose_node("n1", "a", 9)
    store.lose_pod("ns", "p", "u", 10)
    take_list(store, node("a", 7), pods=(pod(8),), since=since)
    assert not store.nodes
    assert not store.pods


def test_older_list_does_not_undo_a_replaced_machine() -> None:
    store, since = Store(Clock()), Clock().monotonic()
    store.see_node(node("a", 5))
    store.lose_node("n1", "a", 9)
    store.see_node(node("b", 10))
    take_list(store, node("a", 5), since=since)
    assert store.nodes["n1"].uid == "b"


def test_late_answer_to_a_delete_does_not_bring_the_pod_back() -> None:
    store = Store(Clock())
    store.see_pod(pod(6))
    store.lose_pod("ns", "p", "u", 9)
    store.see_pod(pod(8, deleting=True))
    assert not store.pods


def test_a_late_deletion_of_an_earlier_machine_does_not_lower_a_tombstone() -> None:
    store = Store(Clock())
    store.see_node(node("b", 10))
    store.lose_node("n1", "b", 14)
    store.lose_node("n1", "a", 9)
    store.see_node(node("b", 12))
    assert not store.nodes


def test_gate_deleted_during_a_resync_stays_deleted() -> None:
    store, since = Store(Clock()), Clock().monotonic()
    store.see_gate(Gate(uid="g", version=3))
    store.see_gate(None)
    store.see_gate(Gate(uid="g", version=3), since=since)
    assert store.gate is None


def test_gate_created_during_a_resync_stays() -> None:
    store, since = Store(Clock()), Clock().monotonic()
    store.see_gate(Gate(uid="g", version=3))
    store.see_gate(None, since=since)
    assert store.gate is not None


def test_tombstones_are_dropped_after_a_later_list() -> None:
    store = Store(Clock())
    store.see_node(node("a", 5))
    store.lose_node("n1", "a", 9)
    take_list(store, since=Clock().monotonic() + 1000)
    assert not store._order._ended


async def test_first_resync_parses_nodes_with_the_images_of_all_prefetches() -> None:
    world = World()
    world.add_prefetch("a", "registry.example/a:1")
    world.add_node("n1")
    world.node("n1")["status"]["images"] = [{"names": ["registry.example/a:1"], "sizeBytes": 1}]
    world.start_operator()
    await world.resync.once()
    assert world.store.nodes["n1"].listed.keys() == {"registry.example/a:1"}


def test_pod_whose_label_is_put_back_is_known_again() -> None:
    store = Store(Clock())
    store.see_pod(pod(6))
    store.lose_pod("ns", "p", "u", 9)
    store.see_pod(pod(11))
    assert store.pods


def test_late_deletion_of_an_earlier_gate_does_not_remove_the_new_gate() -> None:
    store = Store(Clock())
    store.see_gate(Gate(uid="new", version=8))
    store.lose_gate("old", 5)
    assert store.gate is not None


@pytest.mark.parametrize(("observed", "since"), [("a/boot-1", 300.0), ("", 100.0)])
def test_ready_counts_anew_only_for_a_node_in_service_that_was_not_ready(
    observed: str, since: float
) -> None:
    now = 100.0
    store = Store(Clock(now=lambda: now))
    there = replace(node("a", 5), observed=observed, boot_id="boot-1", ready=True)
    store.see_node(there)
    now = 200.0
    store.see_node(replace(there, version=6, ready=False))
    now = 300.0
    back = replace(there, version=7)
    store.see_node(back)
    now = 400.0
    assert store.node_history.first_ready(back) == since
