"""The images of objects of any kind: of the known kinds, by paths, and of hostile objects."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegate.api import kinds
from imagegate.domain.facts import Place
from imagegate.domain.workloads import Workload
from imagegate.kube import workloads
from imagegate.kube.workloads import MAX_UNUSABLE, MAX_VALUES
from tests.unit.kinds import EXAMPLES, Example

ANY = Place(
    "Thing", "serving", "example.com/v1", ("spec.template",), ("spec.image", "spec.more[*]")
)


def parse(place: Place, body: dict[str, Any]) -> Workload:
    found = workloads.parse(place, {"metadata": {"name": "x"}, **body})
    assert found is not None
    return found


def references(found: Workload) -> list[str]:
    return [image.reference for image in found.images]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.id)
def test_images_of_a_known_kind_are_found_without_paths(example: Example) -> None:
    found = parse(example.place, example.object)
    assert sorted(references(found)) == sorted(example.images)
    assert [text.split(" of ")[0] for text in found.unusable] == example.unusable
    assert {image.source for image in found.images} == {
        f"{example.place.title} serving/{example.object['metadata']['name']}"
    }


def test_each_known_kind_has_an_example() -> None:
    known = {f"{kind.kind}.{kind.group}" for kind in kinds.ALL if not kind.built_in[0]}
    assert {example.id for example in EXAMPLES} == known


@pytest.mark.parametrize(
    "example", [each for each in EXAMPLES if each.ended], ids=lambda example: example.id
)
def test_object_that_has_ended_is_ignored(example: Example) -> None:
    kind = kinds.known(example.place.api_version, example.place.kind)
    assert kind is not None
    assert workloads.parse(example.place, {**example.object, "status": example.ended}) is None
    running = {"conditions": [{"type": "Running", "status": "True"}]}
    assert workloads.parse(example.place, {**example.object, "status": running}) is not None


@pytest.mark.parametrize("status", [None, 5, [], "Failed", {"conditions": 5}, {"conditions": [5]}])
@pytest.mark.parametrize("place", [example.place for example in EXAMPLES if example.ended])
def test_status_of_another_shape_is_no_end(place: Place, status: object) -> None:
    assert workloads.parse(place, {"metadata": {"name": "x"}, "status": status}) is not None


def test_paths_of_the_source_replace_those_of_the_known_kind() -> None:
    example = EXAMPLES[0]
    place = example.place._replace(images=("spec.extra",))
    body = {**example.object, "spec": {**example.object["spec"], "extra": "extra:1"}}
    assert references(parse(place, body)) == ["extra:1"]


def test_pod_template_and_pod_spec_are_read() -> None:
    pod = {
        "initContainers": [{"name": "a", "image": "a:1"}],
        "containers": [{"name": "b", "image": "b:1"}, {"name": "added-later"}],
        "volumes": [{"name": "v", "image": {"reference": "v:1"}}, {"name": "w", "emptyDir": {}}],
    }
    for template in (pod, {"metadata": {}, "spec": pod}):
        found = parse(ANY, {"spec": {"template": template, "image": "", "more": ["c:1", "c:1"]}})
        assert references(found) == ["a:1", "b:1", "v:1", "c:1"]
        assert found.unusable == ()


def test_version_of_a_known_kind_does_not_matter() -> None:
    place = Place("LeaderWorkerSet", "serving", "leaderworkerset.x-k8s.io/v2")
    (example,) = [each for each in EXAMPLES if each.place.kind == "LeaderWorkerSet"]
    assert references(parse(place, example.object)) == example.images


# ---- hostile objects


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (5, "it is not a string, but a number"),
        (1.5, "it is not a string, but a number"),
        (True, "it is not a string, but true or false"),
        (["a:1"], "it is not a string, but a list"),
        ({"repository": "a"}, "it is not a string, but an object"),
        ("a" * 1_000_000, "1000000 characters are too many"),
        ("{{inputs.image}}" + "x" * 1_000_000, "is a template that gets its value later"),
        ("Not/An/Image", "lowercase"),
    ],
)
def test_value_that_is_no_reference_is_reported_shortly(value: object, why: str) -> None:
    found = parse(ANY, {"spec": {"image": value, "more": ["good:1"]}})
    assert references(found) == ["good:1"]
    (text,) = found.unusable
    assert text.startswith("spec.image of Thing.example.com serving/x: ")
    assert why in text
    assert len(text) < 300


@pytest.mark.parametrize("template", [5, "x", [], [[]], {"spec": []}, {"containers": {"a": 1}}])
def test_template_of_another_shape_has_no_images(template: object) -> None:
    found = parse(ANY, {"spec": {"template": template, "image": "a:1"}})
    assert (references(found), found.unusable) == (["a:1"], ())


def test_object_with_10000_containers_is_read_quickly_and_kept_small() -> None:
    containers = [
        {"name": "n" * 100_000 if n == 0 else f"c{n}", "image": f"a/B{n}"} for n in range(5000)
    ]
    containers += [{"name": f"c{n}", "image": f"a/{n}:1"} for n in range(5000)]
    place = ANY._replace(pod_templates=("spec.template", "spec.other"))
    body = {
        "spec": {"template": {"containers": containers}, "other": {"containers": containers[5000:]}}
    }
    began = time.process_time()
    tracemalloc.start()
    found = parse(place, body)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.images) + len(found.unusable) <= MAX_VALUES
    assert len(found.unusable) == MAX_UNUSABLE
    assert all(len(text) < 400 for text in found.unusable)
    assert kept < 400_000
    assert time.process_time() - began < 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["spec", "template", "containers", "image", "volumes", "reference", "name"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


@given(JSON, JSON)
def test_object_of_any_shape_is_read(spec: object, status: object) -> None:
    body = {"metadata": {"name": "x"}, "spec": spec, "status": status}
    for place in (ANY, *(example.place for example in EXAMPLES)):
        found = workloads.parse(place, body)
        if found is not None:
            json.dumps([references(found), found.unusable])
