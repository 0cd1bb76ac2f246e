"""When registries are asked about images, and how their answers are used."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from imagegate.api.references import Reference
from imagegate.domain.facts import Image, ImageSize, LayerFacts, Node, Prefetch, RefreshSpec
from imagegate.kube.errors import Forbidden
from imagegate.registry.documents import Layer
from imagegate.registry.errors import NoSuchPlatform, NotFound, Unavailable
from imagegate.registry.keychain import Keyring
from imagegate.registry.manifests import ImageFacts
from imagegate.registry.platforms import Platform
from imagegate.runtime import inspector
from imagegate.runtime import registries as asked
from imagegate.runtime.clock import Clock
from imagegate.runtime.inspector import Inspector
from imagegate.runtime.queues import Queues
from imagegate.runtime.registries import Registries as AskedRegistries
from imagegate.runtime.store import Store
from tests.unit.runtime.world import until

GB = 10**9


class Registries:
    """Manifests without a registry. The real class is tested in ``tests/unit/registry``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.resolved: list[str] = []
        self.digests: dict[str, str] = {}
        self.error: Exception | None = None
        self.hang = False

    async def resolve(self, reference: Reference, keyring: Keyring) -> str:
        self.resolved.append(str(reference))
        if self.hang:
            await asyncio.sleep(60)
        if self.error is not None:
            raise self.error
        return self.digests.get(str(reference), f"sha256:{'0' * 64}")

    async def describe(
        self, reference: Reference, platform: Platform, keyring: Keyring
    ) -> ImageFacts:
        tag = str(dataclasses.replace(reference, digest=None))
        self.asked.append((tag, str(platform), len(keyring.lookup(reference))))
        if self.hang:
            await asyncio.sleep(60)
        if self.error is not None:
            raise self.error
        if platform.architecture == "arm64":
            raise NoSuchPlatform(
                "reg.test", "it is there for linux/amd64", "build it", offered=("linux/amd64",)
            )
        types = {1: "application/x", 3: "application/vnd.oci.image.layer.v1.tar+zstd"}
        layers = tuple(Layer(f"sha256:{n}", n * GB, types[n]) for n in (1, 3, 3))
        return ImageFacts(reference, platform, (platform,), "sha256:def", layers, 10)


class Secrets:
    def __init__(self) -> None:
        self.forbidden = False

    async def get(self, namespace: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
        if self.forbidden:
            raise Forbidden("GET secrets", 403, "not allowed")
        config = "eyJhdXRocyI6eyJyZWcudGVzdCI6eyJ1c2VybmFtZSI6ImEiLCJwYXNzd29yZCI6ImIifX19"
        kind = "kubernetes.io/dockerconfigjson"
        return [
            {
                "metadata": {"name": name, "namespace": namespace},
                "type": kind,
                "data": {".dockerconfigjson": config},
            }
            for name in names
        ]


class Bench:
    def __init__(self) -> None:
        self.now = 1000.0
        clock = Clock(now=lambda: self.now)
        self.store = Store(clock)
        self.registries, self.secrets = Registries(), Secrets()
        manifests: Any = self.registries
        secrets: Any = self.secrets
        self.inspected: list[str] = []
        self.looked: list[str] = []
        self.queue = Queues.create().images
        self.asked = AskedRegistries(manifests, secrets)
        self.inspector = Inspector(self.store, self.asked, clock, self.queue, self)
        self.see_node("n1", "linux/amd64")

    def images_inspected(self, name: str) -> None:
        self.inspected.append(name)

    def prefetch_changed(self, name: str) -> None:
        self.looked.append(name)

    def see_node(self, name: str, platform: str) -> None:
        self.store.see_node(Node(name, f"{name}-uid", 1, platform=platform))

    def see(self, *images: Image, **changes: Any) -> Prefetch:
        self.store.see_prefetch(
            dataclasses.replace(Prefetch("llm", "uid", 1, namespace="ns", images=images), **changes)
        )
        return self.store.prefetches["llm"]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.queue.run(self.inspector.inspect))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.running():
        yield made


