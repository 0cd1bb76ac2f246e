"""After every fault the cluster converges, and the witness reports no violation."""

from __future__ import annotations

import random

import pytest

from tests.chaos.faults import ONCE, draw, named
from tests.chaos.world import World

QUIET = 12.0
"""Seconds without a write at the end of a random round. The short version checks only once."""


@pytest.mark.parametrize("names", ONCE, ids=lambda names: "+".join(names).replace(" ", "-"))
def test_cluster_converges_after_each_fault(
    world: World, names: tuple[str, ...], seed: int
) -> None:
    world.round(named(*names), random.Random(f"{seed}/{names}"), quiet=0)


@pytest.mark.timeout(0)  # every wait in it has its own timeout
def test_cluster_converges_after_random_rounds(world: World, seed: int, rounds: int) -> None:
    """Runs all rounds, also after a failed round, because the next rounds show whether the cluster
    recovers."""
    failed = []
    for number in range(rounds):
        rng = random.Random(f"{seed}/{number}")
        faults = draw(rng)
        try:
            world.round(faults, rng, quiet=QUIET)
        except Exception as error:  # noqa: BLE001
            failed.append(f"round {number}: {error}")
    assert not failed, "\n".join(failed)
