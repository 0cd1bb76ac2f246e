"""The memory that an ImagePrefetch with large manifests costs the operator."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import tracemalloc
from typing import Any

import pytest
from aiohttp import web

from imagegate.api.references import parse
from imagegate.domain.facts import Image, Node, Prefetch
from imagegate.registry import errors
from imagegate.registry.cache import Cache
from imagegate.registry.client import MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST
from imagegate.registry.documents import MOST_DESCRIPTORS
from imagegate.registry.manifests import Manifests
from imagegate.registry.platforms import Platform
from imagegate.runtime.clock import Clock
from imagegate.runtime.image_facts import LAYERS_BUDGET, Known
from imagegate.runtime.inspector import Inspector
from imagegate.runtime.queues import Queues
from imagegate.runtime.registries import Registries
from imagegate.runtime.store import Store
from tests.unit.registry.conftest import MakeClient
from tests.unit.registry.distribution import OCI_CONFIG, OCI_GZIP, digest_of
from tests.unit.registry.scripted import Scripted

AMD64 = Platform.of("linux", "amd64")
CONFIG = json.dumps({"os": "linux", "architecture": "amd64"}).encode()
MB = 1024 * 1024


def manifest(number: int, layers: int, padding: int = 0) -> bytes:
    """A valid manifest; the layer digests differ for each `number`."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(CONFIG), "size": len(CONFIG)},
            "layers": [
                {
                    "mediaType": OCI_GZIP,
                    "digest": f"sha256:{number:032x}{layer:032x}",
                    "size": 10**9 + layer,
                }
                for layer in range(layers)
            ],
            "annotations": {"padding": "x" * padding},
        },
        separators=(",", ":"),
    ).encode()


def serve(server: Scripted, name: str, body: bytes, media_type: str = OCI_MANIFEST) -> None:
    digest = digest_of(body)
    headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
    server.say("HEAD", f"/v2/{name}/manifests/v1", 200, b"", headers)
    server.say("GET", f"/v2/{name}/manifests/{digest}", 200, body, headers)
    server.say("GET", f"/v2/{name}/blobs/{digest_of(CONFIG)}", 200, CONFIG)


class NoSecrets:
    async def get(self, _: str, __: tuple[str, ...]) -> list[dict[str, Any]]:
        return []


class NoListener:
    def images_inspected(self, name: str) -> None: ...
    def prefetch_changed(self, name: str) -> None: ...


async def inspected(
    server: Scripted, make_client: MakeClient, images: int
) -> tuple[Inspector, Prefetch]:
    clock = Clock()
    store = Store(clock)
    store.see_node(Node("n1", "uid", 1, platform="linux/amd64"))
    listed = tuple(Image(f"{server.domain}/a{number}:v1") for number in range(images))
    store.see_prefetch(Prefetch("llm", "uid", 1, namespace="ns", images=listed))
    secrets: Any = NoSecrets()
    queue = Queues.create().images
    asked = Registries(Manifests(make_client()), secrets)
    inspector = Inspector(store, asked, clock, queue, NoListener())
    prefetch = store.prefetches["llm"]
    inspector.look(prefetch)
    task = asyncio.create_task(queue.run(inspector.inspect))
    while inspector.known(prefetch) is None:
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return inspector, prefetch


