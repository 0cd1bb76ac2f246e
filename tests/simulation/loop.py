"""Virtual time: the loop jumps to the next timer, and every clock reads the loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from looptime import LoopTimeEventLoop

EPOCH = 1_800_000_000.0
"""The wall clock when a run begins."""
IDLE_ITERATIONS = 2
"""Iterations of the loop without work before it jumps: looptime's default of 42 costs five times as
much, and nothing here needs more than the callbacks that are ready."""


class VirtualLoop(LoopTimeEventLoop, asyncio.SelectorEventLoop):
    """An event loop that never sleeps."""


def run(main: Callable[[], Coroutine[Any, Any, None]], seed: int) -> None:
    """Run to the end. The operator's own jitter comes from the module `random`: seeded here."""
    random.seed(seed)
    loop = VirtualLoop(noop_cycles=IDLE_ITERATIONS)
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main())
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()


def elapsed() -> float:
    """Seconds of virtual time since the run began."""
    return asyncio.get_event_loop().time()
