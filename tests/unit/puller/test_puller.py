"""Puller pods: golden manifests, and reading of pods and of the kubelet's Events."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from imagegate.domain.facts import IMAGES_PER_POD, Image, Prefetch
from imagegate.puller import build, read
from imagegate.puller.build import PullerSettings
from tests.unit import golden
from tests.unit.domain.cases import node, prefetch

SETTINGS = PullerSettings(
    image="registry.k8s.io/pause:3.10.2",
    busybox="docker.io/library/busybox:1.37.0-musl",
    priority_class="imagegate-puller",
    labels={"team": "ml"},
    annotations={"sidecar.istio.io/inject": "false"},
    image_pull_secrets=("pause-pull",),
)
TWO = dataclasses.replace(
    prefetch("llm", "reg.test/llm:1", "reg.test/data:1"),
    images=(Image("reg.test/llm:1", ("ml-pull",)), Image("reg.test/data:1", ("ml-pull",))),
)


def test_manifest_with_image_volumes_matches_the_golden_file() -> None:
    manifest = build.build(TWO, node(), TWO.groups[0], 1, SETTINGS)
    golden.check(Path(__file__).parent / "golden" / "pod.json", manifest)


def test_manifest_with_containers_matches_the_golden_file() -> None:
    manifest = build.build(TWO, node(kubelet=(1, 34)), TWO.groups[0], 1, SETTINGS)
    golden.check(Path(__file__).parent / "golden" / "pod-container.json", manifest)


@pytest.mark.parametrize("kubelet", [(1, 36), (1, 34)])
def test_built_pod_is_read_back(kubelet: tuple[int, int]) -> None:
    manifest = build.build(TWO, node(kubelet=kubelet), TWO.groups[0], 1, SETTINGS)
    pod = read.pod(manifest)
    assert pod.prefetch == "llm"
    assert pod.group == TWO.groups[0].key
    assert pod.images == ("reg.test/llm:1", "reg.test/data:1")
    assert pod.observed == node().identity
    assert pod.node == "n1"


@pytest.mark.parametrize("kubelet", [(1, 36), (1, 34)])
def test_followed_tag_is_always_pulled_and_its_digest_if_not_present(
    kubelet: tuple[int, int],
) -> None:
    digest = f"sha256:{'a' * 64}"
    images = (Image("reg.test/llm:1").resolved(digest), Image("reg.test/data@" + digest))
    followed = dataclasses.replace(prefetch(), images=images)
    (group,) = followed.groups

    def pulls(*, again: bool) -> list[tuple[str, str]]:
        there = node(kubelet=kubelet)
        spec = build.build(followed, there, group, 1, SETTINGS, again=again)["spec"]
        volumes = [v["image"] for v in spec["volumes"] if "image" in v]
        containers = [c for c in spec["containers"] if c["name"].startswith("image-")]
        return [(v["reference"], v["pullPolicy"]) for v in volumes] or [
            (c["image"], c["imagePullPolicy"]) for c in containers
        ]

    references = ["reg.test/llm:1", f"reg.test/llm@{digest}", f"reg.test/data@{digest}"]
    policies = ["Always", "IfNotPresent", "IfNotPresent"]
    assert pulls(again=False) == list(zip(references, policies, strict=True))
    assert [policy for _, policy in pulls(again=True)] == ["IfNotPresent"] * 3
    read_back = read.pod(build.build(followed, node(kubelet=kubelet), group, 1, SETTINGS))
    assert read_back.images == group.references == tuple(references)


@pytest.mark.parametrize("kubelet", [(1, 36), (1, 34)])
def test_image_that_the_node_lists_wrongly_is_always_pulled(
    kubelet: tuple[int, int],
) -> None:
    spec = build.build(TWO, node(kubelet=kubelet), TWO.groups[0], 2, SETTINGS, afresh=True)["spec"]
    images = [v["image"]["pullPolicy"] for v in spec["volumes"] if "image" in v] or [
        c["imagePullPolicy"] for c in spec["containers"] if c["name"].startswith("image-")
    ]
    assert set(images) == {"Always"}


@pytest.mark.parametrize("kubelet", [(1, 36), (1, 34)])
def test_containers_have_the_resources_of_the_settings(kubelet: tuple[int, int]) -> None:
    resources = {"limits": {"cpu": "10m", "memory": "64Mi"}}
    settings = dataclasses.replace(SETTINGS, resources=resources)
    spec = build.build(TWO, node(kubelet=kubelet), TWO.groups[0], 1, settings)["spec"]
    containers = [*spec["containers"], *spec.get("initContainers", ())]
    assert all(container["resources"] == resources for container in containers)


def test_pod_name_is_deterministic_and_unique_for_each_pull() -> None:
    group = TWO.groups[0]
    name = build.name(TWO, node(), group, 1)
    assert name == build.name(TWO, node(), group, 1)
    others = {
        build.name(TWO, node(), group, 2),
        build.name(TWO, node(name="n2"), group, 1),
        build.name(TWO, node(boot_id="boot-2"), group, 1),
        build.name(TWO, node(uid="another"), group, 1),
        build.name(dataclasses.replace(TWO, uid="another"), node(), group, 1),
    }
    assert len(others | {name}) == 6
    long = dataclasses.replace(TWO, name="x" * 39 + "-" + "y" * 23)
    assert len(build.name(long, node(), group, 1)) <= 63
    assert "--" not in build.name(long, node(), group, 1)


def groups(*images: Image) -> Prefetch:
    return dataclasses.replace(prefetch(), images=images)


def test_images_are_grouped_by_secrets_with_at_most_eight_per_pod() -> None:
    many = groups(*(Image(f"reg.test/{n}:1") for n in range(20)), Image("reg.test/p:1", ("s",)))
    assert [len(group.images) for group in many.groups] == [6, 6, 8, 1]
    assert IMAGES_PER_POD == 8
    assert [group.pull_secrets for group in many.groups] == [(), (), (), ("s",)]
    assert len({group.key for group in many.groups}) == 4


def test_target_does_not_depend_on_the_order_of_references() -> None:
    one, two = Image("a:1"), Image("b:1")
    assert groups(one, two).target == groups(two, one).target
    assert groups(one).target != groups(two).target
    assert len(groups(one).target) == 12


def event(message: str, reason: str = "Pulled", component: str = "kubelet") -> dict[str, object]:
    return {
        "reason": reason,
        "message": message,
        "source": {"component": component},
        "involvedObject": {"kind": "Pod", "name": "ipf-llm", "uid": "u"},
    }


def test_pulled_event_of_the_kubelet_is_read() -> None:
    text = (
        'Successfully pulled image "open.registry.test/big:1" in 1m2.5s'
        " (1m3.1s including waiting). Image size: 314610611 bytes."
    )
    said = read.pulled(event(text))
    assert said == read.Pulled("u", "ipf-llm", "open.registry.test/big:1", 62.5, 314610611)


@pytest.mark.parametrize("ending", ["", " and can be accessed by the pod"])
def test_already_present_event_is_ignored(ending: str) -> None:
    """The runtime's list may still contain an image whose content is deleted."""
    said = read.pulled(event(f'Container image "a:1" already present on machine{ending}'))
    assert said is None


@pytest.mark.parametrize(
    "other",
    [
        event('Pulling image "a:1"', reason="Pulling"),
        event('Successfully pulled image "a:1" in 1s', component="somebody"),
        event("nonsense"),
        {},
    ],
)
def test_other_event_is_ignored(other: dict[str, object]) -> None:
    assert read.pulled(other) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.5s", 1.5), ("2m0.25s", 120.25), ("1h1m1s", 3661), ("350ms", 0.35), ("12µs", 12e-6)],
)
def test_duration_is_read_as_go_writes_it(text: str, seconds: float) -> None:
    assert read.duration(text) == pytest.approx(seconds)


def test_new_image_changes_at_most_two_groups_and_order_changes_none() -> None:
    images = [Image(f"reg.test/{n}:1") for n in range(63)]
    before = {group.key for group in groups(*images).groups}
    assert {group.key for group in groups(*reversed(images)).groups} == before
    for n in range(100, 120):
        after = {group.key for group in groups(Image(f"reg.test/{n}:1"), *images).groups}
        assert len(after - before) <= 2
