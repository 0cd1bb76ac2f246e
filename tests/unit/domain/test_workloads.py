"""The images that ``imagesFrom`` selects, and the status about them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from imagegate.api.v1alpha1 import ImagePrefetchStatus
from imagegate.domain import status, workloads
from imagegate.domain.actions import ReleaseReason
from imagegate.domain.facts import (
    LABEL_PREFIX,
    ImageSource,
    NodeState,
    Operator,
    Place,
    Prefetch,
    Requirement,
)
from imagegate.domain.share import Share
from imagegate.domain.workloads import Found, Listing, Workload, find, joined
from tests.unit.domain.cases import GATE_TAINT, NOW, decide, node, pod, prefetch, view

SERVING = Place("Deployment", "serving")
NIGHTLY = Place("CronJob", "batch")
FORBIDDEN = "the operator may not list deployments in namespace serving: add it to the chart's"


def workload(name: str, *images: str, kind: str = "Deployment", **labels: str) -> Workload:
    source = workloads.named(SERVING if kind == "Deployment" else NIGHTLY, name)
    return Workload(name, labels, tuple(workloads.image(image, source) for image in images))


def declared(*places: Place, **changes: Any) -> Prefetch:
    sources = tuple(source(place) for place in places or (SERVING,))
    own = (workloads.image("reg.test/own:1", ""),)
    return prefetch(**{"images_from": sources, "pull_secrets": ("pull",), "images": own, **changes})


def source(place: Place, *selector: Requirement) -> ImageSource:
    kind, namespace, api_version, pod_templates, images = place
    return ImageSource(kind, namespace, selector, api_version, pod_templates, images)


def listing(*found: Workload) -> Listing:
    return Listing(found, read=True)


def resolve(asked: Prefetch, **listings: Listing) -> Prefetch:
    return joined(asked, find(asked, {SERVING: listings["serving"]}))


def references(asked: Prefetch) -> list[str]:
    return [image.reference for image in asked.images]


# ---- which images


def test_found_images_follow_those_of_the_spec_by_name_and_once() -> None:
    asked = resolve(
        declared(),
        serving=listing(
            workload("b", "reg.test/z:1", "reg.test/a:1"),
            workload("a", "reg.test/z:1", "nginx", "docker.io/library/nginx:latest"),
            workload("c", "reg.test/own:1"),
        ),
    )
    assert references(asked) == [
        "reg.test/own:1",
        "docker.io/library/nginx:latest",
        "reg.test/a:1",
        "reg.test/z:1",
    ]
    assert [image.source for image in asked.images] == [
        "",
        "Deployment serving/a",
        "Deployment serving/b",
        "Deployment serving/a",
    ]
    # A user who may create a workload may lack the right to read images with these secrets.
    assert {image.pull_secrets for image in asked.images[1:]} == {()}


def test_the_order_of_found_workloads_does_not_change_the_target() -> None:
    found = [workload(name, f"reg.test/{name}:1") for name in "abc"]
    one = resolve(declared(), serving=listing(*found))
    other = resolve(declared(), serving=listing(*reversed(found)))
    assert (one.target, one.groups) == (other.target, other.groups)


def test_selectors_match_as_in_kubernetes() -> None:
    gpu = Requirement("tier", Operator.IN, frozenset({"gpu"}))
    other = Requirement("app", Operator.NOT_IN, frozenset({"x"}))
    asked = declared(images_from=(source(SERVING, gpu, other),))
    found = listing(
        workload("a", "a:1", tier="gpu"),
        workload("b", "b:1", tier="gpu", app="x"),
        workload("c", "c:1"),
    )
    assert references(resolve(asked, serving=found)) == ["reg.test/own:1", "a:1"]


def test_a_workload_that_two_sources_select_counts_once() -> None:
    found = find(declared(SERVING, SERVING), {SERVING: listing(workload("a", "a:1"))})
    assert found is not None
    assert (found.workloads, len(found.images)) == (1, 1)


def test_at_most_64_images_are_used_the_first_by_name() -> None:
    many = workload("a", *(f"reg.test/{n:03}:1" for n in range(70)))
    asked = declared()
    found = find(asked, {SERVING: listing(many)})
    assert found is not None
    images = references(joined(asked, found))
    assert len(images) == 64
    assert images[:2] == ["reg.test/own:1", "reg.test/000:1"]
    assert found.left_out == tuple(f"reg.test/{n:03}:1" for n in range(63, 70))
    everything, reason, message = workloads.condition(found)
    assert (everything, reason) == (False, "TooManyImages")
    assert message.startswith("7 images beyond the 64")
    assert "reg.test/063:1, reg.test/064:1, reg.test/065:1, and 4 more" in message


def test_a_prefetch_without_images_from_stays_as_it_is() -> None:
    asked = prefetch()
    assert joined(asked, None) is asked


# ---- unknown images


def test_the_images_are_unknown_until_every_source_was_listed() -> None:
    asked = declared(SERVING, NIGHTLY)
    assert find(asked, {}) is None
    assert find(asked, {SERVING: listing(workload("a", "a:1"))}) is None
    assert joined(asked, None).searching


def test_a_source_that_cannot_be_read_does_not_delay_the_others() -> None:
    asked = declared(SERVING, NIGHTLY)
    found = find(
        asked,
        {
            SERVING: Listing(problem=FORBIDDEN),
            NIGHTLY: listing(workload("train", "train:1", kind="CronJob")),
        },
    )
    assert found is not None
    assert references(joined(asked, found)) == ["reg.test/own:1", "train:1"]
    everything, reason, message = workloads.condition(found)
    assert (everything, reason) == (False, "SourceNotRead")
    assert message.startswith(FORBIDDEN)


def test_images_of_an_unreadable_source_are_taken_from_the_status() -> None:
    asked = declared(SERVING, NIGHTLY)
    lists = {
        SERVING: listing(workload("a", "b:1", "a:1")),
        NIGHTLY: listing(workload("train", "train:1", kind="CronJob")),
    }
    before = joined(asked, find(asked, lists))
    tally = status.Tally({NodeState.CACHED: 1}, 0)
    said = status.prefetch_status(before, tally, NOW, status.Findings(found=find(asked, lists)))
    # Another process, which may list only one of the sources. It uses the list of that source.
    again = dataclasses.replace(asked, status=said)
    lists = {
        SERVING: Listing(problem=FORBIDDEN),
        NIGHTLY: listing(workload("train", "train:2", kind="CronJob")),
    }
    after = joined(again, find(again, lists))
    assert references(after) == ["reg.test/own:1", "a:1", "b:1", "train:2"]
    lists[NIGHTLY] = listing(workload("train", "train:1", kind="CronJob"))
    assert joined(again, find(again, lists)).target == before.target


@pytest.mark.parametrize(
    "images",
    [
        "garbage",
        ["garbage"],
        [{"image": "a:1"}],
        [{"image": 5, "from": "Deployment serving/a"}],
        [{"image": "Not/An/Image", "from": "Deployment serving/a"}],
        [{"image": "a:1", "from": "Deployment elsewhere/a"}],
        [{"image": "a:1", "from": "Deployment"}],
    ],
)
def test_invalid_images_of_a_status_are_ignored(images: object) -> None:
    asked = declared(status={"images": images})
    found = find(asked, {SERVING: Listing(problem=FORBIDDEN)})
    assert found is not None
    assert found.images == ()


def test_a_list_is_kept_while_its_source_cannot_be_read() -> None:
    found = find(declared(), {SERVING: Listing([workload("a", "a:1")], True, FORBIDDEN)})
    assert found is not None
    assert [image.reference for image in found.images] == ["a:1"]
    assert workloads.condition(found)[1] == "SourceNotRead"


# ---- other kinds

ROLLOUTS = Place("Rollout", "serving", "argoproj.io/v1alpha1")
BLUE = Place("Canary", "serving", "example.com/v1", ("spec.blue",))
GREEN = Place("Canary", "serving", "example.com/v1", ("spec.green",))


def found_in(place: Place, name: str, *images: str) -> Workload:
    named = workloads.named(place, name)
    return Workload(name, {}, tuple(workloads.image(image, named) for image in images))


def test_source_of_another_kind_is_named_with_its_group() -> None:
    asked = declared(ROLLOUTS)
    found = find(asked, {ROLLOUTS: listing(found_in(ROLLOUTS, "llm", "a:1"))})
    assert joined(asked, found).images[1].source == "Rollout.argoproj.io serving/llm"
    empty = find(asked, {ROLLOUTS: listing()})
    assert empty is not None
    assert "nothing is selected of Rollout.argoproj.io in serving" in workloads.condition(empty)[2]


def test_two_sources_of_one_kind_with_other_fields_are_one_workload() -> None:
    found = find(
        declared(BLUE, GREEN),
        {
            BLUE: listing(found_in(BLUE, "web", "blue:1")),
            GREEN: listing(found_in(GREEN, "web", "green:1")),
        },
    )
    assert found is not None
    assert (found.workloads, [image.reference for image in found.images]) == (
        1,
        ["blue:1", "green:1"],
    )


def test_kinds_of_one_name_in_two_groups_are_not_confused_in_the_status() -> None:
    volcano = Place("CronJob", "batch", "batch.volcano.sh/v1alpha1")
    entry = {"image": "old:1", "from": "CronJob batch/train"}
    asked = declared(NIGHTLY, volcano, status={"images": [entry]})
    problem = Listing(problem="it is not known")
    found = find(asked, {NIGHTLY: listing(), volcano: problem})
    assert found is not None
    assert (found.images, found.unread) == ((), True)
    found = find(asked, {NIGHTLY: problem, volcano: listing()})
    assert found is not None
    assert ([image.reference for image in found.images], found.unread) == (["old:1"], False)


def test_kind_that_is_not_served_has_a_reason_of_its_own() -> None:
    missing = Listing(problem="the API server does not serve Rollout", served=False)
    found = find(declared(ROLLOUTS), {ROLLOUTS: missing})
    assert found is not None
    assert workloads.condition(found)[:2] == (False, "KindNotServed")
    assert found.unread
    both = find(declared(ROLLOUTS, SERVING), {ROLLOUTS: missing, SERVING: Listing(problem="no")})
    assert both is not None
    assert workloads.condition(both)[1] == "SourceNotRead"


def test_source_whose_fields_name_no_image_is_reported() -> None:
    found = find(declared(BLUE), {BLUE: listing(Workload("web"))})
    assert found is not None
    assert "no image is named by Canary.example.com in serving" in workloads.condition(found)[2]


# ---- a node while the images are unknown

SEARCHING = dataclasses.replace(declared(), searching=True)


def test_a_held_node_stays_held_and_pulls_nothing() -> None:
    held = node(taints=(GATE_TAINT,))
    plan = decide(view(held, Share(SEARCHING, has_slot=True)))
    assert (plan.actions, plan.held) == ((), True)
    late = decide(view(held, Share(SEARCHING)), NOW + 10_000)
    (patch,) = late.actions
    assert getattr(patch, "release", None) is ReleaseReason.TIMEOUT


def test_a_node_in_service_keeps_its_label_and_its_pods() -> None:
    other = dataclasses.replace(SEARCHING, images=())
    label = f"{LABEL_PREFIX}{SEARCHING.name}"
    served = node(labels={label: "0123456789ab"}, observed=node().identity)
    pods = (
        pod(declared(), served, phase="Succeeded"),
        dataclasses.replace(pod(declared(), served, phase="Pending"), name="p2", group="old"),
    )
    for asked in (SEARCHING, other):
        plan = decide(view(served, Share(asked, pods=pods)))
        assert plan.actions == ()
        standing = plan.standings[asked.name]
        assert (standing.state, standing.pulling, standing.wants) == ("cached", True, False)


def test_a_node_without_a_label_waits() -> None:
    standing = decide(view(node(), Share(SEARCHING, has_slot=True))).standings[SEARCHING.name]
    assert (standing.state, standing.wants) == ("pending", False)


def test_a_virtual_node_is_released_nevertheless() -> None:
    virtual = node(taints=(GATE_TAINT,), labels={"type": "virtual-kubelet"})
    (patch,) = decide(view(virtual, Share(SEARCHING))).actions
    assert getattr(patch, "release", None) is ReleaseReason.UNMATCHED


# ---- the status


def said(asked: Prefetch, found: Found | None, cached: int = 2) -> dict[str, Any]:
    tally = status.Tally({NodeState.CACHED: cached}, 0)
    made = status.prefetch_status(asked, tally, NOW, status.Findings(found=found))
    ImagePrefetchStatus.model_validate(made)
    return made


def conditions(made: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in made["conditions"]}


def test_the_status_names_the_workload_of_an_image() -> None:
    found = find(declared(), {SERVING: listing(workload("a", "a:1"))})
    made = said(joined(declared(), found), found)
    assert made["images"] == [
        {"image": "reg.test/own:1"},
        {"image": "a:1", "from": "Deployment serving/a"},
    ]
    assert conditions(made)["ImagesFound"] == ("True", "Found")
    assert conditions(made)["Ready"] == ("True", "AllCached")


def test_a_prefetch_without_sources_has_no_condition_images_found() -> None:
    assert "ImagesFound" not in conditions(said(prefetch(), None))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (Found(problems=(FORBIDDEN,)), "SourceNotRead"),
        (Found(left_out=("a:1",)), "TooManyImages"),
    ],
)
def test_a_prefetch_is_not_ready_while_images_are_missing(found: Found, reason: str) -> None:
    said_ = conditions(said(declared(), found))
    assert said_["Ready"] == said_["ImagesFound"] == ("False", reason)


def test_a_prefetch_without_images_is_not_ready() -> None:
    asked = declared(images=())
    found = find(asked, {SERVING: listing()})
    assert found is not None
    made = said(joined(asked, found), found)
    assert conditions(made)["Ready"] == ("False", "NoImages")
    assert "nothing is selected of Deployment in serving" in workloads.condition(found)[2]


def test_the_message_stays_short() -> None:
    found = Found(problems=tuple(f"{FORBIDDEN} {'x' * 400} {n}" for n in range(16)))
    made = said(declared(), found)
    assert all(len(c["message"]) <= status.MAX_FOUND for c in made["conditions"])
    unusable = Found(unusable=tuple(f"container {n}" for n in range(9)))
    assert "container 0, container 1, container 2, and 6 more" in workloads.condition(unusable)[2]
