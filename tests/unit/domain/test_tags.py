"""Which tags are the newest, as a pure function of the list."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegate.domain.facts import TagOrder, TagPolicy
from imagegate.domain.tags import At, Kept, choose, select

BUILDS = TagPolicy(
    TagOrder.NUMERICAL, pattern="^main-[a-f0-9]+-(?P<ts>[0-9]+)$", extract="$ts", keep=2
)
NUMBERS = TagPolicy(TagOrder.NUMERICAL, keep=3)
LETTERS = TagPolicy(TagOrder.ALPHABETICAL, keep=1)
VERSIONS = TagPolicy(TagOrder.SEMVER, versions=">=1.4 <2", keep=2)
INTERVAL = 300.0
TAG = st.from_regex(r"\A(main-[a-f]{1,2}-)?[0-9]{1,3}\Z")
POLICY = st.sampled_from(
    [BUILDS, NUMBERS, LETTERS, VERSIONS, TagPolicy(TagOrder.NUMERICAL, descending=True, keep=2)]
)


def build(number: int, sha: str = "ab") -> str:
    return f"main-{sha}-{number}"


def at(now: float) -> At:
    return At(now, INTERVAL)


def test_newest_builds_are_selected() -> None:
    tags = [build(9), build(1764240000), build(10), "latest", "main-zz-99999999999", "dev-ab-5"]
    found = select(BUILDS, tags)
    assert found.tags == (build(1764240000), build(10))
    assert (found.matching, found.listed, found.why) == (3, 6, "")


def test_numbers_are_exact() -> None:
    """Floating point numbers, as in Flux, cannot tell these apart."""
    nanoseconds = [f"17642400000000000{number:02}" for number in range(20)]
    assert select(NUMBERS, nanoseconds).tags == tuple(reversed(nanoseconds[-3:]))
    assert select(NUMBERS, ["9" * 128, "1" + "0" * 127, "1.5", "1.25"]).tags == (
        "9" * 128,
        "1" + "0" * 127,
        "1.5",
    )


@pytest.mark.parametrize("tag", ["1e5", "0x10", "inf", "nan", "infinity", "1_000", "v1", "1.", "٣"])
def test_other_numbers_of_go_and_python_do_not_take_part(tag: str) -> None:
    assert select(NUMBERS, [tag, "7"]).tags == ("7",)


def test_order_of_equal_keys_is_that_of_the_names() -> None:
    tags = [build(7, sha) for sha in ("cc", "aa", "bb")]
    assert select(BUILDS, tags).tags == select(BUILDS, tags[::-1]).tags
    assert select(BUILDS, tags).tags == (build(7, "cc"), build(7, "bb"))
    versions = ["1.4.2", "v1.4.2"]
    assert select(VERSIONS, versions).tags == ("v1.4.2", "1.4.2")


@pytest.mark.parametrize(
    ("versions", "selected"),
    [
        (">=1.4 <2", ("1.10.0", "v1.9.1")),
        (">=1.4.0-0 <2", ("1.11.0-rc.2", "1.10.0")),
        ("~1.4", ("1.4.1",)),
        (">=1.0.0", ("2.0.0", "1.10.0")),
    ],
)
def test_versions(versions: str, selected: tuple[str, ...]) -> None:
    tags = ["1.4.1", "v1.9.1", "1.10.0", "1.11.0-rc.2", "2.0.0", "1.12", "latest", "1.4.1_2"]
    policy = TagPolicy(TagOrder.SEMVER, versions=versions, keep=2)
    assert select(policy, tags).tags == selected


def test_alphabetical_order_and_its_reverse() -> None:
    tags = ["RELEASE.2026-01-02", "RELEASE.2026-11-28", "RELEASE.2025-12-31"]
    assert select(LETTERS, tags).tags == ("RELEASE.2026-11-28",)
    reverse = TagPolicy(TagOrder.ALPHABETICAL, descending=True, keep=2)
    assert select(reverse, tags).tags == ("RELEASE.2025-12-31", "RELEASE.2026-01-02")


def test_tags_of_signatures_and_referrers_are_ignored() -> None:
    digest = "sha256-" + "a" * 64
    artifacts = [digest, f"{digest}.sig", f"{digest}.att", f"{digest}.sbom"]
    found = select(LETTERS, [*artifacts, "1"])
    assert (found.tags, found.listed) == (("1",), 1)
    assert "has no tags" in select(LETTERS, artifacts).why
    assert select(LETTERS, ["sha256-short"]).tags == ("sha256-short",)


@pytest.mark.parametrize(
    ("policy", "tags", "why"),
    [
        (BUILDS, [], "the repository has no tags: push an image"),
        (
            BUILDS,
            ["latest", "dev"],
            'none of its 2 tags (such as "latest") matches filterTags.pattern',
        ),
        (
            TagPolicy(TagOrder.NUMERICAL, pattern="^main-(.*)$", extract="$1"),
            ["main-a", "x"],
            "1 tags that match the pattern, and of none filterTags.extract is a number",
        ),
        (VERSIONS, ["1.3.9"], '1 tags (such as "1.3.9"), and of none the tag is a version within'),
    ],
)
def test_reason_why_no_tag_is_selected(policy: TagPolicy, tags: list[str], why: str) -> None:
    found = select(policy, tags)
    assert found.tags == ()
    assert why in found.why


def test_repeated_groups_cannot_make_a_number_too_large_to_compare() -> None:
    policy = TagPolicy(TagOrder.NUMERICAL, pattern="^([0-9]+)$", extract="$1" * 40)
    assert select(policy, ["9" * 128, "12"]).tags == ("12",)


@given(policy=POLICY, tags=st.lists(TAG, max_size=30), seed=st.randoms())
def test_selection_depends_on_the_set_of_tags_alone(
    policy: TagPolicy, tags: list[str], seed: random.Random
) -> None:
    shuffled = [*tags, *tags[:3]]
    seed.shuffle(shuffled)
    found = select(policy, tags)
    assert select(policy, shuffled) == found
    assert len(found.tags) == min(policy.keep, found.matching) == len(set(found.tags))
    assert set(found.tags) <= set(tags)
    assert bool(found.tags) != bool(found.why)
    # The newest of the newest are the same, so the recorded tags select themselves.
    assert select(policy, found.tags).tags == found.tags


@given(policy=POLICY, lists=st.lists(st.lists(TAG, max_size=6), min_size=1, max_size=6))
def test_a_list_never_takes_all_tags_away(policy: TagPolicy, lists: list[list[str]]) -> None:
    kept, now = Kept(), 0.0
    for tags in lists:
        before, now = kept, now + INTERVAL
        selection, kept = choose(policy, tags, before, at(now))
        assert kept.tags == selection.tags
        assert bool(selection.tags) or not before.tags
        assert len(selection.tags) <= policy.keep
        # If the list stays so, it alone decides.
        newest = select(policy, tags).tags
        later, _ = choose(policy, tags, kept, at(now + INTERVAL))
        assert later.tags == newest or not newest


def test_missing_tag_stays_until_it_was_missing_for_an_interval() -> None:
    _, kept = choose(BUILDS, [build(1), build(2), build(3)], Kept(), at(0))
    shorter = [build(1), build(2)]
    for now in (100.0, 200.0, 300.0):
        selection, kept = choose(BUILDS, shorter, kept, at(now))
        assert selection.tags == (build(3), build(2)), now
        assert selection.why.startswith("1 chosen tags are not in the last list")
    # It is listed again: the interval begins anew.
    _, kept = choose(BUILDS, [*shorter, build(3)], kept, at(310))
    _, kept = choose(BUILDS, shorter, kept, at(400))
    selection, kept = choose(BUILDS, shorter, kept, at(600))
    assert selection.tags == (build(3), build(2))
    selection, kept = choose(BUILDS, shorter, kept, at(700))
    assert selection.tags == (build(2), build(1))


def test_newer_tags_replace_a_missing_tag_immediately() -> None:
    _, kept = choose(BUILDS, [build(1), build(2)], Kept(), at(0))
    selection, _ = choose(BUILDS, [build(3), build(4)], kept, at(10))
    assert selection.tags == (build(4), build(3))


def test_empty_list_keeps_the_tags_and_says_so() -> None:
    _, kept = choose(BUILDS, [build(1), build(2)], Kept(), at(0))
    for now in (300.0, 600.0, 9000.0):
        selection, kept = choose(BUILDS, [], kept, at(now))
        assert selection.tags == (build(2), build(1))
    assert selection.why.endswith("; the tags that were chosen last stay")


def test_ten_thousand_tags_take_less_than_a_second() -> None:
    builds = [build(number) for number in range(10_000)]
    versions = [f"1.{number // 100}.{number % 100}" for number in range(10_000)]
    began = time.perf_counter()
    assert select(BUILDS, builds).matching == 10_000
    assert select(VERSIONS, versions).tags == ("1.99.99", "1.99.98")
    assert time.perf_counter() - began < 3
