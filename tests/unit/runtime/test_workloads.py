"""The whole loop with ``imagesFrom``: which workloads are followed, and how long decisions wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from imagegate.domain.facts import Place
from imagegate.kube import errors
from imagegate.puller import read
from imagegate.runtime import workloads
from tests.unit.runtime.world import KEY, World, until

DEPLOYMENTS = "/apis/apps/v1/namespaces/serving/deployments"
CRON_JOBS = "/apis/batch/v1/namespaces/batch/cronjobs"
SERVING = {"kind": "Deployment", "namespace": "serving"}
NIGHTLY = {"kind": "CronJob", "namespace": "batch"}
PATIENCE = 1.0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    for name, value in {
        "PATIENCE": PATIENCE,
        "GATHER": 0.02,
        "FIRST_RETRY": 0.02,
        "LAST_RETRY": 0.05,
    }.items():
        monkeypatch.setattr(workloads, name, value)
    made = World()
    made.add_gate()
    return made


def put(world: World, path: str, name: str, *images: str, **labels: str) -> None:
    template = {
        "spec": {"containers": [{"name": f"c{n}", "image": i} for n, i in enumerate(images)]}
    }
    spec: dict[str, Any] = {"template": template}
    if path == CRON_JOBS:
        spec = {"jobTemplate": {"spec": spec}}
    world.api.put(f"{path}/{name}", {"metadata": {"name": name, "labels": labels}, "spec": spec})


def refuse(world: World, path: str, *methods: str) -> None:
    """The operator may not list, or watch, there."""

    def before(method: str, asked: str) -> None:
        if asked == path and method in (methods or ("GET", "WATCH")):
            raise errors.Forbidden(f"{method} {asked}", 403, "no")

    world.api.before = before


def allow(world: World) -> None:
    world.api.before = lambda method, path: None


def requests(world: World, path: str, method: str) -> int:
    return sum(each == (method, path) for each in world.api.requests)


def images(world: World) -> list[str]:
    return [entry["image"] for entry in world.status("llm").get("images", [])]


def pulled(world: World) -> set[str]:
    """The images of the existing puller pods."""
    return {image for pod in world.pods() for image in read.pod(pod).images}


def is_true(world: World, type_: str = "Ready") -> Callable[[], bool]:
    return lambda: world.condition("llm", type_).get("status") == "True"


def says(world: World, text: str, type_: str = "ImagesFound") -> Callable[[], bool]:
    return lambda: text in world.condition("llm", type_).get("message", "")


async def settle(world: World, done: Callable[[], bool] | None = None) -> None:
    """Every pull succeeds, until the prefetch is Ready or ``done``."""

    def rested() -> bool:
        for pod in world.pods():
            if pod.get("status", {}).get("phase") != "Succeeded":
                world.finish(pod)
        return done() if done is not None else is_true(world)()

    await until(rested)


def changes(world: World) -> list[tuple[str, str]]:
    """The writes so far, without Events, because another task writes them."""
    return [write for write in world.api.writes() if "/events" not in write[1]]


async def test_secret_of_the_prefetch_is_not_used_for_images_of_workloads(
    world: World,
) -> None:
    put(world, DEPLOYMENTS, "tenant", "reg.test/other-team/private:1")
    secret = [{"name": "ml-pull"}]
    world.add_prefetch("llm", "reg.test/llm:1", imagesFrom=[SERVING], imagePullSecrets=secret)
    world.add_node("n1")
    async with world.operating():
        await settle(world)
        assert {
            read.pod(pod).images: pod["spec"].get("imagePullSecrets") for pod in world.pods()
        } == {
            ("reg.test/llm:1",): secret,
            ("reg.test/other-team/private:1",): None,
        }
        await until(says(world, "reg.test/other-team/private:1"))
        assert is_true(world, "ImagesFound")()


async def test_images_of_workloads_are_pulled_and_a_change_is_a_new_target(world: World) -> None:
    put(world, DEPLOYMENTS, "web", "reg.test/web:1", app="web")
    put(world, DEPLOYMENTS, "other", "reg.test/other:1", app="other")
    put(world, CRON_JOBS, "train", "reg.test/train:1")
    web = {**SERVING, "selector": {"matchLabels": {"app": "web"}}}
    world.add_prefetch("llm", "reg.test/llm:1", imagesFrom=[web, NIGHTLY])
    world.add_node("n1")
    async with world.operating():
        await settle(world)
        assert pulled(world) == {"reg.test/llm:1", "reg.test/train:1", "reg.test/web:1"}
        assert images(world) == ["reg.test/llm:1", "reg.test/train:1", "reg.test/web:1"]
        first = world.labels("n1")
        put(world, DEPLOYMENTS, "web", "reg.test/web:2", app="web")
        await until(lambda: "reg.test/web:2" in images(world))
        assert not is_true(world)(), "Ready before the new image is there"
        await settle(world)
        assert world.labels("n1") != first
        assert "reg.test/web:2" in pulled(world)
        assert "reg.test/web:1" not in pulled(world)
        # A workload that is not selected, or that keeps its images, changes nothing.
        before = changes(world)
        put(world, DEPLOYMENTS, "other", "reg.test/other:2", app="other")
        put(world, DEPLOYMENTS, "web", "reg.test/web:2", app="web")
        await asyncio.sleep(0.2)
        assert changes(world) == before
        world.api.remove(f"{CRON_JOBS}/train")
        await until(lambda: "reg.test/train:1" not in images(world))


async def test_each_kind_and_namespace_has_one_watch_while_a_prefetch_needs_it(
    world: World,
) -> None:
    world.add_prefetch("llm", imagesFrom=[SERVING, {**SERVING, "selector": {"matchLabels": {}}}])
    world.add_prefetch("other", imagesFrom=[SERVING])
    async with world.operating():
        await until(lambda: requests(world, DEPLOYMENTS, "WATCH"))
        await asyncio.sleep(0.1)
        assert requests(world, DEPLOYMENTS, "GET") == requests(world, DEPLOYMENTS, "WATCH") == 1
        world.api.change(
            "/apis/imagegate.dev/v1alpha1/imageprefetches/other",
            lambda body: body["spec"].update(imagesFrom=[NIGHTLY]),
        )
        await until(lambda: requests(world, CRON_JOBS, "WATCH"))
        assert list(world.workloads._followed) == [
            Place("Deployment", "serving"),
            Place("CronJob", "batch"),
        ]
        world.api.remove("/apis/imagegate.dev/v1alpha1/imageprefetches/llm")
        await until(lambda: list(world.workloads._followed) == [Place("CronJob", "batch")])
        world.api.change(
            "/apis/imagegate.dev/v1alpha1/imageprefetches/other",
            lambda body: body["spec"].update(imagesFrom=[], images=[{"image": "a:1"}]),
        )
        await until(lambda: not world.workloads._followed)
    assert not asyncio.all_tasks() - {asyncio.current_task()}


async def test_expired_watch_lists_again_and_misses_nothing(world: World) -> None:
    put(world, DEPLOYMENTS, "web", "reg.test/web:1")
    put(world, DEPLOYMENTS, "gone", "reg.test/gone:1")
    world.add_prefetch("llm", imagesFrom=[SERVING])
    world.add_node("n1")
    async with world.operating():
        await settle(world)
        # Without a watch one workload is changed, one is deleted, and the history is compacted.
        refuse(world, DEPLOYMENTS)
        world.api.end_watches(410)
        put(world, DEPLOYMENTS, "web", "reg.test/web:2")
        world.api.remove(f"{DEPLOYMENTS}/gone")
        world.api._history.clear()
        allow(world)
        await until(lambda: images(world) == ["reg.test/web:2"])
        assert requests(world, DEPLOYMENTS, "GET") >= 2


async def test_watch_that_ends_normally_continues_without_a_list(world: World) -> None:
    put(world, DEPLOYMENTS, "web", "reg.test/web:1")
    world.add_prefetch("llm", imagesFrom=[SERVING])
    world.add_node("n1")
    async with world.operating():
        await settle(world)
        put(world, DEPLOYMENTS, "web", "reg.test/web:2")
        await until(lambda: images(world) == ["reg.test/web:2"])
        last = world.api.objects[f"{DEPLOYMENTS}/web"]["metadata"]["resourceVersion"]
        world.api.end_watches()
        put(world, DEPLOYMENTS, "web", "reg.test/web:3")  # no watch is open now
        await until(lambda: images(world) == ["reg.test/web:3"])
        assert requests(world, DEPLOYMENTS, "GET") == 1
        assert [version for _, version in world.api.watched][1:] == [last]


async def test_nothing_is_decided_before_every_source_was_listed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "PATIENCE", 30.0)
    put(world, DEPLOYMENTS, "web", "reg.test/web:1")
    refuse(world, CRON_JOBS)
    world.add_prefetch("llm", "reg.test/llm:1", imagesFrom=[SERVING, NIGHTLY])
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(lambda: requests(world, CRON_JOBS, "GET") > 2)
        await asyncio.sleep(0.2)
        assert KEY in world.taints("n1")
        assert world.pods() == []
        assert world.status("llm") == {}
        allow(world)
        put(world, CRON_JOBS, "train", "reg.test/train:1")
        await until(world.pods)
        assert pulled(world) == {"reg.test/llm:1", "reg.test/train:1", "reg.test/web:1"}
        await settle(world, lambda: KEY not in world.taints("n1"))


async def test_unreadable_source_does_not_hold_nodes_forever(world: World) -> None:
    refuse(world, DEPLOYMENTS)
    world.add_prefetch("llm", "reg.test/llm:1", imagesFrom=[SERVING])
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(world.pods)
        await settle(world, lambda: KEY not in world.taints("n1"))
        remedy = (
            "the operator may not list deployments in namespace serving:"
            " add it to the chart's imagesFrom.namespaces"
        )
        await until(says(world, remedy))
        await until(says(world, remedy, "Ready"))
        assert world.condition("llm", "Ready")["reason"] == "SourceNotRead"
        assert world.labels("n1"), "the known images were pulled"
        put(world, DEPLOYMENTS, "web", "reg.test/web:1")
        allow(world)
        await until(is_true(world, "ImagesFound"))
        await settle(world)
        assert "reg.test/web:1" in pulled(world)


async def settled(world: World) -> dict[str, str]:
    put(world, DEPLOYMENTS, "web", "reg.test/web:1")
    world.add_prefetch("llm", "reg.test/llm:1", imagesFrom=[SERVING])
    world.add_node("n1")
    async with world.operating():
        await settle(world)
        await asyncio.sleep(0.05)
    return world.labels("n1")


@pytest.mark.parametrize("readable", [True, False])
async def test_restart_does_not_change_the_target(world: World, readable: bool) -> None:
    """Neither before the first list, nor if there never is a list."""
    label = await settled(world)
    world.start_operator()
    refuse(world, DEPLOYMENTS)
    world.add_node("n2", gated=True)
    async with world.operating():
        before = len(world.api.writes())
        await asyncio.sleep(PATIENCE / 4)
        assert world.api.writes()[before:] == [], "a decision used half of the images"
        assert is_true(world)(), "the status flapped"
        if readable:
            allow(world)
        else:
            await until(says(world, "may not list deployments"))
        await settle(world, lambda: KEY not in world.taints("n2"))
        assert world.labels("n1") == world.labels("n2") == label
        assert pulled(world) == {"reg.test/llm:1", "reg.test/web:1"}
        # A later restart finds the same images in the status.
        assert world.status("llm")["images"][1] == {
            "image": "reg.test/web:1",
            "from": "Deployment serving/web",
        }


async def test_revoked_permission_removes_no_images(world: World) -> None:
    put(world, DEPLOYMENTS, "web", "reg.test/web:1")
    world.add_prefetch("llm", imagesFrom=[SERVING])
    world.add_node("n1")
    async with world.operating():
        await settle(world)
        label = world.labels("n1")
        refuse(world, DEPLOYMENTS)
        world.api.end_watches()
        await asyncio.sleep(PATIENCE / 4)
        assert is_true(world)(), "a short failure is not reported"
        await until(says(world, "may not list deployments"))
        assert not is_true(world)()
        assert world.labels("n1") == label
        allow(world)
        await until(is_true(world))


async def test_edit_of_the_spec_keeps_the_images_of_workloads(world: World) -> None:
    put(world, DEPLOYMENTS, "web", "reg.test/web:1", "reg.test/new:1")
    world.add_prefetch("llm", "reg.test/llm:1", imagesFrom=[SERVING])
    world.add_node("n1")
    async with world.operating():
        await settle(world)
        world.change_images("llm", "reg.test/new:1")
        await until(lambda: images(world) == ["reg.test/new:1", "reg.test/web:1"])
        await settle(world)
        assert "from" not in world.status("llm")["images"][0]
        assert requests(world, DEPLOYMENTS, "GET") == 1


async def test_prefetch_without_images_reports_that_and_holds_no_node(world: World) -> None:
    world.add_prefetch("llm", imagesFrom=[SERVING])
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(lambda: KEY not in world.taints("n1"))
        await until(lambda: world.condition("llm", "Ready").get("reason") == "NoImages")
        assert says(world, "nothing is selected of Deployment in serving")()
        put(world, DEPLOYMENTS, "web", "reg.test/web:1")
        await settle(world)


async def test_dry_run_includes_the_images_of_workloads(world: World) -> None:
    put(world, DEPLOYMENTS, "web", "reg.test/web:1")
    world.add_prefetch("llm", imagesFrom=[SERVING], dryRun=True)
    world.add_node("n1")
    async with world.operating():
        await until(lambda: images(world) == ["reg.test/web:1"])
        assert is_true(world, "ImagesFound")()
        assert world.pods() == []


async def test_many_changes_are_gathered_into_few_targets(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "GATHER", 0.3)
    world.add_prefetch("llm", imagesFrom=[SERVING])
    world.add_node("n1")
    targets: set[str] = set()
    async with world.operating():
        await until(lambda: world.condition("llm", "Ready").get("reason") == "NoImages")
        for n in range(20):
            put(world, DEPLOYMENTS, f"w{n}", f"reg.test/w{n}:1")
            await asyncio.sleep(0.005)
            targets.add(world.store.prefetches["llm"].target)
        await settle(world)
        assert len(images(world)) == 20
        assert len(targets) < 10, "each image made a new target"


ROLLOUTS = "/apis/argoproj.io/v1alpha1/namespaces/serving/rollouts"
ROLLOUT = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "namespace": "serving"}


def serve(world: World, plural: str = "rollouts", **fields: object) -> None:
    """The CRD of Rollouts is installed."""
    resource = {"name": plural, "kind": "Rollout", "namespaced": True, **fields}
    status = {**resource, "name": f"{plural}/status"}
    body = {"metadata": {}, "resources": [status, resource]}
    world.api.put("/apis/argoproj.io/v1alpha1", body)


async def test_kind_without_its_crd_is_reported_and_followed_once_the_crd_is_there(
    world: World,
) -> None:
    put(world, DEPLOYMENTS, "web", "reg.test/web:1")
    put(world, ROLLOUTS, "llm", "reg.test/llm:1")
    world.api.put("/apis/argoproj.io", {"metadata": {}, "versions": [{"version": "v1"}]})
    world.add_prefetch("llm", imagesFrom=[SERVING, ROLLOUT])
    world.add_node("n1", gated=True)
    async with world.operating():
        remedy = (
            "the API server does not serve Rollout of argoproj.io/v1alpha1, only v1: install its"
            " CustomResourceDefinition, or correct apiVersion and kind in spec.imagesFrom"
        )
        await until(says(world, remedy))
        assert world.condition("llm", "ImagesFound")["reason"] == "KindNotServed"
        await settle(world, lambda: KEY not in world.taints("n1"))
        assert pulled(world) == {"reg.test/web:1"}, "the other source does not wait"
        serve(world)
        await until(is_true(world, "ImagesFound"))
        await settle(world)
        assert pulled(world) == {"reg.test/web:1", "reg.test/llm:1"}
        assert requests(world, "/apis/argoproj.io/v1alpha1", "GET") >= 2


async def test_version_that_is_not_served_any_more_removes_no_images(world: World) -> None:
    serve(world)
    put(world, ROLLOUTS, "llm", "reg.test/llm:1")
    world.add_prefetch("llm", imagesFrom=[ROLLOUT])
    world.add_node("n1")

    def gone(method: str, path: str) -> None:
        if path in (ROLLOUTS, "/apis/argoproj.io/v1alpha1"):
            raise errors.NotFound(f"{method} {path}", 404, "404 page not found")

    async with world.operating():
        await settle(world)
        discovered = requests(world, "/apis/argoproj.io/v1alpha1", "GET")
        assert discovered == 1
        label = world.labels("n1")
        world.api.before = gone
        world.api.end_watches()
        await until(says(world, "does not serve Rollout of argoproj.io/v1alpha1"))
        assert images(world) == ["reg.test/llm:1"]
        assert world.labels("n1") == label
        allow(world)
        await until(is_true(world))


async def test_namespace_without_the_role_is_reported_with_the_name_for_the_chart(
    world: World,
) -> None:
    serve(world)
    refuse(world, ROLLOUTS)
    world.add_prefetch("llm", "reg.test/own:1", imagesFrom=[ROLLOUT])
    async with world.operating():
        remedy = (
            "the operator may not list rollouts.argoproj.io in namespace serving:"
            " add both to the chart's imagesFrom.resources"
        )
        await until(says(world, remedy))
        assert world.condition("llm", "ImagesFound")["reason"] == "SourceNotRead"


async def test_other_fields_of_a_kind_have_a_watch_of_their_own(world: World) -> None:
    serve(world)
    put(world, ROLLOUTS, "llm", "reg.test/llm:1")
    own = {**ROLLOUT, "images": ["spec.template.spec.containers[*].name"]}
    world.add_prefetch("llm", imagesFrom=[ROLLOUT, ROLLOUT, own])
    world.add_node("n1")
    async with world.operating():
        await settle(world)
        assert pulled(world) == {"reg.test/llm:1", "c0"}
        assert requests(world, ROLLOUTS, "WATCH") == 2
        assert requests(world, "/apis/argoproj.io/v1alpha1", "GET") <= 2
