"""How often kubelets are asked how full their disks are."""

from __future__ import annotations

import dataclasses

from imagegate.domain.disk import Usage
from imagegate.domain.facts import Node
from imagegate.runtime.clock import Clock
from imagegate.runtime.disks import ASK_AGAIN, FRESH, PAUSE, TRIES, Disks
from tests.unit.runtime.world import Full

NODE = Node("n1", "uid", 1, boot_id="boot-1")


class Time:
    now = 1000.0


def bench(usage: Usage) -> tuple[Disks, Full, Time]:
    source, time = Full(usage), Time()
    return Disks(source, Clock(monotonic=lambda: time.now)), source, time


async def test_a_figure_is_good_for_a_moment_and_for_this_boot_of_this_node() -> None:
    disks, _, time = bench(Usage(capacity=10, used=5))
    assert disks.known(NODE) is None
    await disks.read(NODE)
    assert disks.known(NODE) == Usage(capacity=10, used=5)
    assert disks.known(dataclasses.replace(NODE, boot_id="boot-2")) is None
    time.now += FRESH
    assert disks.known(NODE) is None
    await disks.read(NODE)
    disks.forget("n1")
    assert disks.known(NODE) is None


async def test_a_kubelet_without_figures_is_asked_some_times_and_then_done_without() -> None:
    disks, source, time = bench(Usage(problem="no figures yet", passing=True))
    for _ in range(TRIES):
        assert disks.known(NODE) is None
        await disks.read(NODE)
        await disks.read(NODE)  # at once: not asked again
        time.now += PAUSE
    assert source.asked == TRIES
    assert disks.known(NODE) == Usage(problem="no figures yet", passing=True)
    time.now += ASK_AGAIN
    assert disks.known(NODE) is None
    source.answer = Usage(capacity=10, used=5)
    await disks.read(NODE)
    assert disks.known(NODE) == source.answer


async def test_a_kubelet_that_is_out_of_reach_is_not_waited_for() -> None:
    disks, source, time = bench(Usage(problem="its kubelet does not answer"))
    await disks.read(NODE)
    assert disks.known(NODE) == source.answer
    time.now += ASK_AGAIN
    assert disks.known(NODE) is None
