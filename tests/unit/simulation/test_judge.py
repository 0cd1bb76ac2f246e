"""The judge objects to what breaks a promise, and to nothing else. No operator runs here: the test
itself makes the puller pods, under the name of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation import loop
from tests.simulation.asks import GROUP, PREFETCH
from tests.simulation.machines import GB, Kubelet
from tests.simulation.replica import NAMESPACE
from tests.simulation.world import TICK, World

LARGE, SMALL = "registry.test/large:1", "registry.test/small:1"
OPERATOR = "operator-0/1"


def promises(story: Callable[[World], Coroutine[Any, Any, None]]) -> list[str]:
    """The promises that a story breaks, in the judge's opinion."""
    worlds: list[World] = []

    async def main() -> None:
        world = World(1)
        worlds.append(world)
        world.registry.push(LARGE, "large", 14 * GB)  # 49 GB on disk
        world.registry.push(SMALL, "small", 4 * GB)  # 14 GB
        telling = asyncio.create_task(story(world))
        while not telling.done():
            await asyncio.wait([telling], timeout=TICK)
            world.judge.tick()
        telling.result()

    loop.run(main, 1)
    return [broken.promise for broken in worlds[0].judge.broken]


def puller_pod(world: World, kubelet: Kubelet, prefetch: str, *images: str) -> None:
    machine = kubelet.machine
    metadata = {
        "name": f"ipf-{prefetch}-{machine.name}",
        "labels": {PREFETCH: prefetch, GROUP: "group"},
        "ownerReferences": [{"kind": "Node", "name": machine.name, "uid": machine.uid}],
    }
    volumes = [{"image": {"reference": image}} for image in images]
    body = {"metadata": metadata, "spec": {"nodeName": machine.name, "volumes": volumes}}
    world.server.do(OPERATOR, "POST", "pods", (NAMESPACE, ""), body)


async def first_pod(world: World, *, pulls: bool) -> None:
    """A new prefetch for a node on which another one's pull is in flight, or not."""
    kubelet = world.join("n1", link=1e6)
    await asyncio.sleep(120)
    world.apply("base", LARGE)
    if pulls:
        puller_pod(world, kubelet, "base", LARGE)
    else:
        world.edit("base", rollout={"paused": True})
    await asyncio.sleep(30)
    world.apply("tools", SMALL)
    await asyncio.sleep(120)


def test_first_pod_is_demanded_where_the_images_have_room() -> None:
    assert promises(lambda world: first_pod(world, pulls=False)) == ["first-pod"]


def test_first_pod_may_wait_for_the_room_that_a_pull_in_flight_needs() -> None:
    assert promises(lambda world: first_pod(world, pulls=True)) == []


def test_first_pod_is_demanded_once_the_pull_in_flight_is_over() -> None:
    async def story(world: World) -> None:
        await first_pod(world, pulls=True)
        assert not world.judge.broken
        world.remove_pod(world.server.all("pods")[0])
        await asyncio.sleep(90)

    assert promises(story) == ["first-pod"]
