"""Forecasts of the effect of an ImagePrefetch."""

from __future__ import annotations

from typing import Any

import pytest

from imagegate.domain import forecast, status
from imagegate.domain.disk import Usage
from imagegate.domain.facts import (
    Image,
    ImageFacts,
    ImageSize,
    Listed,
    Node,
    Operator,
    Requirement,
    RolloutSpec,
)
from imagegate.domain.forecast import Fleet, Rates
from tests.unit.domain.cases import NOW, node
from tests.unit.domain.cases import prefetch as bare

GB = 10**9
LLM = "reg.test/llm:1"
ZONE = "topology.kubernetes.io/zone"
SIZES = {LLM: ImageFacts(sizes={"linux/amd64": ImageSize(7 * GB)})}


def prefetch(**changes: Any) -> Any:
    return bare(images=(Image(LLM, listed_as=LLM),), max_usage=75, **changes)


def linux(name: str, **changes: Any) -> Node:
    return node(name=name, uid=name, platform="linux/amd64", **changes)


def fleet(count: int, zones: int = 1) -> list[Node]:
    return [linux(f"n{i}", labels={ZONE: f"z{i % zones}"}) for i in range(count)]


def test_every_matching_node_is_counted_once() -> None:
    asked = prefetch(selector=(Requirement("pool", Operator.IN, frozenset({"gpu"})),))
    gpu = {"pool": "gpu"}
    nodes = [
        linux("other"),
        linux("pulls", labels=gpu),
        linux("listed", labels=gpu, listed={LLM: Listed(1)}),
        linux("done", labels={**gpu, asked.label: asked.target}, observed="done/boot-1"),
        linux("cordoned", labels=gpu, unschedulable=True),
        linux("full", labels=gpu),
    ]
    usages = {
        "pulls": Usage(capacity=1000 * GB, used=0),
        "full": Usage(capacity=100 * GB, used=70 * GB),
        "listed": Usage(capacity=100 * GB, used=70 * GB),
    }
    facts = forecast.forecast(asked, SIZES, Fleet(nodes, usages))
    assert (facts.matched, facts.cached, facts.to_pull) == (5, 1, 2)
    assert facts.skipped == {"cordoned": 1}
    assert [name for name, _ in facts.no_room] == ["full"]
    assert facts.bytes_all == facts.bytes_node == 7 * GB
    assert facts.unknown == ()
    text = forecast.summary(facts)
    for part in ("7.0 GB", "2 nodes", "1 nodes have no room", "full", "cordoned 1"):
        assert part in text

    body = status.dry_run_status(asked, facts, NOW, status.Findings(SIZES))
    assert body["nodes"] == {
        "desired": 4,
        "cached": 1,
        "pulling": 0,
        "pending": 2,
        "failed": 1,
        "skipped": 1,
        "gated": 0,
    }
    assert {c["reason"] for c in body["conditions"]} == {"DryRun"}
    assert body["failures"][0]["node"] == "full"


def test_an_image_of_unknown_size_is_reported_with_the_reason() -> None:
    facts = forecast.forecast(prefetch(), {LLM: ImageFacts(problem="no answer")}, Fleet(fleet(2)))
    assert facts.unknown == ((LLM, "no answer"),)
    assert facts.bytes_all == 0
    assert forecast.forecast(prefetch(), {}, Fleet()).unknown == ((LLM, ""),)


def test_a_rollout_without_nodes_takes_no_time() -> None:
    facts = forecast.forecast(prefetch(), SIZES, Fleet())
    assert (facts.matched, facts.seconds_direct, facts.seconds_mirrored) == (0, 0.0, 0.0)


def seconds(count: int, size: int, rollout: RolloutSpec, **rates: float) -> tuple[float, float]:
    sizes = {LLM: ImageFacts(sizes={"linux/amd64": ImageSize(size)})}
    facts = forecast.forecast(prefetch(rollout=rollout), sizes, Fleet(fleet(count)), Rates(**rates))
    return facts.seconds_direct, facts.seconds_mirrored


@pytest.mark.parametrize(
    ("size", "unpack", "direct", "mirrored"),
    [(2, 120e6, 817, 264), (7, 120e6, 2858, 881), (7, 400e6, 2818, 449), (20, 120e6, 8167, 2487)],
)
def test_the_model_is_close_to_a_simulation_with_stragglers(
    size: int, unpack: float, direct: float, mirrored: float
) -> None:
    """The figures of ``reference/performance.md`` 2.2 for 5,000 nodes, three seeds, fan-out 2: they
    have a lognormal spread (sigma 0.35) that the model leaves out, and all nodes start at once.
    """
    everybody = RolloutSpec(max_parallel=5000, percent=False, seeds=3, fanout=2)
    plain, peers = seconds(5000, size * GB, everybody, unpack=unpack)
    assert direct <= plain <= 1.2 * direct
    assert 0.7 * mirrored <= peers <= mirrored


def test_one_node_takes_its_transfer_and_its_unpacking() -> None:
    assert seconds(1, 3 * GB, RolloutSpec()) == pytest.approx((10 + 25, 10 + 25))


def test_the_times_of_pulls_one_at_a_time_add_up() -> None:
    one = RolloutSpec(max_parallel=1, percent=False)
    assert seconds(10, 3 * GB, one)[0] == pytest.approx(350)


def test_nodes_share_the_bandwidth_of_a_slow_registry() -> None:
    many = RolloutSpec(max_parallel=10, percent=False, seeds=10)
    direct, _ = seconds(10, 3 * GB, many, registry=300e6)
    assert direct == pytest.approx(100 + 25)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h"), (720, "12 min")]
)
def test_seconds_for_people(value: float, text: str) -> None:
    assert forecast.duration(value) == text
