"""The faults. Each lasts some seconds; only its effects on the objects remain."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import bad_registry, fleet, two_leaders
from tests.chaos.recorder import insist
from tests.chaos.workload import JOINING
from tests.chaos.world import World
from tests.cluster.errors import ClusterError
from tests.cluster.local import cgroups
from tests.e2e.installation import PREFETCHES


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    breaks: str
    """The part that it breaks. Two faults overlap only if they break different parts."""
    inject: Callable[[World, random.Random], None]


def operator_killed(world: World, rng: random.Random) -> None:
    """Kill one replica or both (SIGKILL), every few seconds."""
    end = time.monotonic() + 12
    while time.monotonic() < end:
        pods = insist(world.imagegate.operator_pods, "operator pods")
        names = [str(pod["metadata"]["name"]) for pod in pods]
        chosen = names if rng.random() < 0.3 else [rng.choice(names)] if names else []
        for name in chosen:
            insist(lambda pod=name: _kill(world, pod), f"kill {name}")  # type: ignore[misc]
        time.sleep(rng.uniform(2, 5))


def _kill(world: World, pod: str) -> None:
    world.cluster.kubectl(
        "-n", "imagegate-system", "delete", "pod", pod, "--grace-period=0", "--force",
        "--wait=false", "--ignore-not-found",
    )  # fmt: skip


def api_server_restarted(world: World, rng: random.Random) -> None:
    _without_api_server(world, rng, grace=5)


def api_server_killed(world: World, rng: random.Random) -> None:
    _without_api_server(world, rng, grace=0)


def history_compacted(world: World, rng: random.Random) -> None:
    """The API server restarts on a compacted etcd: watches and continued lists get 410."""
    plane = world.cluster.control_plane
    _without_api_server(world, rng, grace=0, meanwhile=lambda: print(f"  to {plane.compact()}"))


def _without_api_server(
    world: World,
    rng: random.Random,
    *,
    grace: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    plane = world.cluster.control_plane
    plane.stop("kube-apiserver", grace)
    try:
        meanwhile()
        time.sleep(rng.uniform(0.5, 4))
    finally:
        plane.start("kube-apiserver")


def leader_frozen(world: World, rng: random.Random) -> None:
    """Freeze the leader until its lease has expired and another replica leads; then continue it."""
    old = insist(world.imagegate.leader, "leader")
    pid = _process(world, old)
    os.kill(pid, signal.SIGSTOP)
    try:
        world.cluster.wait(lambda: world.imagegate.leader() not in ("", old), "another leader", 45)
        time.sleep(rng.uniform(0, 3))
        world.workload.apply_again()
    finally:
        os.kill(pid, signal.SIGCONT)


def _process(world: World, pod: str) -> int:
    """The pid of an operator's process on this machine, found in the cgroups of the nodes."""
    wanted = f"POD_NAME={pod}".encode()
    for node in world.cluster.nodes.values():
        for pid in cgroups.processes(node.group.cgroup):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in environment:
                return pid
    raise ClusterError(f"no process of pod {pod}")


def registry_down(world: World, rng: random.Random) -> None:
    """The registry refuses connections."""
    registry = world.cluster.registries["open"]
    registry.stop()
    try:
        time.sleep(rng.uniform(4, 8))
    finally:
        registry.start()


def node_dies(world: World, rng: random.Random) -> None:
    """A node loses power during a pull, is deleted, and joins again as a new machine."""
    name = JOINING[1]  # other faults use the other node
    if name not in world.cluster.nodes:
        world.workload.join(name)
    world.workload.wait()
    world.workload.apply_again()
    pulling = lambda: any(  # noqa: E731
        pod["spec"]["nodeName"] == name and pod["status"].get("phase") == "Pending"
        for prefetch in ("roll", "closed")
        for pod in world.imagegate.pullers(prefetch)
    )
    world.cluster.wait(pulling, f"a pull on {name}", 60)
    time.sleep(rng.uniform(0, 1.5))
    world.workload.stop(name)
    time.sleep(rng.uniform(0, 4))
    world.workload.join(name)


def prefetches_deleted(world: World, rng: random.Random) -> None:
    """Delete every ImagePrefetch during its rollout, and create it again."""
    time.sleep(rng.uniform(0, 3))

    def there() -> dict[str, str]:
        found = world.cluster.api.get(PREFETCHES)["items"]
        return {str(body["metadata"]["uid"]): str(body["metadata"]["name"]) for body in found}

    old = insist(there, "the ImagePrefetches")
    for name in old.values():
        world.workload.delete_object(name)
    # Compare uids, because another fault may create an ImagePrefetch of the same name meanwhile.
    world.cluster.wait(lambda: not old.keys() & there().keys(), "every ImagePrefetch gone", 60)
    traces = insist(world.imagegate.traces, "the nodes")
    gone = set(old.values()) - set(insist(there, "the ImagePrefetches").values())
    if left := [t for t in traces for name in gone if f"cached.imagegate.dev/{name}" in t]:
        raise ClusterError(f"labels of ImagePrefetches that are gone: {left}")
    world.workload.put_back()


FAULTS = (
    Fault("operator killed", "operator", operator_killed),
    Fault("API server restarted", "API server", api_server_restarted),
    Fault("API server killed", "API server", api_server_killed),
    Fault("history compacted", "API server", history_compacted),
    Fault("leader frozen", "operator", leader_frozen),
    Fault("two leaders", "operator", two_leaders.two_leaders),
    Fault("registry down", "registry", registry_down),
    Fault("registry fails", "registry", bad_registry.registry_fails),
    Fault("node dies", "node", node_dies),
    Fault("fleet joins and leaves", "fleet", fleet.joins_and_leaves),
    Fault("prefetches deleted", "prefetches", prefetches_deleted),
)


ONCE = (
    ("operator killed", "registry down"),
    ("API server restarted",),
    ("API server killed", "node dies"),
    ("history compacted",),
    ("leader frozen", "fleet joins and leaves"),
    ("two leaders",),
    ("registry fails",),
    ("prefetches deleted",),
)
"""Each fault once, grouped so that the run is short."""


def named(*names: str) -> list[Fault]:
    by_name = {fault.name: fault for fault in FAULTS}
    return [by_name[name] for name in names]


def draw(rng: random.Random) -> list[Fault]:
    """One to three faults that break different parts."""
    count = rng.choice((1, 2, 2, 3))
    chosen: list[Fault] = []
    for fault in rng.sample(FAULTS, len(FAULTS)):
        if len(chosen) < count and all(fault.breaks != other.breaks for other in chosen):
            chosen.append(fault)
    return chosen
