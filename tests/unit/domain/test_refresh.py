"""Followed tags: the digests that they resolve to, the pulls, and stale mirrors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from imagegate.api import fields
from imagegate.domain import retry, status
from imagegate.domain.effective import adopted, effective, recorded
from imagegate.domain.facts import (
    IMAGES_PER_POD,
    Attempts,
    Image,
    ImageFacts,
    Node,
    NodeState,
    Prefetch,
    Refreshed,
    RefreshSpec,
)
from imagegate.domain.share import Share
from imagegate.domain.share.drift import LISTED_AFTER
from tests.unit.domain.cases import NOW, creates, decide, deletes, node, patches, pod, view

OLD, NEW = (f"sha256:{digit * 64}" for digit in "ab")
TAG = "reg.test:5000/llm:1"


def followed(*images: str, digest: str = NEW, **changes: Any) -> Prefetch:
    declared = Prefetch(
        "llm",
        "llm-uid",
        3,
        images=tuple(Image(image, listed_as=image) for image in images or (TAG,)),
        refresh=RefreshSpec(),
        status={"images": [{"image": i, "digest": digest} for i in images or (TAG,)]},
    )
    return effective(dataclasses.replace(declared, **changes))


@pytest.mark.parametrize(
    ("reference", "listed", "pinned", "listed_pinned"),
    [
        ("reg.test:5000/a:1", "reg.test:5000/a:1", "reg.test:5000/a", "reg.test:5000/a"),
        ("reg.test:5000/a", "reg.test:5000/a:latest", "reg.test:5000/a", "reg.test:5000/a"),
        ("nginx", "docker.io/library/nginx:latest", "nginx", "docker.io/library/nginx"),
        ("[::1]:5000/a:x", "[::1]:5000/a:x", "[::1]:5000/a", "[::1]:5000/a"),
    ],
)
def test_the_pinned_reference_keeps_the_spelling_for_the_credentials(
    reference: str, listed: str, pinned: str, listed_pinned: str
) -> None:
    image = Image(reference, ("s",), listed_as=listed).resolved(NEW)
    assert image.reference == reference
    assert image.pull_secrets == ("s",)
    assert image.pinned == f"{pinned}@{NEW}"
    assert image.listed_as == f"{listed_pinned}@{NEW}"
    assert image.tagged_as == listed
    again = image.resolved(OLD)
    assert (again.pinned, again.tagged_as) == (f"{pinned}@{OLD}", listed)


def test_references_with_a_digest_and_unresolved_tags_stay() -> None:
    digested = Image(f"reg.test/a@{OLD}", listed_as=f"reg.test/a@{OLD}")
    assert digested.resolved(NEW) is digested
    tagged = Image(TAG, listed_as=TAG)
    assert tagged.resolved("") is tagged
    assert tagged.pinned == ""


def test_the_digest_is_part_of_the_target_and_of_the_groups() -> None:
    old, new = followed(digest=OLD), followed(digest=NEW)
    assert len({old.target, new.target, effective(dataclasses.replace(old, status={})).target}) == 2
    assert old.groups[0].key != new.groups[0].key
    assert new.groups[0].references == (TAG, f"reg.test:5000/llm@{NEW}")
    plain = followed(refresh=None)
    assert plain.groups[0].references == (TAG,)
    assert plain.target != new.target


def test_a_followed_image_takes_two_slots_of_a_pod() -> None:
    many = followed(*(f"reg.test/i:{n}" for n in range(9)))
    assert [len(group.images) for group in many.groups] == [4, 4, 1]
    assert all(len(group.references) <= IMAGES_PER_POD for group in many.groups)


@pytest.mark.parametrize(
    "entries",
    [
        None,
        "garbage",
        ["garbage"],
        [{"image": TAG}],
        [{"image": TAG, "digest": "latest"}],
        [{"image": TAG, "digest": f"{NEW}\n"}],
        [{"image": ["x"], "digest": NEW}],
        [{"image": "reg.test/other:1", "digest": NEW}],
    ],
)
def test_values_that_are_no_digests_are_ignored(entries: object) -> None:
    prefetch = followed(status={"images": entries})
    assert prefetch.images[0].digest == ""
    assert TAG not in recorded(prefetch)


def test_no_pull_starts_while_the_status_has_an_outdated_digest() -> None:
    prefetch = followed(digest=OLD)
    assert adopted(prefetch, {TAG: ImageFacts(digest=OLD)})
    assert not adopted(prefetch, {TAG: ImageFacts(digest=NEW)})
    assert adopted(prefetch, {TAG: ImageFacts(problem="away")}), "the known digest stays"
    assert adopted(prefetch, {})
    assert adopted(followed(refresh=None), {TAG: ImageFacts(digest=NEW)})


# ---- on a node


def on_node(*digests: str, **changes: Any) -> Node:
    asked = followed()
    facts: dict[str, Any] = {
        "labels": {asked.label: asked.target},
        "observed": "node-uid/boot-1",
        "tags": {TAG: frozenset(digests)} if digests else {},
        **changes,
    }
    return node(**facts)


def seen(on: Node, attempts: Attempts | None = None, finished: float = NOW - 900) -> Any:
    asked = followed()
    group = asked.groups[0]
    kept = pod(asked, on, phase="Succeeded", images=group.references, finished_at=finished)
    facts = Share(
        asked,
        pods=(kept,),
        has_slot=True,
        attempts={group.key: attempts} if attempts else {},
    )
    return view(on, facts, labels_since=NOW - LISTED_AFTER)


def test_a_tag_with_the_old_image_is_reported_and_pulled_again() -> None:
    plan = decide(seen(on_node(OLD)))
    assert patches(plan)[0].drop_labels == (followed().label,)
    (delete,) = deletes(plan)
    assert delete.remember is not None
    assert delete.remember.reason == "StaleMirror"
    assert OLD in delete.remember.message
    assert NEW in delete.remember.message
    tally = status.Tally(
        counts={NodeState.PENDING: 1}, gated=0, failures=(status.Failure("n1", delete.remember),)
    )
    degraded = status.prefetch_status(followed(), tally, NOW)["conditions"][2]
    assert (degraded["status"], degraded["reason"]) == ("True", "StaleMirror")


@pytest.mark.parametrize(
    "there",
    [on_node(NEW), on_node(OLD, NEW), on_node()],
    ids=["the new image", "one image with two digests", "not among the 50 that are listed"],
)
def test_no_tag_is_reported_as_stale_without_proof(there: Node) -> None:
    plan = decide(seen(there))
    assert plan.actions == ()
    assert plan.standings["llm"].state is NodeState.CACHED


def stale(at: float = NOW - 60, count: int = 1) -> Attempts:
    return Attempts(count, next_at=at + 30, reason="StaleMirror", image=TAG, at=at)


def test_after_a_stale_tag_a_pull_counts_when_the_node_lists_the_image() -> None:
    unlabelled: dict[str, Any] = {"labels": {}}
    waits = decide(seen(on_node(OLD, **unlabelled), stale(), finished=NOW - 10))
    assert waits.actions == ()
    assert waits.requeue_at == NOW - 10 + LISTED_AFTER
    assert waits.standings["llm"].state is NodeState.PENDING
    right = decide(seen(on_node(NEW, **unlabelled), stale(), finished=NOW - 10))
    assert patches(right)[0].set_labels == {followed().label: followed().target}
    later = NOW - 10 + LISTED_AFTER
    wrong = decide(seen(on_node(OLD, **unlabelled), stale(), finished=NOW - 10), later)
    (delete,) = deletes(wrong)
    assert delete.remember is not None
    assert delete.remember.count == 2, "the next pull waits longer"
    assert delete.remember.next_at - later > 50
    unlisted = decide(seen(on_node(**unlabelled), stale(), finished=NOW - 10), later)
    assert patches(unlisted)[0].set_labels, "an image that is not listed proves nothing"


def test_a_new_digest_is_pulled_while_the_old_pod_pins_the_old_image() -> None:
    before, now = followed(digest=OLD), followed(digest=NEW)
    there = node(labels={before.label: before.target}, observed="node-uid/boot-1")
    kept = pod(before, there, phase="Succeeded", images=before.groups[0].references)
    plan = decide(view(there, Share(now, pods=(kept,), has_slot=True)))
    (create,) = creates(plan)
    assert create.group.references == (TAG, f"reg.test:5000/llm@{NEW}")
    assert create.remember is None
    assert deletes(plan) == []


def test_a_new_digest_does_not_cancel_a_pull_of_the_tag_in_flight() -> None:
    before, now = followed(digest=OLD), followed(digest=NEW)
    there = node(observed="node-uid/boot-1")
    pulling = pod(before, there, images=before.groups[0].references)
    plan = decide(view(there, Share(now, pods=(pulling,), has_slot=True)))
    assert plan.actions == ()
    assert plan.standings["llm"].pulling


def test_a_pull_counts_when_the_tag_and_the_digest_are_pulled() -> None:
    asked = followed()
    there = node(observed="node-uid/boot-1")
    pulling = pod(asked, there, images=asked.groups[0].references)

    def after(*pulled: str) -> Any:
        facts = Share(asked, (pulling,), pulled={pulling.uid: frozenset(pulled)}, has_slot=True)
        return decide(view(there, facts))

    assert patches(after(TAG)) == []
    assert patches(after(*asked.groups[0].references))[0].set_labels


# ---- the status


def tally() -> status.Tally:
    return status.Tally(counts={NodeState.CACHED: 1}, gated=0)


def test_the_status_has_the_digest_its_time_and_the_next_check() -> None:
    prefetch = followed(digest=OLD)
    known = {TAG: ImageFacts(digest=NEW)}
    looked = Refreshed(at=NOW, due=NOW + 300)
    body = status.prefetch_status(prefetch, tally(), NOW, status.Findings(known, refreshed=looked))
    assert body["images"] == [
        {"image": TAG, "digest": NEW, "resolvedTime": fields.timestamp(NOW)},
    ]
    assert body["refresh"] == {
        "lastCheckTime": fields.timestamp(NOW),
        "nextCheckTime": fields.timestamp(NOW + 300),
    }
    assert body["target"] == prefetch.target, "the target changes after the digest was written"
    after = effective(dataclasses.replace(prefetch, status=body))
    assert after.images[0].digest == NEW
    later = status.prefetch_status(
        after, tally(), NOW + 900, status.Findings(known, refreshed=looked)
    )
    assert later["images"] == body["images"], "the time stays with the digest"
    away = status.prefetch_status(
        after, tally(), NOW + 900, status.Findings({TAG: ImageFacts(problem="x")}, refreshed=looked)
    )
    assert away["images"] == body["images"]


def test_an_unreachable_registry_is_reported_after_the_second_check() -> None:
    def degraded(failures: int) -> dict[str, Any]:
        looked = Refreshed(NOW, NOW + 60, "reg.test: no connection", failures)
        body = status.prefetch_status(followed(), tally(), NOW, status.Findings(refreshed=looked))
        assert body["refresh"]["message"] == "reg.test: no connection"
        found: dict[str, Any] = body["conditions"][2]
        return found

    assert degraded(1)["status"] == "False"
    assert degraded(2)["reason"] == "RefreshFailed"
    assert "no connection" in degraded(2)["message"]


def test_the_status_has_no_refresh_when_tags_are_not_followed_any_more() -> None:
    prefetch = followed(refresh=None, status={"refresh": {"lastCheckTime": "x"}})
    wanted = status.prefetch_status(prefetch, tally(), NOW)
    assert status.changes(prefetch.status, wanted)["refresh"] is None
    prefetch = followed(refresh=None, status={})
    assert "refresh" not in status.prefetch_status(prefetch, tally(), NOW)


def test_a_stale_tag_is_no_failed_pull() -> None:
    assert retry.outlives_success(stale())
    assert not retry.exhausted(stale(), followed().retry)
