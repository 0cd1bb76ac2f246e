"""Rate limits, detection of repeated deliveries, and the debouncing of pushes."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.hooks.event import Push
from imagegate.hooks.limits import Bucket, Debounce, Seen

A, B = Push("a", "1", "r"), Push("b", "1", "r")


def test_bucket_limits_rate_and_burst() -> None:
    bucket = Bucket(rate=2, burst=3)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(100.5)
    assert not bucket.take(100.5)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_repeated_id_is_recognized_until_it_expires() -> None:
    seen = Seen(seconds=10, most=2)
    assert not seen.again("r", "1", 0.0)
    assert seen.again("r", "1", 9.0)
    assert not seen.again("other", "1", 9.0)
    assert not seen.again("r", "1", 10.0)
    for number in range(100):
        seen.again("r", f"x{number}", 11.0)
        assert len(seen) <= 2
    assert not seen.again("r", "1", 11.0)


def test_push_is_checked_immediately_and_twice_later() -> None:
    debounce = Debounce(1.0, 5.0, 10)
    assert not debounce.holds(A, 100.0)
    debounce.asked(A, 100.0)
    assert debounce.next() == 101.0
    assert debounce.due(100.9) == []
    assert debounce.due(101.0) == [A]
    assert debounce.due(105.9) == []
    assert debounce.due(106.0) == [A]
    assert debounce.next() is None
    # It waits, because the last check was less than 5 seconds ago.
    assert debounce.holds(A, 107.0)
    assert debounce.next() == 111.0
    assert debounce.due(111.0) == [A]
    assert debounce.next() == 116.0  # The push at 107 needs a check after 112.
    assert debounce.due(116.0) == [A]
    assert debounce.due(121.0) == []
    assert len(debounce) == 0
    assert not debounce.holds(A, 121.0)


def test_another_push_does_not_wait() -> None:
    debounce = Debounce(1.0, 5.0, 10)
    debounce.asked(A, 0.0)
    assert not debounce.holds(B, 0.0)


def test_number_of_debounced_pushes_is_bounded() -> None:
    debounce = Debounce(1.0, 5.0, 3)
    for number in range(100):
        debounce.asked(Push("a", str(number), "r"), 0.0)
    assert len(debounce) == 3
    assert len(debounce.due(1.0)) == 3
    assert len(debounce.due(6.0)) == 3
    assert debounce.due(11.0) == []
    assert len(debounce) == 0


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 20.0), min_size=1, max_size=40))
def test_checks_keep_their_distance_and_follow_every_push(gaps: list[float]) -> None:
    soon, quiet = 1.0, 5.0
    debounce, now = Debounce(soon, quiet, 10), 0.0
    asks: list[float] = []
    opened: list[float] = []

    def pass_time(until: float) -> None:
        while (due := debounce.next()) is not None and due <= until:
            assert debounce.due(due) == [A]
            asks.append(due)

    pushes = []
    for gap in gaps:
        now += gap
        pass_time(now)
        pushes.append(now)
        if not debounce.holds(A, now):
            debounce.asked(A, now)
            asks.append(now)
            opened.append(now)
    pass_time(now + 100.0)
    assert debounce.next() is None
    for before, after in itertools.pairwise(asks):
        assert after - before >= (soon if before in opened else quiet) - 1e-9
    for push in pushes:
        assert any(push <= ask <= push + quiet for ask in asks)
        assert any(push + quiet <= ask <= push + 2 * quiet for ask in asks)
