"""How often kubelets are asked for their disk usage."""

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


async def test_figure_is_valid_for_some_seconds_and_for_one_boot() -> None:
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


async def test_kubelet_without_figures_is_asked_a_few_times_only() -> None:
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


async def test_unreachable_kubelet_is_asked_once() -> None:
    disks, source, time = bench(Usage(problem="its kubelet does not answer"))
    await disks.read(NODE)
    assert disks.known(NODE) == source.answer
    time.now += ASK_AGAIN
    assert disks.known(NODE) is None


async def test_survey_returns_every_figure_even_if_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_disks, "PAUSE", 0.0)
    disks, source, time = bench(Usage(capacity=10, used=5))

    class Slow(Full):
        async def usage(self, node: Node) -> Usage:
            await super().usage(node)
            if node.name == "n2":
                time.now += FRESH + 1  # the figures of the other nodes are too old now
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
