"""Requests, events and decisions for 1,000 nodes: counts, because they do not depend on load."""

from __future__ import annotations

import json

import pytest

from benchmarks import objects
from benchmarks.memory.cluster import Rendered
from benchmarks.memory.scenarios import JOINING, Case, run
from tests.simulation.apiserver import Stored

NODES = 1_000
pytestmark = pytest.mark.timeout(180)


def test_start_with_1000_cached_nodes_lists_twice_and_writes_one_status() -> None:
    figures = run(Case("start", NODES))
    writes = {key: n for key, n in figures.requests.items() if key.startswith(("PATCH", "POST"))}
    assert figures.requests["LIST nodes"] == 4, "two lists with two pages each"
    assert writes.pop("PATCH imageprefetches") <= 2
    assert writes == {"POST leases": 1, "POST nodegates": 1, "POST events": 1}
    assert figures.decisions["nodes"] <= 3 * NODES
    assert figures.events.keys() <= {"imageprefetches", "nodegates"}


def test_rollout_creates_one_pod_and_patches_the_node_once_for_each_node() -> None:
    figures = run(Case("rollout", NODES))
    requests = dict(figures.requests)
    assert requests.pop("POST pods") == NODES
    assert requests.pop("PATCH nodes") == NODES
    assert requests.pop("GET nodes") == NODES, "a GET precedes each reading of a disk"
    assert sum(requests.values()) <= 100, "status, lease, heartbeat and one Event"
    assert figures.events["pods"] <= 3 * NODES
    assert figures.decisions["nodes"] <= 7.5 * NODES


def test_joining_nodes_are_released_by_one_patch_each() -> None:
    figures = run(Case("join", NODES))
    joined = NODES + JOINING
    assert figures.released == JOINING
    assert figures.requests["POST pods"] == joined
    assert figures.requests["PATCH nodes"] == joined
    assert figures.requests["GET nodes"] <= 1.2 * joined
    assert figures.requests["POST events"] <= JOINING + 1, "an Event for each release"
    assert figures.decisions["nodes"] <= 9 * joined


def test_release_of_a_joining_node_waits_only_for_the_network() -> None:
    """While 2,000 nodes roll out, with a slow API server. p99 is 19 s without own workers for
    joining nodes, and 1.69 s without own connections.
    """
    latency = 0.4
    figures = run(Case("join", 2 * NODES, latency=latency))
    slowest = 2 * 1.8 * latency  # of the event and of the patch
    assert figures.released == JOINING
    assert figures.release["p99"] is not None
    assert figures.release["p99"] <= slowest


def test_delete_patches_each_node_and_deletes_each_pod_once() -> None:
    figures = run(Case("delete", NODES))
    requests = dict(figures.requests)
    assert requests.pop("PATCH nodes") == NODES
    assert requests.pop("DELETE pods") == NODES
    assert sum(requests.values()) <= 20, "the finalizer, the Lease and the heartbeat"
    assert figures.decisions["nodes"] <= 2.5 * NODES


def test_operator_keeps_less_than_10_kib_for_each_node() -> None:
    """Allocations of the operator that are in use when 1,000 nodes hold an image (tracemalloc)."""
    figures = run(Case("start", NODES, trace=True))
    assert figures.traced is not None
    assert figures.traced < 10 * 1024 * NODES


def test_heartbeats_cause_no_writes_and_decisions_only_about_flapping_nodes() -> None:
    figures = run(Case("heartbeats", NODES, minutes=10.0))
    assert 2 * NODES < figures.events["nodes"] <= 3 * NODES
    assert figures.decisions["nodes"] <= NODES
    assert not any(key.endswith((" nodes", " pods")) for key in _writes(figures.requests))
    assert figures.requests["LIST nodes"] <= 4, "one resync in 5 minutes, with two pages"


def test_event_of_one_pod_decides_one_share_of_its_node() -> None:
    few, many = (run(Case("shares", 20, prefetches)) for prefetches in (1, 40))
    assert many.requests["POST pods"] == few.requests["POST pods"] == 20
    assert many.decisions["nodes"] <= 1.5 * few.decisions["nodes"]
    # Every share is decided once more, when the Node is read for the new image.
    assert many.decisions["shares"] <= 1.5 * few.decisions["shares"] + 40 * 20


def test_benchmark_node_is_as_large_as_a_real_node_and_encoded_as_json() -> None:
    body = objects.node(4711, "2026-11-28T12:00:00Z")
    assert json.loads(Rendered(body).bytes()) == json.loads(Stored(body).bytes())
    assert 13_000 < len(Rendered(body).bytes()) < 17_000
    assert len(body["status"]["images"]) == 50


def _writes(requests: dict[str, int]) -> list[str]:
    return [key for key in requests if key.startswith(("PATCH", "POST", "PUT", "DELETE"))]
