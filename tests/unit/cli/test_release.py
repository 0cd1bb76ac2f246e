"""``imagegate release``: break glass, without the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from imagegate.kube import errors
from tests.unit.cli.conftest import DEPLOYMENT, Run
from tests.unit.runtime.world import KEY, NAMESPACE, World

LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/imagegate"
GATE = "/apis/imagegate.dev/v1alpha1/nodegates/default"
OLD_KEY = "example.com/old"
FOREIGN = "node.kubernetes.io/not-ready"


@pytest.fixture
def nodes(world: World) -> World:
    for name in ("a", "b"):
        world.add_node(name, gated=True)
    world.add_node("free")
    return world


def test_named_node_loses_the_gates_taints_alone(nodes: World, run: Run) -> None:
    result = run("release", "a", "--yes")
    assert result.exit_code == 0
    assert f"node/a freed: removed {KEY}:NoSchedule\n" in result.stdout
    assert nodes.taints("a") == [FOREIGN]
    assert KEY in nodes.taints("b")
    assert nodes.api.writes() == [("PATCH", "/api/v1/nodes/a")]


def test_all_frees_every_held_node(nodes: World, run: Run) -> None:
    assert run("release", "--all", "--yes").exit_code == 0
    assert {name: nodes.taints(name) for name in ("a", "b", "free")} == {
        name: [FOREIGN] for name in ("a", "b", "free")
    }
    again = run("release", "--all", "--yes")
    assert (again.exit_code, again.stdout) == (0, "No node is held.\n")


def test_taints_of_any_effect_and_of_earlier_keys_are_removed(nodes: World, run: Run) -> None:
    nodes.api.put(
        LEASE,
        {
            "metadata": {
                "name": "imagegate",
                "annotations": {"imagegate.dev/taint-keys": f"{KEY},{OLD_KEY}"},
            },
            "spec": {},
        },
    )
    more = [{"key": KEY, "effect": "NoExecute"}, {"key": OLD_KEY, "effect": "NoSchedule"}]
    nodes.api.change("/api/v1/nodes/free", lambda body: body["spec"]["taints"].extend(more))
    assert run("release", "free", "--yes").exit_code == 0
    assert nodes.taints("free") == [FOREIGN]


@pytest.mark.parametrize("missing", [(DEPLOYMENT,), (GATE,), (DEPLOYMENT, GATE)])
def test_works_without_operator_and_node_gate(
    nodes: World, run: Run, missing: tuple[str, ...]
) -> None:
    for path in missing:
        nodes.api.remove(path)
    assert run("release", "a", "--yes").exit_code == 0
    assert nodes.taints("a") == [FOREIGN]


def test_says_that_the_gate_is_still_armed(nodes: World, run: Run) -> None:
    said = run("release", "a", "-y").stdout
    assert "kubectl patch nodegate default" in said
    assert max(len(line) for line in said.splitlines() if KEY not in line) <= 80
    nodes.api.change(GATE, lambda body: body["spec"].update(suspend=True))
    assert "kubectl patch" not in run("release", "b", "-y").stdout


def test_without_a_terminal_yes_is_needed(nodes: World, run: Run) -> None:
    result = run("release", "--all")
    assert result.exit_code == 2
    assert "2 nodes would be freed, and there is no terminal to ask: give --yes" in result.stderr
    assert nodes.api.writes() == []


@pytest.mark.parametrize(("answer", "status", "held"), [("y\n", 0, False), ("n\n", 1, True)])
def test_terminal_is_asked(
    nodes: World, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, *, held: bool
) -> None:
    monkeypatch.setattr("imagegate.cli.release.asks", lambda: True)
    result = run("release", "--all", input=answer)
    assert "Free 2 nodes (a, b)? Pods start there without the images." in result.stdout
    assert result.exit_code == status
    assert (KEY in nodes.taints("a")) is held


@pytest.mark.parametrize("arguments", [[], ["a", "--all"]])
def test_nodes_or_all(nodes: World, run: Run, arguments: list[str]) -> None:
    result = run("release", "--yes", *arguments)
    assert result.exit_code == 2
    assert "name the nodes, or give --all" in result.stderr


def test_unknown_and_free_nodes_do_not_stop_the_others(nodes: World, run: Run) -> None:
    result = run("release", "gone", "free", "a", "a", "--yes")
    assert result.exit_code == 1
    assert "there is no Node 'gone'" in result.stderr
    assert "node/free is not held" in result.stdout
    assert nodes.taints("a") == [FOREIGN]
    assert len(nodes.api.writes()) == 1


def before_patch(world: World, node: str, happen: Callable[[], None]) -> None:
    """Something happens between the read and the first patch of this node."""
    done: list[bool] = []

    def before(method: str, path: str) -> None:
        if method == "PATCH" and path.endswith(f"/{node}") and not done:
            done.append(True)
            happen()

    world.api.before = before


def test_foreign_taint_that_comes_meanwhile_stays(nodes: World, run: Run) -> None:
    def taint() -> None:
        nodes.api.change(
            "/api/v1/nodes/a",
            lambda body: body["spec"]["taints"].insert(0, {"key": "x", "effect": "NoExecute"}),
        )

    before_patch(nodes, "a", taint)
    assert run("release", "a", "--yes").exit_code == 0
    assert nodes.taints("a") == ["x", FOREIGN]


def test_node_that_vanishes_is_not_an_error(nodes: World, run: Run) -> None:
    before_patch(nodes, "a", lambda: nodes.api.remove("/api/v1/nodes/a"))
    result = run("release", "--all", "--yes")
    assert result.exit_code == 0
    assert "node/a is not held any more" in result.stdout
    assert nodes.taints("b") == [FOREIGN]


def test_node_that_changes_and_then_vanishes_is_not_an_error(nodes: World, run: Run) -> None:
    def before(method: str, path: str) -> None:
        if method == "PATCH" and path.endswith("/a"):
            nodes.api.remove("/api/v1/nodes/a")
            raise errors.Conflict(f"{method} {path}", 422, "test failed")

    nodes.api.before = before
    result = run("release", "--all", "--yes")
    assert result.exit_code == 0
    assert "node/a is not held any more" in result.stdout
    assert nodes.taints("b") == [FOREIGN]


def test_refused_patch_is_reported_and_the_others_are_freed(nodes: World, run: Run) -> None:
    def refuse(method: str, path: str) -> None:
        if method == "PATCH" and path.endswith("/a"):
            raise errors.Forbidden(f"{method} {path}", 403, "you may not")

    nodes.api.before = refuse
    result = run("release", "--all", "--yes")
    assert result.exit_code == 1
    assert "node/a is still held: PATCH /api/v1/nodes/a: 403: you may not" in result.stderr
    assert nodes.taints("b") == [FOREIGN]


def test_reader_without_the_right_to_see_leases_is_refused(nodes: World, run: Run) -> None:
    """A node may be held by a key that only the Lease names: say so, and free nothing by half."""

    def refuse(method: str, path: str) -> None:
        if "leases" in path:
            raise errors.Forbidden(f"{method} {path}", 403, "leases is forbidden")

    nodes.api.before = refuse
    result: Any = run("release", "--all", "--yes")
    assert isinstance(result.exception, errors.Forbidden)
    assert nodes.api.writes() == []
