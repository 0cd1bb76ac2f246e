"""The request rate for one registry; the tests control the clock."""

from __future__ import annotations

import asyncio

import pytest

from imagegate.registry import limits
from imagegate.registry.cache import Cache
from imagegate.registry.errors import Throttled
from imagegate.registry.limits import Lane, Timing

WALL = 1_700_000_000.0
"""Tue, 14 Nov 2023 22:13:20 GMT"""


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": " 0 "}, 0),
        ({"Retry-After": "99999999999999999999"}, 999999999),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "\u0661"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Tue, 14 Nov 2023 22:14:20 GMT"}, 60),
        ({"Retry-After": "Tue, 14 Nov 2023 22:14:20 -0000"}, 60),
        ({"Retry-After": "Tue, 14 Nov 2023 22:12:20 GMT"}, 0),
        (
            {
                "Retry-After": "Mon, 01 Jan 2001 00:01:00 GMT",
                "Date": "Mon, 01 Jan 2001 00:00:00 GMT",
            },
            60,
        ),
        ({"Retry-After": "Tue, 14 Nov 99999 22:14:20 GMT"}, None),
        ({"Retry-After": "Tue, 14 Nov 2023 22:14:20 GMT", "Date": "nonsense"}, 60),
    ],
)
def test_retry_after_is_read_in_seconds_and_as_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert limits.retry_after(headers, WALL) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76;w=21600"}, None),
        ({"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}, 216),
        ({"ratelimit-limit": "0;w=21600", "ratelimit-remaining": "0;w=21600"}, 21600),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "30"}, 30),
        ({"ratelimit-remaining": "0"}, limits.FIRST_PAUSE),
        ({"ratelimit-remaining": "none"}, None),
    ],
)
def test_pause_follows_from_the_rate_limit_headers(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert limits.allowance_pause(headers) == seconds


class Clock:
    def __init__(self) -> None:
        self.now = 50.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def lane(self, slots: int = 2) -> Lane:
        timing = Timing(monotonic=lambda: self.now, wall=lambda: WALL, sleep=self.sleep)
        return Lane("registry.test", slots=slots, longest_wait=30.0, timing=timing)


async def go(lane: Lane, *, counted: bool = False) -> None:
    async with lane.turn(counted=counted):
        pass


async def test_short_pause_is_waited_for_and_long_pause_is_an_error() -> None:
    clock = Clock()
    lane = clock.lane()
    assert lane.heed(429, {"Retry-After": "20"}) == 20
    await go(lane)
    assert clock.slept == [20]
    assert lane.heed(503, {"Retry-After": "40"}) == 40
    with pytest.raises(Throttled, match=r"registry\.test: it asked for a pause; ask again in 40 s"):
        await go(lane)
    clock.now += 10
    await go(lane)
    assert clock.slept == [20, 30]


async def test_pause_that_is_extended_is_waited_for_to_its_new_end() -> None:
    clock = Clock()
    lane = clock.lane()
    lane.heed(429, {"Retry-After": "10"})
    sleep = clock.sleep

    async def meanwhile(seconds: float) -> None:
        await sleep(seconds)
        if len(clock.slept) == 1:
            lane.heed(429, {"Retry-After": "15"})

    lane._timing = Timing(monotonic=lambda: clock.now, wall=lambda: WALL, sleep=meanwhile)
    await go(lane)
    assert clock.slept == [10, 15]


def test_pauses_double_with_each_refusal_up_to_a_limit() -> None:
    clock = Clock()
    lane = clock.lane()
    pauses = []
    for _ in range(10):
        pause = lane.heed(429, {})
        assert pause is not None
        pauses.append(pause)
        # A refusal of a request that was in flight at the same time changes nothing.
        assert lane.heed(429, {}) == pause
        clock.now += pause
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 900, 900]
    assert lane.heed(401, {}) is None
    assert lane.heed(429, {}) == 900
    clock.now += 900
    assert lane.heed(200, {}) is None
    assert lane.heed(429, {}) == 5
    assert lane.heed(429, {"Retry-After": "86400"}) == limits.LONGEST_PAUSE


@pytest.mark.parametrize("status", [200, 401, 404, 500, 503])
def test_other_answers_cause_no_pause(status: int) -> None:
    lane = Clock().lane()
    assert lane.heed(status, {"Retry-After": "5"} if status != 503 else {}) is None
    assert lane.pause(counted=True) <= 0


def test_exhausted_rate_limit_delays_only_counted_requests() -> None:
    lane = Clock().lane()
    lane.heed(200, {"ratelimit-limit": "100;w=600", "ratelimit-remaining": "0;w=600"})
    assert lane.pause(counted=False) <= 0
    assert lane.pause(counted=True) == 6


class TestCache:
    def test_cache_keeps_the_most_recently_used_entries(self) -> None:
        cache: Cache[str, int] = Cache(2)
        cache.put("a", 1)
        cache.put("b", 2)
        assert cache.get("a") == 1
        cache.put("c", 3)
        assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)

    async def test_turn_is_exclusive_and_is_deleted_after_use(self) -> None:
        cache: Cache[str, int] = Cache(2)
        made = 0

        async def ask(fail: bool) -> int:
            nonlocal made
            async with cache.turn("a"):
                known = cache.get("a")
                if known is None:
                    await asyncio.sleep(0)
                    made += 1
                    if fail:
                        raise ValueError
                    cache.put("a", made)
                    known = made
                return known

        results = await asyncio.gather(
            ask(fail=True), *(ask(fail=False) for _ in range(5)), return_exceptions=True
        )
        assert isinstance(results[0], ValueError)
        assert results[1:] == [2] * 5
        assert len(cache._turns) == 0
