"""Virtual time: the loop jumps to the next timer, and every clock reads the loop's time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from looptime import LoopTimeEventLoop

EPOCH = 1_800_000_000.0
"""The wall clock when a run begins."""
IDLE_ITERATIONS = 0
"""Iterations of the loop without work before it jumps to the next timer. looptime's default of 42
is for programs with threads and sockets; the simulation has none."""
_clocks: list[Callable[[], float]] = []
"""The time function of the running loop, because every step reads the time several times."""


class VirtualLoop(LoopTimeEventLoop, asyncio.SelectorEventLoop):
    """An event loop that never sleeps."""


def run(main: Callable[[], Coroutine[Any, Any, None]], seed: int) -> None:
    """Run to the end. Seeds the module `random`, because the operator's jitter uses it."""
    random.seed(seed)
    loop = VirtualLoop(noop_cycles=IDLE_ITERATIONS)
    asyncio.set_event_loop(loop)
    _clocks.append(loop.time)
    try:
        loop.run_until_complete(main())
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        _clocks.remove(loop.time)
        asyncio.set_event_loop(None)
        loop.close()


def elapsed() -> float:
    """Seconds of virtual time since the run began."""
    return _clocks[-1]() if _clocks else asyncio.get_event_loop().time()
