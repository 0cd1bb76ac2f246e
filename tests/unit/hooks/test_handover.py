"""The handover of pushes from the receiving process to the leader, through the API server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from imagegate.hooks import asking, handover
from imagegate.hooks.asking import Asker
from imagegate.hooks.event import Push, Told
from imagegate.hooks.handover import MOST, Entry, Unreadable
from imagegate.hooks.sources import SOURCES
from imagegate.kube import errors, pushes
from imagegate.kube.pushes import Pushes
from imagegate.runtime import outbox as module
from imagegate.runtime.outbox import Outbox
from imagegate.runtime.reflector import Reflector
from tests.unit.memory_api import MemoryApi

PATH = f"{pushes.collection('ns')}/pushes"


def told(name: str, tag: str = "1") -> Told:
    return Told(Push(name, tag, "r.example"), "mine", "harbor")


def api_with_configmap() -> MemoryApi:
    api = MemoryApi()
    # As the chart creates it: with labels, without data.
    api.put(PATH, {"metadata": {"name": "pushes", "labels": {"of": "the chart"}}})
    api.put(f"{pushes.collection('ns')}/other", {"metadata": {"name": "other"}})
    return api


def outbox(api: MemoryApi) -> Outbox:
    client: Any = api
    return Outbox(Pushes(client, "ns", "pushes"))


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(*parts: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Leader:
    """The parts of the leader that read pushes."""

    def __init__(self, api: MemoryApi, images: int = 1) -> None:
        client: Any = api
        self.asked: list[str] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.images = images
        self.asker = Asker(SOURCES, pushed=self._pushed, observe=self._observe)
        path, query = pushes.collection("ns"), pushes.selector("pushes")
        self.reflector = Reflector(client, path, query, self._tell, listing=True)

    def _tell(self, _: str | None, body: Any) -> None:
        # The watch of MemoryApi ignores the selector, so it also reports other objects.
        if body["metadata"]["name"] == "pushes":
            self.asker.see(pushes.text(body))

    def _pushed(self, push: Push) -> int:
        self.asked.append(f"{push.repository}:{push.tag}")
        return self.images

    def _observe(self, source: str, outcome: str) -> None:
        self.outcomes.update([(source, str(outcome))])


async def test_push_reaches_the_leader_from_the_receiving_process() -> None:
    api = api_with_configmap()
    sender, leader = outbox(api), Leader(api)
    async with running(sender.run(), leader.reflector.run(), leader.asker.run()):
        await until(lambda: bool(api.watched))
        began = time.monotonic()
        assert sender.add([told("a")])
        await until(lambda: leader.asked == ["a:1"])
        assert time.monotonic() - began < 0.5, "the first push is written immediately"
        assert sender.add([told("b"), told("c")])
        await until(lambda: set(leader.asked) == {"a:1", "b:1", "c:1"})
    assert leader.outcomes == {("harbor", "asked"): 3}
    assert api.objects[PATH]["metadata"]["labels"] == {"of": "the chart"}


async def test_push_waits_for_the_next_leader() -> None:
    api = api_with_configmap()
    sender = outbox(api)
    sender.add([told("a")])
    await sender.flush()
    leader = Leader(api)
    async with running(leader.reflector.run(), leader.asker.run()):
        await until(lambda: leader.asked == ["a:1"])


async def test_push_that_is_read_several_times_is_checked_once() -> None:
    leader = Leader(MemoryApi(), images=0)
    first, second = Entry("1", told("a")), Entry("2", told("b"))
    async with running(leader.asker.run()):
        for entries in ([first], [first], [first, second], [first, second]):
            leader.asker.see(handover.encode(entries))
            await asyncio.sleep(0.02)
        await until(lambda: leader.asked == ["a:1", "b:1"])
        # The same tag was pushed again.
        leader.asker.see(handover.encode([second, Entry("3", told("a"))]))
        await until(lambda: leader.asked == ["a:1", "b:1", "a:1"])


async def test_two_senders_do_not_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPACING", 0.01)
    api = api_with_configmap()
    senders = [outbox(api), outbox(api)]
    async with running(*(each.run() for each in senders)):
        for number in range(50):
            senders[number % 2].add([told(f"a{number}")])
            await asyncio.sleep(0)
        await until(lambda: not any(each._waiting for each in senders))
    entries = handover.decode(pushes.text(api.objects[PATH]))
    assert {each.told.push.repository for each in entries} == {f"a{n}" for n in range(50)}
    assert len({each.id for each in entries}) == 50


async def test_no_push_is_lost_while_the_api_server_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SPACING", 0.01)
    api, away = api_with_configmap(), True

    def refuse(method: str, _: str) -> None:
        if away and method == "PATCH":
            raise errors.Unavailable("patch", 503, "away")

    api.before = refuse
    sender = outbox(api)
    async with running(sender.run()):
        sender.add([told("a")])
        await asyncio.sleep(0.1)
        sender.add([told("b")])
        away = False
        await until(lambda: not sender._waiting)
    entries = handover.decode(pushes.text(api.objects[PATH]))
    assert [each.told.push.repository for each in entries] == ["a", "b"]


async def test_push_that_arrives_during_a_write_is_handed_over_again() -> None:
    """The leader may have resolved the tag before the second push changed it."""
    api = api_with_configmap()
    sender = outbox(api)
    writes: list[str] = []

    def push_again(method: str, _: str) -> None:
        if method == "PATCH" and not writes:
            writes.append(method)
            sender.add([told("a")])

    api.before = push_again
    sender.add([told("a")])
    await sender.flush()
    (first,) = handover.decode(pushes.text(api.objects[PATH]))
    await sender.flush()
    (second,) = handover.decode(pushes.text(api.objects[PATH]))
    assert first.told == second.told
    assert first.id != second.id


async def test_full_outbox_refuses_a_push() -> None:
    sender = outbox(api_with_configmap())
    assert all(sender.add([told(f"a{n}")]) for n in range(module.MOST))
    assert not sender.add([told("one-more")])


async def test_outbox_writes_at_most_twice_a_second() -> None:
    api = api_with_configmap()
    sender = outbox(api)
    async with running(sender.run()):
        for number in range(200):
            sender.add([told("a", str(number % 50))])
            await asyncio.sleep(0.005)
    assert 2 <= len([each for each in api.writes() if each[0] == "PATCH"]) <= 5


def test_encoded_text_is_bounded() -> None:
    longest = Told(Push("r" * 255, "t" * 128, "h" * 255), "n" * 100_000, "acr-eventgrid")
    text = handover.encode(Entry(str(n), longest) for n in range(10 * MOST))
    assert len(text) < handover.MOST_BYTES
    assert len(handover.decode(text)) == MOST


# ---- The receiving process may be compromised, so that the leader does not trust its text.


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "{}",
        '{"pushes": 7}',
        '{"pushes": [7]}',
        '{"pushes": [{"id": "1"}]}',
        "[" * 100_000,
        '{"pushes": [' + "0," * 100_000 + "0]}",
        " " * (handover.MOST_BYTES + 1),
        "\ud800",
    ],
    ids=lambda text: text[:12],
)
async def test_unreadable_text_is_ignored(text: str) -> None:
    leader = Leader(MemoryApi())
    began = time.process_time()
    with pytest.raises(Unreadable):
        handover.decode(text)
    leader.asker._read(text)
    assert time.process_time() - began < 0.5
    assert not leader.asker._waiting


async def test_flood_of_pushes_does_not_block_the_leader() -> None:
    """Thousands of pushes of 2 ms each use less than a fifth of the event loop's time."""
    leader, took = Leader(MemoryApi()), 0.0

    def slow(_: Push) -> int:
        nonlocal took
        began = time.monotonic()
        while time.monotonic() - began < 0.002:
            pass
        took += time.monotonic() - began
        return 0

    leader.asker._pushed = slow
    async with running(leader.asker.run()):
        began = time.monotonic()
        worst = 0.0
        for number in range(100):
            entries = [Entry(f"{number}-{n}", told(f"a{number}-{n}")) for n in range(MOST)]
            leader.asker.told(each.told for each in entries)
            before = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - before)
        passed = time.monotonic() - began
    assert took < 0.2 * passed, f"{took:.2f} s of {passed:.2f} s"
    assert worst < 0.5, f"the loop was blocked for {worst:.2f} s"
    assert len(leader.asker._waiting) <= asking.MOST_WAITING
    assert leader.outcomes["harbor", "limited"] > 10_000


