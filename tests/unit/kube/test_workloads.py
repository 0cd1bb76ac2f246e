"""Images of workloads, and lists and watches of workloads with their failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client import Configuration

from imagegate.domain.facts import Place
from imagegate.kube import client as kube_client
from imagegate.kube import errors, workloads
from imagegate.kube.client import Client, api_client
from imagegate.kube.workloads import Change, Workloads
from tests.unit.memory_api import MemoryApi

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: llm
  namespace: serving
  uid: 6f1c
  resourceVersion: "812"
  labels: {app: llm, tier: gpu}
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}"}
spec:
  replicas: 0
  paused: true
  selector: {matchLabels: {app: llm}}
  template:
    metadata: {labels: {app: llm}}
    spec:
      initContainers:
      - {name: fetch, image: "registry.example/tools:2"}
      - {name: sidecar, image: "registry.example/proxy:1", restartPolicy: Always}
      containers:
      - {name: server, image: "registry.example/llm:2026.11"}
      - {name: metrics, image: "registry.example/proxy:1"}
      ephemeralContainers:
      - {name: debug, image: "registry.example/debug:1"}
      volumes:
      - name: weights
        image: {reference: "registry.example/weights:7", pullPolicy: IfNotPresent}
      - name: scratch
        emptyDir: {}
status: {replicas: 0}
"""
NAMES = [
    "registry.example/tools:2",
    "registry.example/proxy:1",
    "registry.example/llm:2026.11",
    "registry.example/weights:7",
]
CRON_JOB = """
metadata: {name: nightly, namespace: serving}
spec:
  schedule: "0 3 * * *"
  suspend: true
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: train, image: "registry.example/train:1"}]
"""
PLACE = Place("Deployment", "serving")
PATH = "/apis/apps/v1/namespaces/serving/deployments"


def parse(kind: str, text: str, **metadata: Any) -> Any:
    body = yaml.safe_load(text)
    body["metadata"] |= metadata
    return workloads.parse(Place(kind, "serving"), body)


def job(*conditions: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "j", **more.pop("metadata", {})},
        "spec": {"template": {"spec": {"containers": [{"name": "c", "image": "app:1"}]}}, **more},
        "status": {"conditions": [{"type": t, "status": s} for t, s in conditions]},
    }


# ---- the images of a workload


def test_images_are_those_of_containers_init_containers_and_volumes() -> None:
    found = parse("Deployment", DEPLOYMENT)
    assert [image.reference for image in found.images] == NAMES
    assert found.labels == {"app": "llm", "tier": "gpu"}
    assert {image.source for image in found.images} == {"Deployment serving/llm"}
    assert found.images[0].listed_as == "registry.example/tools:2"
    assert found.unusable == ()


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Job"])
def test_template_of_other_kinds_is_read(kind: str) -> None:
    assert [image.reference for image in parse(kind, DEPLOYMENT).images] == NAMES


def test_suspended_cron_job_has_the_images_of_its_job_template() -> None:
    (image,) = parse("CronJob", CRON_JOB).images
    assert (image.reference, image.source) == (
        "registry.example/train:1",
        "CronJob serving/nightly",
    )


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (job(), True),
        (job(suspend=True), True),
        (job(("Suspended", "True"), ("Failed", "False")), True),
        (job(("SuccessCriteriaMet", "True"), ("Complete", "True")), False),
        (job(("FailureTarget", "True"), ("Failed", "True")), False),
        (job(metadata={"deletionTimestamp": "2026-11-22T00:00:00Z"}), False),
        (job(metadata={"ownerReferences": [{"kind": "CronJob", "controller": True}]}), False),
        (job(metadata={"ownerReferences": [{"kind": "JobSet", "controller": True}]}), True),
    ],
)
def test_finished_deleted_or_cron_job_owned_job_is_ignored(body: Any, wanted: bool) -> None:
    assert (workloads.parse(Place("Job", "serving"), body) is not None) is wanted


