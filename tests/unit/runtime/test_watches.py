"""A watch that tells nothing is found by what lists know; silence alone proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

from imagegate.runtime.clock import Clock
from imagegate.runtime.watches import BEHIND, GATES, NODES, Watches


@dataclass(frozen=True)
class Seen:
    version: int


class Time:
    def __init__(self) -> None:
        self.now = 1000.0


def watches() -> tuple[Watches, Time]:
    time = Time()
    return Watches(Clock(now=lambda: time.now, monotonic=lambda: time.now)), time


def test_a_cluster_at_rest_is_not_a_dead_watch() -> None:
    seen, time = watches()
    seen.told(NODES, 7)
    for _ in range(100):
        time.now += 300
        seen.listed(NODES, [Seen(5), Seen(7)])
    assert not seen.behind
    assert seen.problem() is None


def test_a_watch_of_another_kind_excuses_nothing() -> None:
    seen, time = watches()
    seen.told(NODES, 7)
    seen.listed(NODES, [Seen(9)])
    assert seen.behind
    assert seen.problem() is None, "it may be late"
    for version in range(10, 20):
        time.now += BEHIND / 10
        seen.told(GATES, version)
    seen.listed(NODES, [Seen(9)])
    assert "watch of nodes" in (seen.problem() or "")
    seen.told(NODES, 9)
    assert seen.problem() is None


def test_a_watch_that_is_only_late_is_alive() -> None:
    seen, time = watches()
    for version in range(10, 100, 10):
        seen.listed(NODES, [Seen(version)])
        time.now += BEHIND
        seen.told(NODES, version + 5)  # late, and the next list is ahead again
    assert seen.problem() is None


def test_an_object_that_vanished_between_two_lists_need_not_be_told() -> None:
    seen, time = watches()
    seen.told(NODES, 7)
    seen.listed(NODES, [Seen(8), Seen(9)])
    time.now += 10 * BEHIND
    seen.listed(NODES, [Seen(8)])
    assert seen.problem() is None
    seen.listed(NODES, [])
    assert not seen.behind


def test_no_watch_has_begun_until_one_has_told_something() -> None:
    seen, _ = watches()
    assert not seen.begun
    seen.told(GATES, 1)
    assert seen.begun
