"""The status stays under 16 KiB for every spec, and keeps every field that is read back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.api.decode import parse_prefetch
from imagegate.api.references import parse
from imagegate.domain import status
from imagegate.domain.effective import effective
from imagegate.domain.facts import (
    Attempts,
    Image,
    ImageFacts,
    ImageSize,
    NodeState,
    Prefetch,
    Refreshed,
    RefreshSpec,
    RepositorySpec,
    TagOrder,
    TagPolicy,
)
from imagegate.domain.repositories import Chosen, Selected, entries, joined, recorded
from imagegate.domain.status.images import MAX_REPOSITORIES
from imagegate.domain.tags import Selection
from tests.unit.domain.cases import NOW, prefetch

MAX_MESSAGE_OF_THE_CRD = 32_768
DIGEST = "sha256:" + "a" * 64


def reference(number: int, length: int) -> str:
    text = f"reg.test/{number:03}"
    return text + "/" + "p" * (length - len(text) - 3) + ":1"


def wide(images: int, length: int, secrets: int, *, followed: bool, **changes: Any) -> Prefetch:
    named = tuple(f"{n:03}-{'s' * 240}" for n in range(secrets))
    made = prefetch("wide", *(reference(n, length) for n in range(images)), **changes)
    listed = tuple(
        Image(i.reference, named, parse(i.reference).listed_as if length <= 250 else i.reference)
        for i in made.images
    )
    refresh = RefreshSpec() if followed else None
    return dataclasses.replace(made, images=listed, refresh=refresh)


def known(of: Prefetch) -> dict[str, ImageFacts]:
    size = ImageSize(10**12, 10**12)
    return {
        image.reference: ImageFacts(digest=DIGEST, sizes={"linux/amd64": size})
        for image in of.images
    }


def tally(failures: int, text: str, image: str) -> status.Tally:
    failed = tuple(
        status.Failure(
            f"{number}-{'n' * 240}",
            Attempts(6, NOW, "Unauthorized", text, image, permanent=True),
        )
        for number in range(failures)
    )
    counts = {NodeState.FAILED: failures, NodeState.CACHED: 5000}
    return status.Tally(counts, gated=3, failures=failed)


def check(body: dict[str, Any]) -> None:
    assert status.size(body) <= status.MAX_STATUS
    for condition in body["conditions"]:
        assert len(condition["message"]) <= MAX_MESSAGE_OF_THE_CRD
    shown = len(body["images"]) + body.get("moreImages", 0)
    assert shown == 0 or "images" in body


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 64),
    length=st.sampled_from([20, 60, 158, 250, 512]),
    secrets=st.sampled_from([0, 1, 16]),
    failures=st.integers(0, 12),
    message=st.sampled_from(["no", "long " * 200, "\u4e0d" * 1000, '"<&\\' * 300]),
    followed=st.booleans(),
)
def test_a_status_is_never_larger_than_16_kib(
    images: int, length: int, secrets: int, failures: int, message: str, *, followed: bool
) -> None:
    of = wide(images, length, secrets, followed=followed)
    looked = Refreshed(NOW, NOW + 60, message, 3) if followed else None
    body = status.prefetch_status(
        of,
        tally(failures, message, of.images[0].reference),
        NOW,
        status.Findings(known(of), refreshed=looked),
    )
    check(body)
    assert len(body["images"]) + body.get("moreImages", 0) == images
    again = status.prefetch_status(
        dataclasses.replace(of, status=body),
        tally(failures, message, of.images[0].reference),
        NOW + 9,
        status.Findings(known(of), refreshed=looked),
    )
    assert status.changes(body, again) == {}


@pytest.mark.parametrize("length", [60, 158, 250])
def test_the_digests_of_left_out_images_are_read_back(length: int) -> None:
    of = wide(64, length, 0, followed=True)
    body = status.prefetch_status(of, tally(10, "x" * 500, "i"), NOW, status.Findings(known(of)))
    check(body)
    after = effective(dataclasses.replace(of, status=body))
    assert [image.digest for image in after.images] == [DIGEST] * 64


def test_failures_of_nodes_do_not_change_the_images_in_the_status() -> None:
    of = wide(40, 158, 0, followed=False)
    quiet = status.prefetch_status(of, tally(0, "", ""), NOW, status.Findings(known(of)))
    failing = status.prefetch_status(
        of, tally(10, "x" * 500, "i" * 500), NOW, status.Findings(known(of))
    )
    assert failing["images"] == quiet["images"]
    assert failing.get("moreImages") == quiet.get("moreImages")


def test_sizes_are_left_out_before_images() -> None:
    of = wide(64, 100, 0, followed=False)
    body = status.prefetch_status(of, tally(0, "", ""), NOW, status.Findings(known(of)))
    assert len(body["images"]) == 64
    assert "compressedBytes" not in body["images"][0]


def test_images_that_only_a_workload_names_are_left_out_last() -> None:
    of = wide(64, 250, 0, followed=False)
    images = (*of.images[:60], *(dataclasses.replace(i, source="Job a/b") for i in of.images[60:]))
    of = dataclasses.replace(of, images=images)
    body = status.prefetch_status(of, tally(0, "", ""), NOW)
    assert body["moreImages"] > 0
    assert [entry["from"] for entry in body["images"][-4:]] == ["Job a/b"] * 4


def test_many_secrets_are_counted_rather_than_named() -> None:
    of = wide(1, 60, 16, followed=False)
    body = status.prefetch_status(of, tally(1, "denied", "i"), NOW)
    message = body["conditions"][2]["message"]
    assert "and 13 more" in message
    assert len(message) <= status.MAX_CONDITION


def test_the_crd_accepts_a_bounded_status() -> None:
    of = wide(64, 250, 16, followed=True)
    body = status.prefetch_status(
        of, tally(10, "x" * 900, "i" * 512), NOW, status.Findings(known(of))
    )
    parsed = parse_prefetch(
        {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "ImagePrefetch",
            "metadata": {"name": "wide"},
            "spec": {"images": [{"image": "reg.test/a:1"}], "pullerNamespace": "x"},
            "status": body,
        }
    )
    assert parsed.status is not None
    assert parsed.status.more_images == body["moreImages"]


def selected(repositories: int, keep: int, length: int, problem: str) -> Selected:
    """Repositories with names and tags of this length."""
    chosen = []
    for number in range(repositories):
        name = f"reg.test/{number}/" + "r" * (length - 11)
        spec = RepositorySpec(name, TagPolicy(TagOrder.ALPHABETICAL, keep=keep))
        tags = tuple(f"{n:03}-" + "t" * min(124, length - 4) for n in range(keep, 0, -1))
        chosen.append(Chosen(spec, Selection(tags, 10_000, 10_000, problem), problem, 3))
    return Selected(tuple(chosen))


@settings(max_examples=60, deadline=None)
@given(
    repositories=st.integers(1, 8),
    keep=st.integers(1, 8),
    images=st.integers(0, 64),
    length=st.sampled_from([20, 60, 158, 250]),
    failures=st.sampled_from([0, 10]),
    message=st.sampled_from(["", "long " * 200, "\u4e0d" * 1000, '"<&\\' * 300]),
    followed=st.booleans(),
)
def test_a_status_with_tags_is_never_larger_than_16_kib(
    repositories: int,
    keep: int,
    images: int,
    length: int,
    failures: int,
    message: str,
    *,
    followed: bool,
) -> None:
    found = selected(repositories, keep, length, message)
    specs = tuple(each.spec for each in found.chosen)
    declared = wide(max(1, min(images, 64 - repositories * keep)), length, 1, followed=followed)
    if not images or repositories * keep == 64:
        declared = dataclasses.replace(declared, images=())
    declared = dataclasses.replace(declared, repositories=specs, generation=3)
    of = joined(declared, found)
    assert len(of.images) <= 64
    body = status.prefetch_status(
        of, tally(failures, message, "i"), NOW, status.Findings(known(of), selected=found)
    )
    check(body)
    assert len(body["images"]) + body.get("moreImages", 0) == len(of.images)
    again = dataclasses.replace(declared, status=body)
    for each, entry in zip(found.chosen, body["repositories"], strict=True):
        # What fits is read back in full, or else as incomplete.
        assert len(entry["tags"]) + entry.get("moreTags", 0) == keep
        chosen, complete = recorded(again, each.spec)
        assert chosen.tags == tuple(entry["tags"])
        assert complete is ("moreTags" not in entry)
    if followed:
        assert [i.digest for i in effective(dataclasses.replace(of, status=body)).images] == [
            DIGEST
        ] * len(of.images)


def test_usual_tags_are_recorded_in_full() -> None:
    found = selected(8, 7, 40, "")
    assert all("moreTags" not in entry for entry in entries(found, MAX_REPOSITORIES))
    found = selected(1, 16, 250, "x" * 1000)
    assert all("moreTags" not in entry for entry in entries(found, MAX_REPOSITORIES))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "a",
        {"repository": 7},
        {"repository": "reg.test/a", "tags": "1"},
        {"repository": "reg.test/a", "tags": [1, None, "a b", "-", "x" * 129], "matching": "2"},
        {"repository": "reg.test/a", "tags": ["other"], "message": ["x"]},
    ],
)
def test_invalid_record_of_tags_is_ignored(entry: Any) -> None:
    spec = RepositorySpec("reg.test/a", TagPolicy(TagOrder.NUMERICAL))
    of = prefetch("llm", repositories=(spec,), status={"repositories": [entry]})
    chosen, complete = recorded(of, spec)
    assert (chosen.tags, complete) == ((), False)
