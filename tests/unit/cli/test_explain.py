"""``imagegate explain`` and ``status --nodes``: the operator's own decision, as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagegate import survey
from imagegate.api.fields import timestamp
from imagegate.kube import errors
from tests.unit import golden
from tests.unit.cli.conftest import DEPLOYMENT, NOW, Run, operate
from tests.unit.runtime.world import NAMESPACE, PODS, World

GOLDEN = Path(__file__).with_name("golden")
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/imagegate"
GATE = "/apis/imagegate.dev/v1alpha1/nodegates/default"


def lines(text: str) -> list[str]:
    found = text.splitlines()
    assert max(map(len, found)) <= 80
    return found


def pulling(world: World) -> None:
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_node("join", gated=True)
    operate(world, lambda: world.pods() and world.status("llm"))


class TestHeldNode:
    def test_that_pulls(self, world: World, run: Run) -> None:
        pulling(world)
        result = run("explain", "node", "join")
        assert result.exit_code == 0
        golden.check(GOLDEN / "explain-pulling.json", lines(result.stdout))

    def test_whose_pull_fails_has_the_remedy(self, world: World, run: Run) -> None:
        pulling(world)
        (pod,) = world.pods()
        world.fail(pod, "failed to resolve image: lookup reg.test: no such host")
        golden.check(GOLDEN / "explain-failing.json", lines(run("explain", "node", "join").stdout))

    def test_fail_closed_is_freed_only_by_its_images(self, world: World, run: Run) -> None:
        world.add_prefetch("llm", "reg.test/llm:1", gate={"policy": "FailClosed"})
        world.add_node("join", gated=True)
        found = json.loads(run("explain", "node", "join", "-o", "json").stdout)
        assert found["held"] is True
        assert found["releasedBy"] is None
        assert found["frees"] == "only the images: gate.policy is FailClosed"
        assert found["why"] == "waiting for llm (FailClosed)"

    def test_that_is_not_ready(self, world: World, run: Run) -> None:
        pulling(world)

        def unready(body: dict[str, Any]) -> None:
            body["status"]["conditions"][0]["status"] = "False"

        world.api.change("/api/v1/nodes/join", unready)
        found = yaml.safe_load(run("explain", "node", "join", "-o", "yaml").stdout)
        assert found["why"] == "waiting for the node: not Ready"
        assert "once it is Ready" in found["frees"]
        assert found["releasedBy"] is None

    def test_timeout_is_the_latest_of_all_prefetches(self, world: World, run: Run) -> None:
        for name, seconds in (("a", 60), ("b", 900), ("c", 300)):
            world.add_prefetch(name, f"reg.test/{name}:1", gate={"timeoutSeconds": seconds})
        world.add_node("join", gated=True)
        found = json.loads(run("explain", "node", "join", "-o", "json").stdout)
        assert found["releasedBy"] == timestamp(NOW + 900)

    def test_is_released_now_if_no_prefetch_matches(self, world: World, run: Run) -> None:
        world.add_node("join", gated=True)
        found = json.loads(run("explain", "node", "join", "-o", "json").stdout)
        assert (found["why"], found["frees"]) == (
            "no ImagePrefetch gates this node",
            "the operator, now",
        )

    def test_waits_for_an_operator_that_is_dead(self, world: World, run: Run) -> None:
        world.add_node("join", gated=True)
        world.api.change(GATE, lambda body: body["status"].update(heartbeat=timestamp(NOW - 3600)))
        result = run("explain", "node", "join")
        golden.check(GOLDEN / "explain-dead-operator.json", lines(result.stdout))

    def test_waits_for_a_slot(self, world: World, run: Run) -> None:
        world.add_prefetch("llm", "reg.test/llm:1", gate={"maxParallel": 1})
        for name in ("first", "second"):
            world.add_node(name, gated=True)
        operate(world, world.pods)
        found = json.loads(run("explain", "node", "second", "-o", "json").stdout)
        slot = "a slot: gate.maxParallel lets 1 joining nodes pull at a time"
        assert found["why"] == f"waiting for llm, which waits for {slot}"
        assert found["prefetches"][0]["why"] == f"waits for {slot}"

    def test_waits_for_a_daemon_set(self, world: World, run: Run) -> None:
        ref = {"namespace": "mirror", "daemonSet": "spegel"}
        world.add_prefetch("llm", "reg.test/llm:1", startAfter=[ref])
        world.add_node("join", gated=True)
        found = json.loads(run("explain", "node", "join", "-o", "json").stdout)
        assert "DaemonSet mirror/spegel" in found["prefetches"][0]["why"]

    def test_keeps_the_failure_whose_pod_is_gone(self, world: World, run: Run) -> None:
        """Only the status of the ImagePrefetch remembers it."""
        pulling(world)
        (pod,) = world.pods()
        failure = {
            "node": "join",
            "image": "reg.test/llm:1",
            "reason": "ImageNotFound",
            "message": "llm:1: not found",
            "attempts": 4,
            "nextAttempt": timestamp(NOW + 300),
        }
        world.api.remove(f"{PODS}/{pod['metadata']['name']}")
        path = "/apis/imagegate.dev/v1alpha1/imageprefetches/llm"
        world.api.change(path, lambda body: body["status"].update(failures=[failure]))
        (line,) = json.loads(run("explain", "node", "join", "-o", "json").stdout)["prefetches"]
        assert line["why"].startswith(
            f"ImageNotFound: llm:1: not found; attempts: 4; next attempt at {timestamp(NOW + 300)};"
        )


def test_node_that_is_not_held(world: World, run: Run) -> None:
    world.add_prefetch("llm", "reg.test/llm:1")
    world.add_prefetch("dry", "reg.test/llm:1", dryRun=True)
    world.add_prefetch("elsewhere", "reg.test/llm:1", pullerNamespace="forbidden")
    world.add_node("serving")
    world.api.change("/api/v1/nodes/serving", lambda body: body["spec"].update(unschedulable=True))
    result = run("explain", "node", "serving")
    golden.check(GOLDEN / "explain-not-held.json", lines(result.stdout))


def test_unknown_node_is_an_error_with_the_remedy(world: World, run: Run) -> None:
    result = run("explain", "node", "gone")
    assert str(result.exception) == "there is no Node 'gone': see kubectl get nodes"


def test_reading_writes_nothing(world: World, run: Run) -> None:
    pulling(world)
    world.add_node("other", gated=True)
    world.api.requests.clear()
    for command in (["explain", "node", "join"], ["status", "--nodes"], ["status"]):
        assert run(*command).exit_code == 0
    assert world.api.writes() == []


def test_namespace_without_an_operator_is_an_error(world: World, run: Run) -> None:
    """Else every ImagePrefetch would look invalid, because its namespace is not the default."""
    world.api.remove(DEPLOYMENT)
    world.add_node("join", gated=True)
    result = run("explain", "node", "join", "-n", "elsewhere")
    assert "no operator of Imagegate in the namespace 'elsewhere'" in str(result.exception)
    named = run("explain", "node", "join", "-o", "json", f"--puller-namespaces={NAMESPACE}")
    assert json.loads(named.stdout)["held"] is True


def test_pod_of_the_operator_may_not_read_deployments(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment has the namespaces."""
    pulling(world)

    def refuse(method: str, path: str) -> None:
        if "deployments" in path:
            raise errors.Forbidden(f"{method} {path}", 403, "deployments is forbidden")

    world.api.before = refuse
    assert isinstance(run("explain", "node", "join").exception, survey.NotInstalled)
    monkeypatch.setenv("IMAGEGATE_PULLER_NAMESPACES", NAMESPACE)
    (line,) = json.loads(run("explain", "node", "join", "-o", "json").stdout)["prefetches"]
    assert line["state"] == "pulling"


