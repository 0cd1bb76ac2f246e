"""The written status: afterwards it equals the wanted status, and no field is written twice."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegate.api import fields
from imagegate.domain import status
from imagegate.domain.facts import (
    ImageFacts,
    ImageSize,
    NodeState,
    Prefetch,
    Refreshed,
    RefreshSpec,
    RolloutSpec,
)
from tests.unit.domain.cases import NOW, prefetch
from tests.unit.memory_api import merge

VALUES = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.text("abc", max_size=1), inner, max_size=3),
    max_leaves=8,
)
STATUSES = st.dictionaries(st.text("abc", max_size=1), VALUES, max_size=3)

TALLY = status.Tally(counts={NodeState.CACHED: 1}, gated=0)
IMAGE = "reg.test/llm:1"
DOWN = Refreshed(NOW, NOW + 60, "reg.test: no connection", 2)
UP = Refreshed(NOW + 60, NOW + 360)
FOLLOWED = prefetch("llm", IMAGE, refresh=RefreshSpec())


def written(of: Prefetch, wanted: dict[str, Any]) -> Prefetch:
    """The prefetch as it is read back after the status was written."""
    return dataclasses.replace(of, status=merge(of.status, status.changes(of.status, wanted)))


@given(STATUSES, STATUSES)
def test_the_status_read_back_equals_the_wanted_status(
    there: dict[str, Any], wanted: dict[str, Any]
) -> None:
    after = merge(there, status.changes(there, wanted))
    assert after == wanted
    assert status.changes(after, wanted) == {}


def test_the_refresh_message_is_removed_when_the_registry_answers_again() -> None:
    failed = written(
        FOLLOWED, status.prefetch_status(FOLLOWED, TALLY, NOW, status.Findings(refreshed=DOWN))
    )
    assert failed.status["refresh"] == {
        "lastCheckTime": fields.timestamp(NOW),
        "nextCheckTime": fields.timestamp(NOW + 60),
        "message": "reg.test: no connection",
    }
    wanted = status.prefetch_status(failed, TALLY, NOW, status.Findings(refreshed=UP))
    after = written(failed, wanted)
    assert "message" not in after.status["refresh"]  # type: ignore[operator]
    again = status.prefetch_status(after, TALLY, NOW, status.Findings(refreshed=UP))
    assert status.changes(after.status, again) == {}


def test_a_restarted_operator_writes_no_refresh_before_its_first_check() -> None:
    for looked in (UP, DOWN):
        first = written(
            FOLLOWED,
            status.prefetch_status(FOLLOWED, TALLY, NOW, status.Findings(refreshed=looked)),
        )
        conditions = {"conditions": first.status["conditions"]}
        wanted = status.prefetch_status(first, TALLY, NOW) | conditions
        assert status.changes(first.status, wanted) == {}


SIZED = {IMAGE: ImageFacts(sizes={"linux/amd64": ImageSize(5_000, 3_000)})}


@pytest.mark.parametrize(
    "first",
    [
        status.prefetch_status(FOLLOWED, TALLY, NOW, status.Findings(SIZED, refreshed=DOWN)),
        {
            "target": "x",
            "images": [{"image": "y"}],
            "refresh": {"message": "z"},
            "future": {"a": 1},
        },
        {"refresh": "not a map", "nodes": {"desired": 3, "other": 1}, "conditions": "x"},
    ],
)
@pytest.mark.parametrize("of", [FOLLOWED, prefetch("llm", IMAGE), prefetch(dry_run=True)])
def test_every_field_is_written_once(first: dict[str, Any], of: Prefetch) -> None:
    before = dataclasses.replace(of, status=first)
    wanted = status.prefetch_status(before, TALLY, NOW)
    after = written(before, wanted)
    assert after.status == wanted
    again = status.prefetch_status(after, TALLY, NOW + 5)
    assert status.changes(after.status, again) == {}


def test_a_paused_rollout_progresses_while_joining_nodes_pull() -> None:
    paused = prefetch(rollout=RolloutSpec(paused=True))
    waits = {NodeState.PENDING: 3}
    for gated, said in ((1, "True"), (0, "False")):
        tally = status.Tally(counts=waits, gated=gated, failures=())
        written = status.prefetch_status(paused, tally, NOW)
        (condition,) = [c for c in written["conditions"] if c["type"] == "Progressing"]
        assert condition["status"] == said


def test_an_invalid_spec_keeps_the_known_digests() -> None:
    first = written(
        FOLLOWED, status.prefetch_status(FOLLOWED, TALLY, NOW, status.Findings(SIZED, refreshed=UP))
    )
    invalid = dataclasses.replace(first, invalid=("NamespaceNotAllowed", "use another"))
    after = written(invalid, status.prefetch_status(invalid, TALLY, NOW))
    for field in ("target", "images", "refresh"):
        assert after.status[field] == first.status[field]


def test_an_invalid_spec_does_not_keep_the_problem_of_the_registry() -> None:
    """Found by random lives: no tag is resolved meanwhile, so the message stayed for hours."""
    first = written(
        FOLLOWED,
        status.prefetch_status(FOLLOWED, TALLY, NOW, status.Findings(SIZED, refreshed=DOWN)),
    )
    assert "message" in first.status["refresh"]  # type: ignore[operator]
    invalid = dataclasses.replace(first, invalid=("NamespaceNotReadable", "create the Role"))
    after = written(invalid, status.prefetch_status(invalid, TALLY, NOW))
    assert "message" not in after.status["refresh"]  # type: ignore[operator]
    assert "lastCheckTime" in after.status["refresh"]  # type: ignore[operator]
    never = dataclasses.replace(invalid, refresh=None)
    assert "refresh" not in written(never, status.prefetch_status(never, TALLY, NOW)).status
