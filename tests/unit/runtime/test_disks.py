"""How often kubelets are asked how full their disks are."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from imagegate.domain.disk import Usage
from imagegate.domain.facts import Node
from imagegate.runtime import disks as runtime_disks
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


async def test_a_survey_keeps_every_figure_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_disks, "PAUSE", 0.0)
    disks, source, time = bench(Usage(capacity=10, used=5))

    class Slow(Full):
        async def usage(self, node: Node) -> Usage:
            await super().usage(node)
            if node.name == "n2":
                time.now += FRESH + 1  # what was read of the others is too old by now
                await asyncio.sleep(0)
            if node.name == "n3" and self.asked < 5:
                return Usage(problem="no figures yet", passing=True)
            return self.answer

    slow = Slow(source.answer)
    disks._source = slow
    nodes = [dataclasses.replace(NODE, name=name) for name in ("n1", "n2", "n3")]
    assert await disks.survey(nodes) == dict.fromkeys(("n1", "n2", "n3"), source.answer)
    slow.answer = Usage(problem="its kubelet does not answer")
    time.now += FRESH
    assert (await disks.survey(nodes[:1]))["n1"].problem, "a node without figures is not left out"
