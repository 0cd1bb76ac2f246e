"""The whole loop with ``repositories``: when tags are listed, what is pulled, and what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from imagegate.domain.policy import PrefetchPolicy
from imagegate.kube import prefetches
from imagegate.puller import read
from imagegate.registry.errors import NotFound, Unavailable
from imagegate.runtime import repositories
from tests.unit.runtime.world import World, until

REPOSITORY = "reg.test/ml/llm"
PATIENCE = 1.0
DOWN = Unavailable("reg.test", "it does not answer", "check it")
BUILDS: dict[str, Any] = {
    "repository": REPOSITORY,
    "filterTags": {"pattern": "^main-(?P<ts>[0-9]+)$", "extract": "$ts"},
    "policy": {"numerical": {"order": "asc"}},
}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(repositories, "PATIENCE", PATIENCE)
    monkeypatch.setattr(repositories, "FIRST_RETRY", 0.05)
    made = World()
    made.add_gate()
    made.add_node("n1")
    return made


def add(world: World, *entries: dict[str, Any], name: str = "llm", **spec: Any) -> None:
    world.add_prefetch(name, repositories=list(entries or (BUILDS,)), **spec)


def change(world: World, name: str = "llm", **spec: Any) -> None:
    def edit(body: dict[str, Any]) -> None:
        body["spec"].update(spec)
        body["metadata"]["generation"] += 1

    world.api.change(f"{prefetches.PATH}/{name}", edit)


def names(*tags: int) -> list[str]:
    return [f"{REPOSITORY}:main-{tag}" for tag in tags]


def builds(*numbers: int) -> list[str]:
    return [f"main-{number}" for number in numbers]


def push(world: World, *numbers: int) -> None:
    world.tags.tags[REPOSITORY] = builds(*numbers)
    world.repositories.poke("reg.test", "ml/llm")


def images(world: World, name: str = "llm") -> list[str]:
    return [entry["image"] for entry in world.status(name).get("images", [])]


def chosen(world: World, name: str = "llm") -> list[str]:
    entries = world.status(name).get("repositories", [{}])
    return list(entries[0].get("tags", []))


def pulled(world: World) -> set[str]:
    return {image for pod in world.pods() for image in read.pod(pod).images}


def is_true(world: World, type_: str = "Ready", name: str = "llm") -> bool:
    return world.condition(name, type_).get("status") == "True"


def says(world: World, type_: str, reason: str, text: str = "") -> Callable[[], bool]:
    def check() -> bool:
        condition = world.condition("llm", type_)
        return condition.get("reason") == reason and text in condition.get("message", "")

    return check


async def settle(world: World, done: Callable[[], bool] | None = None, name: str = "llm") -> None:
    """Every pull succeeds, until the prefetch is Ready or ``done``."""

    def rested() -> bool:
        for pod in world.pods():
            if pod.get("status", {}).get("phase") != "Succeeded":
                world.finish(pod)
        return done() if done is not None else is_true(world, name=name)

    await until(rested)


async def test_newest_tags_are_pulled_and_older_ones_are_released(world: World) -> None:
    push(world, 1, 2, 3)
    add(world)
    async with world.operating():
        await settle(world)
        assert images(world) == names(3, 2)
        assert pulled(world) == set(names(3, 2))
        entry = {"repository": REPOSITORY, "tags": builds(3, 2), "matching": 3, "listed": 3}
        assert world.status("llm")["repositories"] == [entry]
        assert {image["from"] for image in world.status("llm")["images"]} == {
            f"Repository {REPOSITORY}"
        }
        assert says(world, "TagsSelected", "Selected", "2 of 3 matching tags, of 3 in all")()
        label = world.labels("n1")
        push(world, 1, 2, 3, 4)
        await until(lambda: chosen(world) == builds(4, 3))
        assert not is_true(world), "Ready before the new image is there"
        await settle(world)
        assert world.labels("n1") != label
        await until(lambda: pulled(world) == set(names(4, 3)))


async def test_settled_prefetch_gets_no_write_by_further_lists(world: World) -> None:
    push(world, 1, 2)
    add(world)
    async with world.operating():
        await settle(world)
        await asyncio.sleep(0.1)
        before, lists = world.api.writes(), len(world.tags.lists)
        for _ in range(3):
            push(world, 1, 2)
            await asyncio.sleep(0.05)
        assert len(world.tags.lists) == lists + 3
        assert world.api.writes() == before


async def test_tags_are_listed_at_the_interval(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(world, refresh={"intervalSeconds": 30})
    planned: list[float] = []
    monkeypatch.setattr(repositories, "SPREAD", 0)
    async with world.operating():
        plan = world.queues.repositories.add

        def add_(key: str, *, delay: float = 0.0, urgent: bool = False) -> None:
            planned.append(delay)
            plan(key, delay=min(delay, 0.01), urgent=urgent)

        monkeypatch.setattr(world.queues.repositories, "add", add_)
        world.tags.tags[REPOSITORY] = builds(1)
        await until(lambda: chosen(world) == builds(1))
        world.tags.tags[REPOSITORY] = builds(1, 2)
        await until(lambda: chosen(world) == builds(2, 1))
        assert {delay for delay in planned if delay} == {30.0}


async def test_one_list_serves_all_prefetches_of_a_repository(world: World) -> None:
    push(world, 1, 2, 3)
    add(world, {**BUILDS, "keep": 1})
    add(world, BUILDS, name="other")
    secret = [{"name": "ml-pull"}]
    add(world, {**BUILDS, "imagePullSecrets": secret}, name="private")
    async with world.operating():
        await settle(world, lambda: all(is_true(world, name=n) for n in ("llm", "other")))
        await settle(world, name="private")
        assert chosen(world) == builds(3)
        assert chosen(world, "other") == builds(3, 2)
        await asyncio.sleep(0.1)
        before = len(world.tags.lists)
        push(world, 1, 2, 3, 4)
        await until(lambda: chosen(world, "private") == builds(4, 3))
        await until(lambda: chosen(world, "other") == builds(4, 3))
        assert chosen(world) == builds(4)
        assert sorted(world.tags.lists[before:]) == [(REPOSITORY, ()), (REPOSITORY, ("ml-pull",))]
        secrets = {
            tuple(s["name"] for s in pod["spec"].get("imagePullSecrets", ()))
            for pod in world.pods()
            if pod["metadata"]["labels"]["imagegate.dev/prefetch"] == "private"
        }
        assert secrets == {("ml-pull",)}


async def test_push_of_another_repository_lists_nothing(world: World) -> None:
    push(world, 1)
    add(world)
    async with world.operating():
        await settle(world)
        before = len(world.tags.lists)
        assert world.repositories.poke("reg.test", "ml/other") == 0
        assert world.repositories.poke("other.test", "ml/llm") == 0
        assert world.repositories.poke("", "ml/llm") == 1
        await until(lambda: len(world.tags.lists) == before + 1)


async def test_tags_stay_while_the_registry_does_not_answer(world: World) -> None:
    push(world, 1, 2)
    add(world)
    async with world.operating():
        await settle(world)
        label = world.labels("n1")
        world.tags.problem = DOWN
        push(world, 1, 2, 3)
        await until(lambda: "check it" in world.status("llm")["repositories"][0].get("message", ""))
        await until(says(world, "TagsSelected", "TagsNotListed", "that were chosen last stay"))
        assert is_true(world)
        assert (chosen(world), world.labels("n1")) == (builds(2, 1), label)
        world.tags.problem = None
        await settle(world, lambda: chosen(world) == builds(3, 2) and is_true(world))
        assert "message" not in world.status("llm")["repositories"][0]
        assert is_true(world, "TagsSelected")


async def test_new_operator_continues_with_the_recorded_tags(world: World) -> None:
    push(world, 1, 2)
    add(world)
    async with world.operating():
        await settle(world)
    label, pods = world.labels("n1"), sorted(pod["metadata"]["name"] for pod in world.pods())
    world.start_operator()
    world.tags.hangs = True
    world.add_node("n2", gated=True)
    conditions = [dict(each) for each in world.status("llm")["conditions"]]
    async with world.operating():
        # A joining node gets the images without waiting for the registry.
        await settle(world, lambda: world.labels("n2") == label)
        assert [pod for pod in pods if pod in {p["metadata"]["name"] for p in world.pods()}] == pods
        assert world.labels("n1") == label
        await until(lambda: is_true(world))
        assert [c["status"] for c in world.status("llm")["conditions"]] == [
            c["status"] for c in conditions
        ]
    world.start_operator()
    world.tags.hangs, world.tags.problem = False, DOWN
    async with world.operating():
        await until(lambda: "message" in world.status("llm")["repositories"][0])
        assert (chosen(world), images(world)) == (builds(2, 1), names(2, 1))
        assert world.labels("n1") == label


async def test_restart_turns_no_condition_while_the_registry_is_down(world: World) -> None:
    push(world, 1, 2)
    add(world)
    async with world.operating():
        await settle(world)
        world.tags.problem = DOWN
        push(world, 1, 2, 3)
        await until(says(world, "TagsSelected", "TagsNotListed"))
    before = world.condition("llm", "TagsSelected")
    seen: list[dict[str, Any]] = []
    world.api.watchers.append(lambda kind, body: seen.append(body))
    world.start_operator()
    async with world.operating():
        lists = len(world.tags.lists)
        await until(lambda: len(world.tags.lists) >= lists + 3)
        await until(lambda: is_true(world))
    assert world.condition("llm", "TagsSelected") == before
    for body in seen:
        for condition in body.get("status", {}).get("conditions", ()):
            assert condition["type"] != "TagsSelected" or condition["status"] == "False"


async def test_first_list_that_fails_is_reported_with_the_remedy(world: World) -> None:
    world.tags.problem = NotFound("reg.test", "ml/llm was not found", "check the name")
    add(world)
    async with world.operating():
        await until(says(world, "TagsSelected", "TagsNotListed", "check the name"))
        assert says(world, "Ready", "TagsNotListed", "check the name")()
        world.tags.problem = None
        world.tags.tags[REPOSITORY] = builds(1)
        await settle(world)
        assert images(world) == names(1)


async def test_held_node_waits_for_the_tags_and_not_for_ever(world: World) -> None:
    world.tags.hangs = True
    add(world)
    world.add_node("n2", gated=True)
    async with world.operating():
        await asyncio.sleep(PATIENCE / 2)
        assert world.taints("n2"), "released before the tags are known"
        assert world.status("llm") == {}
        await until(says(world, "TagsSelected", "TagsNotListed", "has not answered yet"))


async def test_reason_why_no_tag_is_chosen(world: World) -> None:
    world.tags.tags[REPOSITORY] = ["latest", "dev-1"]
    add(world)
    async with world.operating():
        await until(says(world, "TagsSelected", "NoTagMatches", 'its 2 tags (such as "latest")'))
        assert says(world, "Ready", "NoTagMatches")()
        entry = world.status("llm")["repositories"][0]
        assert (entry["tags"], entry["listed"]) == ([], 2)
        push(world, 5)
        await settle(world)


async def test_empty_list_releases_nothing(world: World) -> None:
    push(world, 1, 2)
    add(world)
    async with world.operating():
        await settle(world)
        label = world.labels("n1")
        push(world)
        await until(lambda: "stay" in world.status("llm")["repositories"][0].get("message", ""))
        assert (chosen(world), world.labels("n1")) == (builds(2, 1), label)
        assert is_true(world)
        assert is_true(world, "TagsSelected")


async def test_edited_policy_is_applied_to_a_new_list(world: World) -> None:
    push(world, 1, 2, 3)
    add(world)
    async with world.operating():
        await settle(world)
        change(world, repositories=[{**BUILDS, "keep": 3}])
        await until(lambda: chosen(world) == builds(3, 2, 1))
        # While the registry does not answer, the new policy applies to the known tags.
        world.tags.problem = DOWN
        change(world, repositories=[{**BUILDS, "keep": 1}])
        await until(lambda: chosen(world) == builds(3))
        world.tags.problem = None
        change(world, repositories=[], images=[{"image": "reg.test/other:1"}])
        await settle(world, lambda: images(world) == ["reg.test/other:1"] and is_true(world))
        assert "repositories" not in world.status("llm")
        assert world.condition("llm", "TagsSelected") == {}
        assert world.repositories._feeds == {}


async def test_deleted_prefetch_is_not_listed_any_more(world: World) -> None:
    push(world, 1)
    add(world)
    async with world.operating():
        await settle(world)
        path = f"{prefetches.PATH}/llm"
        world.api.change(path, lambda b: b["metadata"].update(deletionTimestamp="2026-01-01"))
        await until(lambda: world.repositories._feeds == {})
        assert world.repositories._followed == {}
        assert world.repositories.poke("reg.test", "ml/llm") == 0


async def test_tags_images_and_workloads_are_joined(world: World) -> None:
    template = {"spec": {"containers": [{"name": "c", "image": "reg.test/web:1"}]}}
    world.api.put(
        "/apis/apps/v1/namespaces/serving/deployments/web",
        {"metadata": {"name": "web"}, "spec": {"template": template}},
    )
    push(world, 1, 2)
    world.add_prefetch(
        "llm",
        names(2)[0],
        "reg.test/base:1",
        repositories=[BUILDS],
        imagesFrom=[{"kind": "Deployment", "namespace": "serving"}],
    )
    async with world.operating():
        await settle(world)
        assert sorted(images(world)) == sorted([*names(1, 2), "reg.test/base:1", "reg.test/web:1"])


async def test_dry_run_reports_the_tags_and_pulls_nothing(world: World) -> None:
    push(world, 1, 2)
    add(world, dryRun=True, disk={"maxUsagePercent": 100})
    async with world.operating():
        await until(lambda: chosen(world) == builds(2, 1))
        assert world.pods() == []
        assert is_true(world, "TagsSelected")
        push(world, 1, 2, 3)
        await until(lambda: images(world) == names(3, 2))


async def test_forbidden_repository_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repositories, "PATIENCE", PATIENCE)
    world = World(policy=PrefetchPolicy(registries=("other.test",)))
    world.add_node("n1")
    add(world)
    async with world.operating():
        await until(says(world, "Ready", "PolicyViolation", "spec.repositories"))
        assert world.tags.lists == []


async def test_push_during_a_list_is_followed_by_another_list(world: World) -> None:
    push(world, 1)
    add(world)
    async with world.operating():
        await settle(world)
        waiting, go = asyncio.Event(), asyncio.Event()
        list_ = world.tags.tags_of

        async def slow(repository: str) -> tuple[str, ...]:
            found = await list_(repository)
            waiting.set()
            await go.wait()
            return found

        world.tags.tags_of = slow  # type: ignore[method-assign]
        push(world, 1, 2)
        await waiting.wait()
        push(world, 1, 2, 3)
        go.set()
        await until(lambda: chosen(world) == builds(3, 2))


async def test_new_prefetch_of_the_same_name_gets_its_tags(world: World) -> None:
    push(world, 1, 2)
    add(world)
    async with world.operating():
        await settle(world)
        path = f"{prefetches.PATH}/llm"
        world.api.change(path, lambda b: b["metadata"].update(deletionTimestamp="2026-01-01"))
        await until(lambda: path not in world.api.objects)
        add(world)
        world.api.change(path, lambda b: b["metadata"].update(uid="another"))
        await settle(world)
        assert chosen(world) == builds(2, 1)


async def test_ten_thousand_tags(world: World) -> None:
    push(world, *range(10_000))
    add(world)
    async with world.operating():
        await settle(world)
        assert chosen(world) == builds(9999, 9998)
        assert world.status("llm")["repositories"][0]["listed"] == 10_000