@pytest.mark.parametrize(("ago", "alive"), [(2, True), (301, False)])
def test_without_a_node_gate_the_lease_shows_whether_an_operator_works(
    world: World, run: Run, ago: float, *, alive: bool
) -> None:
    world.api.remove(GATE)
    renewed = timestamp(NOW - ago).replace("Z", ".000000Z")
    world.api.put(LEASE, {"metadata": {"name": "imagegate"}, "spec": {"renewTime": renewed}})
    world.add_node("join", gated=True)
    found = json.loads(run("explain", "node", "join", "-o", "json").stdout)
    assert found["why"] == "the NodeGate was deleted"
    assert (found["frees"] == "the operator, now") is alive
    assert found["operator"].startswith("at work") is alive


def test_timeout_of_a_node_needs_an_operator(world: World, run: Run) -> None:
    pulling(world)
    world.api.change(GATE, lambda body: body["status"].update(heartbeat=timestamp(NOW - 3600)))
    found = json.loads(run("explain", "node", "join", "-o", "json").stdout)
    assert found["frees"].startswith("the images; without them, the timeout at ")
    assert found["frees"].endswith("; but first an operator has to work again")


def test_unreadable_puller_namespace_is_said(world: World, run: Run) -> None:
    pulling(world)

    def refuse(method: str, path: str) -> None:
        if path == PODS:
            raise errors.Forbidden(f"{method} {path}", 403, "pods is forbidden")

    world.api.before = refuse
    (line,) = json.loads(run("explain", "node", "join", "-o", "json").stdout)["prefetches"]
    assert line["state"] == "invalid"
    assert "NamespaceNotReadable" in line["why"]


