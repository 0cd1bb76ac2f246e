"""The limit of the requests in flight: its order, and that no turn is lost."""

from __future__ import annotations

import asyncio
import random

import pytest

from imagegate.kube.turns import Turns


async def test_urgent_waiters_come_first_and_the_others_in_their_order() -> None:
    turns, order, go = Turns(1), list[str](), asyncio.Event()

    async def work(name: str, *, urgent: bool) -> None:
        async with turns.turn(urgent=urgent, timeout=5):
            order.append(name)
            await go.wait()

    names = ["first", "a", "b", "urgent c", "urgent d"]
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(work(name, urgent=name.startswith("urgent"))))
        await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "urgent c", "urgent d", "a", "b"]


async def test_waiter_whose_time_is_over_takes_no_turn() -> None:
    turns = Turns(1)
    async with turns.turn(urgent=False, timeout=5):
        for urgent in (True, False):
            with pytest.raises(TimeoutError):
                async with turns.turn(urgent=urgent, timeout=0.01):
                    raise AssertionError("there is only one turn")
    async with turns.turn(urgent=False, timeout=0.01):
        pass


@pytest.mark.parametrize("seed", range(20))
async def test_no_turn_is_lost_or_given_twice_when_waiters_are_cancelled(seed: int) -> None:
    rng, turns = random.Random(seed), Turns(3)
    busy, most = 0, 0

    async def work() -> None:
        nonlocal busy, most
        async with turns.turn(urgent=rng.random() < 0.5, timeout=5):
            busy += 1
            most = max(most, busy)
            try:
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                if rng.random() < 0.2:
                    raise OSError
            finally:
                busy -= 1

    tasks = [asyncio.create_task(work()) for _ in range(60)]
    for _ in range(60):
        await asyncio.sleep(0)
        rng.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (busy, most) == (0, 3)
    async with asyncio.timeout(1), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(_hold(turns))


async def _hold(turns: Turns) -> None:
    async with turns.turn(urgent=False, timeout=1):
        await asyncio.sleep(0.01)
