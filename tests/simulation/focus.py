"""Stories: one for each known kind of fault of a cluster.

A story changes the world and waits, while the judge checks the promises. Its choices come from the
world's seed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from tests.simulation.machines import Machine
from tests.simulation.world import KEY, World

Story = Callable[[World], Coroutine[Any, Any, None]]
STORIES: dict[str, Story] = {}
SLOW = frozenset({"forecasts", "kubelets-dropped", "short-lived"})
"""Stories that take more than 20 s of a core."""


def story(work: Story) -> Story:
    STORIES[work.__name__.replace("_", "-")] = work
    return work


async def _cluster(world: World, nodes: int, *, wait: float = 60.0, **how: Any) -> None:
    """Let nodes join before there is any ImagePrefetch, with a running operator."""
    for index in range(nodes):
        world.join(f"n{index}", **how)
    await asyncio.sleep(wait)
    await world.until(lambda: not any(_held(world, f"n{i}") for i in range(nodes)), 600)


def _held(world: World, name: str) -> bool:
    node = world.server.get("nodes", name)
    return any(t["key"] == KEY for t in (node or {}).get("spec", {}).get("taints", ()))


def _pushed(world: World, name: str, megabytes: float) -> str:
    tag = f"registry.test/{name}:1"
    world.registry.push(tag, name, int(megabytes * 1e6))
    return tag


def _pulls(machine: Machine) -> bool:
    return bool(machine.pulling)


def _taint(world: World, name: str, effect: str) -> None:
    """A user adds a taint with the gate's key to a node."""

    def edit(body: dict[str, Any]) -> None:
        body["spec"].setdefault("taints", []).append({"key": KEY, "effect": effect})

    world.server.change("person", "nodes", ("", name), edit)


def _relabel(world: World, name: str, **labels: str) -> None:
    """The cloud controller changes labels of a node."""

    def edit(body: dict[str, Any]) -> None:
        body["metadata"].setdefault("labels", {}).update(labels)

    world.server.change("cloud", "nodes", ("", name), edit)


# ---- one story for each fault of the list; each number is from the list


@story
async def same_turn(world: World) -> None:
    """1: an urgent key and an ordinary one are added in one turn of the loop."""
    world.disturb(latency=0.0)
    await _cluster(world, 3)
    big = _pushed(world, "big", 9000)
    # The held node pulls all the time, and the cloud controller changes its labels meanwhile.
    world.apply("llm", big, gate={"timeoutSeconds": 86400}, nodeSelector=_only("pool", "gpu"))
    world.apply(
        "small",
        _pushed(world, "tiny", 1),
        rollout={"maxParallel": "100%"},
        nodeSelector=_only("pool", "cpu"),
    )
    await asyncio.sleep(30)
    world.join("held", labels={"pool": "gpu"}, link=1e5)
    await asyncio.sleep(400)
    for turn in range(3):
        await asyncio.sleep(600)
        for name, labels in (("held", {"turn": str(turn)}), (f"n{turn}", {"pool": "cpu"})):
            _relabel(world, name, **labels)
        await asyncio.sleep(1000)


@story
async def dead_seed(world: World) -> None:
    """2: the seed of the only zone loses power during its pull, and stays off."""
    await _cluster(world, 8)
    image = _pushed(world, "llm", world.rng.uniform(3000, 9000))
    world.apply("llm", image)
    await world.until(lambda: any(k.machine.pulling for k in world.kubelets.values()))
    await asyncio.sleep(world.rng.uniform(1, 20))
    for kubelet in world.kubelets.values():
        if kubelet.machine.pulling:
            kubelet.power_off()
    await asyncio.sleep(world.rng.uniform(10, 100))
    world.join("joiner")
    await asyncio.sleep(4 * 3600)


