"""The list and the watch of one namespace: a refusal or an unreadable object ends nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from imagegate.kube import errors
from imagegate.runtime import reflector
from imagegate.runtime.reflector import Reflector
from tests.unit.memory_api import MemoryApi
from tests.unit.runtime.world import until

PODS = "/api/v1/namespaces/team-a/pods"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "FIRST_RETRY", 0.01)


@contextlib.asynccontextmanager
async def reflecting(
    api: MemoryApi, tell: Callable[[str | None, Mapping[str, Any]], None], *, listing: bool = True
) -> AsyncIterator[None]:
    client: Any = api
    task = asyncio.create_task(Reflector(client, PODS, {}, tell, listing=listing).run())
    try:
        yield
    finally:
        assert not task.done(), "a reflector runs until it is cancelled"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def put(api: MemoryApi, name: str) -> None:
    api.put(f"{PODS}/{name}", {"kind": "Pod", "metadata": {"name": name, "uid": f"{name}-uid"}})


async def test_listed_objects_and_later_changes_are_reported() -> None:
    api, reported = MemoryApi(), list[tuple[str | None, str]]()
    put(api, "old")
    async with reflecting(api, lambda t, body: reported.append((t, body["metadata"]["name"]))):
        await until(lambda: api.watched)
        put(api, "new")
        api.remove(f"{PODS}/old")
        await until(lambda: len(reported) == 3)
    assert reported == [(None, "old"), ("ADDED", "new"), ("DELETED", "old")]


async def test_without_a_list_only_later_events_are_reported() -> None:
    api, reported = MemoryApi(), list[str]()
    put(api, "old")
    async with reflecting(
        api, lambda _, body: reported.append(body["metadata"]["name"]), listing=False
    ):
        await until(lambda: api.watched)
        put(api, "new")
        await until(lambda: reported)
    assert reported == ["new"]


async def test_deletion_during_an_expired_watch_is_reported_with_the_lists_version() -> None:
    api, reported = MemoryApi(), list[tuple[str | None, str, int]]()

    def tell(type_: str | None, body: Mapping[str, Any]) -> None:
        metadata = body["metadata"]
        reported.append((type_, metadata["name"], int(metadata["resourceVersion"])))

    put(api, "gone")
    async with reflecting(api, tell):
        await until(lambda: api.watched)
        api.end_watches(410)
        api.remove(f"{PODS}/gone")  # while no watch is open
        await until(lambda: len(reported) == 2)
    first, last = reported
    assert last[:2] == ("DELETED", "gone")
    assert last[2] > first[2]


async def test_refused_namespace_is_retried_with_a_back_off_and_keeps_its_objects() -> None:
    api, reported = MemoryApi(), list[str | None]()
    put(api, "kept")
    async with reflecting(api, lambda type_, _: reported.append(type_)):
        await until(lambda: api.watched)

        def refuse(method: str, path: str) -> None:
            raise errors.Forbidden(f"{method} {path}", 403, "forbidden")

        api.before = refuse
        asked = len(api.requests)
        api.end_watches(410)
        await asyncio.sleep(0.5)
        assert reported == [None], "nothing is concluded from a refusal"
        assert len(api.requests) - asked < 10, "0.01 s, 0.02 s, ... between two tries"
        api.before = lambda *_: None
        await until(lambda: reported == [None, None])


async def test_a_watch_that_is_refused_after_each_list_has_a_back_off_too() -> None:
    api = MemoryApi()

    def refuse(method: str, path: str) -> None:
        if method == "WATCH":
            raise errors.Forbidden(f"{method} {path}", 403, "forbidden")

    api.before = refuse
    async with reflecting(api, lambda *_: None):
        await asyncio.sleep(0.5)
    assert len(api.requests) < 20


async def test_an_object_that_cannot_be_read_does_not_end_the_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api, reported = MemoryApi(), list[str]()

    def tell(_: str | None, body: Mapping[str, Any]) -> None:
        name: str = body["metadata"]["name"]
        if name == "bad":
            raise KeyError(name)
        reported.append(name)

    put(api, "bad")
    put(api, "good")
    async with reflecting(api, tell):
        await until(lambda: api.watched)
        put(api, "bad")
        put(api, "better")
        await until(lambda: "better" in reported)
    assert reported == ["good", "better"]
    assert "object not read" in [record.message for record in caplog.records]


async def test_reflector_keeps_only_the_identity_of_objects() -> None:
    """5,000 Nodes with all their metadata would need 50 MiB."""
    api, reported = MemoryApi(), list[str | None]()
    labels = {f"label-{number}": "x" for number in range(50)}
    for name in ("listed", "watched"):
        metadata = {"name": name, "namespace": "team-a", "uid": f"{name}-uid", "labels": labels}
        if name == "listed":
            api.put(f"{PODS}/{name}", {"kind": "Pod", "metadata": metadata})
    client: Any = api
    made = Reflector(client, PODS, {}, lambda type_, _: reported.append(type_), listing=True)
    task = asyncio.create_task(made.run())
    await until(lambda: api.watched)
    api.put(f"{PODS}/watched", {"kind": "Pod", "metadata": metadata})
    await until(lambda: len(reported) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert made._known == {
        name: {"namespace": "team-a", "name": name, "uid": f"{name}-uid"}
        for name in ("listed", "watched")
    }
