"""A registry that fails in every way at once: each way for the images of one ImagePrefetch."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from tests.chaos.recorder import insist
from tests.chaos.workload import JOINING, QUICK, SELECTOR
from tests.cluster.errors import ClusterError

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
    try:
        for kind in KINDS:
            reference = world.workload.image("tiny", registry="faulty", repository=f"bad/{kind}")
            repository = reference.split("/", 1)[1].rpartition(":")[0]
            if isinstance(kind, int):
                faulty.fault(kind, repository=repository)
            else:
                faulty.fault(kind, repository=repository, operation="blob", after_bytes=SPARED)
            if kind == "stall":
                time.sleep(rng.uniform(6, 9))
            world.workload.apply(
                f"bad-{kind}",
                reference,
                nodeSelector=SELECTOR,
                gate={"policy": rng.choice(("FailOpen", "FailClosed"))},
                rollout={"maxParallel": 2},
                retry=QUICK,
            )
            if kind == KINDS[0]:
                world.workload.join(rng.choice(JOINING))
        time.sleep(rng.uniform(5, 8))
    finally:
        insist(faulty.clear, "clear the faults")
    spoilt = {request.fault for request in faulty.requests() if request.at >= since} - {""}
    if len(spoilt) < len(KINDS):
        raise ClusterError(f"of {len(KINDS)} kinds of faults only these happened: {spoilt}")