def test_cluster_without_imagegate_is_an_error(world: World, run: Run) -> None:
    def missing(method: str, path: str) -> None:
        if "imagegate.dev" in path:
            raise errors.NotFound(f"{method} {path}", 404, "page not found")

    world.api.before = missing
    for command in (["explain", "node", "a"], ["status"]):
        assert "install Imagegate's chart" in str(run(*command).exception)


class TestStatus:
    def test_columns_are_those_of_kubectl(self, world: World, run: Run) -> None:
        pulling(world)
        golden.check(GOLDEN / "status.json", lines(run("status").stdout))

    def test_wide_has_the_message(self, world: World, run: Run) -> None:
        pulling(world)
        golden.check(GOLDEN / "status-wide.json", run("status", "-o", "wide").stdout.splitlines())

    def test_nodes(self, world: World, run: Run) -> None:
        pulling(world)
        world.add_prefetch("web", "reg.test/web:1", rollout={"paused": True})
        for name in ("a", "b"):
            world.add_node(name)
        operate(world, lambda: world.status("web").get("nodes", {}).get("pending"))
        golden.check(GOLDEN / "status-nodes.json", lines(run("status", "--nodes").stdout))

    def test_json_of_one(self, world: World, run: Run) -> None:
        pulling(world)
        world.add_prefetch("web", "reg.test/web:1")
        found = json.loads(run("status", "llm", "--nodes", "-o", "json").stdout)
        assert [each["name"] for each in found["prefetches"]] == ["llm"]
        assert found["prefetches"][0]["nodes"]["gated"] == 1
        assert {each["prefetch"] for each in found["nodes"]} == {"llm"}
        assert run("status", "-o", "yaml").exit_code == 0

    def test_nothing_at_all(self, world: World, run: Run) -> None:
        assert run("status", "--nodes").stdout.startswith("There is no ImagePrefetch.\n")

    def test_unknown_name(self, world: World, run: Run) -> None:
        assert "there is no ImagePrefetch 'x'" in str(run("status", "x").exception)

    @pytest.mark.parametrize("more", [["--nodes"], ["-o", "json"]])
    def test_watch_takes_no_other_form(self, world: World, run: Run, more: list[str]) -> None:
        assert run("status", "--watch", *more).exit_code == 2

    def test_rollout_says_how_many_may_pull(self, world: World, run: Run) -> None:
        world.add_prefetch("llm", "reg.test/llm:1", rollout={"maxParallel": 1})
        for name in ("a", "b", "c"):
            world.add_node(name)
        operate(world, world.pods)
        found = json.loads(run("status", "--nodes", "-o", "json").stdout)["nodes"]
        waits = [each["why"] for each in found if each["state"] == "pending"]
        assert waits == ["waits for a slot: 1 of 1 slots for nodes in service are in use"] * 2