def test_placeholder_of_a_webhook_is_no_image() -> None:
    """Istio's gateways have ``image: auto``, and a webhook replaces it."""
    containers = [{"name": "istio-proxy", "image": "auto"}, {"name": "c", "image": "app:1"}]
    spec = {"template": {"spec": {"containers": containers}}}
    found = workloads.parse(PLACE, {"metadata": {"name": "gateway"}, "spec": spec})
    assert found is not None
    assert [image.reference for image in found.images] == ["app:1"]
    (why,) = found.unusable
    assert "spec.images" in why


def test_invalid_reference_is_left_out_and_reported() -> None:
    found = workloads.parse(
        PLACE,
        {
            "metadata": {"name": "odd"},
            "spec": {
                "template": {
                    "spec": {
                        "containers": [
                            {"name": "a", "image": "Registry.example/Team/App"},
                            {"name": "b"},
                            {"name": "c", "image": "app:1"},
                            {"name": "d", "image": "a" * 513},
                        ],
                        "volumes": [{"name": "v", "image": {}}],
                    }
                }
            },
        },
    )
    assert found is not None
    assert [image.reference for image in found.images] == ["app:1"]
    assert [text.split(":")[0] for text in found.unusable] == [
        f"{what} of Deployment serving/odd"
        for what in ("container a", "container b", "container d", "volume v")
    ]


@pytest.mark.parametrize(
    "body", [{"metadata": {"name": "x"}}, {"metadata": {"name": "x"}, "spec": {}}]
)
@pytest.mark.parametrize("kind", ["Deployment", "Job", "CronJob"])
def test_workload_without_a_template_has_no_images(kind: str, body: Any) -> None:
    found = workloads.parse(Place(kind, "serving"), body)
    assert found is not None
    assert found.images == ()


# ---- lists and watches, with the operator's client


async def collect(changes: Any, into: list[Change]) -> None:
    async for change in changes:
        into.append(change)  # noqa: PERF401 -- keeps the changes before an error


async def test_watch_continues_from_the_version_of_the_list() -> None:
    api = MemoryApi()
    client: Any = api
    body = yaml.safe_load(DEPLOYMENT)
    api.put(f"{PATH}/llm", body)
    listed, version = await Workloads(client).list(PLACE)
    api.put(f"{PATH}/second", {"metadata": {"name": "second"}})
    api.remove(f"{PATH}/llm")
    seen: list[Change] = []
    task = asyncio.create_task(collect(Workloads(client).watch(PLACE, version), seen))
    await asyncio.sleep(0)
    api.end_watches()
    await task
    assert list(listed) == ["llm"]
    assert [(change.name, change.workload is None) for change in seen] == [
        ("second", False),
        ("llm", True),
    ]


def test_forbidden_namespace_is_reported_with_the_value_of_the_chart() -> None:
    client: Any = MemoryApi()
    reader = Workloads(client)
    text = reader.problem(PLACE, errors.Forbidden("GET", 403, "no"))
    assert text == (
        "the operator may not list deployments in namespace serving:"
        " add it to the chart's imagesFrom.namespaces"
    )
    assert "cronjobs in namespace a are not known: GET x: 503: away" in reader.problem(
        Place("CronJob", "a"), errors.Unavailable("GET x", 503, "away")
    )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Client]:
    """A real client of a real HTTP server."""
    app = web.Application()
    app.router.add_get(PATH, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    client = Client(api_client(configuration))
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


async def stream(request: web.Request, *parts: object, cut: bytes = b"") -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for part in parts:
        await response.write(json.dumps(part).encode() + b"\n")
    if cut:
        await response.write(cut)
        assert request.transport is not None
        request.transport.abort()
    return response


def event(type_: str, name: str, version: int) -> dict[str, Any]:
    body = yaml.safe_load(DEPLOYMENT)
    body["metadata"] |= {"name": name, "resourceVersion": str(version)}
    return {"type": type_, "object": body}


BOOKMARK = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "905"}}}
EXPIRED = {
    "type": "ERROR",
    "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"},
}