@story
async def hanging_pull(world: World) -> None:
    """2: a pull hangs on a Ready node, and only one node may pull at a time."""
    await _cluster(world, 4)
    world.apply("llm", _pushed(world, "llm", 2000), rollout={"maxParallel": 1, "seeds": 1})
    await world.until(lambda: bool(world.puller_pods(done=False)), 60)
    (pod,) = world.puller_pods(done=False)
    machine = world.kubelets[pod["spec"]["nodeName"]].machine
    machine.stalled = True
    await asyncio.sleep(2 * 3600)
    machine.stalled = False
    world.settle()
    await asyncio.sleep(3600)


@story
async def webhook_down(world: World) -> None:
    """3: the admission webhook of one namespace fails; another namespace is not affected."""
    await _cluster(world, 5)
    world.webhook_down.add("team-a")
    world.apply("a", _pushed(world, "a", 100), pullerNamespace="team-a")
    world.apply("b", _pushed(world, "b", 100))
    world.join("joiner")
    await asyncio.sleep(3600)
    world.webhook_down.clear()
    world.settle()
    await asyncio.sleep(3600)


@story
async def namespace_deleted(world: World) -> None:
    """4: a user deletes one puller namespace, and with it the operator's Role there."""
    await _cluster(world, 5)
    world.apply("a", _pushed(world, "a", 100), pullerNamespace="team-b")
    world.apply("b", _pushed(world, "b", 4000))
    await asyncio.sleep(world.rng.uniform(0, 200))
    world.delete_namespace("team-b")
    world.join("joiner")
    await asyncio.sleep(3600)
    world.make_namespace("team-b")
    world.settle()
    await asyncio.sleep(3600)


@story
async def pods_vanish(world: World) -> None:
    """5: another controller deletes every puller pod right after its creation."""
    await _cluster(world, 3)
    delay = world.rng.choice((0.02, 0.5, 2.0))

    async def janitor() -> None:
        while True:
            await asyncio.sleep(delay)
            for pod in world.puller_pods(done=False):
                world.remove_pod(pod, "janitor")

    world.spawn(janitor())
    world.apply("llm", _pushed(world, "llm", 3000), rollout={"maxParallel": "100%"})
    await asyncio.sleep(3600)


@story
async def late_lists(world: World) -> None:
    """6: lists arrive seconds late, and machines are replaced meanwhile."""
    await _cluster(world, 6)
    world.disturb(slow_lists=6.0)
    image = _pushed(world, "llm", 2500)
    world.apply("llm", image, rollout={"maxParallel": "100%"})
    for _ in range(300):
        await asyncio.sleep(world.rng.uniform(5, 60))
        match world.rng.randrange(4):
            case 0 | 1:
                world.join(f"n{world.rng.randrange(6)}")
            case 2 if pods := world.puller_pods():
                world.remove_pod(world.rng.choice(pods))
            case _:
                tag = world.rng.randrange(1, 4)
                world.apply("llm", f"registry.test/app-1:{tag}", rollout={"maxParallel": "100%"})


@story
async def gate_deleted_late(world: World) -> None:
    """6: the NodeGate is deleted after it was read, and before the answer arrives."""
    await _cluster(world, 4)
    world.disturb(slow_lists=8.0)
    big = _pushed(world, "big", 9000)
    world.apply("llm", big, gate={"timeoutSeconds": 3600})
    await asyncio.sleep(60)
    for _ in range(40):
        world.join("joiner", link=1e6)
        await asyncio.sleep(world.rng.uniform(30, 400))
        world.ungate()
        await asyncio.sleep(400)
        world.gate()
        await asyncio.sleep(100)


@story
async def rollback(world: World) -> None:
    """7a: two prefetches are edited, and the edits are reverted after the kubelets' heartbeats."""
    for _ in range(20):
        await _cluster(world, 8)
        images = [_pushed(world, name, 500) for name in ("a", "b")]
        new = [_pushed(world, name, 700) for name in ("a2", "b2")]
        for name, image in zip("ab", images, strict=True):
            world.apply(name, image, rollout={"maxParallel": "100%"})
        await world.until(lambda: world.cached("a") and world.cached("b"), 1200)
        await asyncio.sleep(400)
        for name, image in zip("ab", new, strict=True):
            world.apply(name, image, rollout={"paused": True, "maxParallel": "100%"})
        await asyncio.sleep(world.rng.uniform(280, 420))
        for name, image in zip("ab", images, strict=True):
            world.apply(name, image, rollout={"paused": True, "maxParallel": "100%"})
            await asyncio.sleep(world.rng.uniform(0.05, 1.0))
        world.edit("a", rollout={"paused": False, "maxParallel": "100%"})
        await asyncio.sleep(400)
        for name in "ab":
            world.delete(name)
        await asyncio.sleep(100)


