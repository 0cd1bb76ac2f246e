"""A registry with all kinds of faults at the same time: one kind for each ImagePrefetch."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from tests.chaos.recorder import insist
from tests.chaos.workload import JOINING, QUICK, SELECTOR

if TYPE_CHECKING:
    from tests.chaos.world import World
    from tests.cluster.local.faulty import Kind

KINDS: tuple[Kind, ...] = (401, 403, 404, 429, 500, 503, "reset", "truncated", "corrupt", "stall")
"""`stall` is last, because a kubelet pulls one image at a time and a stall blocks all others."""
SPARED = 4096
"""Bytes. Manifests and configs are smaller, so only layers break."""


def registry_fails(world: World, rng: random.Random) -> None:
    """The registry fails during a rollout and while a node joins, and then recovers."""
    faulty = world.cluster.faulty
    since = time.time()

    def spoilt() -> set[str]:
        requests = insist(faulty.requests, "the requests")
        return {request.fault for request in requests if request.at >= since} - {""}

    try:
        world.workload.join(JOINING[0])
        for kind in KINDS[:-1]:
            _ask(world, rng, kind)
        world.cluster.wait(lambda: len(spoilt()) == len(KINDS) - 1, "all kinds of faults", 90)
        _ask(world, rng, KINDS[-1])
        world.cluster.wait(lambda: len(spoilt()) == len(KINDS), "a pull that stalls", 60)
        time.sleep(rng.uniform(0, 5))
    finally:
        insist(faulty.clear, "clear the faults")


def _ask(world: World, rng: random.Random, kind: Kind) -> None:
    """Apply an ImagePrefetch of an image that has this fault."""
    reference = world.workload.image("tiny", registry="faulty", repository=f"bad/{kind}")
    repository = reference.split("/", 1)[1].rpartition(":")[0]
    if isinstance(kind, int):
        world.cluster.faulty.fault(kind, repository=repository)
    else:
        world.cluster.faulty.fault(
            kind, repository=repository, operation="blob", after_bytes=SPARED
        )
    world.workload.apply(
        f"bad-{kind}",
        reference,
        nodeSelector=SELECTOR,
        gate={"policy": rng.choice(("FailOpen", "FailClosed"))},
        rollout={"maxParallel": 2},
        retry=QUICK,
    )
