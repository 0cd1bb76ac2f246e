"""The absence of an image from ``status.images``: when it proves that the image was removed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imagegate.domain.disk import Usage
from imagegate.domain.facts import ImageFacts, ImageSize
from tests.unit.runtime.world import World, until

NODE = "/api/v1/nodes/n1"
GB = 10**9


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("imagegate.domain.share.drift.LISTED_AFTER", 0.2)
    # The API server in memory gives every pod the same old creationTimestamp.
    monkeypatch.setattr("imagegate.domain.retry.deadline", lambda *_: None)
    made = World()
    made.add_gate()
    made.add_node("n1")
    return made


def weigh(world: World, *images: str) -> None:
    size = {"linux/amd64": ImageSize(GB)}
    world.registries.images = {image: ImageFacts(sizes=size) for image in images}


def lists(world: World, *entries: tuple[str, ...]) -> None:
    """The kubelet writes its status: these names, per image, and a small image."""
    images: list[dict[str, Any]] = [{"names": list(names), "sizeBytes": GB} for names in entries]
    images.append({"names": ["pause"], "sizeBytes": 10**5})
    info = {"operatingSystem": "linux", "architecture": "amd64", "bootID": "boot-1"}
    world.api.change(NODE, lambda body: body["status"].update(images=images, nodeInfo=info))


async def cached(world: World) -> set[str]:
    """Let the pullers succeed, and wait until the labels are old enough for conclusions."""
    await until(world.pods)
    for pod in world.pods():
        world.finish(pod)
    await until(lambda: world.labels("n1"))
    await asyncio.sleep(0.3)
    return {pod["metadata"]["uid"] for pod in world.pods()}


async def look(world: World) -> None:
    """Decide about the node twice: the first decision reads its disk, the second knows it."""
    for _ in range(2):
        world.changes.node_changed("n1")
        await asyncio.sleep(0.1)


async def test_rollback_removes_no_label_and_no_puller_pod(world: World) -> None:
    weigh(world, "reg.test/a:1", "reg.test/b:1")
    lists(world, ("reg.test/a:1",))
    world.add_prefetch("llm", "reg.test/a:1")
    async with world.operating():
        pins = await cached(world)
        labels = world.labels("n1")
        world.change_images("llm", "reg.test/b:1")
        lists(world, ("reg.test/a:1",), ("reg.test/other:1",))  # parsed while only b is wanted
        world.change_images("llm", "reg.test/a:1")
        await look(world)
        assert world.labels("n1") == labels
        assert {pod["metadata"]["uid"] for pod in world.pods()} == pins


async def test_image_with_six_names_is_not_missing(world: World) -> None:
    tags = [f"reg.test/a:{tag}" for tag in ("1", "1.2", "1.2.3", "latest", "stable")]
    weigh(world, *tags)
    lists(world, ("reg.test/a@sha256:0", *tags[:4]))
    world.add_prefetch("llm", *tags)
    async with world.operating():
        pins = await cached(world)
        await look(world)
        assert world.labels("n1")
        assert {pod["metadata"]["uid"] for pod in world.pods()} == pins


async def test_name_that_another_tag_displaces_is_not_missing(world: World) -> None:
    tags = [f"reg.test/a:{tag}" for tag in ("1", "1.2", "1.2.3", "stable")]
    weigh(world, *tags)
    lists(world, ("reg.test/a@sha256:0", *tags))
    world.add_prefetch("llm", *tags)
    async with world.operating():
        await cached(world)
        lists(world, ("reg.test/a@sha256:0", *tags[:3], "reg.test/a:latest"))
        await look(world)
        assert world.labels("n1")


async def test_image_that_is_listed_under_another_name_is_not_missing(world: World) -> None:
    weigh(world, "reg.test/a:1")
    lists(world, ("mirror.test/a:1",))
    world.add_prefetch("llm", "reg.test/a:1")
    async with world.operating():
        pins = await cached(world)
        await look(world)
        assert world.labels("n1")
        assert {pod["metadata"]["uid"] for pod in world.pods()} == pins


async def test_image_removed_after_the_label_of_another_prefetch_is_missing(
    world: World,
) -> None:
    weigh(world, "reg.test/a:1", "reg.test/b:1")
    lists(world, ("reg.test/a:1",))
    world.add_prefetch("a", "reg.test/a:1")
    async with world.operating():
        await cached(world)
        world.add_prefetch("b", "reg.test/b:1")
        await until(lambda: len(world.pods()) == 2)
        lists(world, ("reg.test/a:1",), ("reg.test/b:1",))
        for pod in world.pods():
            if pod.get("status", {}).get("phase") != "Succeeded":
                world.finish(pod)
        await until(lambda: len(world.labels("n1")) == 2)
        lists(world, ("reg.test/b:1",))
        await until(lambda: list(world.labels("n1")) == ["cached.imagegate.dev/b"])


async def test_after_a_restart_only_images_listed_since_can_be_missing(
    world: World,
) -> None:
    weigh(world, "reg.test/a:1")
    lists(world, ("reg.test/a:1",))
    world.add_prefetch("llm", "reg.test/a:1")
    async with world.operating():
        await cached(world)
    lists(world)
    world.start_operator()
    async with world.operating():
        await asyncio.sleep(0.3)
        await look(world)
        assert world.labels("n1"), "nothing proves that it was ever listed"
        lists(world, ("reg.test/a:1",))
        await asyncio.sleep(0.3)
        lists(world)
        await until(lambda: not world.labels("n1"))
    assert not world.store.node_history.listed(world.store.nodes["n1"])


async def test_listed_names_are_forgotten_when_the_node_is_deleted(world: World) -> None:
    weigh(world, "reg.test/a:1")
    world.add_prefetch("llm", "reg.test/a:1")
    async with world.operating():
        lists(world, ("reg.test/a:1",))
        node = world.store.nodes["n1"]
        assert world.store.node_history.listed(node).keys() == {"reg.test/a:1"}
        world.api.remove(NODE)
        assert world.store.node_history.listed(node) == {}


async def test_finalizers_of_other_clients_are_kept(world: World) -> None:
    world.add_prefetch("llm", "reg.test/a:1")
    path = "/apis/imagegate.dev/v1alpha1/imageprefetches/llm"
    prefetches = world.cluster.prefetches
    (seen,) = await prefetches.list()
    assert seen.finalizers == ()
    world.api.change(path, lambda body: body["metadata"].update(finalizers=["other.test/keep"]))
    await prefetches.add_finalizer(seen)
    metadata = world.api.objects[path]["metadata"]
    assert metadata["finalizers"] == ["other.test/keep", "imagegate.dev/cleanup"]
    (seen,) = await prefetches.list()
    world.api.change(path, lambda body: body["metadata"]["finalizers"].append("late.test/keep"))
    await prefetches.remove_finalizer(seen)
    metadata = world.api.objects[path]["metadata"]
    assert metadata["finalizers"] == ["other.test/keep", "late.test/keep"]


async def test_a_dry_run_counts_no_image_that_the_node_lists(world: World) -> None:
    weigh(world, "reg.test/a:1")
    lists(world, ("reg.test/a:1",))
    async with world.operating():
        world.add_prefetch("llm", "reg.test/a:1", dryRun=True)
        await until(lambda: world.condition("llm", "Ready").get("reason") == "DryRun")
        assert "would pull 0 B onto each of 1 nodes" in world.condition("llm", "Ready")["message"]


async def test_a_full_disk_refuses_no_image_that_the_node_lists(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was read a moment before the second prefetch named its image."""
    monkeypatch.setattr("imagegate.domain.retry.deadline", lambda *_: 1e12)
    weigh(world, "reg.test/a:1", "reg.test/b:1")
    lists(world, ("reg.test/a:1",), ("reg.test/b:1",))
    world.disks.answer = Usage(capacity=100 * 10**9, used=90 * 10**9)
    world.add_prefetch("first", "reg.test/a:1")
    async with world.operating():
        await until(world.pods)
        world.add_prefetch("second", "reg.test/b:1")
        await until(lambda: len(world.pods()) == 2)
        assert world.status("second").get("failures", []) == []
        assert world.disks.asked == 2
