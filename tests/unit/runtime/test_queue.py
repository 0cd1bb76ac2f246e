"""The keyed queue: once per key, never twice at a time, later after a failure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from imagegate.errors import ImagegateError
from imagegate.runtime.queue import KeyedQueue


@contextlib.asynccontextmanager
async def running(queue: KeyedQueue) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_key_added_many_times_is_worked_on_once() -> None:
    done: list[str] = []

    async def handle(key: str) -> None:
        done.append(key)

    queue = KeyedQueue("t", handle, workers=3)
    for _ in range(5):
        queue.add("a")
    async with running(queue):
        await asyncio.sleep(0.05)
    assert done == ["a"]


async def test_a_key_is_never_worked_on_twice_at_a_time_and_again_if_added_meanwhile() -> None:
    active, most, done = 0, 0, 0

    async def handle(_: str) -> None:
        nonlocal active, most, done
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.02)
        active -= 1
        done += 1

    queue = KeyedQueue("t", handle, workers=4)
    async with running(queue):
        queue.add("a")
        await asyncio.sleep(0.01)
        queue.add("a")
        queue.add("a")
        await asyncio.sleep(0.1)
    assert (most, done) == (1, 2)


async def test_a_key_that_fails_comes_back_and_does_not_stop_others() -> None:
    tries: list[str] = []

    async def handle(key: str) -> None:
        tries.append(key)
        if key == "bad" and tries.count("bad") < 3:
            raise ImagegateError("not yet")

    queue = KeyedQueue("t", handle, workers=1)
    queue.add("bad")
    queue.add("good")
    async with running(queue):
        await asyncio.sleep(0.6)
    assert tries[:2] == ["bad", "good"]
    assert tries.count("bad") == 3
    assert queue.retries == 2


async def test_the_earliest_of_several_delays_counts() -> None:
    loop = asyncio.get_running_loop()
    at: list[float] = []

    async def handle(_: str) -> None:
        at.append(loop.time())

    queue = KeyedQueue("t", handle, workers=1)
    start = loop.time()
    async with running(queue):
        queue.add("a", delay=5)
        queue.add("a", delay=0.05)
        queue.add("a", delay=9)
        await asyncio.sleep(0.2)
    assert len(at) == 1
    assert 0.04 < at[0] - start < 0.19


async def test_an_urgent_key_does_not_wait_behind_a_backlog() -> None:
    release = asyncio.Event()
    done: list[str] = []

    async def handle(key: str) -> None:
        if key != "urgent":
            await release.wait()
        done.append(key)

    queue = KeyedQueue("t", handle, workers=2, urgent_workers=1)
    for number in range(50):
        queue.add(str(number))
    queue.add("urgent")
    queue.add("urgent", urgent=True)
    async with running(queue):
        await asyncio.sleep(0.05)
        assert done == ["urgent"]
        release.set()
        await asyncio.sleep(0.05)
    assert len(done) == 51