@story
async def many_names(world: World) -> None:
    """7b: six tags of one image; a kubelet lists five names of it."""
    await _cluster(world, 3)
    tags = [f"registry.test/llm:{tag}" for tag in ("1", "1.2", "1.2.3", "latest", "main", "stable")]
    for tag in tags:
        world.registry.push(tag, "one", 900_000_000)
    world.apply("llm", *tags, rollout={"maxParallel": "100%"})
    await asyncio.sleep(3 * 3600)


@story
async def other_spelling(world: World) -> None:
    """7c: the runtime lists an image under another name than the spec."""
    await _cluster(world, 3, spelled=True)
    world.apply("llm", _pushed(world, "llm", 900), rollout={"maxParallel": "100%"})
    await asyncio.sleep(3 * 3600)


@story
async def same_image_twice(world: World) -> None:
    """8: two prefetches name the same large image, and the disk guard counts it twice."""
    await _cluster(world, 3)
    image = _pushed(world, "llm", 10_000)
    for name in "ab":
        world.apply(
            name,
            image,
            disk={"maxUsagePercent": 75},
            rollout={"maxParallel": "100%"},
            gate={"timeoutSeconds": 3000, "policy": "FailClosed"},
        )
    await asyncio.sleep(30)
    world.join("joiner")
    await asyncio.sleep(2 * 3600)


@story
async def kubelets_dropped(world: World) -> None:
    """9: a firewall drops packets to the kubelets' port, and many nodes join."""
    await _cluster(world, 2, port_dropped=True)
    image = _pushed(world, "llm", 20)
    world.apply("llm", image, disk={"maxUsagePercent": 75}, rollout={"maxParallel": "100%"})
    await asyncio.sleep(60)
    for index in range(400):
        world.join(f"j{index}", port_dropped=True)
    await asyncio.sleep(900)


@story
async def forecasts(world: World) -> None:
    """9: the kubelets do not answer dry runs, and another prefetch must pull meanwhile."""
    await _cluster(world, 300, port_dropped=True)
    for index in range(5):
        world.apply(
            f"dry-{index}", _pushed(world, "llm", 20), dryRun=True, disk={"maxUsagePercent": 75}
        )
    await asyncio.sleep(70)
    for index in range(5):
        world.edit(f"dry-{index}", rollout={"maxParallel": 3})
    await asyncio.sleep(0.5)
    world.apply("work", _pushed(world, "w", 20), disk={"maxUsagePercent": 100})
    await asyncio.sleep(600)


@story
async def gate_key(world: World) -> None:
    """10: the taint key is changed in the documented way."""
    await _cluster(world, 3)
    world.apply("llm", _pushed(world, "big", 9000), gate={"timeoutSeconds": 3600})
    await asyncio.sleep(60)
    for index in range(6):
        for node in range(4):
            world.join(f"j{node}", link=1e6)
        await asyncio.sleep(world.rng.uniform(30, 90))
        away = world.rng.random() < 0.3
        for replica in world.replicas if away else ():
            replica.kill()
        world.ungate()
        await asyncio.sleep(world.rng.choice((0.0, 0.05, 2.0)))
        world.gate(taintKey=f"example.com/gate-{index}")
        await asyncio.sleep(500)


@story
async def fail_closed(world: World) -> None:
    """11: the operator cannot act on a FailClosed prefetch."""
    await _cluster(world, 3)
    world.apply(
        "llm", _pushed(world, "llm", 100), gate={"policy": "FailClosed"}, pullerNamespace="nowhere"
    )
    await asyncio.sleep(60)
    world.join("joiner")
    await asyncio.sleep(1800)


