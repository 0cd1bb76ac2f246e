"""A kubelet that does not answer delays its own node, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imagegate.domain.disk import Usage
from imagegate.domain.facts import Node
from imagegate.runtime import disks as runtime_disks
from imagegate.runtime.clock import Clock
from tests.unit.runtime.world import KEY, World, until


@pytest.fixture
def world() -> World:
    made = World()
    made.add_gate()
    return made


class SlowKubelets:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.asked = seconds, 0

    async def usage(self, _: Node) -> Usage:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        return Usage(problem="its kubelet does not answer")


async def test_a_release_does_not_wait_for_kubelets_that_do_not_answer(world: World) -> None:
    kubelets: Any = SlowKubelets(0.0)
    world.disks = kubelets
    world.start_operator()
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": "100%"})
    world.add_node("done", gated=True)
    async with world.operating():
        await until(world.pods)
        kubelets.seconds = 2.0
        for number in range(200):
            world.add_node(f"n{number}", gated=True)
        await asyncio.sleep(0.3)
        began = asyncio.get_running_loop().time()
        world.finish(world.pods()[0])
        await until(lambda: KEY not in world.taints("done"))
        assert asyncio.get_running_loop().time() - began < 0.5
        await until(lambda: len(world.pods()) == 201, 6.0)
        assert kubelets.asked < 60, "the fleet is not asked one by one"


async def test_after_many_silent_kubelets_one_is_asked_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_disks, "SLOW", 0.001)
    monkeypatch.setattr(runtime_disks, "PROBE", 0.2)
    source: Any = SlowKubelets(0.01)
    disks = runtime_disks.Disks(source, Clock())
    for number in range(40):
        assert (await disks.read(Node(f"n{number}", "u", 1, boot_id="b"))).problem
    assert source.asked == runtime_disks.SILENT
    await asyncio.sleep(0.25)

    async def answers(_: Node) -> Usage:
        return Usage(capacity=10, used=1)

    source.usage = answers
    assert not (await disks.read(Node("x", "u", 1, boot_id="b"))).problem
    assert not (await disks.read(Node("y", "u", 1, boot_id="b"))).problem


async def test_a_dry_run_with_slow_kubelets_delays_no_other_prefetch(world: World) -> None:
    world.disks = SlowKubelets(1.0)  # type: ignore[assignment]
    world.start_operator()
    for number in range(40):
        world.add_node(f"n{number}")
    for number in range(4):
        world.add_prefetch(f"dry{number}", "reg.test/d:1", dryRun=True)
    async with world.operating():
        await asyncio.sleep(0.2)
        world.add_prefetch("llm", "reg.test/l:1", disk={"maxUsagePercent": 100})
        await until(world.pods, 1.0)
