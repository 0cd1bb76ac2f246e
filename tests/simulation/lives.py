"""Random runs of a cluster: the events of the stories in `focus` in random order, then calm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.loop import elapsed
from tests.simulation.machines import GB
from tests.simulation.world import KEY, TEAMS, World

NAMES = ("llm", "base", "tools", "vision")
CALM = 2400.0
"""Seconds without faults and user actions, in which the cluster must settle."""


async def lives(world: World, nodes: int = 20) -> None:
    """Run forever: about an hour of faults and user actions, then calm."""
    alive = Lives(world, nodes)
    await alive.begin()
    while True:
        await alive.busy(world.rng.uniform(1200, 5400))
        alive.heal()
        await asyncio.sleep(CALM)
        if world.rng.random() < 0.3:
            await asyncio.sleep(world.rng.uniform(0, 4 * 3600))


class Lives:
    def __init__(self, world: World, nodes: int) -> None:
        self._world, self._nodes = world, nodes
        self._number = 0

    async def begin(self) -> None:
        for _ in range(self._nodes * 2 // 3):
            self._join()
        await asyncio.sleep(60)

    async def busy(self, seconds: float) -> None:
        """Cause an event about every minute; faults last for some minutes."""
        world, end = self._world, elapsed() + seconds
        tame = world.rng.random() < 0.3
        while elapsed() < end:
            # Bursts, because combinations of events are the cases that were not planned for.
            for _ in range(world.rng.choice((1, 1, 1, 2, 4))):
                kinds = PEOPLE if tame else world.rng.choice((PEOPLE, PEOPLE, NODES, NODES, FAULTS))
                await world.rng.choice(kinds)(self)
                if world.rng.random() < 0.5:
                    await asyncio.sleep(world.rng.uniform(0, 3))
            await asyncio.sleep(world.rng.expovariate(1 / 90))

    def heal(self) -> None:
        """End every fault, and complete what users have left unfinished."""
        world = self._world
        world.disturb(
            latency=0.01,
            away=False,
            lost_answers=0.0,
            throttled=0.0,
            slow_lists=0.0,
            lag={},
            failing=False,
        )
        world.registry.down = world.registry.mute = False
        world.webhook_down.clear()
        world.refused_nodes.clear()
        world.roleless.clear()
        for namespace in TEAMS:
            world.make_namespace(namespace)
        for replica in world.replicas:
            replica.skew = 0.0
        for name, kubelet in list(world.kubelets.items()):
            machine = kubelet.machine
            machine.stalled, machine.fails, machine.loses_events = False, "", 0.0
            machine.port_dropped = False
            if not machine.on:
                kubelet.power_on()
            elif not machine.connected:
                kubelet.reconnect()
            if world.server.get("nodes", name) is None:
                kubelet.power_off()
                world.kubelets.pop(name)
        world.gate(suspend=False)
        for body in world.server.all("imageprefetches"):
            rollout = {**body["spec"].get("rollout", {}), "paused": False}
            world.edit(body["metadata"]["name"], rollout=rollout)
        world.settle()

    # ---- nodes

    def _join(self) -> None:
        world = self._world
        if len(world.kubelets) >= self._nodes:
            return
        self._number += 1
        pool = {"pool": world.rng.choice(("cpu", "gpu"))}
        world.join(
            world.rng.choice((f"n{self._number % (2 * self._nodes)}", f"n{self._number}")),
            labels=pool,
            skew=world.rng.choice((0.0, 0.0, 0.0, -90.0, 500.0, -4000.0)),
            link=world.rng.choice((20e6, 100e6, 1000e6)),
            loses_events=world.rng.choice((0.0, 0.0, 0.5, 1.0)),
            spelled=world.rng.random() < 0.1,
        )

    def _kubelet(self) -> Any:
        world = self._world
        return world.rng.choice(list(world.kubelets.values())) if world.kubelets else None

    async def nodes_join(self) -> None:
        for _ in range(self._world.rng.choice((1, 1, 3, 6))):
            self._join()

    async def node_leaves(self) -> None:
        world = self._world
        if len(world.kubelets) > self._nodes // 2:
            world.leave(world.rng.choice(list(world.kubelets)))

    async def node_replaced(self) -> None:
        kubelet = self._kubelet()
        if kubelet is not None:
            self._world.join(kubelet.machine.name, labels={"pool": "cpu"})

    async def node_reboots(self) -> None:
        if (kubelet := self._kubelet()) is not None:
            kubelet.power_on()

    async def node_dies(self) -> None:
        if (kubelet := self._kubelet()) is not None:
            kubelet.power_off()

    async def node_returns(self) -> None:
        for kubelet in self._world.kubelets.values():
            if not kubelet.machine.on:
                kubelet.power_on()
                return
            if not kubelet.machine.connected:
                kubelet.reconnect()
                return

    async def node_disconnected(self) -> None:
        if (kubelet := self._kubelet()) is not None:
            kubelet.machine.connected = False

    async def node_relabelled(self) -> None:
        world = self._world
        if (kubelet := self._kubelet()) is not None:
            pool = world.rng.choice(("cpu", "gpu"))
            world.server.change(
                "cloud",
                "nodes",
                ("", kubelet.machine.name),
                lambda body: body["metadata"]["labels"].update(pool=pool),
            )

    async def images_removed(self) -> None:
        world = self._world
        kubelet = self._kubelet()
        if kubelet is not None and kubelet.machine.images:
            kubelet.collect({world.rng.choice(sorted(kubelet.machine.images))})

    async def pull_stalls(self) -> None:
        if (kubelet := self._kubelet()) is not None:
            kubelet.machine.stalled = not kubelet.machine.stalled

    async def disk_fills(self) -> None:
        if (kubelet := self._kubelet()) is not None:
            kubelet.machine.used = int(self._world.rng.uniform(10, 80)) * GB

    # ---- users

    def _spec(self) -> dict[str, Any]:
        rng = self._world.rng
        return {
            "gate": {
                "mode": rng.choice(("NewNodes", "NewNodes", "Never")),
                "policy": rng.choice(("FailOpen", "FailOpen", "FailClosed")),
                "timeoutSeconds": rng.choice((60, 300, 900)),
                "maxParallel": rng.choice((1, 2, "100%", "100%")),
                "onReboot": rng.choice(("Verify", "Hold", "Ignore")),
            },
            "rollout": {
                "maxParallel": rng.choice((1, 3, "10%", "50%", "100%")),
                "seeds": rng.choice((1, 2)),
                "paused": rng.random() < 0.1,
            },
            "retention": {"mode": rng.choice(("Keep", "Keep", "Release"))},
            "disk": {"maxUsagePercent": rng.choice((75, 90, 100))},
            "pullerNamespace": rng.choice(TEAMS),
            "nodeSelector": rng.choice(({}, {}, {"matchLabels": {"pool": "gpu"}})),
            "refresh": rng.choice(
                ({"mode": "Never"}, {"mode": "Never"}, {"mode": "Digest", "intervalSeconds": 60})
            ),
            "imagePullSecrets": rng.choice(([], [{"name": "pull"}])),
        }

    async def applies(self) -> None:
        world, rng = self._world, self._world.rng
        count = rng.choice((1, 1, 2, 4, 10))
        images = rng.sample(
            [f"registry.test/app-{i}:{t}" for i in range(8) for t in range(1, 4)], count
        )
        world.apply(rng.choice(NAMES), *images, **self._spec())

    async def edits_images(self) -> None:
        world, rng = self._world, self._world.rng
        name = rng.choice(NAMES)
        body = world.server.get("imageprefetches", name)
        if body is None:
            return
        before = body["spec"]["images"]
        images = rng.choice(
            (before[::-1], [*before[1:], {"image": f"registry.test/app-7:{rng.randint(1, 3)}"}])
        )
        unique = list({image["image"]: image for image in images}.values())
        world.edit(name, images=unique)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.choice((0.2, 20, 320)))
            if rng.random() < 0.9:
                world.edit(name, images=before)

    async def deletes(self) -> None:
        self._world.delete(self._world.rng.choice(NAMES))

    async def makes_anew(self) -> None:
        world = self._world
        name = world.rng.choice(NAMES)
        body = world.server.get("imageprefetches", name)
        if body is None:
            return
        world.delete(name)
        await world.until(lambda: world.server.get("imageprefetches", name) is None, 60)
        images = [image["image"] for image in body["spec"]["images"]]
        world.apply(name, *images, **{k: v for k, v in body["spec"].items() if k != "images"})

    async def pauses(self) -> None:
        world = self._world
        name = world.rng.choice(NAMES)
        body = world.server.get("imageprefetches", name)
        if body is not None:
            rollout = body["spec"].get("rollout", {})
            world.edit(name, rollout={**rollout, "paused": not rollout.get("paused")})

    async def pushes(self) -> None:
        world, rng = self._world, self._world.rng
        tag = rng.choice(sorted(world.registry.tags))
        world.registry.push(tag, f"{tag}/{rng.random()}", int(rng.uniform(0.05, 3) * GB))
        world.settle()

    async def deletes_pod(self) -> None:
        if pods := self._world.puller_pods():
            self._world.remove_pod(self._world.rng.choice(pods))

    async def suspends(self) -> None:
        world = self._world
        gate = world.server.get("nodegates", "default")
        if gate is not None:
            world.gate(suspend=not gate["spec"].get("suspend"))

    async def deletes_gate(self) -> None:
        world, rng = self._world, self._world.rng
        world.ungate()
        await asyncio.sleep(rng.choice((0.0, 0.1, 100.0)))
        world.gate(taintKey=rng.choice((KEY, KEY, "example.com/other")))

    # ---- faults

    async def _for(self, fault: Callable[[bool], None], low: float, high: float) -> None:
        fault(True)

        async def end() -> None:
            await asyncio.sleep(self._world.rng.uniform(low, high))
            fault(False)
            self._world.settle()

        self._world.spawn(end())

    async def operator_killed(self) -> None:
        world = self._world
        world.rng.choice(world.replicas).kill()

    async def operator_frozen(self) -> None:
        world = self._world
        world.freeze(world.rng.choice(world.replicas), world.rng.uniform(1, 40))

    async def apiserver_away(self) -> None:
        world = self._world
        await self._for(lambda on: world.disturb(away=on), 1, 90)
        world.restart_apiserver()

    async def apiserver_fails(self) -> None:
        await self._for(lambda on: self._world.disturb(failing=on), 1, 30)

    async def watches_break(self) -> None:
        self._world.restart_apiserver()
        if self._world.rng.random() < 0.5:
            self._world.server.compact()

    async def lists_are_slow(self) -> None:
        await self._for(lambda on: self._world.disturb(slow_lists=5.0 if on else 0.0), 60, 600)

    async def watches_are_late(self) -> None:
        kind = self._world.rng.choice(("nodes", "pods", "imageprefetches", "events"))
        await self._for(lambda on: self._world.disturb(lag={kind: 4.0} if on else {}), 60, 600)

    async def answers_lost(self) -> None:
        await self._for(lambda on: self._world.disturb(lost_answers=0.3 if on else 0.0), 10, 200)

    async def throttles(self) -> None:
        await self._for(lambda on: self._world.disturb(throttled=0.4 if on else 0.0), 10, 200)

    async def registry_down(self) -> None:
        def fault(on: bool) -> None:
            self._world.registry.down = on
            self._world.settle()

        await self._for(fault, 10, 900)

    async def registry_mute(self) -> None:
        def fault(on: bool) -> None:
            self._world.registry.mute = on

        await self._for(fault, 10, 900)

    async def webhook_fails(self) -> None:
        world = self._world
        namespace = world.rng.choice(TEAMS)

        def fault(on: bool) -> None:
            (world.webhook_down.add if on else world.webhook_down.discard)(namespace)

        await self._for(fault, 60, 1500)

    async def namespace_goes(self) -> None:
        world = self._world
        namespace = world.rng.choice(TEAMS[1:])

        def fault(on: bool) -> None:
            world.delete_namespace(namespace) if on else world.make_namespace(namespace)

        await self._for(fault, 60, 1500)

    async def role_goes(self) -> None:
        world = self._world
        namespace = world.rng.choice(TEAMS[1:])

        def fault(on: bool) -> None:
            (world.roleless.add if on else world.roleless.discard)(namespace)

        await self._for(fault, 60, 1500)

    async def policy_refuses(self) -> None:
        world = self._world
        if (kubelet := self._kubelet()) is not None:
            name = kubelet.machine.name

            def fault(on: bool) -> None:
                (world.refused_nodes.add if on else world.refused_nodes.discard)(name)

            await self._for(fault, 60, 900)

    async def port_dropped(self) -> None:
        kubelets = list(self._world.kubelets.values())

        def fault(on: bool) -> None:
            for kubelet in kubelets:
                kubelet.machine.port_dropped = on

        await self._for(fault, 60, 900)


Event = Callable[[Lives], Coroutine[Any, Any, None]]

PEOPLE: tuple[Event, ...] = (
    Lives.applies,
    Lives.applies,
    Lives.applies,
    Lives.edits_images,
    Lives.edits_images,
    Lives.deletes,
    Lives.makes_anew,
    Lives.pauses,
    Lives.pushes,
    Lives.deletes_pod,
    Lives.suspends,
    Lives.deletes_gate,
)
NODES: tuple[Event, ...] = (
    Lives.nodes_join,
    Lives.nodes_join,
    Lives.nodes_join,
    Lives.node_leaves,
    Lives.node_replaced,
    Lives.node_reboots,
    Lives.node_dies,
    Lives.node_returns,
    Lives.node_disconnected,
    Lives.node_relabelled,
    Lives.images_removed,
    Lives.pull_stalls,
    Lives.disk_fills,
)
FAULTS: tuple[Event, ...] = (
    Lives.operator_killed,
    Lives.operator_killed,
    Lives.operator_frozen,
    Lives.apiserver_away,
    Lives.apiserver_fails,
    Lives.watches_break,
    Lives.lists_are_slow,
    Lives.watches_are_late,
    Lives.answers_lost,
    Lives.throttles,
    Lives.registry_down,
    Lives.registry_mute,
    Lives.webhook_fails,
    Lives.namespace_goes,
    Lives.role_goes,
    Lives.policy_refuses,
    Lives.port_dropped,
)
