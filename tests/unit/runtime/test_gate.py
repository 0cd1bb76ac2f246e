"""The NodeGate: its keys, its creation, its deletion, and the heartbeat that arms it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any, cast

import pytest

from imagegate import handlers
from imagegate.app import App, Outside
from imagegate.domain.facts import GatePolicy, ImageFacts
from imagegate.kube import errors, gates, nodes
from imagegate.kube.leases import LeaseRecord, Leases
from imagegate.runtime import process as runtime_process
from imagegate.runtime import taint_keys
from imagegate.runtime.clock import Clock
from imagegate.runtime.disks import Source
from imagegate.runtime.election import Elector, Leadership
from imagegate.runtime.taint_keys import TaintKeys
from imagegate.settings import Settings
from tests.unit.runtime.test_cleanup import cleanup
from tests.unit.runtime.world import KEY, NAMESPACE, PODS, World, until

NEW = "example.com/new"
GATE = f"{gates.PATH}/default"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/imagegate"
CLOSED = {"gate": {"policy": str(GatePolicy.FAIL_CLOSED)}}


class NoRegistry:
    async def resolve(self, *_: Any, **__: Any) -> ImageFacts:
        return ImageFacts(problem="there is no registry here")


class Process:
    """An operator on the World's cluster. Its watches report every change immediately."""

    def __init__(self, world: World, key: str = KEY) -> None:
        self._world = world
        settings = Settings(NAMESPACE, "op", gate_taint_key=key)
        client = cast("Any", world.api)
        self.process = runtime_process.Process.create(world.clock, version="test")
        self.app = App(
            settings,
            self.process,
            Outside(
                api=client,
                watching=client,
                manifests=cast("Any", NoRegistry()),
                kubelets=cast("Source", world.disks),
                watch=self._watch,
            ),
        )

    async def _watch(self, sightings: handlers.Sightings, *_: Any) -> None:
        def see(type_: str, body: dict[str, Any]) -> None:
            kinds: dict[str, Callable[[str, dict[str, Any]], None]] = {
                "Node": sightings.node,
                "Pod": sightings.pod,
                "ImagePrefetch": sightings.prefetch,
                "NodeGate": sightings.gate,
            }
            if (kind := body.get("kind")) in kinds:
                kinds[kind](type_, body)

        self._world.api.watchers.append(see)
        for path, body in list(self._world.api.objects.items()):
            if not path.startswith("/apis/coordination"):
                see("ADDED", copy.deepcopy(body))
        try:
            await asyncio.Event().wait()
        finally:
            self._world.api.watchers.remove(see)

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.app.lead())
        try:
            await until(lambda: self.process.store.watches.begun or task.done())
            assert not task.done(), task.exception()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def world() -> World:
    made = World()
    made.api.watchers.clear()
    made.add_prefetch("llm", "reg.test/llm:1", **CLOSED)
    return made


def gate(world: World) -> dict[str, Any]:
    return world.api.objects[GATE]


def armed(world: World) -> bool:
    return "heartbeat" in world.api.objects.get(GATE, {}).get("status", {})


def create_gate(world: World, key: str, uid: str = "again") -> None:
    spec = {"taintKey": key, "suspend": False, "silenceSeconds": 300}
    body = {"kind": "NodeGate", "metadata": {"name": "default", "uid": uid}, "spec": spec}
    world.api.put(GATE, body)


def hold(world: World, name: str, key: str = KEY) -> None:
    """A node joins; the admission policy has tainted it with this key."""
    world.add_node(name)
    taint = {"key": key, "value": "pending", "effect": "NoSchedule"}
    world.api.change(f"/api/v1/nodes/{name}", lambda body: body["spec"]["taints"].append(taint))


async def test_failing_webhook_ends_no_leader_and_the_probe_is_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def refuse(method: str, path: str) -> None:
        nonlocal asked
        if method == "POST" and path == PODS:
            asked += 1
            if asked < 3:
                raise errors.Unavailable("create pod", 500, "failed calling webhook")

    world.api.before = refuse
    process = Process(world)
    monkeypatch.setattr(
        process.app, "_settings", replace(process.app._settings, resync_seconds=0.1)
    )
    async with process.leading():
        await until(lambda: process.app._known.image_volumes.probed)
        await until(lambda: armed(world))
    assert asked == 3


def free(world: World, *names: str) -> Callable[[], bool]:
    return lambda: not any({KEY, NEW} & set(world.taints(name)) for name in names)


def recorded(world: World) -> set[str]:
    annotations = world.api.objects[LEASE]["metadata"].get("annotations", {})
    return set(annotations.get("imagegate.dev/taint-keys", "").split(","))


# ---- another key


