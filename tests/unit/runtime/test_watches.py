"""A dead watch is found by a comparison with lists; silence alone proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

from imagegate.runtime.clock import Clock
from imagegate.runtime.watches import DEAD_AFTER, GATES, NODES, Watches


@dataclass(frozen=True)
class Seen:
    version: int


class Time:
    def __init__(self) -> None:
        self.now = 1000.0


def watches() -> tuple[Watches, Time]:
    time = Time()
    return Watches(Clock(now=lambda: time.now, monotonic=lambda: time.now)), time


def test_watch_of_an_idle_cluster_is_not_dead() -> None:
    seen, time = watches()
    seen.told(NODES, 7)
    for _ in range(100):
        time.now += 300
        seen.listed(NODES, [Seen(5), Seen(7)])
    assert not seen.stale
    assert seen.problem() is None


def test_events_of_another_kind_do_not_hide_a_dead_watch() -> None:
    seen, time = watches()
    seen.told(NODES, 7)
    seen.listed(NODES, [Seen(9)])
    assert seen.stale
    assert seen.problem() is None, "the watch may be late"
    for version in range(10, 20):
        time.now += DEAD_AFTER / 10
        seen.told(GATES, version)
    seen.listed(NODES, [Seen(9)])
    assert "watch of nodes" in (seen.problem() or "")
    seen.told(NODES, 9)
    assert seen.problem() is None


def test_late_watch_is_not_dead() -> None:
    seen, time = watches()
    for version in range(10, 100, 10):
        seen.listed(NODES, [Seen(version)])
        time.now += DEAD_AFTER
        seen.told(NODES, version + 5)  # late, and the next list is ahead again
    assert seen.problem() is None


def test_object_deleted_between_two_lists_need_not_be_reported() -> None:
    seen, time = watches()
    seen.told(NODES, 7)
    seen.listed(NODES, [Seen(8), Seen(9)])
    time.now += 10 * DEAD_AFTER
    seen.listed(NODES, [Seen(8)])
    assert seen.problem() is None
    seen.listed(NODES, [])
    assert not seen.stale


def test_no_watch_has_begun_before_the_first_event() -> None:
    seen, _ = watches()
    assert not seen.begun
    seen.told(GATES, 1)
    assert seen.begun
