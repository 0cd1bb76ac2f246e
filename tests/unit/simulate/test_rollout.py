"""Simulated rollouts: figures that were computed by hand, what is conserved, and the operator's own
decisions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from imagegate.domain.facts import Prefetch, RetrySpec, RolloutSpec
from imagegate.domain.forecast import Rates
from imagegate.metrics import Metrics
from imagegate.runtime.reconcile.slots import Slots
from imagegate.simulate.course import Course
from imagegate.simulate.rollout import Rollout, simulate
from imagegate.simulate.strategies import Strategy, compared
from imagegate.simulate.world import InvalidWorld, World, cut

GB = 10**9
PREFETCH = Prefetch("llm", "uid", 1)
TWO = World(
    nodes=2,
    zones=1,
    layers=(GB,),
    rates=Rates(node=100e6, registry=100e6, unpack=200e6),
    latency=1.0,
    spread=0.0,
)
"""A pull alone takes 1 s, then 10 s for the transfer, then 5 s for the unpacking."""
MANY = World(nodes=60, zones=3, layers=cut(GB, 4), rates=Rates(registry=1e9))


def strategies(nodes: int, **rollout: Any) -> dict[str, Strategy]:
    prefetch = dataclasses.replace(PREFETCH, rollout=RolloutSpec(**rollout))
    return {each.name: each for each in compared(prefetch, nodes)}


def courses(world: World, pass_interval: float = 0.2, **rollout: Any) -> dict[str, Course]:
    return {
        name: simulate(world, each, pass_interval)
        for name, each in strategies(world.nodes, **rollout).items()
    }


def running(course: Course) -> Iterator[int]:
    """How many nodes have begun and are not cached, after each event, without failures."""
    ends = [(at, -1) for at in course.cached_at]
    count = 0
    for _, step in sorted([*ends, *((at, 1) for at, _ in course.started)]):
        count += step
        yield count


# ---- by hand


def test_two_nodes_by_hand() -> None:
    made = courses(TWO, 0.0, max_parallel=100)
    # Two transfers share 100 MB/s: 1 s, 20 s and 5 s.
    assert made["all at once"].cached_at == pytest.approx([26, 26])
    assert made["fixed waves"].cached_at == pytest.approx([26, 26])
    # One seed, and then the other node.
    assert made["slow start"].cached_at == pytest.approx([16, 32])
    # The operator gathers changes for 0.2 s, before each of the two pulls.
    assert courses(TWO, 0.2)["slow start"].cached_at == pytest.approx([16.2, 32.4])


def test_slow_start_by_hand() -> None:
    """1 seed, then twice as many nodes as are cached, at most 6 at a time: 1, 2, 6, 1."""
    world = dataclasses.replace(TWO, nodes=10, rates=Rates(100e6, registry=1e12, unpack=200e6))
    course = courses(world, 0.0, max_parallel=6, percent=False)["slow start"]
    assert course.cached_at == pytest.approx([16] + [32] * 2 + [48] * 6 + [64])


def test_layers_by_hand() -> None:
    """Three layers arrive at a time, and are unpacked in order: at 6 s all three, at 8 s the
    fourth; the unpacking takes 4 s a layer from 6 s on.
    """
    world = dataclasses.replace(
        TWO, nodes=1, layers=(200_000_000,) * 4, rates=Rates(100e6, registry=1e12, unpack=50e6)
    )
    world = dataclasses.replace(world, latency=0.0)
    assert courses(world, 0.0)["slow start"].cached_at == pytest.approx([6 + 4 * 4])


def test_mirror_by_hand() -> None:
    """The first node fetches the layer for 10 s. The other waits for it, and then gets it from the
    mirror in 20 s.
    """
    world = dataclasses.replace(TWO, mirror=50e6, rates=Rates(100e6, registry=1e12, unpack=200e6))
    course = courses(world, 0.0)["all at once"]
    # Through the mirror both transfers have 50 MB/s: 1 + 20 + 5, and 20 s later the other node.
    assert course.cached_at == pytest.approx([26, 46])
    assert course.registry_bytes == GB


# ---- conservation


@pytest.mark.parametrize("seed", range(3))
def test_the_registry_sends_the_image_to_each_node_or_to_each_mirror(seed: int) -> None:
    world = dataclasses.replace(MANY, seed=seed)
    for course in courses(world).values():
        assert course.registry_bytes == pytest.approx(60 * GB)
        assert integral(course) == pytest.approx(60 * GB)
    mirrored = dataclasses.replace(world, mirror=500e6)
    for course in courses(mirrored).values():
        assert course.registry_bytes == pytest.approx(3 * GB)
        assert integral(course) == pytest.approx(3 * GB)


def integral(course: Course) -> float:
    ends = [at for at, _ in course.registry_rates[1:]] + [course.ended_at]
    return sum(
        rate * (end - at) for (at, rate), end in zip(course.registry_rates, ends, strict=True)
    )


def test_no_link_carries_more_than_its_bandwidth() -> None:
    for course in courses(MANY).values():
        assert course.registry_peak <= 1e9 * (1 + 1e-9)
        assert course.cached_at[-1] >= 60, "60 GB at 1 GB/s"


# ---- the operator's decisions


@pytest.mark.parametrize("failure_rate", [0.0, 0.3])
def test_passes_grant_what_the_operators_slots_grant(
    failure_rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Slots.grant`, with the same entry, gives the same nodes a slot, in the same order."""
    world = dataclasses.replace(MANY, failure_rate=failure_rate, registry_pulls=8)
    passes: list[tuple[str, ...]] = []
    original = Rollout.pass_
    metrics = Metrics(CollectorRegistry(), version="1", host="test")

    def checked(self: Rollout) -> tuple[str, ...]:
        entry = dataclasses.replace(self.entry, slots=set(self.entry.slots))
        known, queue = _Known(entry), _Queue()
        Slots(known, queue, metrics).grant(strategy.prefetch)  # type: ignore[arg-type]
        granted = original(self)
        assert list(granted) == queue.added
        passes.append(granted)
        return granted

    monkeypatch.setattr(Rollout, "pass_", checked)
    strategy = strategies(60, max_parallel=50)["slow start"]
    course = simulate(world, strategy)
    assert sum(map(len, passes)) == len(course.started) >= 60
    assert course.complete


