"""The whole loop, with faults at exact requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from imagegate.api.fields import timestamp
from imagegate.domain.disk import Usage
from imagegate.domain.facts import ImageFacts, ImageSize
from imagegate.domain.share import drift
from imagegate.kube import errors
from imagegate.runtime.ledger import LAST_URGENT_REFUSAL
from tests.unit.memory_api import MemoryApi
from tests.unit.runtime.world import KEY, NAMESPACE, PODS, World, until

LLM = "/apis/imagegate.dev/v1alpha1/imageprefetches/llm"

FAST = {"retry": {"limit": 3, "minSeconds": 1, "maxSeconds": 1}}
WIDE = {"rollout": {"maxParallel": "100%", "seeds": 1000}}


def released(world: World, node: str) -> Callable[[], bool]:
    return lambda: KEY not in world.taints(node)


@pytest.fixture
def world() -> World:
    made = World()
    made.add_gate()
    return made


async def test_a_joining_node_is_held_pulls_and_is_released_in_one_patch(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1")
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(world.pods)
        assert KEY in world.taints("n1")
        world.finish(world.pods()[0])
        await until(lambda: KEY not in world.taints("n1"))
        assert world.taints("n1") == ["node.kubernetes.io/not-ready"]
        assert set(world.labels("n1")) == {"cached.imagegate.dev/llm"}
        assert world.observed("n1") == "n1-uid/boot-1"
        await until(lambda: world.condition("llm", "Ready").get("status") == "True")
    node_writes = [p for m, p in world.api.writes() if p == "/api/v1/nodes/n1"]
    assert len(node_writes) == 1


async def test_a_settled_cluster_gets_no_write(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", **WIDE)
    for number in range(5):
        world.add_node(f"n{number}")
    async with world.operating():
        await until(lambda: len(world.pods()) == 5)
        for pod in world.pods():
            world.finish(pod)
        await until(lambda: world.condition("llm", "Ready").get("status") == "True")
        await asyncio.sleep(0.5)
        world.api.requests.clear()
        await world.resync.once()
        for number in range(5):  # kubelets write their heartbeats
            world.api.change(f"/api/v1/nodes/n{number}", lambda body: body.update(x=1))
        await asyncio.sleep(1.0)
        assert world.api.writes() == []


async def test_max_parallel_limits_the_pulls_and_all_nodes_are_cached(
    world: World,
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": 3, "seeds": 1})
    for number in range(12):
        world.add_node(f"n{number}")
    most = 0
    async with world.operating():
        for _ in range(12):
            await until(lambda: any("status" not in pod for pod in world.pods()))
            pulling = [pod for pod in world.pods() if "status" not in pod]
            most = max(most, len(pulling))
            world.finish(pulling[0])
        await until(lambda: world.status("llm").get("nodes", {}).get("cached") == 12)
    assert most == 3


class SlowApi(MemoryApi):
    """An API server that needs half a second to create a pod."""

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        await asyncio.sleep(0.5 if path == PODS else 0.0)
        return await super().create(path, body, **query)


async def test_edit_during_the_creation_of_a_pod_frees_no_slot() -> None:
    """Found by `make chaos`: the finalizer, which the operator adds itself, counts as an edit. The
    slots were then counted from the existing pods, without the pod that was being created."""
    world = World(SlowApi())
    world.add_gate()
    rollout = {"maxParallel": 1, "seeds": 1}
    world.add_prefetch("llm", "reg.test/llm:1", rollout=rollout, gate={"maxParallel": 1})
    for number in range(4):
        world.add_node(f"n{number}", gated=True)
    async with world.operating():
        await until(lambda: world.ledger.entry("llm").slots)
        await asyncio.sleep(0.1)
        world.api.change(
            LLM,
            lambda body: body["spec"].update(retry={"limit": 3}),
        )
        await asyncio.sleep(1.5)
        assert len(world.pods()) == 1


async def test_seed_pulls_alone_then_twice_as_many_nodes_as_are_cached(
    world: World,
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": "100%"})
    for number in range(8):
        world.add_node(f"n{number}", labels={"topology.kubernetes.io/zone": "z"})
    async with world.operating():
        waves = []
        for _ in range(3):
            await asyncio.sleep(0.5)
            pulling = [pod for pod in world.pods() if "status" not in pod]
            waves.append(len(pulling))
            for pod in pulling:
                world.finish(pod)
        assert waves == [1, 2, 5]


async def test_edit_starts_with_the_seeds_again(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": "100%", "seeds": 1})
    for number in range(6):
        world.add_node(f"n{number}")
    async with world.operating():
        while world.status("llm").get("nodes", {}).get("cached") != 6:
            for pod in [pod for pod in world.pods() if "status" not in pod]:
                world.finish(pod)
            await asyncio.sleep(0.05)
        world.change_images("llm", "reg.test/llm:2")
        await asyncio.sleep(1.0)
        assert len([pod for pod in world.pods() if "status" not in pod]) == 1


async def test_failed_seeds_stop_the_rollout_until_a_seed_succeeds(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": "100%", "seeds": 1}, **FAST)
    for number in range(6):
        world.add_node(f"n{number}")
    async with world.operating():
        await until(world.pods)
        seed = world.pods()[0]["spec"]["nodeName"]
        for _ in range(3):
            await until(world.pods)
            assert [pod["spec"]["nodeName"] for pod in world.pods()] == [seed]
            world.fail(world.pods()[0], 'failed to resolve "reg.test/llm:1": not found')
            await until(lambda: not world.pods())
        await until(lambda: world.condition("llm", "Degraded").get("reason") == "SeedsFailed")
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: len(world.pods()) == 3)
        await until(lambda: world.condition("llm", "Degraded").get("status") == "False")


@pytest.mark.parametrize("what", ["NotReady", "leaving"])
async def test_rollout_does_not_wait_for_a_failed_seed_that_cannot_retry(
    world: World, what: str
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": "100%", "seeds": 1}, **FAST)
    for number in range(2):
        world.add_node(f"n{number}")

    def away(body: dict[str, Any]) -> None:
        if what == "NotReady":
            body["status"]["conditions"][0]["status"] = "False"
        else:
            taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
            body["spec"]["taints"].append(taint)

    async with world.operating():
        await until(world.pods)
        seed = world.pods()[0]["spec"]["nodeName"]
        world.fail(world.pods()[0], 'failed to resolve "reg.test/llm:1": not found')
        await until(lambda: not world.pods())
        world.api.change(f"/api/v1/nodes/{seed}", away)
        await until(world.pods)
        assert [pod["spec"]["nodeName"] for pod in world.pods()] != [seed]


async def test_an_operator_killed_at_any_request_resumes_without_a_second_pull() -> None:
    """Kill it at its 1st, 2nd, ... write; the next process must finish the job."""
    for kill_at in range(1, 6):
        world = World()
        world.add_gate()
        world.add_prefetch("llm", "reg.test/llm:1")
        world.add_node("n1", gated=True)
        count = 0
        made: list[str] = []

        def count_pods(kind: str, body: dict[str, Any], into: list[str] = made) -> None:
            if (kind, body.get("kind")) == ("ADDED", "Pod"):
                into.append(body["metadata"]["name"])

        world.api.watchers.append(count_pods)

        def killed(method: str, path: str, limit: int = kill_at) -> None:
            nonlocal count
            count += method not in ("GET", "LIST")
            if count >= limit:
                raise errors.NotLeader("killed")

        world.api.before = killed
        async with world.operating():
            await asyncio.sleep(0.1)
        world.api.before = lambda method, path: None
        world.start_operator()
        async with world.operating():
            await until(world.pods)
            world.finish(world.pods()[0])
            await until(released(world, "n1"))
        assert made == [world.pods()[0]["metadata"]["name"]], f"killed at write {kill_at}"


async def test_conflict_on_the_release_is_decided_again_and_keeps_foreign_taints(
    world: World,
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("n1", gated=True)
    interfered = False

    def interfere(method: str, path: str) -> None:
        nonlocal interfered
        if method == "PATCH" and path == "/api/v1/nodes/n1" and not interfered:
            interfered = True
            watchers, world.api.watchers = world.api.watchers, []
            world.api.change(
                path,
                lambda body: body["spec"]["taints"].insert(
                    0, {"key": "other", "effect": "NoSchedule"}
                ),
            )
            world.api.watchers = watchers

    world.api.before = interfere
    async with world.operating():
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: KEY not in world.taints("n1"))
    assert interfered
    assert world.taints("n1") == ["other", "node.kubernetes.io/not-ready"]


async def test_permanent_failure_opens_the_gate_is_reported_and_is_retried(
    world: World,
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", **FAST)
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(world.pods)
        first = world.pods()[0]
        world.fail(first, 'failed to resolve "reg.test/llm:1": not found')
        await until(lambda: KEY not in world.taints("n1"))
        assert world.labels("n1") == {}
        await until(lambda: world.condition("llm", "Degraded").get("status") == "True")
        assert world.condition("llm", "Degraded")["reason"] == "ImageNotFound"
        failure = world.status("llm")["failures"][0]
        assert (failure["node"], failure["image"]) == ("n1", "reg.test/llm:1")
        await until(world.pods)
        second = world.pods()[0]
        assert second["metadata"]["name"] != first["metadata"]["name"]
        world.finish(second)
        await until(lambda: world.condition("llm", "Ready").get("status") == "True")
        assert world.condition("llm", "Degraded")["status"] == "False"
        assert world.labels("n1")


async def test_a_pod_that_the_api_server_refuses_becomes_a_condition(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", retry={"limit": 1})
    world.add_node("n1")

    def refuse(method: str, path: str) -> None:
        if (method, path) == ("POST", PODS):
            raise errors.Forbidden("POST pods", 403, "exceeded quota")

    world.api.before = refuse
    async with world.operating():
        await until(lambda: world.condition("llm", "Degraded").get("status") == "True")
    condition = world.condition("llm", "Degraded")
    assert condition["reason"] == "PodRefused"
    assert "exceeded quota" in condition["message"]


async def test_deleting_a_prefetch_leaves_nothing_and_does_not_hang(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", **WIDE)
    world.add_node("n1")
    world.add_node("n2", gated=True)
    path = LLM
    async with world.operating():
        await until(lambda: len(world.pods()) == 2)
        done = next(p for p in world.pods() if p["spec"]["nodeName"] == "n1")
        world.finish(done)
        await until(lambda: world.labels("n1"))
        world.api.remove(path)
        await until(lambda: path not in world.api.objects)
        await until(lambda: not world.pods())
        assert world.labels("n1") == {}
        assert KEY not in world.taints("n2")


async def test_resync_finds_objects_that_were_deleted_without_an_event(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", **WIDE)
    world.add_node("n1")
    world.add_node("n2")
    async with world.operating():
        await until(lambda: len(world.pods()) == 2)
        watchers, world.api.watchers = world.api.watchers, []
        world.api.remove("/api/v1/nodes/n2")
        gone = next(p for p in world.pods() if p["spec"]["nodeName"] == "n2")
        world.api.remove(f"{PODS}/{gone['metadata']['name']}")
        world.api.watchers = watchers
        await world.resync.once()
        await until(lambda: world.status("llm").get("nodes", {}).get("desired") == 1)
        assert set(world.store.nodes) == {"n1"}


async def test_prefetch_that_is_not_allowed_shows_the_remedy_and_changes_nothing(
    world: World,
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", pullerNamespace="elsewhere")
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(lambda: world.condition("llm", "Degraded").get("status") == "True")
        await until(lambda: KEY not in world.taints("n1"))
    assert world.condition("llm", "Ready")["reason"] == "NamespaceNotAllowed"
    assert "puller.namespaces" in world.condition("llm", "Ready")["message"]
    assert world.pods() == []


async def test_prefetch_without_matching_nodes_reports_that(world: World) -> None:
    world.add_node("n1")
    world.add_prefetch("llm", "reg.test/llm:1", nodeSelector={"matchLabels": {"pool": "none"}})
    async with world.operating():
        await until(lambda: world.condition("llm", "Ready").get("reason") == "NoNodesMatch")


async def test_suspending_the_gate_releases_all_held_nodes(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", gate={"policy": "FailClosed"})
    world.add_node("n1", gated=True)
    world.add_node("n2", gated=True)
    async with world.operating():
        await until(world.pods)
        world.add_gate(suspend=True)
        await until(lambda: KEY not in world.taints("n1") + world.taints("n2"))


async def test_edit_that_fixes_a_failure_does_not_wait_for_the_back_off(world: World) -> None:
    world.add_node("n1")
    world.disks.answer = Usage(capacity=100 * 10**9, used=90 * 10**9)
    world.add_prefetch("llm", "reg.test/llm:1")
    async with world.operating():
        await until(lambda: world.status("llm").get("nodes", {}).get("failed") == 1)
        assert world.condition("llm", "Degraded")["reason"] == "DiskFull"
        assert world.pods() == []

        def edit(body: dict[str, Any]) -> None:
            body["spec"]["disk"] = {"maxUsagePercent": 95}
            body["metadata"]["generation"] += 1

        world.api.change(LLM, edit)
        await until(world.pods)


async def test_node_without_an_image_for_its_platform_is_released_and_reported(
    world: World,
) -> None:
    world.registries.images = {"reg.test/llm:1": ImageFacts(missing=frozenset({"linux/s390x"}))}
    world.add_node("n1", gated=True)
    info = {"operatingSystem": "linux", "architecture": "s390x", "bootID": "boot-1"}
    world.api.change("/api/v1/nodes/n1", lambda body: body["status"].update(nodeInfo=info))
    world.add_prefetch("llm", "reg.test/llm:1", gate={"policy": "FailClosed"})
    async with world.operating():
        await until(released(world, "n1"))
        await until(lambda: world.condition("llm", "Ready").get("reason") == "NodesSkipped")
        message = world.condition("llm", "Ready")["message"]
        assert message == "no node is left: 1 skipped (1 no image for its platform)"
        assert world.pods() == []


async def test_dry_run_reports_a_forecast_and_changes_nothing(world: World) -> None:
    world.add_node("n1", gated=True)
    world.add_node("n2")
    world.registries.images = {"reg.test/llm:1": ImageFacts(problem="no answer")}
    world.add_prefetch("llm", "reg.test/llm:1", dryRun=True)
    async with world.operating():
        await until(lambda: world.condition("llm", "Ready").get("reason") == "DryRun")
        await until(lambda: not world.taints("n1") or KEY not in world.taints("n1"))
        assert world.pods() == []
        assert world.labels("n2") == {}
        assert world.status("llm")["nodes"]["pending"] == 2
        body = world.api.objects[LLM]
        assert not body["metadata"].get("finalizers")


async def test_new_prefetch_waits_for_the_registries(world: World) -> None:
    world.add_node("n1")
    world.registries.asked = False
    world.add_prefetch("llm", "reg.test/llm:1")
    async with world.operating():
        await until(lambda: "nodes" in world.status("llm"))
        assert world.pods() == []
        world.registries.asked = True
        world.changes.images_inspected("llm")
        await until(world.pods)


async def test_deletion_of_a_dry_run_removes_labels_and_pods(world: World) -> None:
    world.add_node("n1")
    world.add_prefetch("llm", "reg.test/llm:1")
    async with world.operating():
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: world.labels("n1"))

        def dry(body: dict[str, Any]) -> None:
            body["spec"]["dryRun"] = True
            body["metadata"]["generation"] += 1

        path = LLM
        world.api.change(path, dry)
        await until(lambda: world.condition("llm", "Ready").get("reason") == "DryRun")
        assert world.labels("n1")
        await world.api.delete(path)
        await until(lambda: path not in world.api.objects)
        assert world.labels("n1") == {}
        await until(lambda: not world.pods())


async def test_removed_image_removes_the_label_and_is_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagegate.domain.share.drift.LISTED_AFTER", 0.2)
    world.add_node("n1")
    size = {"linux/amd64": ImageSize(10**6)}
    world.registries.images = {"reg.test/llm:1": ImageFacts(sizes=size)}
    world.add_prefetch("llm", "reg.test/llm:1")
    path = "/api/v1/nodes/n1"

    def lists(*names: str) -> Callable[[dict[str, Any]], None]:
        images = [{"names": [name], "sizeBytes": 10**6} for name in names]
        images.append({"names": ["pause"], "sizeBytes": 10**5})
        info = {"operatingSystem": "linux", "architecture": "amd64", "bootID": "boot-1"}
        return lambda body: body["status"].update(images=images, nodeInfo=info)

    async with world.operating():
        await until(world.pods)
        world.api.change(path, lists("reg.test/llm:1"))
        first = world.pods()[0]
        world.finish(first)
        await until(lambda: world.labels("n1"))
        await asyncio.sleep(0.4)
        assert world.labels("n1"), "it is listed"
        world.api.change(path, lists())
        await until(lambda: not world.labels("n1"))
        await until(lambda: not world.pods())
        await until(lambda: world.condition("llm", "Ready").get("status") == "False")
        failures = world.status("llm")["failures"]
        assert failures[0]["reason"] == "EvictedByKubelet"
        assert "10.0 GB of 100.0 GB" in failures[0]["message"]


# ---- following tags

OLD, NEW = (f"sha256:{digit * 64}" for digit in "ab")
FOLLOWED = {"refresh": {"mode": "Digest"}, **WIDE}


def follow(world: World, digest: str) -> None:
    """A followed tag that the registry has resolved, and a node in service."""
    world.registries.images = {"reg.test/llm:1": ImageFacts(digest=digest)}
    world.add_prefetch("llm", "reg.test/llm:1", **FOLLOWED)
    world.add_node("n1")


def pulls(world: World) -> list[list[str]]:
    """The images of each puller pod, in containers, because these nodes have no image volumes."""
    return [[container["image"] for container in each] for each in _pullers(world)]


def policies(world: World) -> list[list[str]]:
    return [[container["imagePullPolicy"] for container in each] for each in _pullers(world)]


def _pullers(world: World) -> list[list[dict[str, Any]]]:
    return [
        [c for c in pod["spec"]["containers"] if c["name"].startswith("image-")]
        for pod in world.pods()
    ]


def digest_in_status(world: World) -> str:
    images = world.status("llm").get("images") or [{}]
    return str(images[0].get("digest"))


def registry_says(world: World, digest: str) -> None:
    world.registries.images = {"reg.test/llm:1": ImageFacts(digest=digest)}
    world.changes.images_inspected("llm")


async def test_new_digest_is_written_to_the_status_before_its_rollout(world: World) -> None:
    follow(world, OLD)
    async with world.operating():
        await until(world.pods)
        assert digest_in_status(world) == OLD, "a digest is in the status before it is pulled"
        assert pulls(world) == [["reg.test/llm:1", f"reg.test/llm@{OLD}"]]
        world.finish(world.pods()[0])
        await until(lambda: world.condition("llm", "Ready").get("status") == "True")
        before = world.labels("n1")
        written: list[tuple[str, str]] = []

        def note(kind: str, body: dict[str, Any]) -> None:
            if body.get("kind") == "ImagePrefetch":
                written.append((digest_in_status(world), world.condition("llm", "Ready")["status"]))

        world.api.watchers.append(note)
        registry_says(world, NEW)
        await until(lambda: len(world.pods()) == 2)
        assert digest_in_status(world) == NEW
        assert pulls(world)[1] == ["reg.test/llm:1", f"reg.test/llm@{NEW}"]
        assert world.labels("n1") == before, "the node still has the old digest"
        assert set(written) == {(NEW, "False")}, (
            "the old Ready must not be read as the new digest's"
        )
        world.finish(world.pods()[1])
        await until(lambda: world.labels("n1") != before)
        await until(lambda: len(world.pods()) == 1)
        await until(lambda: world.condition("llm", "Ready").get("status") == "True")
        await asyncio.sleep(0.05)  # the Event about Ready is written by another task
        world.api.requests.clear()
        registry_says(world, NEW)
        await asyncio.sleep(0.5)
        assert world.api.writes() == [], "the same digest causes no write"


async def test_restarted_operator_knows_the_digest_without_the_registry(
    world: World,
) -> None:
    follow(world, OLD)
    async with world.operating():
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: world.condition("llm", "Ready").get("status") == "True")
    world.start_operator()
    world.registries.images = {"reg.test/llm:1": ImageFacts(problem="away")}
    world.api.requests.clear()
    async with world.operating():
        await asyncio.sleep(0.5)
        assert {path for _, path in world.api.writes() if "/imageprefetches/" not in path} <= {
            "/api/v1/namespaces/default/events"
        }
        assert digest_in_status(world) == OLD
        assert len(world.pods()) == 1
        world.add_node("n2", gated=True)
        await until(lambda: len(world.pods()) == 2)
        assert pulls(world)[1] == ["reg.test/llm:1", f"reg.test/llm@{OLD}"]


async def test_tag_alone_is_pulled_if_the_registry_never_answered(world: World) -> None:
    world.registries.images = {"reg.test/llm:1": ImageFacts(problem="away")}
    world.add_prefetch("llm", "reg.test/llm:1", **FOLLOWED)
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(world.pods)
        assert pulls(world) == [["reg.test/llm:1"]]
        world.finish(world.pods()[0])
        await until(released(world, "n1"))


async def test_digest_is_not_pulled_before_it_is_in_the_status(world: World) -> None:
    follow(world, OLD)
    refused = 0

    def refuse(method: str, path: str) -> None:
        nonlocal refused
        if method == "PATCH" and path.endswith("/imageprefetches/llm/status") and refused < 3:
            refused += 1
            raise errors.Unavailable("PATCH", 503, "away")

    world.api.before = refuse
    async with world.operating():
        await until(world.pods)
    assert refused == 3
    assert digest_in_status(world) == OLD
    assert pulls(world) == [["reg.test/llm:1", f"reg.test/llm@{OLD}"]]


async def test_recreated_pod_does_not_roll_out_a_moved_tag(
    world: World,
) -> None:
    follow(world, OLD)
    async with world.operating():
        await until(world.pods)
        assert policies(world) == [["Always", "IfNotPresent"]]
        world.finish(world.pods()[0])
        await until(lambda: world.labels("n1"))
        world.api.remove(f"{PODS}/{world.pods()[0]['metadata']['name']}")
        await until(world.pods)
        assert policies(world) == [["IfNotPresent", "IfNotPresent"]]


async def test_edit_after_a_stale_mirror_pulls_again_and_waits_for_the_listed_digest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lists(digest: str) -> None:
        names = [f"reg.test/llm@{digest}", "reg.test/llm:1"]
        images = [{"names": names, "sizeBytes": 7}]
        world.api.change("/api/v1/nodes/n1", lambda body: body["status"].update(images=images))

    follow(world, NEW)
    async with world.operating():
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: world.labels("n1"))
        monkeypatch.setattr(drift, "LISTED_AFTER", 0.0)
        lists(OLD)
        await until(lambda: not world.labels("n1"))
        await until(lambda: world.condition("llm", "Degraded").get("reason") == "StaleMirror")
        await until(lambda: not world.pods())
        monkeypatch.setattr(drift, "LISTED_AFTER", 60.0)

        def edit(body: dict[str, Any]) -> None:
            body["metadata"]["generation"] += 1
            body["spec"]["retry"] = {"limit": body["metadata"]["generation"]}

        path = LLM
        for _ in range(2):  # during the back-off, and while the node has not listed the image
            world.api.change(path, edit)
            await until(lambda: [pod for pod in world.pods() if "status" not in pod])
            ended = {"terminated": {"finishedAt": timestamp(world.clock.now() + 1)}}
            world.finish(world.pods()[0], containerStatuses=[{"state": ended}])
            await asyncio.sleep(1.2)  # longer than a timestamp's second
            assert not world.labels("n1"), "the same mirror may have answered again"
        lists(NEW)
        await until(lambda: world.labels("n1"))


async def test_release_does_not_wait_for_its_event(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1")
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(world.pods)
        events = "/api/v1/namespaces/default/events"
        create, go = world.api.create, asyncio.Event()

        async def slow(path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
            if path == events:
                await go.wait()
            return await create(path, body, **query)

        world.api.create = slow  # type: ignore[method-assign]
        world.finish(world.pods()[0])
        await until(released(world, "n1"))
        world.api.requests.clear()
        world.api.change("/api/v1/nodes/n1", lambda body: body["metadata"]["labels"].update(a="b"))
        await asyncio.sleep(0.2)
        assert not world.queues.nodes._active, "a worker waits for the Event"
        go.set()
        await until(lambda: any(path == events for _, path in world.api.requests))


async def test_records_of_earlier_targets_and_deleted_prefetches_are_removed(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:0", **FAST)
    world.add_node("n1")
    path = LLM
    async with world.operating():
        for edit in range(1, 4):
            await until(world.pods)
            world.fail(world.pods()[0], "failed to resolve: not found")
            await until(lambda: not world.pods())
            world.change_images("llm", f"reg.test/llm:{edit}")
            await until(world.pods)
            assert len(world.ledger.attempts.get("n1", {})) <= 1
        world.fail(world.pods()[0], "failed to resolve: not found")
        await until(lambda: world.ledger.attempts)
        await world.api.delete(path)
        await until(lambda: path not in world.api.objects)
        await until(lambda: not world.ledger.attempts)
        world.changes.images_inspected("llm")
        await asyncio.sleep(0.3)
        assert world.ledger.entries == {}
        prefetches = world.controllers.prefetches
        assert (prefetches._slots._specs, prefetches._statuses._written) == ({}, {})
        assert world.metrics.allowed == {}
        assert world.metrics._failures._metrics == {}


async def test_refused_recreation_of_a_pod_has_a_growing_back_off(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", retry={"minSeconds": 1, "maxSeconds": 300})
    world.add_node("n1")
    async with world.operating():
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: world.labels("n1"))
        tried = 0

        def refuse(method: str, path: str) -> None:
            nonlocal tried
            if method == "POST" and path == PODS:
                tried += 1
                raise errors.Forbidden("create pod", 403, "no right")

        world.api.before = refuse
        world.api.remove(f"{PODS}/{world.pods()[0]['metadata']['name']}")
        await until(lambda: tried)
        await asyncio.sleep(2.0)
        assert tried <= 3
        assert world.labels("n1"), "the images are there"


async def test_create_without_an_answer_is_repeated_under_the_same_name(world: World) -> None:
    """Found by chaos: the pod of a create whose answer was lost, and a second pod beside it."""
    world.add_prefetch("llm", "reg.test/llm:1", retry={"minSeconds": 1})
    world.add_node("n1")
    create, names = world.api.create, list[str]()

    async def lose(path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        if path == PODS:
            names.append(body["metadata"]["name"])
            if len(names) < 3:
                raise errors.Unavailable("create pod", 504, "no answer")
        return await create(path, body, **query)

    world.api.create = lose  # type: ignore[method-assign]
    async with world.operating():
        await until(world.pods, 10)
        assert len(names) == 3
        assert len(set(names)) == 1
        world.fail(world.pods()[0], "connection refused")
        await until(lambda: len(names) == 4, 10)
        assert names[3] != names[0], "the kubelet's back-off is for each pod"


async def test_slots_beyond_a_smaller_limit_start_no_pull(world: World) -> None:
    images = [f"reg.test/part-{n}:1" for n in range(2)]
    rollout = {"maxParallel": 2, "seeds": 2}
    world.add_prefetch("llm", images[0], rollout=rollout)
    world.add_node("n1")
    world.add_node("n2")
    async with world.operating():
        await until(lambda: len(world.pods()) == 2)
        first, second = world.pods()
        world.add_prefetch("llm", *images, rollout={"maxParallel": 1, "seeds": 2})
        await asyncio.sleep(0.5)
        world.finish(first)
        await asyncio.sleep(0.5)
        unfinished = [p for p in world.pods() if p.get("status", {}).get("phase") != "Succeeded"]
        assert {p["spec"]["nodeName"] for p in unfinished} == {second["spec"]["nodeName"]}


async def test_new_leaders_write_nothing_about_a_settled_prefetch(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", **WIDE)
    for number in range(30):
        world.add_node(f"n{number}")
    async with world.operating():
        await until(lambda: len(world.pods()) == 30)
        for pod in world.pods():
            world.finish(pod)
        await until(lambda: world.condition("llm", "Ready")["status"] == "True")
    world.api.requests.clear()
    for _ in range(5):
        world.start_operator()
        async with world.operating():
            await asyncio.sleep(0.6)
    assert world.api.writes() == []


async def test_a_status_that_another_writer_has_changed_is_written_again(world: World) -> None:
    """A leader that was suspended while it wrote a status continues under the next leader."""
    world.add_node("n1")
    world.add_prefetch("llm", "reg.test/a:1")
    async with world.operating():
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: world.condition("llm", "Ready").get("status") == "True")
        true = world.status("llm")
        stale = {"nodes": {**true["nodes"], "pulling": 2, "gated": 1}, "conditions": []}
        world.api.change(LLM, lambda body: body["status"].update(stale))
        await until(lambda: world.status("llm")["nodes"] == true["nodes"])
        assert world.condition("llm", "Ready")["status"] == "True"


async def test_status_is_not_mixed_with_the_status_of_another_writer(world: World) -> None:
    world.add_node("n1")
    world.add_prefetch("llm", "reg.test/a:1")
    async with world.operating():
        await until(world.pods)
        await until(lambda: world.status("llm").get("nodes", {}).get("pulling") == 1)
        world.api.before = lambda method, path: overtake() if path == f"{LLM}/status" else None
        other = {"desired": 7, "cached": 0, "pulling": 3, "pending": 4, "failed": 0, "skipped": 0}

        def overtake() -> None:
            world.api.before = lambda method, path: None
            world.api.watchers.remove(world._watch)  # the watch is late
            world.api.change(LLM, lambda body: body["status"].update(nodes={**other, "gated": 3}))
            world.api.watchers.append(world._watch)

        world.finish(world.pods()[0])
        await until(lambda: world.condition("llm", "Ready").get("status") == "True")
        counts = {"desired": 1, "cached": 1, "pulling": 0, "pending": 0, "failed": 0, "skipped": 0}
        assert world.status("llm")["nodes"] == {**counts, "gated": 0}


async def test_joining_nodes_do_not_wait_for_a_rollout_or_for_each_other(
    world: World,
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": 1, "seeds": 1})
    for number in range(20):
        world.add_node(f"old-{number}")
    async with world.operating():
        await until(world.pods)
        for number in range(200):
            world.add_node(f"new-{number}", gated=True)
        await until(lambda: len(world.pods()) == 201, 20)
        nodes = [pod["spec"]["nodeName"] for pod in world.pods()]
        assert len([name for name in nodes if name.startswith("old-")]) == 1


async def test_wait_of_a_joining_node_for_a_slot_is_reported(world: World) -> None:
    gate = {"maxParallel": 1, "timeoutSeconds": 8}
    world.add_prefetch("llm", "reg.test/llm:1", gate=gate)
    world.add_node("first", gated=True)
    async with world.operating():
        await until(world.pods)
        world.add_node("second", gated=True)
        slot = "a slot: gate.maxParallel lets 1 joining nodes pull at a time"
        await until(lambda: slot in world.ledger.holding.get("second", ""))
        await until(lambda: f"1 joining nodes wait for {slot}" in progress(world), 10)
        await until(released(world, "second"), 20)
        await until(lambda: has_event(world, f"it waited for {slot}"))


def has_event(world: World, text: str) -> bool:
    """Whether an Event contains this text. Events are written with a short delay."""
    events = [body for path, body in world.api.objects.items() if "/events/" in path]
    return any(text in event["message"] for event in events)


def progress(world: World) -> str:
    return str(world.condition("llm", "Progressing")["message"])


async def test_a_slot_goes_to_the_joining_node_that_waits_longest(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", gate={"maxParallel": 1})
    world.add_node("first", gated=True)
    async with world.operating():
        await until(world.pods)
        world.add_node("second", gated=True)
        await until(lambda: world.ledger.entry("llm").wants)

        def joins_in_the_same_turn(kind: str, body: dict[str, Any]) -> None:
            if body.get("kind") == "Node" and KEY not in str(body["spec"]["taints"]):
                world.api.watchers.remove(joins_in_the_same_turn)
                world.add_node("third", gated=True)

        world.api.watchers.insert(0, joins_in_the_same_turn)
        world.finish(world.pods()[0])
        await until(lambda: len(world.pods()) == 2)
        nodes = {pod["spec"]["nodeName"] for pod in world.pods()}
        assert nodes == {"first", "second"}


async def test_nothing_is_deleted_in_an_unreadable_namespace(
    world: World,
) -> None:
    world.add_node("n1")
    world.add_prefetch("llm", "reg.test/llm:1")
    path = LLM
    async with world.operating():
        await until(world.pods)
        world.store.see_unreadable({NAMESPACE: "pods is forbidden"})
        await world.api.delete(path)
        await asyncio.sleep(0.5)
        assert not [each for each in world.api.writes() if each[0] == "DELETE" and PODS in each[1]]
        world.store.see_unreadable({})
        await until(lambda: not world.pods())


async def test_unreadable_namespace_is_reported_and_its_pods_stay(world: World) -> None:
    world.add_node("n1")
    world.add_prefetch("llm", "reg.test/llm:1")
    async with world.operating():
        await until(lambda: len(world.pods()) == 1)
        (pod,) = world.pods()
        world.store.see_unreadable({NAMESPACE: "pods is forbidden"})
        await until(lambda: world.condition("llm", "Degraded")["reason"] == "NamespaceNotReadable")
        assert "install the chart again" in world.condition("llm", "Degraded")["message"]
        world.changes.node_changed("n1")
        await asyncio.sleep(0.05)
        assert world.pods() == [pod]
        world.store.see_unreadable({})
        world.finish(pod)
        await until(lambda: world.labels("n1"))


# ---- prefetches that cannot be acted on

CLOSED = {"gate": {"policy": "FailClosed"}}


async def test_fail_closed_holds_nodes_if_its_namespace_is_not_allowed(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", pullerNamespace="elsewhere", **CLOSED)
    async with world.operating():
        world.add_node("n1", gated=True)
        world.add_prefetch("other", "reg.test/x:1", nodeSelector={"matchLabels": {"a": "b"}})
        await until(lambda: "NamespaceNotAllowed" in world.ledger.holding.get("n1", ""))
        await asyncio.sleep(0.2)
        assert KEY in world.taints("n1")
        world.add_prefetch("llm", "reg.test/llm:1", **CLOSED)
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(released(world, "n1"))


async def test_fail_open_reports_that_its_namespace_is_not_allowed(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", pullerNamespace="elsewhere")
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(released(world, "n1"))
        await until(lambda: has_event(world, "NamespaceNotAllowed"))
        assert world.labels("n1") == {}


async def test_fail_closed_holds_nodes_if_workloads_cannot_be_read(world: World) -> None:
    def refuse(method: str, path: str) -> None:
        if path.endswith("/deployments"):
            raise errors.Forbidden("list deployments", 403, "no right")

    world.api.before = refuse
    source = {"kind": "Deployment", "namespace": "serving"}
    world.add_prefetch("llm", imagesFrom=[source], **CLOSED)
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(lambda: "SourceNotRead" in world.ledger.holding.get("n1", ""), 30)
        await asyncio.sleep(0.2)
        assert KEY in world.taints("n1")
        assert world.labels("n1") == {}


async def test_spec_that_cannot_be_parsed_holds_no_node(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1", gate={"policy": "Ajar"})
    async with world.operating():
        world.add_node("n1", gated=True)
        await until(released(world, "n1"))


def refuse_patches_of_n1(world: World, *, failing: int = 0) -> list[str]:
    """A policy refuses every patch of the Node, and the API server fails at one of them. Returns
    the requested patches."""
    asked: list[str] = []

    def refuse(method: str, path: str) -> None:
        if method == "PATCH" and path == "/api/v1/nodes/n1":
            asked.append(path)
            if len(asked) == failing:
                raise errors.Unavailable("patch node", 500, "internal error")
            raise errors.Invalid("patch node", 422, "denied by a policy")

    world.api.before = refuse
    return asked


async def test_refused_patch_is_not_repeated_at_every_event_of_the_node(
    world: World,
) -> None:
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("n1")
    async with world.operating():
        await until(world.pods)
        asked = refuse_patches_of_n1(world)
        world.finish(world.pods()[0])
        await until(lambda: asked)
        for event in range(40):
            label = {"event": str(event)}
            world.api.change(
                "/api/v1/nodes/n1",
                lambda body, label=label: body["metadata"]["labels"].update(label),  # type: ignore[misc]
            )
            await asyncio.sleep(0.05)
        assert len(asked) <= 4
        world.api.before = lambda *_: None
        await until(lambda: "cached.imagegate.dev/llm" in world.labels("n1"), 10)
        assert world.ledger.refusals == {}


async def test_refused_release_is_repeated_every_three_seconds(world: World) -> None:
    """Found by the simulation: a node with all images was held for 60 s after the end of a policy
    that had refused its release.
    """
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("n1", gated=True)
    async with world.operating():
        await until(world.pods)
        asked = refuse_patches_of_n1(world)
        world.finish(world.pods()[0])
        await until(lambda: len(asked) >= 4, 10)
        until_ = max(refusal.until for refusal in world.ledger.refusals["n1"].values())
        assert until_ <= world.clock.monotonic() + LAST_URGENT_REFUSAL


async def test_error_of_the_api_server_does_not_reset_the_back_off_of_a_refusal(
    world: World,
) -> None:
    """Found by the simulation: 31 deletes of one pod in 13 s, alternately refused and failed."""
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("n1")
    async with world.operating():
        await until(world.pods)
        asked = refuse_patches_of_n1(world, failing=2)
        world.finish(world.pods()[0])
        await until(lambda: len(asked) >= 3)
        (refusal,) = world.ledger.refusals["n1"].values()
        assert refusal.count == 2


async def test_pod_that_succeeded_after_a_failed_pull_is_not_deleted(
    world: World,
) -> None:
    """Found by the simulation: the watch was late, and the kubelet's next try had succeeded."""
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("n1")
    async with world.operating():
        await until(world.pods)
        (pod,) = world.pods()
        asked = 0

        def succeed(method: str, path: str) -> None:
            nonlocal asked
            if method == "DELETE" and "/pods/" in path:
                asked += 1
                if asked == 1:
                    world.finish(pod)

        world.api.before = succeed
        world.fail(pod, "connection refused")
        await until(lambda: "cached.imagegate.dev/llm" in world.labels("n1"))
        assert asked == 1
        assert [each["metadata"]["uid"] for each in world.pods()] == [pod["metadata"]["uid"]]
        assert world.status("llm")["failures"] == []


