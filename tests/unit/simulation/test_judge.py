"""The judge reports broken promises, and nothing else. No operator runs here: the tests write the
puller pods and taints themselves, as the actor `OPERATOR`.
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
    """The promises that the judge reports as broken in a story."""
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
    """Create a prefetch for a node on which another prefetch pulls, or is paused."""
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


def test_missing_first_pod_is_reported_if_the_images_have_room() -> None:
    assert promises(lambda world: first_pod(world, pulls=False)) == ["first-pod"]


def test_missing_first_pod_is_accepted_while_a_pull_needs_the_room() -> None:
    assert promises(lambda world: first_pod(world, pulls=True)) == []


def test_missing_first_pod_is_reported_after_the_pull_that_needed_the_room() -> None:
    async def story(world: World) -> None:
        await first_pod(world, pulls=True)
        assert not world.judge.broken
        world.remove_pod(world.server.all("pods")[0])
        await asyncio.sleep(90)

    assert promises(story) == ["first-pod"]


def gate(world: World) -> None:
    """Create a NodeGate with a heartbeat, so that nodes that join later are held."""
    world.gate()
    beat = {"heartbeat": timestamp()}
    key = ("", "default")
    world.server.change(OPERATOR, "nodegates", key, lambda body: body.update(status=beat))


async def queue(
    world: World, *, early: Callable[[World], None], late: Callable[[World], None]
) -> None:
    """One node joins, then three others. The last node gets a puller pod first."""
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
    """A puller pod for the first node is requested, and an admission webhook refuses it."""
    world.webhook_down.add(NAMESPACE)
    puller_pod(world, world.kubelets["n0"], "base", SMALL)
    world.webhook_down.clear()


def full(world: World) -> None:
    """The disk of the first node is too full for the images."""
    world.kubelets["n0"].machine.used = 90 * GB


def other_leader(world: World) -> None:
    """Another replica becomes leader. It does not know which node requested a slot first."""
    lease = {"metadata": {"name": LEASE}, "spec": {"holderIdentity": OPERATOR}}
    world.server.do(OPERATOR, "POST", "leases", (NAMESPACE, ""), lease)


def test_joining_nodes_served_in_the_wrong_order_are_reported() -> None:
    assert promises(lambda world: queue(world, early=nothing, late=nothing)) == ["queue-jumped"]


@pytest.mark.parametrize("early", [refused, full])
def test_node_that_cannot_use_its_turn_may_be_overtaken(early: Callable[[World], None]) -> None:
    assert promises(lambda world: queue(world, early=early, late=nothing)) == []


def test_new_leader_may_serve_earlier_requests_in_another_order() -> None:
    assert promises(lambda world: queue(world, early=nothing, late=other_leader)) == []


async def release(world: World, *, used: int) -> None:
    """A node is released without the images, a minute after its disk usage was `used` bytes."""
    gate(world)
    world.apply("base", SMALL)
    machine = world.join("n0").machine
    await asyncio.sleep(30)
    machine.used = used
    await asyncio.sleep(30)
    machine.used = 10 * GB
    await asyncio.sleep(60)
    world.server.change(OPERATOR, "nodes", ("", "n0"), lambda node: node["spec"].update(taints=[]))


def test_release_without_images_is_reported_if_they_have_room() -> None:
    assert promises(lambda world: release(world, used=10 * GB)) == ["released-early"]


def test_release_without_images_is_accepted_soon_after_the_disk_was_full() -> None:
    assert promises(lambda world: release(world, used=90 * GB)) == []


def says_full(world: World, node: str | None, image: str = "") -> None:
    """Write a status that reports DiskFull for this node, or no failure. With an image, the failure
    is from the container runtime; without an image, from the disk guard.
    """
    failures = [{"node": node, "reason": "DiskFull", "image": image}] if node else []
    key = ("", "base")
    status = {"failures": failures}
    world.server.change(OPERATOR, "imageprefetches", key, lambda body: body.update(status=status))


async def said_to_be_full(world: World, *, between: Callable[[World], None]) -> None:
    """A status reports DiskFull for a node that holds the images, before and after `between`."""
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
    """A status reports DiskFull for a node, and then its kubelet lists every image."""
    world.apply("base", SMALL, rollout={"paused": True})
    kubelet = world.join("n0")
    await asyncio.sleep(60)
    kubelet.machine.images[SMALL] = world.registry.tags[SMALL]
    says_full(world, "n0")
    await asyncio.sleep(200)
    assert not world.judge.broken
    kubelet.reconnect()
    await asyncio.sleep(200)


def test_false_disk_full_is_reported_for_a_node_that_lists_the_images() -> None:
    assert promises(said_to_have_no_room) == ["status-truth"]


def not_listed(world: World) -> None:
    says_full(world, None)


def edited(world: World) -> None:
    world.edit("base", disk={"maxUsagePercent": 90})


def test_lasting_false_disk_full_is_reported_for_a_node_that_holds_the_images() -> None:
    assert promises(lambda world: said_to_be_full(world, between=nothing)) == ["status-truth"]


@pytest.mark.parametrize("between", [not_listed, edited])
def test_new_disk_full_failure_starts_a_new_clock(between: Callable[[World], None]) -> None:
    assert promises(lambda world: said_to_be_full(world, between=between)) == []


async def refused_probe(world: World) -> None:
    """The operator probes the API server with a pod without a node, and a webhook refuses it."""
    world.webhook_down.add(NAMESPACE)
    body = {"metadata": {"name": "ipf-probe", "labels": {PREFETCH: "probe"}}, "spec": {}}
    world.server.do(OPERATOR, "POST", "pods", (NAMESPACE, ""), body)


def test_refused_probe_does_not_count_as_a_pull() -> None:
    assert promises(refused_probe) == []


@pytest.mark.parametrize("method", ["tick", "request"])
def test_error_in_the_judge_ends_the_run(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        world = World(1)
        monkeypatch.setattr(world.judge, method, fails)
        await world.run(lambda _: asyncio.sleep(3600), 3600)

    with pytest.raises(ZeroDivisionError):
        loop.run(main, 1)