@story
async def outage(world: World) -> None:
    """12: the API server is unreachable for some time, while pulls fail."""
    await _cluster(world, 10)
    world.apply(
        "llm",
        _pushed(world, "llm", 100),
        rollout={"maxParallel": "100%", "seeds": 10},
        retry={"timeoutSeconds": 600},
    )
    await world.until(lambda: len(world.puller_pods(done=False)) > 3, 60)
    world.registry.down = True
    world.settle()
    world.disturb(away=True)
    await asyncio.sleep(world.rng.uniform(1200, 2400))
    world.disturb(away=False)
    await asyncio.sleep(world.rng.uniform(500, 2000))
    world.registry.down = False
    world.settle()
    await asyncio.sleep(3600)


@story
async def reorder(world: World) -> None:
    """13: the order of images changes, and an image that sorts first is added."""
    await _cluster(world, 3)
    images = [_pushed(world, f"part-{index}", 50) for index in range(20)]
    rollout = {"maxParallel": 1}
    world.apply("llm", *images[:12], rollout=rollout)
    for _ in range(8):
        await world.until(lambda: world.cached("llm"), 1200)
        await asyncio.sleep(400)
        count = world.rng.randrange(9, 21)
        chosen = images[:count]
        world.rng.shuffle(chosen)
        world.apply(
            "llm", *chosen, rollout=rollout, imagePullSecrets=[{"name": world.rng.choice("xyz")}]
        )
        await asyncio.sleep(600)


@story
async def wrong_clocks(world: World) -> None:
    """14: the clocks of nodes are wrong, and kubelets remove images."""
    skews = [-3600.0, -90.0, 3600.0, 400.0, 0.0]
    for index, skew in enumerate(skews):
        world.join(f"n{index}", skew=skew)
    await asyncio.sleep(120)
    keep = world.rng.random() < 0.5
    world.apply(
        "llm",
        _pushed(world, "llm", 900),
        rollout={"maxParallel": "100%"},
        retention={"mode": "Keep" if keep else "Release"},
    )
    for _ in range(6):
        await world.until(lambda: world.cached("llm"), 3600)
        await asyncio.sleep(900)
        for kubelet in world.kubelets.values():
            if world.rng.random() < 0.6:
                kubelet.collect({"registry.test/llm:1"})
        await asyncio.sleep(3000)


@story
async def operator_clock(world: World) -> None:
    """14: the clock of the operator is fast, or slow."""
    skew = world.rng.choice((700.0, 1200.0, -400.0))
    for replica in world.replicas:
        replica.skew = skew
    await _cluster(world, 3)
    world.apply("llm", _pushed(world, "llm", 6000), rollout={"maxParallel": "100%"})
    await asyncio.sleep(400)
    for index in range(6):
        world.join(f"j{index}")
        await asyncio.sleep(300)


@story
async def quiet_watch(world: World) -> None:
    """15: the watch of Nodes stays open without reports, while the watch of NodeGates works."""
    await _cluster(world, 5)
    world.apply("llm", _pushed(world, "llm", 500), rollout={"maxParallel": "100%"})
    await world.until(lambda: world.cached("llm"), 1200)
    await asyncio.sleep(300)
    for replica in world.replicas:
        replica.go_blind({"nodes"})
    for index in range(60):
        _relabel(world, "n0", turn=str(index))
        await asyncio.sleep(60)


@story
async def refresh_message(world: World) -> None:
    """16: the registry is down for some time; the status shows that only during this time."""
    await _cluster(world, 3)
    world.apply(
        "llm",
        _pushed(world, "llm", 200),
        rollout={"maxParallel": "100%"},
        refresh={"mode": "Digest", "intervalSeconds": 60},
    )
    await world.until(lambda: world.cached("llm"), 1200)
    await asyncio.sleep(600)
    world.registry.down = True
    world.settle()
    await asyncio.sleep(600)
    world.registry.down = False
    world.settle()
    await asyncio.sleep(4000)