async def test_watch_yields_changes_and_bookmarks_until_the_server_ends_it() -> None:
    asked: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        large = event("MODIFIED", "large", 903)
        large["object"]["metadata"]["annotations"] = {"a": "x" * 1_500_000}
        return await stream(request, event("ADDED", "llm", 901), large, BOOKMARK)

    seen: list[Change] = []
    async with serving(handler) as client:
        await collect(Workloads(client).watch(PLACE, "900"), seen)
    assert [(change.name, change.version) for change in seen] == [
        ("llm", "901"),
        ("large", "903"),
        ("", "905"),
    ]
    assert asked == [
        {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": "900",
            "timeoutSeconds": str(kube_client.WATCH_SECONDS),
        }
    ]


async def test_expired_version_raises_gone_from_a_status_and_from_the_stream() -> None:
    async def at_once(request: web.Request) -> web.StreamResponse:
        return web.json_response(EXPIRED["object"], status=410)

    async def later(request: web.Request) -> web.StreamResponse:
        return await stream(request, event("ADDED", "llm", 901), EXPIRED)

    for handler, before in ((at_once, 0), (later, 1)):
        seen: list[Change] = []
        async with serving(handler) as client:
            with pytest.raises(errors.Gone, match=r"too old|Expired"):
                await collect(Workloads(client).watch(PLACE, "1"), seen)
        assert len(seen) == before


async def test_object_that_is_nested_too_deeply_is_unavailable() -> None:
    """The API server accepts 10,000 levels, and Python's parser does not."""
    text = '{"a":' * 9_000 + "1" + "}" * 9_000

    async def list_(request: web.Request) -> web.StreamResponse:
        return web.Response(text=f'{{"items": [{text}]}}', content_type="application/json")

    async def watch(request: web.Request) -> web.StreamResponse:
        end = f'{{"type": "ADDED", "object": {text}}}\n'.encode()
        return await stream(request, event("ADDED", "llm", 901), cut=end)

    async with serving(list_) as client:
        with pytest.raises(errors.Unavailable, match="nested too deeply"):
            await Workloads(client).list(PLACE)
    seen: list[Change] = []
    async with serving(watch) as client:
        with pytest.raises(errors.Unavailable, match="nested too deeply"):
            await collect(Workloads(client).watch(PLACE, "1"), seen)
    assert len(seen) == 1


async def test_broken_connection_is_unavailable() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, event("ADDED", "llm", 901), cut=b'{"type": "MODIF')

    seen: list[Change] = []
    async with serving(handler) as client:
        with pytest.raises(errors.Unavailable):
            await collect(Workloads(client).watch(PLACE, "1"), seen)
    assert [change.name for change in seen] == ["llm"]


async def test_silent_watch_ends_at_its_read_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead connection sends no error, so only the timeout ends the watch."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=0.1)
    monkeypatch.setattr(kube_client, "WATCH_TIMEOUT", timeout)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request, event("ADDED", "llm", 901))
        await asyncio.sleep(5)
        return response

    seen: list[Change] = []
    async with serving(handler) as client:
        with pytest.raises(errors.Unavailable):
            await asyncio.wait_for(collect(Workloads(client).watch(PLACE, "1"), seen), 3)
    assert len(seen) == 1


async def test_forbidden_watch_raises_forbidden() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({"reason": "Forbidden", "message": "no"}, status=403)

    async with serving(handler) as client:
        with pytest.raises(errors.Forbidden):
            await collect(Workloads(client).watch(PLACE, "1"), [])


async def test_list_is_read_page_by_page() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        second = request.query.get("continue") == "more"
        name = "b" if second else "a"
        item = event("", name, 5)["object"]
        metadata = {"resourceVersion": "77"} | ({} if second else {"continue": "more"})
        return web.json_response({"metadata": metadata, "items": [item]})

    async with serving(handler) as client:
        listed, version = await Workloads(client).list(PLACE)
    assert (sorted(listed), version) == (["a", "b"], "77")