async def test_no_number_of_writes_keeps_the_leader_from_its_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that was broken into writes as often as it likes what takes longest to read."""
    leader, took = Leader(MemoryApi()), 0.0
    decode = handover.decode

    def timed(text: str) -> Any:
        nonlocal took
        began = time.monotonic()
        try:
            return decode(text)
        finally:
            took += time.monotonic() - began

    monkeypatch.setattr(handover, "decode", timed)
    text = '{"pushes": [' + "0," * 120_000 + "0]}"
    began = time.monotonic()
    async with running(leader.asker.run()):
        while time.monotonic() - began < 2.0:
            leader.asker.see(text)
            await asyncio.sleep(0.001)
        passed = time.monotonic() - began
        assert 0 < took < 0.25 * passed, f"{took:.2f} s of {passed:.2f} s"
        leader.asker.see(handover.encode([Entry("1", told("a"))]))
        await until(lambda: leader.asked == ["a:1"])


async def test_unknown_source_has_one_label_value_in_the_metrics() -> None:
    leader = Leader(MemoryApi(), images=0)
    entries = [
        {
            **json.loads(handover.encode([Entry(str(n), told(f"a{n}"))]))["pushes"][0],
            "source": f"s{n}",
        }
        for n in range(100)
    ]
    async with running(leader.asker.run()):
        leader.asker.see(json.dumps({"pushes": entries}))
        await until(lambda: bool(leader.outcomes) and not leader.asker._waiting)
    assert leader.outcomes == {("unknown", "unmatched"): 100}