async def test_sizes_are_read_by_platform_with_the_credentials_of_the_image(bench: Bench) -> None:
    bench.see_node("n2", "linux/arm64")
    prefetch = bench.see(Image("reg.test/a:1", ("pull",)), Image("reg.test/b:1"))
    assert bench.inspector.known(prefetch) is None
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspected == ["llm"])
    known = bench.inspector.known(prefetch)
    assert known is not None
    layers = (LayerFacts(GB, "none"), LayerFacts(3 * GB, "zstd"), LayerFacts(0, "zstd"))
    assert known["reg.test/a:1"].sizes == {"linux/amd64": ImageSize(4 * GB + 10, 3 * GB, layers)}
    assert known["reg.test/a:1"].missing == {"linux/arm64"}
    assert known["reg.test/a:1"].platforms == ("linux/amd64",)
    assert known["reg.test/a:1"].digest == f"sha256:{'0' * 64}"
    assert ("reg.test/a:1", "linux/amd64", 1) in bench.registries.asked
    assert ("reg.test/b:1", "linux/amd64", 0) in bench.registries.asked
    assert len(bench.registries.asked) == 4
    bench.inspector.look(prefetch)
    await asyncio.sleep(0.05)
    assert len(bench.registries.asked) == 4, "the same spec is asked about once"


async def test_registries_are_asked_again_for_a_new_spec_or_platform(bench: Bench) -> None:
    first = bench.see(Image("reg.test/a:1"))
    bench.inspector.look(first)
    await until(lambda: bench.inspector.known(first) is not None)
    second = bench.see(Image("reg.test/a:2"), version=2)
    assert bench.inspector.known(second) is None
    bench.inspector.look(second)
    await until(lambda: bench.inspector.known(second) is not None)
    asked = len(bench.registries.asked)
    bench.inspector.meet("linux/amd64")
    await asyncio.sleep(0.05)
    assert len(bench.registries.asked) == asked
    bench.see_node("n2", "linux/arm64")
    bench.inspector.meet("linux/arm64")
    await until(lambda: bench.inspector.known(second)["reg.test/a:2"].missing)  # type: ignore[index]


@pytest.mark.parametrize(
    "error",
    [
        NotFound("reg.test", "a:1 was not found", "push it"),
        Unavailable("reg.test", "no connection", "ask again"),
        Forbidden("GET secrets", 403, "not allowed"),
    ],
)
async def test_error_of_a_registry_is_an_answer_without_sizes(
    bench: Bench, error: Exception
) -> None:
    bench.registries.error = error
    prefetch = bench.see(Image("reg.test/a:1"))
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspector.known(prefetch) is not None)
    known = bench.inspector.known(prefetch)
    assert known is not None
    assert known["reg.test/a:1"].sizes == {}
    assert str(error) in known["reg.test/a:1"].problem


async def test_known_sizes_are_kept_while_the_registry_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "NOW_AND_THEN", 0.05)
    prefetch = bench.see(Image("reg.test/a:1"))
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspector.known(prefetch) is not None)
    bench.registries.error = Unavailable("reg.test", "no connection", "ask again")

    def away() -> bool:
        known = bench.inspector.known(prefetch)
        return known is not None and "no connection" in known["reg.test/a:1"].problem

    await until(away)
    known = bench.inspector.known(prefetch)
    assert known is not None
    assert known["reg.test/a:1"].sizes


async def test_wait_for_a_silent_registry_is_limited(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "PATIENCE", 0.05)
    bench.registries.hang = True
    prefetch = bench.see(Image("reg.test/a:1"))
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspector.known(prefetch) is not None)
    known = bench.inspector.known(prefetch)
    assert known is not None
    assert "did not answer" in known["reg.test/a:1"].problem


async def test_deleted_prefetch_is_forgotten(bench: Bench) -> None:
    prefetch = bench.see(Image("reg.test/a:1"))
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspector.known(prefetch) is not None)
    bench.inspector.forget("llm")
    assert bench.inspector.known(prefetch) is None


# ---- following tags

NEW = f"sha256:{'1' * 64}"
FOLLOWED = {"refresh": RefreshSpec(interval=300)}


async def settled(bench: Bench, prefetch: Prefetch) -> None:
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspector.refreshed("llm") is not None)
    bench.inspected.clear()
    bench.registries.resolved.clear()


async def test_tag_is_resolved_once_for_all_platforms(bench: Bench) -> None:
    bench.see_node("n2", "linux/arm64")
    prefetch = bench.see(Image("reg.test/a:1"), **FOLLOWED)
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspector.known(prefetch) is not None)
    assert bench.registries.resolved == ["reg.test/a:1"]
    refreshed = bench.inspector.refreshed("llm")
    assert refreshed is not None
    assert (refreshed.at, refreshed.due, refreshed.problem) == (1000.0, 1300.0, "")