async def test_nodes_are_released_when_the_gate_is_created_again_with_another_key(
    world: World,
) -> None:
    async with Process(world).leading():
        await until(lambda: armed(world))
        hold(world, "n1")
        hold(world, "n2")
        await until(lambda: gate(world)["status"].get("held") == 2)
        world.api.remove(GATE)
        create_gate(world, NEW)
        await until(free(world, "n1", "n2"))
        assert world.labels("n1") == {}
        await until(lambda: armed(world))
        assert recorded(world) == {KEY, NEW}
        # The policy may still have the old parameter for a moment.
        hold(world, "n3", KEY)
        hold(world, "n4", NEW)
        await until(free(world, "n3"))
        assert NEW in world.taints("n4")


@pytest.mark.parametrize("chart_key", [KEY, NEW])
async def test_nodes_are_released_when_the_key_was_changed_while_no_operator_ran(
    world: World, chart_key: str
) -> None:
    async with Process(world).leading():
        await until(lambda: armed(world))
        hold(world, "n1")
        await until(lambda: gate(world)["status"].get("held") == 1)
    world.api.remove(GATE)
    create_gate(world, NEW)
    async with Process(world, chart_key).leading():
        await until(free(world, "n1"))


async def test_a_key_is_recorded_before_its_first_heartbeat(world: World) -> None:
    at_heartbeat: list[set[str]] = []

    def look(_: str, body: dict[str, Any]) -> None:
        if body.get("kind") == "NodeGate" and armed(world):
            at_heartbeat.append(recorded(world) & {body["spec"]["taintKey"]})

    async with Process(world).leading():
        world.api.watchers.append(look)
        await until(lambda: armed(world))
        world.api.remove(GATE)
        create_gate(world, NEW)
        await until(lambda: armed(world))
    assert at_heartbeat
    assert all(at_heartbeat)


async def test_no_heartbeat_is_written_while_the_key_is_not_recorded(world: World) -> None:
    async with Process(world).leading():
        await until(lambda: armed(world))

        def refuse(method: str, path: str) -> None:
            if method == "PUT" and path == LEASE:
                raise errors.Forbidden("update lease", 403, "no right")

        world.api.before = refuse
        world.api.remove(GATE)
        create_gate(world, NEW)
        await asyncio.sleep(2.5)
        assert not armed(world)


async def test_heartbeat_for_a_replaced_gate_does_not_arm_the_new_gate(
    world: World,
) -> None:
    create_gate(world, KEY, "old")
    old = gates.parse(gate(world))
    create_gate(world, NEW, "new")
    with pytest.raises(errors.KubeError):
        await gates.Gates(cast("Any", world.api)).write_status(old, {"heartbeat": "x"})
    assert not armed(world)


async def test_heartbeat_from_the_future_is_replaced_immediately(world: World) -> None:
    process = Process(world)
    async with process.leading():
        await until(lambda: armed(world))
        world.api.change(GATE, lambda body: body["status"].update(heartbeat="2099-01-01T00:00:00Z"))
        await until(lambda: not gate(world)["status"]["heartbeat"].startswith("2099"), 5)
        world.api.requests.clear()
        await asyncio.sleep(3)
        assert world.api.writes() == []


async def test_earlier_key_is_forgotten_after_a_long_time_without_nodes(world: World) -> None:
    time = [0.0]
    leases = Leases(cast("Any", world.api), NAMESPACE, "imagegate")
    keys = TaintKeys(leases, Clock(monotonic=lambda: time[0]), KEY)
    await keys.load()
    await keys.record(KEY)
    keys.see(replace(gates.parse({"spec": {"taintKey": NEW}})))
    await keys.record(NEW)
    hold(world, "n1")
    there = [nodes.parse(world.node("n1"))]
    for time[0] in (0.0, taint_keys.FORGET_AFTER * 5):
        await keys.forget_unused(there)
        assert keys.earlier == {KEY}, "a node still has it"
    for time[0] in (1e6, 1e6 + taint_keys.FORGET_AFTER - 1):
        await keys.forget_unused([])
        assert keys.earlier == {KEY}
    time[0] = 1e6 + taint_keys.FORGET_AFTER
    await keys.forget_unused([])
    assert keys.earlier == frozenset()
    assert recorded(world) == {NEW}


# ---- the Lease with two writers


async def test_recorded_keys_survive_the_election_and_a_deleted_lease(world: World) -> None:
    leases = Leases(cast("Any", world.api), NAMESPACE, "imagegate")
    elector = Elector(leases, "op", world.clock, Leadership(world.clock))
    await elector.acquire()
    await leases.edit(lambda record: replace(record, taint_keys=(KEY,), gate_key=KEY))
    assert not await elector._try(), "one round is lost, of the four before the deadline"
    assert elector.leading
    assert await elector._try()
    assert recorded(world) == {KEY}
    world.api.remove(LEASE)
    await until_elected(elector)
    assert recorded(world) == {KEY}
    await elector.release()
    record = await leases.get()
    assert (record.holder, record.taint_keys, record.gate_key) == ("", (KEY,), KEY)


