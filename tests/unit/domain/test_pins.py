"""Stable groups, finished pods that pin images, and the room of shared images."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegate.domain.disk import Usage
from imagegate.domain.facts import (
    IMAGES_PER_POD,
    Group,
    Image,
    ImageFacts,
    ImageSize,
    LayerFacts,
    Listed,
    Node,
    Pod,
    Prefetch,
    RolloutSpec,
)
from imagegate.domain.share import Share
from tests.unit.domain.cases import NOW, creates, decide, deletes, gated, node, view
from tests.unit.domain.cases import prefetch as bare

GB = 10**9
AMD64 = "linux/amd64"


def prefetch(*images: Image, name: str = "llm", **changes: Any) -> Prefetch:
    return bare(name, images=images, **{"max_usage": 75, **changes})


def named(*numbers: int, secrets: tuple[str, ...] = ()) -> tuple[Image, ...]:
    references = (f"reg.test/i{n}:1" for n in numbers)
    return tuple(Image(reference, secrets, listed_as=reference) for reference in references)


def finished(of: Prefetch, on: Node, group: Group, **changes: Any) -> Pod:
    facts = Pod(
        name=f"ipf-{group.key}",
        namespace=of.namespace,
        uid=f"uid-{group.key}",
        version=9,
        node=on.name,
        prefetch=of.name,
        group=group.key,
        images=group.references,
        observed=on.identity,
        created_at=NOW - 600,
        phase="Succeeded",
        finished_at=NOW - 500,
    )
    return dataclasses.replace(facts, **changes)


def holding(of: Prefetch) -> Node:
    return node(platform=AMD64, labels={of.label: of.target}, observed="node-uid/boot-1")


# ---- groups


@given(st.permutations(range(20)))
def test_the_order_of_the_images_changes_no_group(order: list[int]) -> None:
    plain, shuffled = prefetch(*named(*range(20))), prefetch(*named(*order))
    assert {g.key for g in plain.groups} == {g.key for g in shuffled.groups}


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=63), st.integers(0, 10**6))
def test_one_more_image_changes_one_group_or_splits_it(numbers: set[int], new: int) -> None:
    before = {g.key: g for g in prefetch(*named(*sorted(numbers - {new}))).groups}
    after = {g.key: g for g in prefetch(*named(new, *sorted(numbers - {new}))).groups}
    assert len(before.keys() - after.keys()) <= 1
    touched = [after[key] for key in after.keys() - before.keys()]
    assert sum(len(group.images) for group in touched) <= IMAGES_PER_POD + 1
    assert all(len(group.references) <= IMAGES_PER_POD for group in after.values())
    assert sum(len(group.images) for group in after.values()) == len(numbers | {new})


def test_one_more_image_creates_at_most_two_pods() -> None:
    before = prefetch(*named(*range(1, 64)))
    after = prefetch(*named(0, *range(1, 64)))
    on = holding(before)
    pods = tuple(finished(before, on, group) for group in before.groups)
    usage = Usage(capacity=100 * GB, used=GB)
    plan = decide(view(on, Share(after, pods=pods, has_slot=True), usage=usage))
    assert 1 <= len(creates(plan)) <= 2
    assert deletes(plan) == [], "the node does not hold the new target yet"


# ---- pins


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("slot", [False, True])
def test_a_renamed_secret_creates_no_pod(paused: bool, slot: bool) -> None:
    rollout = RolloutSpec(paused=paused)
    before = prefetch(*named(*range(12), secrets=("old",)), rollout=rollout)
    after = prefetch(*named(*range(12), secrets=("new",)), rollout=rollout)
    assert before.target == after.target
    on = holding(before)
    pods = tuple(finished(before, on, group) for group in before.groups)
    plan = decide(view(on, Share(after, pods=pods, has_slot=slot)))
    assert plan.actions == ()


def test_pods_of_differently_spread_groups_also_pin_images() -> None:
    asked = prefetch(*named(*range(12)))
    on = holding(asked)
    references = [image.reference for image in asked.images]
    halves = [Group(f"old-{i}", tuple(references[i : i + 8]), ()) for i in (0, 8)]
    pods = tuple(finished(asked, on, half) for half in halves)
    assert decide(view(on, Share(asked, pods=pods, has_slot=True))).actions == ()


def test_a_pin_is_deleted_only_after_its_replacement_has_finished() -> None:
    asked = prefetch(*named(1))
    (group,) = asked.groups
    on = holding(asked)
    old = dataclasses.replace(
        finished(asked, on, group), group="earlier", namespace="team-old", uid="old", name="old"
    )
    alone = decide(view(on, Share(asked, pods=(old,), has_slot=True)))
    assert deletes(alone) == []
    assert len(creates(alone)) == 1
    new = finished(asked, on, group, phase="Pending", finished_at=None, created_at=NOW)
    assert deletes(decide(view(on, Share(asked, pods=(old, new), has_slot=True)))) == []
    done = dataclasses.replace(new, phase="Succeeded", finished_at=NOW)
    (delete,) = deletes(decide(view(on, Share(asked, pods=(old, done), has_slot=True))))
    assert delete.pod == old


def test_a_pod_of_unwanted_images_is_deleted_after_the_new_label() -> None:
    before, after = prefetch(*named(1)), prefetch(*named(2))
    on = holding(after)
    pods = (
        finished(before, on, before.groups[0]),
        finished(after, on, after.groups[0]),
    )
    (delete,) = deletes(decide(view(on, Share(after, pods=pods))))
    assert delete.pod == pods[0]


# ---- disks


def sized(images: tuple[Image, ...], *layers: tuple[int, int]) -> dict[str, ImageFacts]:
    """Each of these images has the shared layers (key, bytes) and 0.5 GB of its own."""
    return {
        image.reference: ImageFacts(
            sizes={
                AMD64: ImageSize(
                    sum(size for _, size in layers) + GB // 2,
                    layers=(
                        *(LayerFacts(size, key=key) for key, size in layers),
                        LayerFacts(GB // 2, key=1000 + index),
                    ),
                )
            }
        )
        for index, image in enumerate(images)
    }


def test_an_image_of_two_prefetches_takes_its_room_once() -> None:
    images = named(1)
    sizes = {images[0].reference: ImageFacts(sizes={AMD64: ImageSize(10 * GB)})}
    a, b = prefetch(*images, name="a"), prefetch(*images, name="b")
    usage = Usage(capacity=100 * GB, used=20 * GB)
    joining = gated(platform=AMD64)
    pulling = finished(a, joining, a.groups[0], phase="Pending", finished_at=None)
    plan = decide(
        view(
            joining,
            Share(a, pods=(pulling,), has_slot=True, images=sizes),
            Share(b, has_slot=True, images=sizes),
            usage=usage,
        )
    )
    assert len(creates(plan)) == 1
    assert plan.standings["b"].failure is None
    assert plan.held


def test_images_that_the_node_holds_need_no_room() -> None:
    images = named(1, 2)
    sizes = {i.reference: ImageFacts(sizes={AMD64: ImageSize(10 * GB)}) for i in images}
    a, b = prefetch(*images, name="a"), prefetch(*images, name="b")
    usage = Usage(capacity=100 * GB, used=80 * GB)
    on = node(platform=AMD64, labels={a.label: a.target}, observed="node-uid/boot-1")
    kept = tuple(finished(a, on, group) for group in a.groups)
    shares = (Share(a, pods=kept, images=sizes), Share(b, has_slot=True, images=sizes))
    for held in (on, dataclasses.replace(on, listed={i.listed_as: Listed(1) for i in images})):
        plan = decide(view(held, *shares, usage=usage))
        assert len(creates(plan)) == 1
        assert plan.standings["b"].failure is None


def test_layers_that_images_share_take_their_room_once() -> None:
    images = named(1, 2, 3)
    asked = prefetch(*images)
    sizes = sized(images, (1, 7 * GB + GB // 2))  # 3 x 8 GB; (7.5 + 3 x 0.5) x 3.5 = 31.5 GB
    usage = Usage(capacity=100 * GB, used=40 * GB)
    on = node(platform=AMD64, wanted=frozenset(i.listed_as for i in images))
    plan = decide(view(on, Share(asked, has_slot=True, images=sizes), usage=usage))
    assert len(creates(plan)) == 1
    full = Usage(capacity=100 * GB, used=50 * GB)
    plan = decide(view(on, Share(asked, has_slot=True, images=sizes), usage=full))
    assert plan.standings["llm"].failure is not None


def test_a_pull_waits_for_the_room_of_pulls_in_flight() -> None:
    one, two = named(1), named(2)
    sizes = {i.reference: ImageFacts(sizes={AMD64: ImageSize(8 * GB)}) for i in (*one, *two)}
    a, b = prefetch(*one, name="a"), prefetch(*two, name="b")
    usage = Usage(capacity=100 * GB, used=40 * GB)
    on = gated(platform=AMD64, wanted=frozenset(i.listed_as for i in (*one, *two)))
    pulling = finished(a, on, a.groups[0], phase="Pending", finished_at=None)
    share = Share(b, has_slot=True, images=sizes)
    plan = decide(view(on, Share(a, pods=(pulling,), images=sizes), share, usage=usage))
    assert plan.actions == ()
    assert plan.held
    assert plan.standings["b"].failure is None
    assert plan.requeue_at is not None
    assert plan.requeue_at > NOW
    full = dataclasses.replace(usage, used=60 * GB)
    plan = decide(view(on, Share(a, pods=(pulling,), images=sizes), share, usage=full))
    assert plan.standings["b"].failure is not None, "it would not fit alone either"
