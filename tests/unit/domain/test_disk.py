"""Decisions that depend on sizes of images: disk guard, order, deadlines, and removed images."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from imagegate.domain import disk, failures, retry, status
from imagegate.domain.actions import Postpone
from imagegate.domain.disk import Usage
from imagegate.domain.facts import (
    Attempts,
    GatePolicy,
    GateSpec,
    Image,
    ImageFacts,
    ImageSize,
    Listed,
    Node,
    NodeState,
    Prefetch,
    RetrySpec,
)
from imagegate.domain.match import NO_IMAGE
from imagegate.domain.share import Share
from imagegate.domain.share.drift import LISTED_AFTER
from tests.unit.domain.cases import NOW, creates, decide, deletes, gated, node, patches, pod, view
from tests.unit.domain.cases import prefetch as bare

GB = 10**9
LLM = "reg.test/llm:1"
SMALL = "reg.test/small:1"
AMD64 = "linux/amd64"


def prefetch(*images: str, **changes: Any) -> Prefetch:
    named = tuple(Image(image, listed_as=image) for image in images or (LLM,))
    return bare(images=named, **{"max_usage": 75, **changes})


def sized(**compressed: int) -> dict[str, ImageFacts]:
    names = {"llm": LLM, "small": SMALL}
    return {
        names[key]: ImageFacts(sizes={AMD64: ImageSize(bytes_)})
        for key, bytes_ in compressed.items()
    }


def linux(**changes: Any) -> Node:
    searched = {"wanted": frozenset({LLM, SMALL})}
    return node(**{"platform": AMD64, "capacity": 100 * GB, **searched, **changes})


def share(of: Prefetch, **changes: Any) -> Share:
    return dataclasses.replace(Share(of, has_slot=True, images=sized(llm=4 * GB)), **changes)


def postponed(plan: Any) -> list[Postpone]:
    return [action for action in plan.actions if isinstance(action, Postpone)]


# ---- the guard


def test_no_pull_starts_before_the_disk_usage_is_read() -> None:
    plan = decide(view(linux(), share(prefetch())))
    assert plan.wants_usage
    assert creates(plan) == []
    assert not decide(view(linux(), share(prefetch(max_usage=100)))).wants_usage


@pytest.mark.parametrize(
    ("used", "fits"),
    [(61, True), (61.01, False), (75, False), (10, True), (100, False)],
)
def test_images_that_would_fill_the_disk_are_not_pulled(used: float, fits: bool) -> None:
    usage = Usage(capacity=100 * GB, used=int(used * GB))
    plan = decide(view(linux(), share(prefetch()), usage=usage))
    assert bool(creates(plan)) is fits
    standing = plan.standings["llm"]
    assert (standing.state is NodeState.FAILED) is not fits
    if not fits:
        (put_off,) = postponed(plan)
        assert put_off.remember.reason == "DiskFull"
        for figure in ("14.0 GB", "100.0 GB", "75", f"{used + 14:.0f} %"):
            assert figure in put_off.remember.message
        assert put_off.remember.next_at > NOW + 100, "the next check waits for the longest back-off"
        assert not standing.pulling, "its slot is free for other nodes"


def test_a_full_disk_is_checked_again_when_the_back_off_is_over() -> None:
    usage = Usage(capacity=100 * GB, used=90 * GB)
    first = postponed(decide(view(linux(), share(prefetch()), usage=usage)))[0].remember
    attempts = {prefetch().groups[0].key: first}
    waiting = decide(view(linux(), share(prefetch(), attempts=attempts), usage=usage))
    assert waiting.actions == ()
    assert waiting.requeue_at == first.next_at
    later = decide(view(linux(), share(prefetch(), attempts=attempts)), now=first.next_at)
    assert later.wants_usage
    emptied = Usage(capacity=100 * GB, used=10 * GB)
    again = view(linux(), share(prefetch(), attempts=attempts), usage=emptied)
    assert creates(decide(again, now=first.next_at))


def test_disk_guard_refuses_nothing_before_the_node_was_read_for_the_images() -> None:
    full = Usage(capacity=100 * GB, used=90 * GB)
    read_before = linux(wanted=frozenset({SMALL}), listed={}, smallest_listed=1)
    plan = decide(view(read_before, share(prefetch()), usage=full))
    assert plan.wants_usage, "the Node is read with it"
    assert plan.actions == ()
    empty = Usage(capacity=100 * GB, used=10 * GB)
    assert creates(decide(view(read_before, share(prefetch()), usage=empty)))


@pytest.mark.parametrize("policy", GatePolicy)
def test_a_held_node_without_room_is_released_at_once_under_fail_open(policy: GatePolicy) -> None:
    usage = Usage(capacity=100 * GB, used=90 * GB)
    asked = prefetch(gate=GateSpec(policy=policy))
    joining = gated(platform=AMD64, wanted=frozenset({LLM}))
    plan = decide(view(joining, share(asked), usage=usage))
    if policy is GatePolicy.FAIL_CLOSED:
        assert plan.held
        assert patches(plan) == []
        return
    (patch,) = patches(plan)
    assert patch.release == "failed"
    assert "DiskFull" in patch.message


def test_images_on_the_node_or_in_another_pull_are_counted_once() -> None:
    usage = Usage(capacity=100 * GB, used=55 * GB)
    assert creates(decide(view(linux(), share(prefetch()), usage=usage)))
    other = dataclasses.replace(prefetch(), name="other", uid="other-uid")
    two = decide(view(linux(), share(prefetch()), share(other), usage=usage))
    assert len(creates(two)) == 2, "both have the same image"
    running = share(other, pods=(pod(other, linux()),))
    (second,) = creates(decide(view(linux(), share(prefetch()), running, usage=usage)))
    assert second.prefetch.name == "llm"
    there = linux(listed={LLM: Listed(4 * GB)}, smallest_listed=1)
    assert len(creates(decide(view(there, share(prefetch()), share(other), usage=usage)))) == 2


def test_without_the_disk_usage_only_the_size_of_the_disk_is_checked() -> None:
    unknown = Usage(problem="its kubelet does not answer")
    assert creates(decide(view(linux(), share(prefetch()), usage=unknown)))
    tiny = linux(capacity=10 * GB)
    (put_off,) = postponed(decide(view(tiny, share(prefetch()), usage=unknown)))
    assert "its kubelet does not answer" in put_off.remember.message
    assert creates(decide(view(linux(capacity=0), share(prefetch()), usage=unknown)))


def test_an_image_of_unknown_size_is_pulled_unless_the_disk_is_too_full_already() -> None:
    usage = Usage(capacity=100 * GB, used=74 * GB)
    assert creates(decide(view(linux(), share(prefetch(), images={}), usage=usage)))
    over = dataclasses.replace(usage, used=76 * GB)
    assert not creates(decide(view(linux(), share(prefetch(), images={}), usage=over)))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (7_200_000_000, "7.2 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert disk.size(count) == text


# ---- order, deadline, platform


def test_small_images_come_first_and_images_of_unknown_size_last() -> None:
    asked = prefetch(LLM, SMALL, "reg.test/unknown:1", max_usage=100)
    known = sized(llm=4 * GB, small=1000)
    (create,) = creates(decide(view(linux(), share(asked, images=known))))
    assert create.group.images == (SMALL, LLM, "reg.test/unknown:1")
    assert create.group.key == asked.groups[0].key, "the order does not change the key"


def test_a_first_pull_waits_until_the_registry_was_asked() -> None:
    unasked = share(prefetch(max_usage=100), inspected=False)
    assert creates(decide(view(linux(), unasked))) == []


@pytest.mark.parametrize(
    ("spec", "queued", "seconds"),
    [
        (None, None, 7200),
        (None, 10**6, 900),
        (None, 7 * GB, 2000),
        (60.0, 7 * GB, 60),
        (60.0, None, 60),
    ],
)
def test_the_deadline_depends_on_the_size(
    spec: float | None, queued: int | None, seconds: float | None
) -> None:
    assert retry.deadline(RetrySpec(timeout=spec), queued) == seconds


def test_a_pull_is_given_up_at_the_deadline_for_its_size() -> None:
    asked = prefetch(max_usage=100)
    pulling = share(asked, pods=(pod(asked, linux(), created_at=NOW - 1399),))
    plan = decide(view(linux(), pulling))
    assert deletes(plan) == []
    assert plan.requeue_at == pytest.approx(NOW + 1)
    late = decide(view(linux(), pulling), now=NOW + 1)
    assert deletes(late)[0].remember.reason == "PullTimeout"  # type: ignore[union-attr]
    hangs = share(asked, pods=(pod(asked, linux(), created_at=NOW - 1399, deleting=True),))
    standing = decide(view(linux(), hangs), now=NOW + 1).standings["llm"]
    assert (standing.state, standing.pulling) == ("pulling", False), "its slot is free again"
    unknown = dataclasses.replace(pulling, images={})
    assert deletes(decide(view(linux(), unknown), now=NOW + 5000)) == []
    assert len(deletes(decide(view(linux(), unknown), now=NOW + 10**6))) == 1


def test_a_node_without_an_image_for_its_platform_is_skipped_and_released() -> None:
    absent = {LLM: ImageFacts(missing=frozenset({"linux/arm64"}))}
    asked = prefetch(gate=GateSpec(policy=GatePolicy.FAIL_CLOSED))
    arm = gated(platform="linux/arm64")
    plan = decide(view(arm, share(asked, images=absent)))
    assert plan.standings["llm"].skipped == NO_IMAGE
    assert patches(plan)[0].release == "unmatched"
    amd = decide(view(linux(), share(prefetch(max_usage=100), images=absent)))
    assert creates(amd)
    both = prefetch(LLM, SMALL, max_usage=100)
    partly = decide(view(linux(platform="linux/arm64"), share(both, images=absent)))
    assert creates(partly), "one of the images may exist for its platform"


# ---- removed images


def cached(**changes: Any) -> Node:
    asked = prefetch()
    return linux(
        labels={asked.label: asked.target},
        observed="node-uid/boot-1",
        **{"smallest_listed": 5 * 10**6, "wanted": frozenset({LLM}), **changes},
    )


def seen(
    on: Node,
    of: Prefetch,
    *,
    since: float = NOW - LISTED_AFTER,
    listed: dict[str, Listed] | None = None,
    **changes: Any,
) -> Any:
    usage = Usage(capacity=100 * GB, used=86 * GB)
    kept = pod(of, on, phase="Succeeded", finished_at=NOW - 500)
    facts = share(of, **{"pods": (kept,), **changes})
    return view(
        on,
        facts,
        labels_since=since,
        usage=usage,
        seen={LLM: Listed(3 * GB)} if listed is None else listed,
    )


def test_a_large_image_that_the_kubelet_does_not_list_counts_as_removed() -> None:
    plan = decide(seen(cached(), prefetch()))
    (patch,) = patches(plan)
    assert patch.drop_labels == (prefetch().label,)
    (delete,) = deletes(plan)
    assert delete.remember is not None
    assert delete.remember.reason == "EvictedByKubelet"
    assert "86.0 GB of 100.0 GB (86 %)" in delete.remember.message
    assert plan.standings["llm"].state is not NodeState.CACHED


@pytest.mark.parametrize(
    "changes",
    [
        {"listed": {LLM: Listed(3 * GB)}},
        {"smallest_listed": None},
        {"smallest_listed": 4 * GB},
        {"cut_off": (Listed(3 * GB),)},
    ],
    ids=["it is listed", "nothing is listed", "all that is listed is larger", "a sixth name"],
)
def test_absence_alone_proves_nothing(changes: dict[str, Any]) -> None:
    plan = decide(seen(cached(**changes), prefetch()))
    assert plan.actions == ()
    assert plan.standings["llm"].state is NodeState.CACHED


def test_an_image_with_five_names_hides_no_image_of_another_size() -> None:
    plan = decide(seen(cached(cut_off=(Listed(9 * GB),)), prefetch()))
    assert patches(plan), "it has another size, so it is another image"


def test_images_of_the_same_size_are_distinguished_by_their_digests() -> None:
    one, other = (Listed(3 * GB, frozenset({f"sha256:{digest}"})) for digest in "ab")
    plan = decide(seen(cached(cut_off=(other,)), prefetch(), listed={LLM: one}))
    assert patches(plan)
    plan = decide(seen(cached(cut_off=(one, other)), prefetch(), listed={LLM: one}))
    assert plan.actions == ()


def test_absence_proves_nothing_soon_after_the_pull_or_if_never_listed() -> None:
    assert decide(seen(cached(), prefetch(), listed={})).actions == ()
    soon = decide(seen(cached(), prefetch(), since=NOW - LISTED_AFTER + 1))
    assert soon.actions == ()
    assert soon.requeue_at == NOW + 1, "no event may cause the next decision"


def lost(earlier: Attempts | None, message: str = "gone", now: float = NOW) -> Attempts:
    history = retry.History(earlier, RetrySpec(), key="k", now=now)
    return history.lost(retry.Cause(failures.EVICTED_BY_KUBELET, message, LLM))


def test_repeated_evictions_wait_longer_each_time_and_are_reported() -> None:
    attempts: Attempts | None = None
    waits: list[float] = []
    for _ in range(9):
        attempts = lost(attempts, "gone: 86 %")
        waits.append(attempts.next_at - NOW)
    assert waits[0] == pytest.approx(30, rel=0.11)
    assert waits[:7] == sorted(waits[:7])
    assert waits[-1] == pytest.approx(3600, rel=0.11)
    assert attempts is not None
    later = lost(attempts, now=NOW + retry.STABLE + 1)
    assert later.count == 1, "after some hours the count begins again"

    key = prefetch().groups[0].key
    back = decide(seen(cached(listed={LLM: Listed(3 * GB)}), prefetch(), attempts={key: attempts}))
    standing = back.standings["llm"]
    assert standing.state is NodeState.CACHED
    assert standing.failure == attempts, "the image is back, but the loop is still reported"
    tally = status.Tally(
        counts={NodeState.CACHED: 1}, gated=0, failures=(status.Failure("n1", attempts),)
    )
    body = status.prefetch_status(prefetch(), tally, NOW)
    degraded = next(c for c in body["conditions"] if c["type"] == "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "EvictedByKubelet")
    assert "86 %" in degraded["message"]
    once = dataclasses.replace(attempts, count=1)
    calm = dataclasses.replace(tally, failures=(status.Failure("n1", once),))
    body = status.prefetch_status(prefetch(), calm, NOW)
    assert body["conditions"][2]["status"] == "False"


def test_the_next_pull_of_a_removed_image_waits_for_its_back_off() -> None:
    asked = prefetch()
    gone = lost(None)
    attempts = {asked.groups[0].key: gone}
    bare_node = linux(observed="node-uid/boot-1")
    usage = Usage(capacity=100 * GB, used=10 * GB)
    waiting = decide(view(bare_node, share(asked, attempts=attempts), usage=usage))
    assert creates(waiting) == []
    assert waiting.requeue_at == gone.next_at
    old = pod(asked, bare_node, phase="Succeeded", finished_at=NOW - 500)
    for stale in (old, dataclasses.replace(old, deleting=True)):
        plan = decide(view(bare_node, share(asked, attempts=attempts, pods=(stale,)), usage=usage))
        assert patches(plan) == [], "the images of this pod were removed"
        assert len(deletes(plan)) == (not stale.deleting)
    new = pod(asked, bare_node, phase="Succeeded", finished_at=gone.next_at + 1)
    again = view(bare_node, share(asked, attempts=attempts, pods=(new,)), usage=usage)
    assert patches(decide(again, now=gone.next_at + 2))[0].set_labels
    due = decide(view(bare_node, share(asked, attempts=attempts), usage=usage), now=gone.next_at)
    assert creates(due)[0].attempt == 2


def test_a_refusal_of_the_guard_ends_with_its_cause_but_a_failed_pull_waits() -> None:
    asked = prefetch(max_usage=80)
    full = Usage(capacity=100 * GB, used=79 * GB)
    there = linux(listed={LLM: Listed(3 * GB)}, wanted=frozenset({LLM}), smallest_listed=1)
    ours = Attempts(2, NOW + 200, "DiskFull", "no room", "", permanent=True)
    key = asked.groups[0].key
    plan = decide(view(there, share(asked, attempts={key: ours}), usage=full))
    assert creates(plan), "the cause of the back-off is gone"
    queued = decide(view(there, share(asked, attempts={key: ours}, has_slot=False), usage=full))
    assert queued.standings["llm"].wants
    assert queued.standings["llm"].failure is None, "it is not full any more"
    runtimes = dataclasses.replace(ours, message="no space left on device", image=LLM)
    plan = decide(view(there, share(asked, attempts={key: runtimes}), usage=full))
    assert not creates(plan)
    assert plan.requeue_at == NOW + 200


def test_an_image_that_is_removed_before_its_pod_finishes_is_not_cached() -> None:
    asked = prefetch()
    on = linux(smallest_listed=1, wanted=frozenset({LLM}))
    done = pod(asked, on, phase="Succeeded", finished_at=NOW - 5)
    full = Usage(capacity=100 * GB, used=86 * GB)

    def look(ago: float) -> Any:
        facts = share(asked, pods=(done,), finished_at={done.uid: NOW - ago})
        return decide(view(on, facts, usage=full, seen={LLM: Listed(3 * GB)}))

    soon = look(5.0)
    assert patches(soon) == [], "the list may be late"
    assert soon.requeue_at == pytest.approx(NOW - 5 + LISTED_AFTER)
    late = look(LISTED_AFTER + 1)
    assert patches(late) == []
    (delete,) = deletes(late)
    assert delete.remember is not None
    assert delete.remember.reason == "EvictedByKubelet"