async def until_elected(elector: Elector) -> None:
    for _ in range(3):
        if await elector._try():
            return
    raise AssertionError("not elected")


async def test_edit_of_the_lease_is_repeated_after_a_renewal(world: World) -> None:
    leases = Leases(cast("Any", world.api), NAMESPACE, "imagegate")
    await leases.create(LeaseRecord(holder="op", renew_time="1"))
    renewals = 2

    def renew(method: str, path: str) -> None:
        nonlocal renewals
        if method == "PUT" and renewals:
            renewals -= 1
            world.api.change(path, lambda body: body["spec"].update(renewTime=str(renewals)))

    world.api.before = renew
    record = await leases.edit(lambda lease: replace(lease, taint_keys=(KEY,)))
    assert (record.holder, record.renew_time, record.taint_keys) == ("op", "0", (KEY,))


# ---- creation of the NodeGate


async def test_a_deleted_gate_stays_deleted_when_operators_restart(world: World) -> None:
    async with Process(world).leading():
        await until(lambda: armed(world))
        hold(world, "n1")
        world.api.remove(GATE)
        await until(free(world, "n1"))
    for _ in range(2):
        async with Process(world).leading():
            await asyncio.sleep(0.1)
            assert GATE not in world.api.objects
    create_gate(world, KEY)
    async with Process(world).leading():
        await until(lambda: armed(world))


async def test_changed_key_of_the_chart_creates_the_gate_again(world: World) -> None:
    async with Process(world).leading():
        await until(lambda: armed(world))
    world.api.remove(GATE)
    async with Process(world, NEW).leading():
        await until(lambda: armed(world))
        assert gate(world)["spec"]["taintKey"] == NEW


async def test_deleted_gate_with_another_key_is_not_created_again(
    world: World,
) -> None:
    create_gate(world, NEW)
    async with Process(world).leading():
        await until(lambda: armed(world))
    world.api.remove(GATE)
    async with Process(world).leading():
        await asyncio.sleep(0.1)
        assert GATE not in world.api.objects


# ---- the clean-up


async def test_cleanup_releases_the_nodes_of_every_key(world: World) -> None:
    async with Process(world).leading():
        await until(lambda: armed(world))
    world.api.remove(GATE)
    create_gate(world, NEW)
    hold(world, "n1", KEY)
    hold(world, "n2", NEW)
    hold(world, "foreign", "example.com/other")
    await cleanup(world).run()
    assert free(world, "n1", "n2")()
    assert "example.com/other" in world.taints("foreign")
    assert LEASE not in world.api.objects


async def test_cleanup_releases_a_node_that_joins_meanwhile(world: World) -> None:
    async with Process(world).leading():
        await until(lambda: armed(world))
    lists = 0

    def join(method: str, path: str) -> None:
        nonlocal lists
        if (method, path) == ("LIST", "/api/v1/nodes"):
            lists += 1
        elif lists == 1 and "/api/v1/nodes/late" not in world.api.objects:
            hold(world, "late")

    world.api.before = join
    await cleanup(world).run()
    assert free(world, "late")()


async def test_standby_that_leads_after_hours_is_healthy_during_its_first_list(
    world: World,
) -> None:
    ahead = [0.0]
    world.clock = Clock(now=world.clock.now, monotonic=lambda: monotonic() + ahead[0])
    process = Process(world)
    ahead[0] = 5 * 3600
    said: list[str | None] = []

    def look(method: str, path: str) -> None:
        if path == "/api/v1/nodes":
            said.append(process.app.healthy())

    world.api.before = look
    async with process.leading():
        assert said[0] is None
        await until(lambda: armed(world))
        # A leader that might not release nodes stops its heartbeat long before it is restarted.
        ahead[0] += 301
        assert process.app.healthy() is None
        assert process.app._health.unfit_to_hold() is not None
        before = gate(world)["status"]["heartbeat"]
        process.app._heartbeat._next = 0.0
        await asyncio.sleep(4)
        assert gate(world)["status"]["heartbeat"] == before


async def test_heartbeat_for_a_deleted_gate_is_not_repeated(world: World) -> None:
    """The watch of NodeGates is dead, so only the failed write shows that the object is new."""
    process = Process(world)
    async with process.leading():
        await until(lambda: armed(world))
        world.api.watchers.clear()
        asked: list[str] = []
        world.api.before = lambda method, path: (
            asked.append(method) if method == "PATCH" and path.startswith(GATE) else None
        )
        create_gate(world, KEY, "another")
        process.app._heartbeat._next = 0.0
        await until(lambda: armed(world), 10)
        assert len(asked) == 2
        asked.clear()
        del world.api.objects[GATE]
        process.app._heartbeat._next = 0.0
        await asyncio.sleep(7)
        assert len(asked) == 1