@story
async def queue_order(world: World) -> None:
    """17: joining nodes that wait for a slot get it in the order in which they have joined."""
    await _cluster(world, 1)
    world.apply(
        "llm",
        _pushed(world, "llm", 8000),  # a pull takes longer than four nodes to join
        rollout={"maxParallel": 1},
        gate={"timeoutSeconds": 3600, "maxParallel": 1},
    )
    await world.until(lambda: world.cached("llm"), 1200)
    for index in range(14):
        world.join(f"j{index:02}")
        await asyncio.sleep(35)
    for turn in range(4000):
        # Labels of waiting nodes change, as cloud controllers do it.
        name = f"j{world.rng.randrange(14):02}"
        _relabel(world, name, turn=str(turn))
        await asyncio.sleep(0.2)


@story
async def apiserver_restart(world: World) -> None:
    """18: a node completes its pulls while the API server refuses changes of Nodes."""
    await _cluster(world, 3)
    world.apply("llm", _pushed(world, "llm", 500), rollout={"maxParallel": "100%"})
    await asyncio.sleep(300)
    for index in range(12):
        world.join(f"j{index}")
        machine = world.kubelets[f"j{index}"].machine
        await world.until(functools.partial(_pulls, machine), 120)
        world.nodes_failing = True
        world.settle()
        await asyncio.sleep(world.rng.uniform(36, 45))
        world.nodes_failing = False
        world.settle()
        await asyncio.sleep(120)


@story
async def long_names(world: World) -> None:
    """19: many long references, long secret names, and ten failures."""
    await _cluster(world, 12)
    images = [f"registry.test/{'x' * 120}-{index:02}:{'1' * 20}" for index in range(64)]
    world.apply(
        "llm",
        *images,
        rollout={"maxParallel": "100%", "seeds": 20},
        imagePullSecrets=[{"name": f"{index:02}" + "s" * 200} for index in range(16)],
    )
    await asyncio.sleep(3600)


@story
async def empty_labels(world: World) -> None:
    """20: a node without labels gets labels while the operator's patch is on its way."""
    for index in range(60):
        name = f"n{index}"
        world.join(name)
        world.server.change(
            "cloud", "nodes", ("", name), lambda body: body["metadata"].update(labels={})
        )
        await asyncio.sleep(1)
    world.disturb(latency=0.4)
    world.apply("llm", _pushed(world, "llm", 5), rollout={"maxParallel": "100%"})
    for _ in range(200):
        await asyncio.sleep(0.35)
        name = f"n{world.rng.randrange(60)}"
        world.server.change(
            "cloud",
            "nodes",
            ("", name),
            lambda body: body["metadata"].setdefault("labels", {}).update(a="b"),
        )
    await asyncio.sleep(100)


@story
async def refused_node(world: World) -> None:
    """20b: a policy refuses every change of one Node; a prefetch is deleted. Then it refuses the
    release of a joining node for a while.
    """
    await _cluster(world, 4)
    world.apply("llm", _pushed(world, "llm", 50), rollout={"maxParallel": "100%"})
    await world.until(lambda: world.cached("llm"), 600)
    world.refused_nodes.add("n1")
    world.delete("llm")
    await asyncio.sleep(600)
    # The node must still get its images, although the patch with its label is refused.
    world.apply("other", _pushed(world, "other", 50), rollout={"maxParallel": "100%"})
    await asyncio.sleep(3600)
    if not world.holds("n1", "registry.test/other:1"):
        world.judge.blame("not-pulled", "n1", "the patch that is refused stops its pulls")
    world.join("joiner")
    world.refused_nodes.add("joiner")
    await asyncio.sleep(world.rng.uniform(200, 300))
    world.refused_nodes.discard("joiner")
    await asyncio.sleep(100)


