"""The whole loop with an ImagePrefetch that violates the policy, and may be older than it."""

from __future__ import annotations

import asyncio

from imagegate.domain.facts import ImageFacts, ImageSize
from imagegate.domain.policy import PrefetchPolicy
from imagegate.kube import prefetches
from tests.unit.runtime.world import KEY, World, until

CLOSED = {"gate": {"policy": "FailClosed"}}
PREFETCH = f"{prefetches.PATH}/llm"


def reason(world: World) -> str:
    return str(world.condition("llm", "Ready").get("reason"))


async def test_forbidden_prefetch_pulls_nothing_holds_no_node_and_shows_why() -> None:
    world = World(policy=PrefetchPolicy(registries=("reg.test",)))
    world.add_gate()
    world.add_node("n1", gated=True)
    world.add_prefetch("llm", "evil.test/llm:1", **CLOSED)
    async with world.operating():
        await until(lambda: KEY not in world.taints("n1"))
        await until(lambda: reason(world) == "PolicyViolation")
        assert world.pods() == []
        ready = world.condition("llm", "Ready")
        assert "evil.test/llm:1" in ready["message"]
        assert "prefetchPolicy.registries" in ready["message"]
        # Settled: nothing more is written.
        world.api.requests.clear()
        world.changes.prefetch_changed("llm")
        world.changes.node_changed("n1")
        await asyncio.sleep(0.3)
        assert world.api.writes() == []
        # After the correction it continues.
        world.change_images("llm", "reg.test/llm:1")
        await until(lambda: len(world.pods()) == 1)


async def test_new_limit_keeps_cached_images_and_ends_running_pulls() -> None:
    world = World()
    world.add_gate()
    world.add_node("done")
    world.add_prefetch("llm", "evil.test/llm:1", **CLOSED)
    async with world.operating():
        await until(lambda: len(world.pods()) == 1)
        world.finish(world.pods()[0])
        await until(lambda: "cached.imagegate.dev/llm" in world.labels("done"))
        world.add_node("pulling")
        await until(lambda: len(world.pods()) == 2)
    bound = World(world.api, PrefetchPolicy(allow_fail_closed=False))
    world.api.watchers.remove(world._watch)
    async with bound.operating():
        await until(lambda: reason(bound) == "PolicyViolation")
        await until(lambda: [p["spec"]["nodeName"] for p in bound.pods()] == ["done"])
        assert "cached.imagegate.dev/llm" in bound.labels("done")


async def test_forbidden_prefetch_can_be_deleted() -> None:
    world = World()
    world.add_gate()
    world.add_node("n1")
    world.add_prefetch("llm", "evil.test/llm:1")
    async with world.operating():
        await until(lambda: len(world.pods()) == 1)
        world.finish(world.pods()[0])
        await until(lambda: "cached.imagegate.dev/llm" in world.labels("n1"))
    world.api.watchers.remove(world._watch)
    bound = World(world.api, PrefetchPolicy(require_node_selector=True))
    async with bound.operating():
        await until(lambda: reason(bound) == "PolicyViolation")
        bound.api.change(
            PREFETCH,
            lambda body: body["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"),
        )
        await until(lambda: "cached.imagegate.dev/llm" not in bound.labels("n1"))
        await until(lambda: not bound.pods())
        await until(
            lambda: not bound.api.objects.get(PREFETCH, {}).get("metadata", {}).get("finalizers")
        )


async def test_too_large_images_are_refused_once_the_sizes_are_known() -> None:
    world = World(policy=PrefetchPolicy(max_gigabytes_per_node=7))
    world.add_gate()
    world.add_node("n1", gated=True)
    world.registries.asked = False
    world.add_prefetch("llm", "reg.test/llm:1", **CLOSED)
    async with world.operating():
        await until(lambda: len(world.ledger.entry("llm").standings) == 1)
        assert world.pods() == []
        assert KEY in world.taints("n1")

        def answer(size: int) -> None:
            sizes = {"linux/amd64": ImageSize(size, size)}
            world.registries.images = {"reg.test/llm:1": ImageFacts(sizes=sizes)}
            world.registries.asked = True
            world.changes.images_inspected("llm")

        answer(3 * 10**9)
        await until(lambda: reason(world) == "PolicyViolation")
        assert "10.5 GB unpacked" in world.condition("llm", "Ready")["message"]
        await until(lambda: KEY not in world.taints("n1"))
        assert world.pods() == []
        world.api.requests.clear()
        answer(3 * 10**9)
        await asyncio.sleep(0.3)
        assert world.api.writes() == []
        # A smaller image was pushed.
        answer(10**9)
        await until(lambda: len(world.pods()) == 1)


async def test_old_kubelet_with_a_secret_is_reported_once() -> None:
    world = World()
    world.add_gate()
    for name, version in (("old", "v1.34.3"), ("new", "v1.36.0")):
        world.add_node(name)
        world.api.change(
            f"/api/v1/nodes/{name}",
            lambda body, v=version: body["status"]["nodeInfo"].update(kubeletVersion=v),  # type: ignore[misc]
        )
    world.add_prefetch(
        "llm",
        "reg.test/llm:1",
        imagePullSecrets=[{"name": "ml-pull"}],
        rollout={"maxParallel": 2, "seeds": 2},
    )
    async with world.operating():
        await until(lambda: len(world.pods()) == 2)
        for pod in world.pods():
            world.finish(pod)
        await until(lambda: reason(world) == "AllCached")
        found = world.condition("llm", "CredentialsVerified")
        assert (found["status"], "on 1 nodes" in found["message"]) == ("False", True)
        await asyncio.sleep(2.5)
        world.api.requests.clear()
        for name in ("old", "new"):
            world.changes.node_changed(name)
        world.changes.prefetch_changed("llm")
        await asyncio.sleep(0.5)
        assert world.api.writes() == []
