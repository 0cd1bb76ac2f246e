"""Events are written by a background task with a bounded queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imagegate.kube import errors, events
from imagegate.kube.events import Events
from tests.unit.memory_api import MemoryApi


def made() -> tuple[Events, MemoryApi]:
    api = MemoryApi()
    client: Any = api
    return Events(client, component="imagegate", instance="test"), api


async def test_event_is_written_by_a_background_task() -> None:
    said, api = made()
    task = asyncio.create_task(said.run())
    said.node("n1", "uid", "ImagesCached", "gate taint removed", 0.0)
    said.prefetch("llm", "uid", "ImageNotFound", "push it", 0.0, warning=True)
    assert api.objects == {}
    await asyncio.sleep(0.05)
    assert {(e["reason"], e["type"]) for e in api.objects.values()} == {
        ("ImagesCached", "Normal"),
        ("ImageNotFound", "Warning"),
    }
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("refused", [False, True])
async def test_pending_events_are_written_at_shutdown_unless_one_is_refused(
    refused: bool,
) -> None:
    said, api = made()

    async def begins_no_work() -> None:
        await asyncio.sleep(60)

    said._work = begins_no_work  # type: ignore[method-assign]
    task = asyncio.create_task(said.run())
    await asyncio.sleep(0.01)

    def refuse(method: str, path: str) -> None:
        if refused:
            raise errors.NotLeader("not leading")

    api.before = refuse
    for number in range(10):
        said.node(f"n{number}", "uid", "ImagesCached", "", 0.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(api.objects) == (0 if refused else 10)
    assert len(api.requests) == (1 if refused else 10), "after a refusal the others are not tried"


async def test_event_is_dropped_and_logged_if_the_queue_is_full(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(events, "PENDING", 3)
    said, _ = made()
    for number in range(5):
        said.node(f"n{number}", "uid", "ImagesCached", "", 0.0)
    assert said._pending.qsize() == 3
    assert [r.message for r in caplog.records] == ["event not written"] * 2