@story
async def throttled(world: World) -> None:
    """21: the leader's writes are throttled while it loses its Lease."""
    await _cluster(world, 6)
    for index in range(12):
        world.apply("llm", f"registry.test/app-{index % 8}:1", rollout={"maxParallel": "100%"})
        leader = world.leader
        if leader is not None:
            leader.network.throttled, leader.network.retry_after = 1.0, 14
            leader.network.leaseless = True
        await asyncio.sleep(world.rng.uniform(1, 8))
        for replica in world.replicas:
            replica.network.throttled = 0.0
        await asyncio.sleep(20)
        for replica in world.replicas:
            replica.network.leaseless = False
        await asyncio.sleep(60)


@story
async def short_lived(world: World) -> None:
    """22: a prefetch for each pull request fails, is edited, and is deleted again."""
    await _cluster(world, 4)
    for index in range(200):
        name = f"pr-{index}"
        for tag in range(3):
            world.apply(name, f"registry.test/none-{index}:{tag}", rollout={"maxParallel": "100%"})
            await asyncio.sleep(20)
        world.delete(name)
        await asyncio.sleep(20)
    await asyncio.sleep(1500)


@story
async def other_namespace(world: World) -> None:
    """23: pullerNamespace is edited while pulls fail there."""
    await _cluster(world, 4)
    world.apply(
        "llm", _pushed(world, "llm", 300), pullerNamespace="team-a", rollout={"maxParallel": "100%"}
    )
    await world.until(lambda: world.cached("llm"), 600)
    world.apply(
        "llm", "registry.test/llm:1", pullerNamespace="team-b", rollout={"maxParallel": "100%"}
    )
    await asyncio.sleep(1800)


@story
async def relabelled_pod(world: World) -> None:
    """34: a user removes the labels of puller pods."""
    await _cluster(world, 3)
    world.apply("llm", _pushed(world, "llm", 9000), rollout={"maxParallel": "100%"})
    await world.until(lambda: bool(world.puller_pods(done=False)), 60)
    await asyncio.sleep(10)
    for pod in world.puller_pods(done=False):
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        world.server.change("person", "pods", key, lambda body: body["metadata"].update(labels={}))
    await asyncio.sleep(2 * 3600)


# ---- not in the list: found by adding faults to the operator


@story
async def takeover(world: World) -> None:
    """A leader freezes or dies: the gate stays armed, and a node that joins meanwhile is held."""
    await _cluster(world, 2)
    world.gate(silenceSeconds=60)
    world.apply("llm", _pushed(world, "llm", 100))
    await world.until(lambda: world.cached("llm"), 600)
    await asyncio.sleep(120)
    for _ in range(40):
        if (leader := world.leader) is not None:
            if world.rng.random() < 0.5:
                world.freeze(leader, world.rng.uniform(5, 40))
            else:
                leader.kill()
        await asyncio.sleep(world.rng.uniform(0, 25))
        world.join("joiner")
        if not _held(world, "joiner"):
            world.judge.blame("not-held", "joiner", "it joined untainted during a takeover")
        await asyncio.sleep(90)


@story
async def reboots(world: World) -> None:
    """With onReboot Hold no node is Ready without the taint between its reboot and its
    verification, also if many nodes reboot together. Each change of a node is one patch.
    """
    await _cluster(world, 12)
    world.apply(
        "llm",
        _pushed(world, "llm", 100),
        rollout={"maxParallel": "100%"},
        gate={"onReboot": "Hold", "timeoutSeconds": 3600},
    )
    await world.until(lambda: world.cached("llm"), 1200)
    await asyncio.sleep(60)
    for turn in range(12):
        gone = [world.kubelets[f"n{index}"] for index in range(0, 12, 1 + turn % 3)]
        for kubelet in gone:
            kubelet.power_off()
        await asyncio.sleep(world.rng.uniform(90, 200))
        for kubelet in gone:
            if not _held(world, kubelet.machine.name):
                world.judge.blame("not-held-while-away", kubelet.machine.name, f"turn {turn}")
            if turn % 2:
                kubelet.collect(set(kubelet.machine.images))
            kubelet.power_on()
        back = [kubelet.machine.name for kubelet in gone]
        await world.until(lambda back=back: not any(_held(world, n) for n in back), 600)  # type: ignore[misc]
        for kubelet in gone:
            name, images = kubelet.machine.name, kubelet.machine.images
            if _held(world, name) or "registry.test/llm:1" not in images:
                world.judge.blame("released-early", name, f"turn {turn}, or never")
        await asyncio.sleep(300)