class _Known:
    """What `Slots` needs of `Knowledge`: one entry."""

    def __init__(self, entry: Any) -> None:
        self.store = self.gate = None
        self.ledger = self
        self.entry = lambda _: entry


class _Queue:
    def __init__(self) -> None:
        self.added: list[str] = []

    def add(self, node: str, *, urgent: bool) -> None:
        assert not urgent
        self.added.append(node)


@pytest.mark.parametrize("parallel", [1, 5, 12])
def test_no_more_than_max_parallel_nodes_pull(parallel: int) -> None:
    made = courses(MANY, max_parallel=parallel, percent=False)
    for name in ("fixed waves", "slow start"):
        assert made[name].most_pulls == max(running(made[name])) == parallel
    assert made["all at once"].most_pulls == 60
    assert [made[n].exposed for n in ("all at once", "fixed waves")] == [60, parallel]
    assert made["slow start"].exposed == min(3, parallel)


def test_a_wave_begins_when_the_wave_before_it_is_complete() -> None:
    course = courses(MANY, max_parallel=20, percent=False)["fixed waves"]
    begins = sorted({at for at, _ in course.started})
    assert len(begins) == 3
    assert begins[1:] == pytest.approx([course.cached_at[19] + 0.2, course.cached_at[39] + 0.2])


def test_failures_are_tried_again_after_the_back_off_and_send_more_bytes() -> None:
    world = dataclasses.replace(MANY, failure_rate=0.3)
    for course in courses(world).values():
        assert course.complete
        assert course.failed > 5
        assert len(course.started) == 60 + course.failed
        assert 60 * GB < course.registry_bytes < 60 * GB + course.failed * GB
    for course in courses(dataclasses.replace(world, mirror=500e6)).values():
        assert course.complete
        assert course.registry_bytes >= 3 * GB


def test_a_registry_that_refuses_makes_the_operator_slow_down() -> None:
    world = dataclasses.replace(MANY, registry_pulls=4)
    made = courses(world)
    assert made["all at once"].complete
    assert made["all at once"].refused >= 56
    (strategy,) = (s for s in compared(PREFETCH, 60) if s.name == "all at once")
    stubborn = simulate(world, dataclasses.replace(strategy, throttled=False))
    assert made["all at once"].refused < stubborn.refused
    assert courses(world, max_parallel=4, percent=False)["slow start"].refused == 0


def test_pull_that_misses_its_deadline_goes_on_and_counts_as_failed() -> None:
    prefetch = dataclasses.replace(PREFETCH, retry=RetrySpec(timeout=8.0, minimum=1.0))
    course = simulate(TWO, compared(prefetch, 2)[0], 0.0)
    assert course.failed >= 2
    assert course.registry_bytes == pytest.approx(2 * GB), "no byte is sent twice"
    assert course.complete


def test_rollout_that_cannot_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegate.simulate.rollout.MOST_ATTEMPTS", 1)
    course = courses(dataclasses.replace(MANY, failure_rate=0.9))["all at once"]
    assert not course.complete
    assert course.seconds_to(100) is None


def test_same_seed_gives_the_same_course() -> None:
    world = dataclasses.replace(MANY, failure_rate=0.1, mirror=1e9)
    assert courses(world) == courses(world)
    other = courses(dataclasses.replace(world, seed=2))
    assert other["slow start"].cached_at != courses(world)["slow start"].cached_at


def test_figures_of_1000_nodes_are_kept() -> None:
    """A change of these figures is a change of the operator's rules, or of the model."""
    made = courses(dataclasses.replace(World(), layers=cut(2 * GB, 4), mirror=1.2e9))
    assert {name: round(course.cached_at[-1]) for name, course in made.items()} == {
        "all at once": 573,
        "fixed waves": 853,
        "slow start": 663,
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"zones": 4, "nodes": 3}, "zones"),
        ({"zones": 0}, "zones"),
        ({"layers": ()}, "layers"),
        ({"layers": (1, 0)}, "layers"),
        ({"failure_rate": 0.95}, "failure rate"),
        ({"registry_pulls": 0}, "registry pulls"),
    ],
)
def test_impossible_world_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidWorld, match=problem):
        World(**changes)


def test_layers_are_cut_as_told() -> None:
    assert cut(10, 3) == (4, 3, 3)
    assert cut(10, 3, 6) == (2, 2, 6)
    assert cut(10, 1, 10) == (10,)
    for largest in (2, 10):
        with pytest.raises(InvalidWorld, match="largest layer"):
            cut(10, 3, largest)
