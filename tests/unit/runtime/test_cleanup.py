"""The clean-up that `helm uninstall` runs removes everything of Imagegate, from any state."""

from __future__ import annotations

from typing import Any

import pytest

from imagegate.kube import errors
from imagegate.kube.prefetches import Prefetches
from imagegate.runtime.cleanup import Cleanup
from imagegate.runtime.installation import Installation
from tests.unit.runtime.world import KEY, NAMESPACE, World, until

DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/imagegate"


def cleanup(world: World) -> Cleanup:
    client: Any = world.api
    return Cleanup(
        client,
        Prefetches(client, world.reader),
        Installation(NAMESPACE, "imagegate", "another/key"),
        deployment="imagegate",
        puller_namespaces=[NAMESPACE],
    )


async def in_use() -> World:
    """A cluster with a cached node, a held node, and a puller pod whose node was deleted."""
    world = World()
    world.add_gate()
    world.api.put(
        DEPLOYMENT,
        {"metadata": {"name": "imagegate"}, "spec": {"selector": {"matchLabels": {"app": "x"}}}},
    )
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": "100%", "seeds": 9})
    for name in ("cached", "gone"):
        world.add_node(name)
    world.add_node("held", gated=True)
    async with world.operating():
        await until(lambda: len(world.pods()) == 3)
        done = next(pod for pod in world.pods() if pod["spec"]["nodeName"] == "cached")
        world.finish(done)
        await until(lambda: world.labels("cached"))
    world.api.remove("/api/v1/nodes/gone")
    world.api.watchers.clear()
    return world


async def test_cleanup_removes_everything_and_can_run_twice() -> None:
    world = await in_use()
    world.api.requests.clear()
    await cleanup(world).run()
    assert world.labels("cached") == {}
    assert world.observed("cached") is None
    assert KEY not in world.taints("held"), "by the NodeGate's key, not by the flag's"
    assert world.taints("held") == ["node.kubernetes.io/not-ready"]
    assert world.pods() == []
    prefetch = world.api.objects["/apis/imagegate.dev/v1alpha1/imageprefetches/llm"]
    assert not prefetch["metadata"].get("finalizers")
    assert "/apis/imagegate.dev/v1alpha1/nodegates/default" not in world.api.objects
    first = world.api.writes()[0][1]
    assert first == f"{DEPLOYMENT}/scale", "otherwise the operator would restore what is removed"
    await cleanup(world).run()


async def test_cleanup_succeeds_on_a_node_that_keeps_changing() -> None:
    world = await in_use()
    left = 3

    def interfere(method: str, path: str) -> None:
        nonlocal left
        if (method, path) == ("PATCH", "/api/v1/nodes/held") and left:
            left -= 1
            world.api.change(
                path, lambda body: body["spec"]["taints"].insert(0, {"key": "x", "effect": "y"})
            )

    world.api.before = interfere
    await cleanup(world).run()
    assert KEY not in world.taints("held")
    assert world.taints("held").count("x") == 3


async def test_failed_step_does_not_keep_nodes_held() -> None:
    """Other nodes are released if pods may not be deleted, or if a policy protects one node."""
    for failing, held in (
        (f"/api/v1/namespaces/{NAMESPACE}/pods", False),
        ("/nodes/cached", False),
    ):
        world = await in_use()

        def refuse(method: str, path: str, failing: str = failing) -> None:
            if method in ("DELETE", "PATCH") and failing in path:
                raise errors.Forbidden(f"{method} {path}", 403, "no right")

        world.api.before = refuse
        with pytest.raises(errors.Forbidden):
            await cleanup(world).run()
        assert (KEY in world.taints("held")) is held
        world.api.before = lambda *_: None
        await cleanup(world).run()
        assert world.labels("cached") == {}
