"""`astray` reports each kind of difference from the converged state."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos import astray
from tests.chaos.history import LABEL, OBSERVED
from tests.unit.chaos.bodies import (
    CACHED,
    FOREIGN,
    GATE,
    GOING,
    Body,
    node,
    pod,
    prefetch,
    target,
)

DONE = {"Ready": "True", "Progressing": "False", "Degraded": "False"}


def settled(*, conditions: dict[str, str] = DONE, **status: Any) -> Body:
    body = prefetch()
    body["status"] = {
        "observedGeneration": 1,
        "nodes": {"desired": 1, "cached": 1, "pulling": 0, "failed": 0, "gated": 0},
        "conditions": [{"type": t, "status": s} for t, s in conditions.items()],
        **status,
    }
    return body


def served(**changes: Any) -> Body:
    facts: dict[str, Any] = {
        "taints": (FOREIGN,),
        "labels": CACHED,
        "annotations": {OBSERVED: "uid-n1/b"},
    }
    return node(**{**facts, **changes})


def test_converged_cluster_has_no_differences() -> None:
    assert astray._prefetches([settled()], [served()], {"p": {}}) == []
    assert astray._node(served(), [settled()]) == []
    pods = [pod(phase="Succeeded")]
    assert astray._pods(pods, [served()], [settled()], everything=True) == []


@pytest.mark.parametrize(
    "body",
    [
        settled(observedGeneration=0),
        settled(nodes={"desired": 1, "cached": 0, "pulling": 1}),
        settled(nodes={"desired": 1, "cached": 1, "gated": 1}),
        settled(nodes={"desired": 2, "cached": 2}),
        settled(failures=[{"node": "n1"}]),
        settled(conditions={**DONE, "Degraded": "True"}),
        {**settled(), "metadata": {**settled()["metadata"], **GOING}},
    ],
)
def test_unsettled_prefetch_is_reported(body: Body) -> None:
    assert astray._prefetches([body], [served()], {"p": {}})


def test_unexpected_or_missing_prefetch_is_reported() -> None:
    assert astray._prefetches([settled()], [served()], {})
    assert astray._prefetches([], [served()], {"p": {}})


@pytest.mark.parametrize(
    "changes",
    [
        {"taints": (FOREIGN, GATE)},
        {"labels": {}},
        {"labels": {LABEL + "p": target("earlier:1")}},
        {"labels": {**CACHED, LABEL + "gone": "0" * 12}},
        {"annotations": {}},
        {"boot": "another"},
    ],
)
def test_held_node_and_wrong_labels_or_annotations_are_reported(changes: dict[str, Any]) -> None:
    assert astray._node(served(**changes), [settled()])


@pytest.mark.parametrize(
    "pods",
    [
        [],
        [pod(phase="Running")],
        [pod(phase="Failed")],
        [pod(phase="Succeeded", **GOING)],
        [pod(phase="Succeeded"), pod("again", phase="Succeeded")],
        [pod(phase="Succeeded"), pod("lost", on="gone", phase="Succeeded")],
    ],
)
def test_missing_surplus_or_unfinished_puller_pods_are_reported(pods: list[Body]) -> None:
    assert astray._pods(pods, [served()], [settled()], everything=False)


def test_pods_that_await_garbage_collection_are_reported_only_at_the_end() -> None:
    pods = [pod(phase="Succeeded"), pod("lost", on="gone", **GOING)]
    assert astray._pods(pods, [served()], [settled()], everything=False) == []
    assert astray._pods(pods, [served()], [settled()], everything=True)