async def measured(
    server: Scripted, make_client: MakeClient, images: int
) -> tuple[Known, int, int]:
    """The known facts, the bytes held afterwards, and the peak of bytes in between."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        inspector, prefetch = await inspected(server, make_client, images)
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    known = inspector.known(prefetch)
    assert known is not None
    return known, after - before, peak - before


async def test_largest_manifests_cost_little_memory(
    scripted: Scripted, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 8 instead of 64 images, and a later deadline, because tracemalloc makes everything slower.
    monkeypatch.setattr("imagegate.runtime.inspector.PATIENCE", 60.0)
    for number in range(8):
        serve(scripted, f"a{number}", manifest(number, 24_000))
    known, held, peak = await measured(scripted, make_client, 8)
    assert all("parts" in facts.problem for facts in known.values())
    assert held < 4 * MB
    assert peak < 60 * MB


async def test_images_with_too_many_layers_keep_only_their_sums(
    scripted: Scripted, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagegate.runtime.inspector.PATIENCE", 60.0)
    for number in range(8):
        serve(scripted, f"a{number}", manifest(number, MOST_DESCRIPTORS, 3 * MB))
    known, held, peak = await measured(scripted, make_client, 8)
    total = sum(10**9 + layer for layer in range(MOST_DESCRIPTORS)) + len(CONFIG)
    for facts in known.values():
        assert (facts.problem, facts.sizes["linux/amd64"].compressed) == ("", total)
        assert facts.sizes["linux/amd64"].layers == ()
    assert held < 12 * MB, "the cache of documents, and the sums"
    assert peak < 60 * MB


async def test_layers_of_a_prefetch_have_a_budget(
    scripted: Scripted, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagegate.runtime.image_facts.LAYERS_BUDGET", 250)
    assert LAYERS_BUDGET > 64 * 100, "the budget is enough for ordinary images"
    for number in range(3):
        serve(scripted, f"a{number}", manifest(number, 100))
    inspector, prefetch = await inspected(scripted, make_client, 3)
    known = inspector.known(prefetch)
    assert known is not None
    assert [len(f.sizes["linux/amd64"].layers) for f in known.values()] == [100, 100, 0]
    assert all(f.sizes["linux/amd64"].compressed > 10**11 for f in known.values())


@pytest.mark.parametrize("kind", ["layers", "manifests"])
async def test_too_many_descriptors_are_rejected_with_the_limit(
    scripted: Scripted, make_client: MakeClient, kind: str
) -> None:
    content = json.loads(manifest(1, MOST_DESCRIPTORS + 1))
    media_type = OCI_MANIFEST
    if kind == "manifests":
        media_type = OCI_INDEX
        content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": content["layers"]}
    serve(scripted, "a", json.dumps(content).encode(), media_type)
    with pytest.raises(errors.InvalidAnswer, match=f"has 2001 {kind}, and no more than 2000"):
        await Manifests(make_client()).describe(parse(f"{scripted.domain}/a:v1"), AMD64)


async def test_large_document_does_not_block_the_event_loop(
    scripted: Scripted, make_client: MakeClient
) -> None:
    """A document with too many parts is rejected before it is decoded into objects."""
    body = b'{"schemaVersion":2,"x":[' + b"{}," * (MAX_MANIFEST // 3 - 100) + b"{}]}"
    serve(scripted, "a", body)
    client, reference = make_client(), parse(f"{scripted.domain}/a:v1")
    longest, last = 0.0, asyncio.get_running_loop().time()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = asyncio.get_running_loop().time()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    try:
        with pytest.raises(errors.InvalidAnswer, match="more than 50000 parts"):
            await client.manifest(reference, digest_of(body))
    finally:
        ticking.cancel()
    assert longest < 0.25


def trickle(server: Scripted) -> None:
    """Say 100 KB at once and then a byte every now and then."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": OCI_MANIFEST})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await response.write(b"{" + b" " * 100_000)
            while True:
                await asyncio.sleep(0.05)
                await response.write(b" ")
        return response

    server.say("HEAD", "/v2/a/manifests/v1", 405)
    server.on("GET", "/v2/a/manifests/v1", answer)


async def test_a_registry_that_sends_slowly_leaves_places_to_others(
    scripted: Scripted, elsewhere: Scripted, make_client: MakeClient
) -> None:
    trickle(scripted)
    body = manifest(1, 1, 200_000)
    serve(elsewhere, "a", body)
    client = make_client()
    slow = parse(f"{scripted.domain}/a:v1")
    asking = [asyncio.create_task(client.resolve(slow)) for _ in range(8)]
    while len(scripted.requests("GET")) < 8:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    try:
        async with asyncio.timeout(5):
            await client.manifest(parse(f"{elsewhere.domain}/a:v1"), digest_of(body))
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_a_large_document_has_to_come_in_time(
    scripted: Scripted, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagegate.registry.transport.LONGEST_READ", 0.2)
    trickle(scripted)
    with pytest.raises(errors.Unavailable, match=r"did not send a large document within 0\.2 s"):
        await make_client().resolve(parse(f"{scripted.domain}/a:v1"))


def test_cache_is_bounded_by_bytes() -> None:
    cache: Cache[str, bytes] = Cache(100, most_bytes=10, weigh=lambda _, value: len(value))
    cache.put("a", b"12345")
    cache.put("a", b"1234")
    cache.put("b", b"123456")
    assert (len(cache), cache.get("a")) == (2, b"1234")
    cache.put("c", b"1")
    assert (len(cache), cache.get("b")) == (2, None), "the least recently used entry is deleted"
    cache.put("d", b"x" * 11)
    assert len(cache) == 0
