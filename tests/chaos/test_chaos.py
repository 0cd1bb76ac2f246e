"""After every fault the cluster converges, and the witness has nothing to object to."""

from __future__ import annotations

import random

import pytest

from tests.chaos.faults import ONCE, draw, named
from tests.chaos.world import World

QUIET = 12.0
"""Seconds without a write that end a random round; the short version looks once, at its end."""


@pytest.mark.parametrize("names", ONCE, ids=lambda names: "+".join(names).replace(" ", "-"))
def test_each_fault(world: World, names: tuple[str, ...], seed: int) -> None:
    world.round(named(*names), random.Random(f"{seed}/{names}"), quiet=0)


@pytest.mark.timeout(0)  # every wait in it has a bound of its own
def test_random_rounds(world: World, seed: int, rounds: int) -> None:
    """All rounds are run, also after one that failed: what follows says whether it heals."""
    failed = []
    for number in range(rounds):
        rng = random.Random(f"{seed}/{number}")
        faults = draw(rng)
        try:
            world.round(faults, rng, quiet=QUIET)
        except Exception as error:  # noqa: BLE001
            failed.append(f"round {number}: {error}")
    assert not failed, "\n".join(failed)