async def test_tag_is_resolved_without_any_node(bench: Bench) -> None:
    bench.store.lose_node("n1")
    prefetch = bench.see(Image("reg.test/a:1"), **FOLLOWED)
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspector.known(prefetch) is not None)
    known = bench.inspector.known(prefetch)
    assert known is not None
    assert known["reg.test/a:1"].digest == f"sha256:{'0' * 64}"


async def test_push_resolves_only_the_pushed_image_immediately(bench: Bench) -> None:
    prefetch = bench.see(Image("reg.test/a:1"), Image("reg.test/b:1"), **FOLLOWED)
    await settled(bench, prefetch)
    bench.registries.digests["reg.test/a:1"] = NEW
    assert bench.inspector.poke("reg.test", "a") == 1
    await until(lambda: bench.inspected == ["llm"])
    assert bench.registries.resolved == ["reg.test/a:1"]
    known = bench.inspector.known(prefetch)
    assert known is not None
    assert known["reg.test/a:1"].digest == NEW
    assert known["reg.test/b:1"].sizes, "the answer for the other image is kept"
    refreshed = bench.inspector.refreshed("llm")
    assert refreshed is not None
    assert refreshed.due == 1300.0, "the lookup of all images stays due at the same time"
    followed = dataclasses.replace(
        prefetch, images=tuple(image.resolved(NEW) for image in prefetch.images)
    )
    assert bench.inspector.known(followed) is known, (
        "digests are answers, and not part of the request"
    )


async def test_push_that_changes_nothing_queues_no_node(bench: Bench) -> None:
    prefetch = bench.see(Image("reg.test/a:1"), **FOLLOWED)
    await settled(bench, prefetch)
    bench.looked.clear()
    assert bench.inspector.poke("reg.test", "a") == 1
    await until(lambda: bench.looked == ["llm"])
    assert bench.inspected == []


@pytest.mark.parametrize(
    ("registry", "repository", "count"),
    [
        ("reg.test", "team/a", 2),  # also the tag that the event does not name
        ("", "team/a", 2),
        ("other.test", "team/a", 0),
        ("reg.test", "a", 0),
        ("docker.io", "nginx", 1),
        ("docker.io", "library/nginx", 1),
        ("reg.test", "pinned", 0),
    ],
)
async def test_push_concerns_the_followed_tags_of_its_repository(
    bench: Bench, registry: str, repository: str, count: int
) -> None:
    pinned = Image(f"reg.test/pinned:1@sha256:{'0' * 64}")
    images = (Image("reg.test/team/a:1"), Image("reg.test/team/a:2"), Image("nginx"), pinned)
    await settled(bench, bench.see(*images, **FOLLOWED))
    assert bench.inspector.poke(registry, repository) == count
    bench.see(*images, version=2, refresh=None)
    assert bench.inspector.poke(registry, repository) == 0, "its tags are not followed"


async def test_tags_are_resolved_at_the_interval_and_failures_are_counted(bench: Bench) -> None:
    prefetch = bench.see(Image("reg.test/a:1"), refresh=RefreshSpec(interval=0.05))
    bench.inspector.look(prefetch)
    await until(lambda: len(bench.registries.resolved) >= 3)
    bench.registries.error = Unavailable("reg.test", "no connection", "ask again")

    def failed_twice() -> bool:
        refreshed = bench.inspector.refreshed("llm")
        return refreshed is not None and refreshed.failures >= 2

    await until(failed_twice)
    refreshed = bench.inspector.refreshed("llm")
    assert refreshed is not None
    assert "no connection" in refreshed.problem
    known = bench.inspector.known(prefetch)
    assert known is not None
    assert known["reg.test/a:1"].digest, "the known digest is kept"


async def test_edit_of_refresh_takes_effect(bench: Bench) -> None:
    prefetch = bench.see(Image("reg.test/a:1"))
    bench.inspector.look(prefetch)
    await until(lambda: bench.inspector.known(prefetch) is not None)
    bench.registries.resolved.clear()
    followed = bench.see(Image("reg.test/a:1"), version=2, refresh=RefreshSpec(interval=86400))
    bench.inspector.look(followed)
    await until(lambda: bench.inspector.refreshed("llm") is not None)
    assert bench.registries.resolved == ["reg.test/a:1"]
    oftener = bench.see(Image("reg.test/a:1"), version=3, refresh=RefreshSpec(interval=300))
    bench.now += 299.99
    bench.inspector.look(oftener)
    await until(lambda: len(bench.registries.resolved) == 2)
    refreshed = bench.inspector.refreshed("llm")
    assert refreshed is not None
    assert refreshed.due == refreshed.at + 300