@story
async def watchdog(world: World) -> None:
    """The watchdog changes nothing for an hour while an operator lives. Without an operator it
    releases every held node, whichever client tainted the node.
    """
    await _cluster(world, 3)
    world.apply("llm", "registry.test/none:1", gate={"policy": "FailClosed"})
    await asyncio.sleep(30)
    world.join("policy")
    await asyncio.sleep(30)
    for _ in range(12):
        await asyncio.sleep(300)
        if await world.watch_over() or not _held(world, "policy"):
            world.judge.blame("watchdog", "policy", "freed while the operator lives")
    world.disturb(away=True)
    await asyncio.sleep(1000)
    world.join("registered")
    # A node pool taints the joining node, and a user taints a node in service.
    for name, effect in (("registered", "NoSchedule"), ("n0", "NoExecute")):
        _taint(world, name, effect)
    await world.watch_over()
    for name in ("policy", "registered", "n0"):
        if _held(world, name):
            world.judge.blame("watchdog", name, "held although the operator is dead")
    world.disturb(away=False)
    await asyncio.sleep(300)


@story
async def slow_patches(world: World) -> None:
    """A webhook delays each patch of a Node: releases do not wait for each other."""
    await _cluster(world, 2)
    world.apply(
        "llm",
        _pushed(world, "llm", 100),
        rollout={"maxParallel": 100},
        gate={"timeoutSeconds": 3600},
    )
    await world.until(lambda: world.cached("llm"), 600)
    for replica in world.replicas:
        replica.network.slow_patches = 20.0
    for index in range(48):
        world.join(f"j{index:02}")
    await asyncio.sleep(600)


@story
async def stale_status(world: World) -> None:
    """The leader is suspended while it writes statuses. Its writes arrive after the writes of the
    next leader.
    """
    await _cluster(world, 4)
    for turn in range(12):
        tag = _pushed(world, f"llm-{turn}", world.rng.uniform(50, 1500))
        world.apply("llm", tag, rollout={"maxParallel": 2})
        await world.until(lambda: bool(world.puller_pods(done=False)), 60)
        await asyncio.sleep(world.rng.uniform(0, 8))
        if world.leader is not None:
            world.freeze(world.leader, world.rng.uniform(20, 60))
        await asyncio.sleep(1200)


@story
async def lost_creates(world: World) -> None:
    """The answers to creates are lost, and the watch of pods is later than the back-off."""
    await _cluster(world, 6)
    for turn in range(20):
        world.disturb(lost_answers=0.7, lag={"pods": 20.0})
        tag = _pushed(world, f"llm-{turn}", world.rng.uniform(500, 5000))
        world.apply("llm", tag, rollout={"maxParallel": 6}, retry={"minSeconds": 1})
        await asyncio.sleep(world.rng.uniform(20, 120))
        world.disturb(lost_answers=0.0, lag={})
        await asyncio.sleep(600)


@story
async def same_name(world: World) -> None:
    """Nodes are replaced by nodes of the same name while patches for the old nodes are on their
    way.
    """
    await _cluster(world, 2)
    world.apply("llm", _pushed(world, "llm", 100), rollout={"maxParallel": 100})
    await world.until(lambda: world.cached("llm"), 600)
    for replica in world.replicas:
        replica.network.slow_patches = 4.0
    for turn in range(300):
        # Nodes in service get a label for each new spec.
        if turn % 4 == 0:
            tag = _pushed(world, f"llm-{turn}", 20)
            world.apply("llm", tag, rollout={"maxParallel": 100})
        world.join(f"j{world.rng.randrange(6)}")
        await asyncio.sleep(world.rng.uniform(1, 12))
    await asyncio.sleep(600)


def _only(key: str, value: str) -> dict[str, Any]:
    return {"matchLabels": {key: value}}
