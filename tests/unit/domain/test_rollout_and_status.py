"""The slots of a rollout; the status and its conditions."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imagegate.api import fields
from imagegate.domain import rollout, status
from imagegate.domain.facts import Attempts, NodeState, RolloutSpec
from imagegate.domain.rollout import Domain, RolloutView
from imagegate.domain.status import Failure, Tally
from imagegate.domain.throttle import Throttle
from tests.unit.domain.cases import prefetch


def spec(**changes: Any) -> RolloutSpec:
    return dataclasses.replace(RolloutSpec(max_parallel=100), **changes)


def test_percent_rounds_down_but_at_least_one_may_pull() -> None:
    assert RolloutSpec(10).parallel(9) == 1
    assert RolloutSpec(10).parallel(4812) == 481
    assert RolloutSpec(7, percent=False).parallel(3) == 7


def test_every_domain_gets_its_seeds_before_a_domain_gets_more() -> None:
    waiting = tuple((f"{zone}{n}", zone) for zone in "abc" for n in range(5))
    domains = {zone: Domain(nodes=5) for zone in "abc"}
    assert rollout.grant(RolloutView(spec(), domains, waiting=waiting)) == ("a0", "b0", "c0")


def test_twice_as_many_nodes_pull_as_are_cached() -> None:
    domains = {"a": Domain(nodes=100, cached=3, busy=2)}
    waiting = tuple((f"n{n:02}", "a") for n in range(50))
    assert len(rollout.grant(RolloutView(spec(), domains, waiting=waiting))) == 4


def test_a_pause_stops_nodes_in_service_but_not_joining_nodes() -> None:
    view = RolloutView(
        spec(paused=True), {"a": Domain(nodes=10)}, joining=("new",), waiting=(("old", "a"),)
    )
    assert rollout.grant(view) == ("new",)
    assert rollout.total_allowed(view) == 0


def test_failed_seeds_retry_while_the_other_nodes_of_their_domain_wait() -> None:
    waiting = (("n1", "a"), ("n2", "a"), ("n3", "b"))
    failed = Domain(nodes=2, failing=frozenset({"n1"}), failing_permanently=1)
    view = RolloutView(spec(), {"a": failed, "b": Domain(nodes=1)}, waiting=waiting)
    assert rollout.grant(view) == ("n1", "n3")
    assert rollout.stopped(view) == ("a",)
    passing = dataclasses.replace(failed, failing_permanently=0)
    view = RolloutView(spec(), {"a": passing}, waiting=waiting[1:2])
    assert rollout.grant(view) == ("n2",), "a failure that may pass is tried once more"
    twice = dataclasses.replace(passing, failing=frozenset({"n1", "n3"}))
    assert rollout.grant(RolloutView(spec(), {"a": twice}, waiting=waiting[1:2])) == ()
    cured = dataclasses.replace(failed, cached=1)
    assert rollout.grant(RolloutView(spec(), {"a": cured}, waiting=waiting[1:2])) == ("n2",)


def test_condition_seeds_failed_names_domain_cause_and_remedy() -> None:
    body = status.prefetch_status(
        prefetch(), dataclasses.replace(tally(1, failed=1, pending=9), stopped=("zone-a",)), 0.0
    )
    degraded = next(c for c in body["conditions"] if c["type"] == "Degraded")
    assert degraded["reason"] == "SeedsFailed"
    for part in ("zone-a", "node-0", "push the image"):
        assert part in degraded["message"]


def test_a_long_message_keeps_its_end_where_the_cause_is() -> None:
    long = f'failed to pull "{"r.test/" + "a" * 600}": connection reset by peer'
    failed = status.Failure("n", Attempts(count=1, reason="RegistryUnreachable", message=long))
    counted = status.Tally(counts={NodeState.PENDING: 1}, gated=0, failures=(failed,))
    body = status.prefetch_status(prefetch(), counted, 0.0)
    said = body["failures"][0]["message"]
    assert len(said) == status.MAX_MESSAGE
    assert said.startswith("failed to pull")
    assert said.endswith("connection reset by peer")


def test_refusals_halve_the_limit_and_successes_raise_it_again() -> None:
    seen = Throttle()
    seen = seen.after_refusal(0.0, 40)
    assert seen.bound(40) == 40, "one refusal is not a burst"
    seen = seen.after_refusal(1.0, 40)
    assert seen.bound(40) == 20
    seen = seen.after_refusal(2.0, 20)
    assert seen.bound(40) == 20, "the effect of a halving takes time"
    seen = seen.after_refusal(20.0, 20)
    assert seen.bound(40) == 10
    for number in range(15):
        seen = seen.after_success(21.0 + number, 40)
    assert seen.bound(40) == 25
    for number in range(15):
        seen = seen.after_success(40.0 + number, 40)
    assert seen.limit is None


def test_rare_refusals_among_many_successes_are_no_burst() -> None:
    seen = Throttle()
    for number in range(100):
        seen = seen.after_success(float(number) / 10, 40)
    seen = seen.after_refusal(10.0, 40).after_refusal(10.1, 40)
    assert seen.limit is None


def test_the_limit_never_falls_below_one() -> None:
    seen = Throttle()
    for number in range(50):
        seen = seen.after_refusal(number * 20.0, seen.bound(8))
    assert seen.bound(8) == 1
    alone = Throttle()
    for number in range(5):
        alone = alone.after_refusal(number * 20.0, 1)
    assert alone.limit is None, "a limit of one cannot be halved"


@given(
    limit=st.integers(1, 20),
    figures=st.dictionaries(
        st.sampled_from("abcd"),
        st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 10)),
        min_size=1,
    ),
    joining=st.integers(0, 10),
    joining_busy=st.integers(0, 5),
    gate=st.integers(1, 12),
    registry_limit=st.none() | st.integers(1, 20),
    seeds=st.integers(1, 3),
)
def test_slots_keep_to_max_parallel_and_never_stop_the_rollout(
    limit: int,
    figures: dict[str, tuple[int, int, int]],
    joining: int,
    joining_busy: int,
    gate: int,
    registry_limit: int | None,
    seeds: int,
) -> None:
    domains = {
        name: Domain(nodes=max(nodes, cached + busy), cached=cached, busy=busy)
        for name, (nodes, cached, busy) in figures.items()
    }
    waiting = tuple(
        (f"{name}{n}", name)
        for name, domain in domains.items()
        for n in range(domain.nodes - domain.cached - domain.busy)
    )
    view = RolloutView(
        RolloutSpec(limit, percent=False, seeds=seeds),
        domains,
        gate=gate,
        joining_busy=joining_busy,
        joining=tuple(f"new{n}" for n in range(joining)),
        waiting=waiting,
        throttle=Throttle(limit=registry_limit),
    )
    granted = rollout.grant(view)
    assert len(set(granted)) == len(granted)
    new = [node for node in granted if node.startswith("new")]
    busy = view.busy + joining_busy
    assert len(granted) - len(new) + view.busy <= max(limit, view.busy)
    assert len(new) + joining_busy <= max(gate, joining_busy)
    assert registry_limit is None or len(granted) + busy <= max(registry_limit, busy)
    if busy == 0 and (waiting or joining):
        assert granted, "no node pulls and no node may pull: the rollout would stop"
    assert new == [f"new{n}" for n in range(len(new))], "first come, first served"
    assert list(granted[: len(new)]) == new, "joining nodes go first, because pods wait for them"
    free = min(gate - joining_busy, joining) if registry_limit is None else 0
    assert len(new) >= free, "nodes in service take nothing from joining nodes"


def tally(failures: int = 0, **counts: int) -> Tally:
    worst = Attempts(
        count=9,
        reason="ImageNotFound",
        message="not found" + "x" * 5000,
        image="reg.test/llm:1",
        permanent=True,
        next_at=2_000_000.0,
    )
    return Tally(
        counts={NodeState(state): number for state, number in counts.items()},
        gated=0,
        failures=tuple(Failure(f"node-{n}", worst) for n in range(failures)),
    )


def conditions(counted: Tally, now: float = 0.0, **changes: Any) -> dict[str, tuple[str, str]]:
    body = status.prefetch_status(prefetch(**changes), counted, now)
    return {c["type"]: (c["status"], c["reason"]) for c in body["conditions"]}


def test_conditions() -> None:
    assert conditions(tally(cached=3)) == {
        "Ready": ("True", "AllCached"),
        "Progressing": ("False", "Complete"),
        "Degraded": ("False", "AsExpected"),
    }
    assert conditions(tally(cached=1, pulling=1, pending=1))["Progressing"] == ("True", "Pulling")
    assert conditions(tally())["Ready"] == ("False", "NoNodesMatch")
    assert conditions(tally(skipped=2))["Ready"] == ("False", "NodesSkipped")
    assert conditions(tally(1, failed=1))["Degraded"] == ("True", "ImageNotFound")
    paused = RolloutSpec(paused=True)
    assert conditions(tally(pending=1), rollout=paused)["Progressing"] == ("False", "Paused")
    invalid = ("NamespaceNotAllowed", "do this")
    assert conditions(tally(), invalid=invalid)["Degraded"] == ("True", "NamespaceNotAllowed")


def test_a_status_is_bounded_at_any_number_of_failures() -> None:
    body = status.prefetch_status(prefetch(), tally(5000, failed=5000), 0.0)
    assert len(body["failures"]) == 10
    assert len(json.dumps(body)) < 16 * 1024


def test_a_transition_time_stays_until_the_status_flips() -> None:
    first = status.prefetch_status(prefetch(), tally(pulling=1), 1000.0)
    known = prefetch(status=first)
    same = status.prefetch_status(known, tally(pulling=1), 2000.0)
    assert same == first
    flipped = status.prefetch_status(known, tally(cached=1), 2000.0)
    at = {c["type"]: c["lastTransitionTime"] for c in flipped["conditions"]}
    assert at["Ready"] == fields.timestamp(2000.0)
    assert at["Degraded"] == fields.timestamp(1000.0)


def test_skipped_nodes_are_explained_by_the_commonest_reasons() -> None:
    reasons = {f"reason {n}": n for n in range(1, 8)} | {"cordoned": 30}
    counted = dataclasses.replace(tally(cached=2, skipped=58), skips=reasons)
    ready = status.prefetch_status(prefetch(), counted, 0.0)["conditions"][0]
    assert ready["status"] == "True"
    assert ready["message"] == (
        "all images are on 2 of 2 nodes; 58 skipped (30 cordoned, 7 reason 7, 6 reason 6,"
        " 5 reason 5, 4 reason 4)"
    )
