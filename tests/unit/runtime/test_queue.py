"""The keyed queue: once per key, never twice at a time, later after a failure."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.errors import ImagegateError
from imagegate.runtime.queue import KICK_SPREAD, LAST_URGENT_RETRY, Handle, KeyedQueue


@contextlib.asynccontextmanager
async def running(queue: KeyedQueue, handle: Handle) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run(handle))
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

    queue = KeyedQueue("t", workers=3)
    for _ in range(5):
        queue.add("a")
    async with running(queue, handle):
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

    queue = KeyedQueue("t", workers=4)
    async with running(queue, handle):
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

    queue = KeyedQueue("t", workers=1)
    queue.add("bad")
    queue.add("good")
    async with running(queue, handle):
        await asyncio.sleep(0.6)
    assert tries[:2] == ["bad", "good"]
    assert tries.count("bad") == 3
    assert queue.retries == 2


async def test_the_earliest_of_several_delays_counts() -> None:
    loop = asyncio.get_running_loop()
    at: list[float] = []

    async def handle(_: str) -> None:
        at.append(loop.time())

    queue = KeyedQueue("t", workers=1)
    start = loop.time()
    async with running(queue, handle):
        queue.add("a", delay=5)
        queue.add("a", delay=0.05)
        queue.add("a", delay=9)
        await asyncio.sleep(0.2)
    assert len(at) == 1
    assert 0.04 < at[0] - start < 0.19


async def test_urgent_key_does_not_wait_for_a_backlog() -> None:
    release = asyncio.Event()
    done: list[str] = []

    async def handle(key: str) -> None:
        if key != "urgent":
            await release.wait()
        done.append(key)

    queue = KeyedQueue("t", workers=2, urgent_workers=1)
    for number in range(50):
        queue.add(str(number))
    queue.add("urgent")
    queue.add("urgent", urgent=True)
    async with running(queue, handle):
        await asyncio.sleep(0.05)
        assert done == ["urgent"]
        release.set()
        await asyncio.sleep(0.05)
    assert len(done) == 51


async def test_an_ordinary_key_after_an_urgent_one_in_the_same_turn_is_worked_on() -> None:
    done: list[str] = []

    async def handle(key: str) -> None:
        done.append(key)

    queue = KeyedQueue("t", workers=2, urgent_workers=2)
    async with running(queue, handle):
        await asyncio.sleep(0.01)  # every worker sleeps
        queue.add("held", urgent=True)
        queue.add("b")
        await asyncio.sleep(0.05)
        assert sorted(done) == ["b", "held"]


async def test_an_ordinary_key_does_not_wait_for_the_urgent_one_while_workers_sleep() -> None:
    release, done = asyncio.Event(), list[str]()

    async def handle(key: str) -> None:
        if key == "held":
            await release.wait()
        done.append(key)

    queue = KeyedQueue("t", workers=2, urgent_workers=1)
    async with running(queue, handle):
        await asyncio.sleep(0.01)
        queue.add("b")
        queue.add("held", urgent=True)
        await asyncio.sleep(0.05)
        assert done == ["b"]
        release.set()


async def test_failed_urgent_key_is_retried_soon_and_stays_urgent() -> None:
    """Regression: after eight answers of 503 a release waited for another 26 s."""
    loop, tries = asyncio.get_running_loop(), list[float]()
    busy = asyncio.Event()

    async def handle(key: str) -> None:
        if key != "held":
            await busy.wait()
            return
        tries.append(loop.time())
        if len(tries) <= 2:
            raise ImagegateError("503")

    queue = KeyedQueue("t", workers=1, urgent_workers=1)
    async with running(queue, handle):
        queue.add("backlog")
        queue._failures["held"] = 6
        queue.add("held", urgent=True)
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while len(tries) < 3:
                await asyncio.sleep(0.05)
        busy.set()
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert max(gaps) < LAST_URGENT_RETRY * 1.2 + 0.3


async def test_a_planned_urgent_key_stays_urgent_when_it_is_also_planned_as_ordinary() -> None:
    release, done = asyncio.Event(), list[str]()

    async def handle(key: str) -> None:
        if key == "backlog":
            await release.wait()
        done.append(key)

    queue = KeyedQueue("t", workers=1, urgent_workers=1)
    async with running(queue, handle):
        queue.add("backlog")
        queue.add("held", delay=5, urgent=True)
        queue.add("held", delay=0.02)
        await asyncio.sleep(0.1)
        assert done == ["held"]
        release.set()


async def test_kick_ends_all_back_offs() -> None:
    broken, done = True, list[str]()

    async def handle(key: str) -> None:
        if broken:
            raise ImagegateError("503")
        done.append(key)

    queue = KeyedQueue("t", workers=4)
    async with running(queue, handle):
        for number in range(20):
            queue._failures[str(number)] = 12  # the next back-off is a minute
            queue.add(str(number))
        queue.add("planned", delay=3)
        await asyncio.sleep(0.1)
        broken = False
        queue.kick()
        await asyncio.sleep(KICK_SPREAD + 0.2)
        assert sorted(done) == sorted(map(str, range(20)))


async def test_several_errors_of_one_key_are_logged_as_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handle(_: str) -> None:
        errors = [ImagegateError("quota"), ImagegateError("webhook")]
        raise ExceptionGroup("actions failed", errors)

    queue = KeyedQueue("t", workers=1)
    with caplog.at_level("INFO"):
        async with running(queue, handle):
            queue.add("a")
            await asyncio.sleep(0.02)
    (record,) = (r for r in caplog.records if r.message.startswith("work failed"))
    assert record.__dict__["error"] == "quota; webhook"
    assert record.exc_info is None


async def test_key_that_was_given_to_a_cancelled_worker_is_not_lost() -> None:
    done: list[str] = []

    async def handle(key: str) -> None:
        done.append(key)

    queue = KeyedQueue("t", workers=1)
    worker = asyncio.create_task(queue._work(handle, urgent_only=False))
    await asyncio.sleep(0.01)
    queue.add("a")
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    assert (len(queue), done) == (1, [])
    async with running(queue, handle):
        await asyncio.sleep(0.01)
    assert done == ["a"]


async def test_thousands_of_keys_that_become_urgent_cost_little() -> None:
    async def handle(_: str) -> None: ...

    queue = KeyedQueue("t", workers=1, urgent_workers=1)
    for number in range(20_000):
        queue.add(str(number))
    started = time.process_time()
    for number in reversed(range(20_000)):
        queue.add(str(number), urgent=True)
    assert time.process_time() - started < 0.5


KEYS = st.sampled_from("abcdef")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, st.booleans()),
        st.tuples(st.just("later"), KEYS, st.booleans()),
        st.tuples(st.just("end"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("turn"), st.integers(1, 3), st.just(False)),
    ),
    max_size=60,
)


@given(steps=STEPS, workers=st.integers(1, 3), urgent_workers=st.integers(0, 2))
@settings(deadline=None, max_examples=300)
def test_no_worker_sleeps_while_a_key_that_it_may_take_is_queued(
    steps: list[tuple[str, Any, bool]], workers: int, urgent_workers: int
) -> None:
    """After any interleaving of adds, ends and failures, at every turn of the loop."""
    asyncio.run(_interleaved(steps, workers, urgent_workers))


async def _interleaved(
    steps: list[tuple[str, Any, bool]], workers: int, urgent_workers: int
) -> None:
    active: dict[str, asyncio.Future[bool]] = {}
    owed: set[str] = set()
    """Keys that were added, and on which no worker has begun since."""

    async def handle(key: str) -> None:
        assert key not in active, "a key is worked on twice at a time"
        owed.discard(key)
        active[key] = asyncio.get_running_loop().create_future()
        try:
            if await active[key]:
                raise ImagegateError("failed")
        finally:
            del active[key]

    def end(key: str, *, failed: bool) -> None:
        if not active[key].done():
            active[key].set_result(failed)
            if failed:
                owed.add(key)

    queue = KeyedQueue("t", workers=workers, urgent_workers=urgent_workers)

    def check() -> None:
        assert not (queue._urgent and (queue._asleep or queue._asleep_urgent))
        assert not (queue._ordinary and queue._asleep)
        known = queue._urgent.keys() | queue._ordinary.keys() | queue._assigned.keys()
        assert owed <= known | queue._again.keys() | queue._timers.keys() | active.keys()
        assert len(queue) == len(known)
        assert queue._again.keys() <= queue._active

    async with running(queue, handle):
        await asyncio.sleep(0)
        for what, argument, flag in steps:
            match what:
                case "add":
                    owed.add(argument)
                    queue.add(argument, urgent=flag)
                case "later":
                    owed.add(argument)
                    queue.add(argument, urgent=flag, delay=1e-6)
                case "end" if active:
                    end(sorted(active)[argument % len(active)], failed=flag)
                case _:
                    for _ in range(argument):
                        await asyncio.sleep(0)
                        check()
            check()
        queue.kick()
        async with asyncio.timeout(5):
            while owed or active or len(queue):
                for key in list(active):
                    end(key, failed=False)
                await asyncio.sleep(0.001)
                queue.kick()
                check()
    assert not queue._failures
    assert not queue._again


async def test_keys_whose_work_never_waits_do_not_stop_the_loop() -> None:
    done: list[str] = []

    async def handle(key: str) -> None:
        done.append(key)

    queue = KeyedQueue("t", workers=2)
    for number in range(1000):
        queue.add(str(number))
    async with running(queue, handle):
        for _ in range(5):
            await asyncio.sleep(0)
        assert 0 < len(done) < 20
