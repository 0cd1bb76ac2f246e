"""One namespace is listed and watched by itself: what is refused there, or cannot be read, ends
nothing else.
"""

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
        assert not task.done(), "it never ends by itself"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def put(api: MemoryApi, name: str) -> None:
    api.put(f"{PODS}/{name}", {"kind": "Pod", "metadata": {"name": name, "uid": f"{name}-uid"}})


async def test_objects_of_the_list_and_changes_after_it_are_told() -> None:
    api, told = MemoryApi(), list[tuple[str | None, str]]()
    put(api, "old")
    async with reflecting(api, lambda t, body: told.append((t, body["metadata"]["name"]))):
        await until(lambda: api.watched)
        put(api, "new")
        api.remove(f"{PODS}/old")
        await until(lambda: len(told) == 3)
    assert told == [(None, "old"), ("ADDED", "new"), ("DELETED", "old")]


async def test_without_a_list_only_what_happens_from_now_on_is_told() -> None:
    api, told = MemoryApi(), list[str]()
    put(api, "old")
    async with reflecting(
        api, lambda _, body: told.append(body["metadata"]["name"]), listing=False
    ):
        await until(lambda: api.watched)
        put(api, "new")
        await until(lambda: told)
    assert told == ["new"]


async def test_what_vanished_while_the_watch_was_too_old_is_told_with_the_version_of_the_list() -> (
    None
):
    api, told = MemoryApi(), list[tuple[str | None, str, int]]()

    def tell(type_: str | None, body: Mapping[str, Any]) -> None:
        metadata = body["metadata"]
        told.append((type_, metadata["name"], int(metadata["resourceVersion"])))

    put(api, "gone")
    async with reflecting(api, tell):
        await until(lambda: api.watched)
        api.end_watches(410)
        api.remove(f"{PODS}/gone")  # while nobody watches
        await until(lambda: len(told) == 2)
    first, last = told
    assert last[:2] == ("DELETED", "gone")
    assert last[2] > first[2]


async def test_a_refused_namespace_is_tried_again_with_a_back_off_and_takes_nothing_away() -> None:
    api, told = MemoryApi(), list[str | None]()
    put(api, "kept")
    async with reflecting(api, lambda type_, _: told.append(type_)):
        await until(lambda: api.watched)

        def refuse(method: str, path: str) -> None:
            raise errors.Forbidden(f"{method} {path}", 403, "forbidden")

        api.before = refuse
        asked = len(api.requests)
        api.end_watches(410)
        await asyncio.sleep(0.5)
        assert told == [None], "nothing is concluded from a refusal"
        assert len(api.requests) - asked < 10, "0.01 s, 0.02 s, ... between two tries"
        api.before = lambda *_: None
        await until(lambda: told == [None, None])


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
    api, told = MemoryApi(), list[str]()

    def tell(_: str | None, body: Mapping[str, Any]) -> None:
        name: str = body["metadata"]["name"]
        if name == "bad":
            raise KeyError(name)
        told.append(name)

    put(api, "bad")
    put(api, "good")
    async with reflecting(api, tell):
        await until(lambda: api.watched)
        put(api, "bad")
        put(api, "better")
        await until(lambda: "better" in told)
    assert told == ["good", "better"]
    assert "object not read" in [record.message for record in caplog.records]
