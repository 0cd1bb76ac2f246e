"""Pods that only have the labels of puller pods, because every user may set labels."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from imagegate.kube.pods import Pods
from tests.unit.runtime.world import NAMESPACE, PODS, World, until

OWNERS = "ownerReferences"


def forged(pod: dict[str, Any], name: str) -> dict[str, Any]:
    """The same pod as a user may create it, with the status of successful pulls."""
    body = copy.deepcopy(pod)
    body["metadata"].update(name=name, uid=f"{name}-uid")
    del body["metadata"][OWNERS]
    body["status"] = {"phase": "Succeeded"}
    return body


async def test_pod_with_copied_labels_releases_no_node_and_is_not_deleted() -> None:
    world = World()
    world.add_gate()
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(world.pods)
        (real,) = world.pods()
        world.api.put(f"{PODS}/forged", forged(real, "forged"))
        await asyncio.sleep(0.1)
        await world.resync.once()
        await asyncio.sleep(0.1)
        assert "imagegate" in str(world.taints("n1"))
        assert world.labels("n1") == {}
        client: Any = world.api
        names = [pod.name for pod in await Pods(client).list(NAMESPACE)]
        assert names == [real["metadata"]["name"]]
        world.finish(real)
        await until(lambda: world.labels("n1"))
        world.api.remove("/apis/imagegate.dev/v1alpha1/imageprefetches/llm")
        await asyncio.sleep(0.1)
    assert f"{PODS}/forged" in world.api.objects


async def test_foreign_pod_with_the_same_name_is_reported_and_not_deleted() -> None:
    world = World()
    world.add_gate()
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("n1")
    async with world.operating():
        await until(world.pods)
        (real,) = world.pods()
    name = real["metadata"]["name"]
    world.api.remove(f"{PODS}/{name}")
    squatter = forged(real, name)
    world.api.put(f"{PODS}/{name}", squatter)
    world.start_operator()
    async with world.operating():
        await until(lambda: world.status("llm").get("failures"))
        (failure,) = world.status("llm")["failures"]
    assert failure["reason"] == "PodRefused"
    assert f"pod {NAMESPACE}/{name} is there and is not Imagegate's" in failure["message"]
    assert "n1 does not own it: delete it" in failure["message"]
    assert world.pods() == [world.api.objects[f"{PODS}/{name}"]]
    assert world.labels("n1") == {}


async def test_puller_pod_without_its_owner_is_ignored() -> None:
    world = World()
    world.add_gate()
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(world.pods)
        (real,) = world.pods()
        path = f"{PODS}/{real['metadata']['name']}"
        world.api.change(path, lambda body: body["metadata"].pop(OWNERS))
        world.finish(real)
        await asyncio.sleep(0.2)
        assert world.labels("n1") == {}
        assert (NAMESPACE, real["metadata"]["name"]) not in world.store.pods
