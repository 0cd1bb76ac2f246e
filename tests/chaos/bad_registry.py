"""A registry that fails in every way at once: each way for the images of one ImagePrefetch."""

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
"""Last the one that keeps a kubelet, which pulls one image at a time, from all the others."""
SPARED = 4096
"""Bytes: manifests and configs stay whole, so that it is the layers that break."""


def registry_fails(world: World, rng: random.Random) -> None:
    """Under a rollout and under a node that joins; then the registry is well again."""
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
    """For an image that cannot be had, and why."""
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
