"""`imagegate simulate` against a real rollout over kwok nodes, whose pulls all take the same time.

A pull takes 7 s and 36 nodes pull at a time, because the simulation leaves out the time of the API
server and of the operator: on two cores that is 20 to 100 ms for each node, and so a few per cent
here. The rollout of `test_scale` (100 % of 1,000 nodes, 2 s) is bound by that time instead.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

from imagegate.domain import rollout
from imagegate.domain.facts import Prefetch, RolloutSpec
from imagegate.domain.rollout import Domain, RolloutView
from imagegate.simulate.rollout import simulate
from imagegate.simulate.strategies import compared
from imagegate.simulate.world import World
from tests.e2e.installation import Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

NODES = 90
ZONES = 3
PARALLEL = 36
PULL_SECONDS = 7.0
TOLERANCE = 0.1
ROUNDING = 1.0
"""Seconds. The API server and kwok write whole seconds."""


def test_rollout_takes_as_long_as_it_was_simulated(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    spec = RolloutSpec(PARALLEL, percent=False)
    world = World(NODES, ZONES, layers=(1,), latency=PULL_SECONDS, spread=0.0)
    (strategy,) = (
        each
        for each in compared(Prefetch("simulated", "", 0, rollout=spec), NODES)
        if each.name == "slow start"
    )
    course = simulate(world, strategy)
    nodes = cluster.kwok(
        NODES, labels={"pool": "simulated"}, pull_seconds=PULL_SECONDS, zones=ZONES
    )
    image = cluster.push("tiny", "simulate/a:1", seed=53)
    pool = {"matchLabels": {"pool": "simulated"}}
    try:
        imagegate.prefetch(
            "simulated",
            image,
            nodeSelector=pool,
            retention={"mode": "Keep"},
            rollout={"maxParallel": PARALLEL},
        )
        cluster.wait(
            lambda: imagegate.counts("simulated").get("cached") == NODES,
            f"{NODES} nodes cached",
            4 * course.ended_at,
        )
        zones = {
            node["metadata"]["name"]: node["metadata"]["labels"][spec.topology_key]
            for node in cluster.api.get("/api/v1/nodes?labelSelector=pool%3Dsimulated")["items"]
        }
        pods = imagegate.pullers("simulated")
        started = sorted(
            (_seconds(p["metadata"]["creationTimestamp"]), zones[p["spec"]["nodeName"]])
            for p in pods
        )
        ended = sorted((_finished(p), zones[p["spec"]["nodeName"]]) for p in pods)
    finally:
        imagegate.delete("simulated", 120)
        cluster.kwok_delete(nodes)
        cluster.kwok_stop()
    assert len(pods) == NODES, "each node was pulled to once"
    _check_order(spec, zones, started, ended)
    # From the first pod on, because the operator first asks the registry for the image's size.
    simulated_begin, real_begin = course.started[0][0], started[0][0]
    print(f"\n{NODES} nodes, {PULL_SECONDS:g} s a pull: seconds until a share of them was cached")
    late = []
    for percent in (10, 25, 50, 75, 95, 100):
        expected = course.seconds_to(percent)
        assert expected is not None
        expected -= simulated_begin
        took = ended[-(-NODES * percent // 100) - 1][0] - real_begin
        print(f"{percent:3} %  simulated {expected:5.1f}  real {took:5.1f}")
        if abs(took - expected) > TOLERANCE * expected + ROUNDING:
            late.append((percent, expected, took))
    assert not late, "(share, simulated, real)"


def _check_order(
    spec: RolloutSpec,
    zones: dict[str, str],
    started: list[tuple[float, str]],
    ended: list[tuple[float, str]],
) -> None:
    """Pulls began in the simulated order: seeds first, then as many as are allowed by the number of
    cached nodes of their zone. Which node of a zone is first is not determined.
    """
    sizes = Counter(zones.values())
    begun = Counter[str]()
    for at, zone in started:
        begun[zone] += 1
        cached = Counter(name for when, name in ended if when <= at)
        view = RolloutView(spec, {name: Domain(size, cached[name]) for name, size in sizes.items()})
        assert begun[zone] - cached[zone] <= rollout.allowed(view, zone), (at, zone)
        assert begun.total() - cached.total() <= PARALLEL, at
    # Every zone gets its seed before a zone gets a second node.
    assert {zone for _, zone in started[: len(sizes)]} == set(sizes)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _finished(pod: dict[str, dict[str, list[dict[str, dict[str, dict[str, str]]]]]]) -> float:
    statuses = pod["status"]["containerStatuses"]
    return max(_seconds(each["state"]["terminated"]["finishedAt"]) for each in statuses)
