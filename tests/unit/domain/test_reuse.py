"""A decision about a node reuses the outcomes of the last one, and so decides only the shares that
an event concerns. `cases.decide` compares every plan with one that reuses nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from imagegate.domain.disk import Usage
from imagegate.domain.facts import Attempts, ImageFacts, ImageSize, Listed, Node, NodeState
from imagegate.domain.node import NodeView, shares
from imagegate.domain.node import decide as decide_node
from imagegate.domain.share import Share
from imagegate.domain.share import assess as assess_module
from imagegate.domain.share.known import Contents, Passing, Site
from tests.unit.domain.cases import (
    GATE_TAINT,
    NOW,
    START,
    creates,
    decide,
    deletes,
    node,
    pod,
    prefetch,
    view,
)

MANY = 200


@pytest.fixture
def assessed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the prefetches whose share was decided."""
    names: list[str] = []
    assess = assess_module.assess

    def noted(share: Share, *rest: Any) -> Any:
        names.append(share.prefetch.name)
        return assess(share, *rest)

    monkeypatch.setattr(shares, "assess", noted)
    return names


def cached(count: int) -> tuple[Node, list[Share]]:
    """A node that holds the images of so many prefetches, and their finished pods."""
    asked = [prefetch(f"p{n:03}", f"reg.test/p{n}:1") for n in range(count)]
    on = node(observed="node-uid/boot-1", labels={each.label: each.target for each in asked})
    return on, [of(each, on, "Succeeded") for each in asked]


def of(asked: Any, on: Node, phase: str, **changes: Any) -> Share:
    there = pod(asked, on, phase=phase)
    ended = {there.uid: START + 30} if there.finished else {}
    return Share(asked, pods=(there,), finished_at=ended, has_slot=True, **changes)


def after(seen: NodeView, now: float = NOW, **changes: Any) -> NodeView:
    """What is seen after a decision about this view."""
    return dataclasses.replace(seen, before=decide_node(seen, now).decided, **changes)


def test_pod_event_decides_one_share_of_200(assessed: list[str]) -> None:
    on, all_ = cached(MANY)
    running = of(all_[70].prefetch, on, "Running")
    seen = after(view(on, *all_[:70], running, *all_[71:]))
    assert len(assessed) == MANY
    assessed.clear()
    decide_node(dataclasses.replace(seen, shares=tuple(all_)), NOW + 1)
    assert assessed == ["p070"]


def test_label_of_one_prefetch_decides_one_share_of_200(assessed: list[str]) -> None:
    on, all_ = cached(MANY)
    others = {k: v for k, v in on.labels.items() if k != all_[70].prefetch.label}
    seen = after(view(dataclasses.replace(on, labels=others), *all_))
    assessed.clear()
    decide_node(dataclasses.replace(seen, node=on), NOW + 1)
    assert assessed == ["p070"]


def test_nothing_is_decided_where_nothing_has_changed(assessed: list[str]) -> None:
    on, all_ = cached(MANY)
    seen = after(view(on, *all_))
    assessed.clear()
    again = dataclasses.replace(on, version=on.version + 1)
    plan = decide_node(dataclasses.replace(seen, node=again), NOW + 3600)
    assert assessed == []
    assert plan.standings.keys() == {share.prefetch.name for share in all_}
    assert plan.actions == ()


def test_pulls_of_200_prefetches_are_decided_one_by_one(assessed: list[str]) -> None:
    on = node()
    asked = [prefetch(f"p{n:03}", f"reg.test/p{n}:1") for n in range(MANY)]
    pulling = [of(each, on, "Running") for each in asked]
    seen = after(view(on, *pulling))
    assessed.clear()
    done = of(asked[70], on, "Succeeded")
    decide_node(dataclasses.replace(seen, shares=(*pulling[:70], done, *pulling[71:])), NOW + 1)
    assert assessed == ["p070"]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"topology.kubernetes.io/zone": "b"}},
        {"boot_id": "boot-2"},
        {"ready": False},
        {"unschedulable": True},
        {"taints": (GATE_TAINT,)},
        {"deleting": True},
        {"kubelet": (1, 34)},
    ],
)
def test_other_node_facts_decide_every_share(change: Any, assessed: list[str]) -> None:
    on, all_ = cached(3)
    seen = after(view(on, *all_))
    assessed.clear()
    labels = {**on.labels, **change.pop("labels", {})}
    decide_node(
        dataclasses.replace(seen, node=dataclasses.replace(on, labels=labels, **change)), NOW
    )
    assert len(assessed) == 3


def test_clock_that_goes_back_decides_every_share(assessed: list[str]) -> None:
    on, all_ = cached(3)
    seen = after(view(on, *all_), NOW)
    assessed.clear()
    decide_node(seen, NOW - 1)
    assert len(assessed) == 3


def test_share_is_decided_again_at_the_time_it_asked_for(assessed: list[str]) -> None:
    on = node()
    seen = after(view(on, of(prefetch(), on, "Running")))
    due = decide(seen).requeue_at
    assert due is not None
    assessed.clear()
    assert decide_node(seen, due - 0.001).requeue_at == due
    assert assessed == []
    assert deletes(decide_node(seen, due)), "its time is over"
    assert assessed == ["llm"]


def test_decision_with_actions_is_made_again(assessed: list[str]) -> None:
    on = node()
    seen = after(view(on, Share(prefetch(), has_slot=True)))
    assessed.clear()
    assert len(creates(decide_node(seen, NOW))) == 1
    assert assessed == ["llm"]


def test_site_compares_every_fact_that_a_reused_decision_may_read() -> None:
    site = Site(Passing(Contents(node(), ())))
    noted = ("passing", "queued")  # `ShareDecision` notes when these are read
    others = [field.name for field in dataclasses.fields(Site) if field.name not in noted]
    assert site.compared == tuple(getattr(site, name) for name in others)


