"""The command line on the real cluster: status, wait, explain; release without an operator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster import NodeOptions
from tests.e2e.installation import KEY, NAMESPACE, PULLERS, Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node

FOREIGN = "example.com/somebody-else"
POOL = {"matchLabels": {"pool": "cli"}}


class Cli:
    """The program as a user runs it outside of the cluster, without a terminal."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def __call__(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "imagegate", *arguments, f"--kubeconfig={self.kubeconfig}"],
            env={**os.environ, "COLUMNS": "80"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        print(f"\n$ imagegate {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        assert done.returncode == status, done.stderr
        return done.stdout


@pytest.fixture
def joining(cluster: LocalCluster, imagegate: Installation) -> Iterator[Node]:
    """A node that joins with the gate's taint, also where no admission policy is served."""
    taints = (f"{FOREIGN}=x:NoSchedule", f"{KEY}=pending:NoSchedule")
    yield cluster.add_node(
        "node-cli", NodeOptions(labels={"pool": "cli"}, register_with_taints=taints)
    )
    cluster.remove_node("node-cli")


def test_kubectl_runs_the_plugin(cluster: LocalCluster, tmp_path: Path) -> None:
    plugin = tmp_path / "kubectl-imagegate"
    main = "import sys; from imagegate.cli import main; sys.exit(main())"
    plugin.write_text(f"#!{sys.executable}\n{main}\n")
    plugin.chmod(0o755)
    kubectl, *_ = cluster.command("kubectl")
    done = subprocess.run(
        [kubectl, "imagegate", "status", "--help"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("Usage: kubectl imagegate status ")


def test_held_node_is_explained_and_released_without_an_operator(
    cluster: LocalCluster, imagegate: Installation, request: pytest.FixtureRequest
) -> None:
    cli = Cli(cluster.kubeconfig)
    there = cluster.push("app", "cli/there:1", seed=151)
    closed = {"policy": "FailClosed"}
    with (
        imagegate.prefetching("cli-there", there),
        imagegate.prefetching(
            "cli-never", "open.registry.test/cli/never:1", nodeSelector=POOL, gate=closed
        ),
    ):
        assert cli("wait", "cli-there", "--for=ready", "--timeout=2m").endswith(" is ready\n")
        node = request.getfixturevalue("joining")
        everywhere = len(cluster.nodes)
        cluster.wait(lambda: imagegate.counts("cli-there")["cached"] == everywhere, "cached", 90)
        cluster.wait(lambda: imagegate.counts("cli-never").get("failed") == 1, "failed", 90)
        assert imagegate.held(node.name)

        # What the alerts are about.
        metrics = imagegate.metrics()
        assert metrics["imagegate_gate_oldest_hold_seconds"] > 0
        assert metrics["imagegate_gate_armed"] == 1
        assert metrics["imagegate_watch_stale"] == 0

        # The command decides as the operator does.
        explained = json.loads(cli("explain", "node", node.name, "-o", "json"))
        assert explained["held"] is True
        assert explained["why"] == "waiting for cli-never (FailClosed)"
        assert explained["frees"] == "only the images: gate.policy is FailClosed"
        assert explained["operator"].startswith("at work, last heartbeat")
        states = {each["prefetch"]: each["state"] for each in explained["prefetches"]}
        assert states == {"cli-there": "cached", "cli-never": "failed"}
        (failed,) = (each for each in explained["prefetches"] if each["prefetch"] == "cli-never")
        assert failed["why"].startswith("ImageNotFound: ")
        text = cli("explain", "node", node.name)
        assert max(map(len, text.splitlines())) <= 80

        shown = json.loads(cli("status", "--nodes", "-o", "json"))
        counted = {each["name"]: each["nodes"] for each in shown["prefetches"]}
        for name in ("cli-there", "cli-never"):
            assert counted[name] == imagegate.counts(name)
            decided = [each["state"] for each in shown["nodes"] if each["prefetch"] == name]
            assert decided.count("cached") == imagegate.counts(name)["cached"]
        assert "cli-there" in cli("status", "-o", "wide")
        cli("wait", "cli-never", "--timeout=1s", status=4)

        # In the operator's pod, with the operator's own rights.
        inside = ["exec", "-n", NAMESPACE, "deploy/imagegate", "--", "imagegate"]
        assert "only the images" in cluster.kubectl(*inside, "explain", "node", node.name)

        imagegate.scale(0)
        try:
            cli("release", node.name, status=2)  # no terminal, and no --yes
            assert imagegate.held(node.name)
            freed = cli("release", node.name, "--yes")
            assert f"node/{node.name} freed: removed {KEY}:NoSchedule" in freed
            assert "The gate is armed" in freed
            assert imagegate.taints(node.name).count(KEY) == 0
            assert FOREIGN in imagegate.taints(node.name)
            assert len(imagegate.pullers("cli-there", PULLERS)) == len(cluster.nodes)
            assert cli("release", "--all", "--yes") == "No node is held.\n"
            explained = json.loads(cli("explain", "node", node.name, "-o", "json"))
            assert explained["held"] is False
        finally:
            imagegate.scale(2)
        imagegate.wait_armed()