@pytest.mark.parametrize("pushed", [True, False])
async def test_a_prefetch_that_is_deleted_while_its_registry_is_asked_is_forgotten(
    bench: Bench, caplog: pytest.LogCaptureFixture, pushed: bool
) -> None:
    prefetch = bench.see(Image("reg.test/a:1"), **FOLLOWED)
    if pushed:
        await settled(bench, prefetch)
    before, go = len(bench.registries.resolved), asyncio.Event()
    original = bench.registries.resolve

    async def resolve(reference: Reference, keyring: Keyring) -> str:
        digest = await original(reference, keyring)
        await go.wait()
        return digest

    bench.registries.resolve = resolve  # type: ignore[method-assign]
    if pushed:
        assert bench.inspector.poke("reg.test", "a") == 1
    else:
        bench.inspector.look(prefetch)
    await until(lambda: len(bench.registries.resolved) > before)
    bench.store.lose_prefetch("llm", prefetch.uid)
    bench.inspector.forget("llm")
    bench.inspected.clear()
    go.set()
    await asyncio.sleep(0.05)
    assert bench.inspector._known == {}
    assert bench.inspector._refreshed == {}
    assert bench.inspector._failures == {}
    assert bench.inspected == []
    assert not [r for r in caplog.records if r.message.startswith("work failed")]


# ---- slow registries


class SlowRegistry(Registries):
    """`slow.test` never answers; other registries answer immediately."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.most = 0

    async def resolve(self, reference: Reference, keyring: Keyring) -> str:
        if reference.domain == "slow.test":
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            try:
                await asyncio.sleep(60)
            finally:
                self.waiting -= 1
        return await super().resolve(reference, keyring)


def named(bench: Bench, name: str, image: str, **changes: Any) -> Prefetch:
    prefetch = Prefetch(name, f"{name}-uid", 1, namespace="ns", images=(Image(image),), **changes)
    bench.store.see_prefetch(prefetch)
    return bench.store.prefetches[name]


async def took(bench: Bench, prefetch: Prefetch) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await until(lambda: bench.inspector.known(prefetch) is not None)
    return loop.time() - began


@pytest.mark.parametrize("count", [12, 200])
async def test_silent_registry_does_not_delay_answers_of_others(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    patience = 2.0
    monkeypatch.setattr(inspector, "PATIENCE", patience)
    bench = Bench()
    registries: Any = SlowRegistry()
    bench.asked._manifests = registries
    async with bench.running():
        for number in range(count):
            bench.inspector.look(named(bench, f"slow-{number}", f"slow.test/a{number}:1"))
        await asyncio.sleep(0.01)
        good = named(bench, "good", "reg.test/a:1")
        bench.inspector.look(good)
        # 200 prefetches occupy all workers until their deadline, which counts from the first sight.
        assert await took(bench, good) < patience * (0.6 if count == 12 else 1.8)
        last = bench.store.prefetches[f"slow-{count - 1}"]
        assert await took(bench, last) < patience * 1.8
        late = bench.inspector.known(last)
        assert late is not None
        assert late[f"slow.test/a{count - 1}:1"].problem
        # By now the registry is known to be slow.
        await until(lambda: registries.waiting == 0)
        registries.most = 0
        for number in range(count):
            bench.inspector.look(named(bench, f"more-{number}", f"slow.test/b{number}:1"))
        better = named(bench, "better", "reg.test/b:1")
        bench.inspector.look(better)
        assert await took(bench, better) < patience * 0.6
        assert registries.most <= asked.SLOW_WORKERS
        facts = bench.inspector.known(better)
        assert facts is not None
        assert facts["reg.test/b:1"].sizes


async def test_a_push_does_not_wait_for_registries_that_never_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspector, "NOW_AND_THEN", 0.05)
    bench = Bench()
    registries: Any = SlowRegistry()
    bench.asked._manifests = registries
    async with bench.running():
        followed = named(bench, "good", "reg.test/a:1", **FOLLOWED)
        bench.inspector.look(followed)
        await took(bench, followed)
        for number in range(12):
            bench.inspector.look(named(bench, f"slow-{number}", f"slow.test/a{number}:1"))
        await asyncio.sleep(0.05)
        bench.inspected.clear()
        registries.digests["reg.test/a:1"] = NEW
        assert bench.inspector.poke("reg.test", "a") == 1
        await until(lambda: bench.inspected == ["good"], 0.5)
