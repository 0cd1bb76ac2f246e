"""The judge objects to what breaks a promise, and to nothing else. No operator runs here: the test
itself makes the puller pods, under the name of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.simulation import loop
from tests.simulation.apiserver import timestamp
from tests.simulation.asks import GROUP, PREFETCH
from tests.simulation.machines import GB, Kubelet
from tests.simulation.replica import LEASE, NAMESPACE
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


def gate(world: World) -> None:
    """A NodeGate with a heartbeat: nodes that join from now on are held."""
    world.gate()
    beat = {"heartbeat": timestamp()}
    key = ("", "default")
    world.server.change(OPERATOR, "nodegates", key, lambda body: body.update(status=beat))


async def queue(
    world: World, *, early: Callable[[World], None], late: Callable[[World], None]
) -> None:
    """A node joins, then three others; those are served first."""
    gate(world)
    world.apply("base", SMALL)
    kubelets = [world.join("n0")]
    await asyncio.sleep(60)
    early(world)
    for number in range(1, 4):
        kubelets.append(world.join(f"n{number}"))
        await asyncio.sleep(40)
    late(world)
    await asyncio.sleep(10)
    for kubelet in reversed(kubelets):
        puller_pod(world, kubelet, "base", SMALL)


def nothing(_: World) -> None:
    pass


def refused(world: World) -> None:
    """The first node has its turn, and an admission webhook refuses its pod."""
    world.webhook_down.add(NAMESPACE)
    puller_pod(world, world.kubelets["n0"], "base", SMALL)
    world.webhook_down.clear()


def full(world: World) -> None:
    """The images have no room on the first node, until somebody makes some."""
    world.kubelets["n0"].machine.used = 90 * GB


def other_leader(world: World) -> None:
    """A leader that has not seen which node asked first."""
    lease = {"metadata": {"name": LEASE}, "spec": {"holderIdentity": OPERATOR}}
    world.server.do(OPERATOR, "POST", "leases", (NAMESPACE, ""), lease)


def test_joining_nodes_are_served_in_the_order_in_which_they_asked() -> None:
    assert promises(lambda world: queue(world, early=nothing, late=nothing)) == ["queue-jumped"]


@pytest.mark.parametrize("early", [refused, full])
def test_a_node_that_cannot_use_its_turn_is_overtaken(early: Callable[[World], None]) -> None:
    assert promises(lambda world: queue(world, early=early, late=nothing)) == []


def test_a_new_leader_does_not_know_which_node_asked_first() -> None:
    assert promises(lambda world: queue(world, early=nothing, late=other_leader)) == []


async def release(world: World, *, used: int) -> None:
    """A node is released without the images, a minute after its disk was like this."""
    gate(world)
    world.apply("base", SMALL)
    machine = world.join("n0").machine
    await asyncio.sleep(30)
    machine.used = used
    await asyncio.sleep(30)
    machine.used = 10 * GB
    await asyncio.sleep(60)
    world.server.change(OPERATOR, "nodes", ("", "n0"), lambda node: node["spec"].update(taints=[]))


def test_a_node_is_not_released_without_images_that_have_room() -> None:
    assert promises(lambda world: release(world, used=10 * GB)) == ["released-early"]


def test_a_refusal_for_want_of_room_stands_until_it_is_tried_again() -> None:
    assert promises(lambda world: release(world, used=90 * GB)) == []


def says_full(world: World, node: str | None, image: str = "") -> None:
    """The status of the prefetch lists this node as full, or no node. With an image: its runtime
    had no space for it. Without: the disk guard refuses.
    """
    failures = [{"node": node, "reason": "DiskFull", "image": image}] if node else []
    key = ("", "base")
    status = {"failures": failures}
    world.server.change(OPERATOR, "imageprefetches", key, lambda body: body.update(status=status))


async def said_to_be_full(world: World, *, between: Callable[[World], None]) -> None:
    """A node that holds the images is listed as full before and after something happens."""
    world.apply("base", SMALL, rollout={"paused": True})
    machine = world.join("n0").machine
    await asyncio.sleep(60)
    machine.images[SMALL] = world.registry.tags[SMALL]
    says_full(world, "n0", SMALL)
    await asyncio.sleep(600)
    between(world)
    await asyncio.sleep(10)
    says_full(world, "n0", SMALL)
    await asyncio.sleep(600)


async def said_to_have_no_room(world: World) -> None:
    """The kubelet of a node that is listed as full lists every image."""
    world.apply("base", SMALL, rollout={"paused": True})
    kubelet = world.join("n0")
    await asyncio.sleep(60)
    kubelet.machine.images[SMALL] = world.registry.tags[SMALL]
    says_full(world, "n0")
    await asyncio.sleep(200)
    assert not world.judge.broken
    kubelet.reconnect()
    await asyncio.sleep(200)


def test_a_node_that_lists_the_images_needs_no_room_for_them() -> None:
    assert promises(said_to_have_no_room) == ["status-truth"]


def not_listed(world: World) -> None:
    says_full(world, None)


def edited(world: World) -> None:
    world.edit("base", disk={"maxUsagePercent": 90})


def test_a_node_that_holds_the_images_is_not_listed_as_full_for_ever() -> None:
    assert promises(lambda world: said_to_be_full(world, between=nothing)) == ["status-truth"]


@pytest.mark.parametrize("between", [not_listed, edited])
def test_a_failure_that_is_new_was_not_listed_before(between: Callable[[World], None]) -> None:
    assert promises(lambda world: said_to_be_full(world, between=between)) == []


async def refused_probe(world: World) -> None:
    """The operator asks with a pod for no node what the API server keeps, and a webhook fails."""
    world.webhook_down.add(NAMESPACE)
    body = {"metadata": {"name": "ipf-probe", "labels": {PREFETCH: "probe"}}, "spec": {}}
    world.server.do(OPERATOR, "POST", "pods", (NAMESPACE, ""), body)


def test_a_probe_is_no_pull() -> None:
    assert promises(refused_probe) == []


@pytest.mark.parametrize("method", ["tick", "request"])
def test_an_error_of_the_judge_ends_the_run(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        world = World(1)
        monkeypatch.setattr(world.judge, method, fails)
        await world.run(lambda _: asyncio.sleep(3600), 3600)

    with pytest.raises(ZeroDivisionError):
        loop.run(main, 1)