# ---- random facts, in random order

ATTEMPTS = (
    None,
    Attempts(2, NOW + 60, "ImagePullFailed", "no", at=NOW, pods=2),
    Attempts(1, NOW - 60, "DiskFull", "full", at=NOW - 90, pods=1, permanent=True),
    Attempts(2, NOW + 300, "EvictedByKubelet", "gone", at=NOW - 10, pods=2),
    Attempts(1, NOW + 30, "StaleMirror", "old", at=NOW - 10, pods=1),
)
WAITING = ("", "ErrImagePull", "ImagePullBackOff", "CreateContainerError")
SIZES: Mapping[str, ImageSize] = {"linux/amd64": ImageSize(10**9, 10**9)}


def lives(rng: random.Random) -> Iterator[tuple[NodeView, float]]:
    """What is seen of one node with four prefetches, one change after the other."""
    asked = [
        prefetch(
            f"p{n}",
            f"reg.test/p{n}:1",
            f"reg.test/q{n}:1",
            keep=n % 2 == 0,
            max_usage=(100, 80)[n % 2],
        )
        for n in range(4)
    ]
    on = node(platform="linux/amd64", kubelet=(1, 36))
    known = [Share(each) for each in asked]
    seen, now, uids = view(on), NOW, itertools.count()
    while True:
        now += rng.choice((0.0, 1.0, 4.0, 30.0, 200.0, 1000.0, -2.0))
        index = rng.randrange(4)
        known[index] = _changed_share(known[index], on, now, rng, uids)
        if rng.random() < 0.15:
            on = _changed_node(on, known[index], rng)
        if rng.random() < 0.1:
            seen = dataclasses.replace(
                seen,
                usage=rng.choice((None, Usage(10**11, 10**10), Usage(10**11, 9 * 10**10))),
                unready_since=None if on.ready else rng.choice((now, now - 170.0, now - 200.0)),
                labels_since=rng.choice((None, now, now - 100.0, now - 500.0)),
                seen={i.listed_as: Listed(10**9) for s in known for i in s.prefetch.images}
                if rng.random() < 0.5
                else {},
            )
        seen = dataclasses.replace(seen, node=on, shares=tuple(known))
        yield seen, now


def _changed_node(on: Node, share: Share, rng: random.Random) -> Node:
    asked = share.prefetch
    names = [image.listed_as for image in asked.images]
    without = {k: v for k, v in on.labels.items() if k != asked.label}
    changes: dict[str, Any] = rng.choice(
        (
            {"labels": {**without, asked.label: asked.target}, "observed": on.identity},
            {"labels": {**without, asked.label: "other"}},
            {"labels": without},
            {"ready": not on.ready},
            {"boot_id": f"boot-{rng.randrange(2)}"},
            {"observed": on.identity},
            {"unschedulable": not on.unschedulable},
            {"disk_pressure": not on.disk_pressure},
            {"taints": () if on.taints else (GATE_TAINT,)},
            {"wanted": frozenset(names), "listed": {}, "smallest_listed": 1},
            {"wanted": frozenset(names), "listed": {names[0]: Listed(10**9)}, "smallest_listed": 1},
        )
    )
    return dataclasses.replace(on, **changes)


def _changed_share(
    share: Share, on: Node, now: float, rng: random.Random, uids: Iterator[int]
) -> Share:
    asked, group = share.prefetch, rng.choice(share.prefetch.groups)
    there = pod(
        asked,
        on,
        uid=f"uid-{next(uids)}",
        group=group.key,
        images=group.images,
        phase=rng.choice(("Pending", "Pending", "Running", "Succeeded", "Succeeded", "Failed")),
        waiting=rng.choice(WAITING),
        created_at=now - rng.choice((1.0, 500.0, 900.0, 8000.0)),
        began=rng.random() < 0.5,
        deleting=rng.random() < 0.1,
    )
    pods = rng.choice(((), (there,), (*share.pods, there)[-3:], share.pods))
    attempts = rng.choice(ATTEMPTS)
    images = rng.choice(({}, {i.reference: ImageFacts(sizes=SIZES) for i in asked.images}))
    changes: dict[str, Any] = rng.choice(
        (
            {
                "pods": pods,
                "failed_at": {p.uid: now - rng.choice((1.0, 8.0)) for p in pods if p.waiting},
                "finished_at": {
                    p.uid: now - rng.choice((1.0, 200.0, 400.0))
                    for p in pods
                    if p.finished and rng.random() < 0.8
                },
                "pulled": {p.uid: frozenset(p.images) for p in pods if rng.random() < 0.2},
            },
            {"attempts": {} if attempts is None else {group.key: attempts}},
            {"started": rng.choice(({}, {group.key: there.uid}))},
            {"has_slot": not share.has_slot},
            {"inspected": not share.inspected},
            {"images": images},
        )
    )
    return dataclasses.replace(share, **changes)


@pytest.mark.parametrize("seed", range(20))
def test_reused_outcomes_are_those_of_a_new_decision(seed: int, assessed: list[str]) -> None:
    before, reused, states = None, 0, set[NodeState]()
    for seen, now in itertools.islice(lives(random.Random(seed)), 150):
        assessed.clear()
        plan = decide_node(dataclasses.replace(seen, before=before), now)
        reused += 4 - len(assessed)
        afresh = decide_node(seen, now)
        assert plan == afresh
        assert plan.decided is not None
        assert afresh.decided is not None
        before = plan.decided
        states.update(standing.state for standing in plan.standings.values())
    assert reused > 60
    assert len(states) >= 3