async def test_prefetch_deleted_before_its_first_decision_leaves_no_entry(
    world: World,
) -> None:
    """Found by the simulation: counts of its nodes were never removed."""
    async with world.operating():
        world.ledger.entry("gone")
        await world.controllers.prefetches.reconcile("gone")
        assert world.ledger.entries == {}


async def test_unready_node_is_held_when_a_suspension_ends(
    world: World,
) -> None:
    """Found by the simulation: nodes that were not Ready were not queued after a suspension."""
    world.add_prefetch("llm", "reg.test/llm:1", gate={"onReboot": "Hold"}, **WIDE)
    world.add_node("n1")
    async with world.operating():
        await until(world.pods)
        world.finish(world.pods()[0])
        await until(lambda: world.labels("n1"))
        gate = "/apis/imagegate.dev/v1alpha1/nodegates/default"
        world.api.change(gate, lambda body: body["spec"].update(suspend=True))

        def away(body: dict[str, Any]) -> None:
            for condition in body["status"]["conditions"]:
                condition["status"] = "Unknown"

        world.api.change("/api/v1/nodes/n1", away)
        await asyncio.sleep(0.3)
        assert KEY not in world.taints("n1")
        world.api.change(gate, lambda body: body["spec"].update(suspend=False))
        await until(lambda: KEY in world.taints("n1"))
        # A NodeGate that is created again is armed by its first heartbeat.
        beat = world.api.objects[gate]["status"].pop("heartbeat")
        world.api.change(gate, lambda body: body["spec"].update(suspend=True))
        await until(lambda: KEY not in world.taints("n1"))
        world.api.change(gate, lambda body: body["spec"].update(suspend=False))
        await asyncio.sleep(0.3)
        assert KEY not in world.taints("n1")
        world.api.change(gate, lambda body: body["status"].update(heartbeat=beat))
        await until(lambda: KEY in world.taints("n1"))
