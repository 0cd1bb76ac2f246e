"""The whole loop with ``startAfter``: the operator asks only while a node waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from imagegate.kube import errors
from imagegate.runtime import start_after
from tests.unit.runtime.world import KEY, World, until

DAEMONS = "/api/v1/namespaces/mirrors/pods"
SET = "/apis/apps/v1/namespaces/mirrors/daemonsets/spegel"
AFTER = {"startAfter": [{"namespace": "mirrors", "daemonSet": "spegel"}]}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(start_after, "PERIOD", 0.05)
    made = World()
    made.add_gate()
    return made


def add_daemonset(world: World) -> None:
    world.api.put(SET, {"kind": "DaemonSet", "metadata": {"name": "spegel"}})


def put_daemon(world: World, node: str, *, ready: bool) -> None:
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "spegel", "controller": True}
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    world.api.put(
        f"{DAEMONS}/spegel-{node}",
        {
            "metadata": {"name": f"spegel-{node}", "ownerReferences": [owner]},
            "spec": {"nodeName": node},
            "status": {"conditions": [condition]},
        },
    )


def message(world: World) -> str:
    return str(world.condition("llm", "Progressing").get("message", ""))


def asked(world: World) -> int:
    return sum(path in (DAEMONS, SET) for _, path in world.api.requests)


def says(world: World, text: str) -> Callable[[], bool]:
    return lambda: text in world.ledger.holding.get("n1", "")


async def test_pull_starts_when_the_daemonset_is_ready_and_the_checks_end(
    world: World,
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", **AFTER)
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(says(world, "it does not exist"))
        add_daemonset(world)
        await until(says(world, "it has no pod there"))
        put_daemon(world, "n1", ready=False)
        await until(says(world, "its pod spegel-n1 is not Ready"))
        assert world.pods() == []
        assert world.ledger.entry("llm").slots == set()
        await until(lambda: "n1: DaemonSet mirrors/spegel" in message(world))
        assert world.condition("llm", "Progressing")["reason"] == "WaitingForDaemonSet"
        put_daemon(world, "n1", ready=True)
        await until(world.pods)
        before = asked(world)
        put_daemon(world, "n1", ready=False)  # once is enough for this boot
        await asyncio.sleep(0.3)
        world.finish(world.pods()[0])
        await until(lambda: KEY not in world.taints("n1"))
        assert asked(world) == before


async def test_waiting_node_takes_no_slot(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": 1}, **AFTER)
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(says(world, "it does not exist"))
        put_daemon(world, "n2", ready=True)
        world.add_node("n2", gated=True)
        await until(world.pods)
        assert [pod["spec"]["nodeName"] for pod in world.pods()] == ["n2"]


async def test_rebooted_node_is_checked_again(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", gate={"onReboot": "Hold"}, **AFTER)
    put_daemon(world, "n1", ready=True)
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: KEY not in world.taints("n1"))
        put_daemon(world, "n1", ready=False)

        def reboot(body: dict[str, Any]) -> None:
            body["status"]["nodeInfo"]["bootID"] = "boot-2"

        world.api.change("/api/v1/nodes/n1", reboot)
        await until(says(world, "its pod spegel-n1 is not Ready"))
        assert all(pod.get("status", {}).get("phase") for pod in world.pods()), "a second pod"


async def test_missing_permission_is_reported_with_the_value_of_the_chart(
    world: World,
) -> None:
    def forbid(method: str, path: str) -> None:
        if path == DAEMONS:
            raise errors.Forbidden(f"{method} {path}", 403, "pods is forbidden")

    world.api.before = forbid
    world.add_prefetch("llm", "reg.test/llm:1", gate={"timeoutSeconds": 4}, **AFTER)
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(lambda: "add it to the chart's startAfter.namespaces" in message(world))
        await until(lambda: KEY not in world.taints("n1"), 10)
        # The node is in service now. It does not wait any more, so the operator does not ask.
        await until(world.pods)
        await asyncio.sleep(0.2)
        before = asked(world)
        await asyncio.sleep(0.3)
        assert asked(world) == before


async def test_deleted_node_is_not_checked_any_more(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", **AFTER)
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(says(world, "it does not exist"))
        world.api.remove("/api/v1/nodes/n1")
        await asyncio.sleep(0.2)
        before = asked(world)
        await asyncio.sleep(0.3)
        assert asked(world) == before


async def test_a_slow_answer_does_not_delay_the_release(world: World) -> None:
    """The API server is slow for the mirrors' namespace; the timeout still releases the node."""
    world.add_prefetch("llm", "reg.test/llm:1", gate={"timeoutSeconds": 1}, **AFTER)
    answer = asyncio.Event()
    listed = world.api.list_all

    async def slow(path: str, **query: str) -> Any:
        if path == DAEMONS:
            await answer.wait()
        async for body in listed(path, **query):
            yield body

    world.api.list_all = slow  # type: ignore[method-assign]
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(lambda: KEY not in world.taints("n1"))
        assert not answer.is_set()


async def test_many_waiting_nodes_are_checked_less_often(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", **AFTER)
    async with world.operating():
        for number in range(150):
            world.add_node(f"n{number}", gated=True)
        await until(lambda: len(world.ledger.holding) == 150)
        await until(lambda: asked(world) >= 300)
        before = asked(world)
        await asyncio.sleep(1.0)
        assert asked(world) - before <= 2 * start_after.RATE * 1.2, "two requests for each check"
