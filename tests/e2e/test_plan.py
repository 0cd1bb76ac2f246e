"""Plans without pulls: ``spec.dryRun`` and ``imagegate plan``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cluster.errors import ClusterError
from tests.e2e.installation import NAMESPACE, Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster


def test_dry_run_reports_the_plan_and_changes_nothing(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("app", "plan/dry:1", seed=61)
    with imagegate.prefetching("dry", image, dryRun=True):
        cluster.wait(lambda: imagegate.condition("dry", "Ready").get("reason") == "DryRun", "", 30)
        message = imagegate.condition("dry", "Ready")["message"]
        assert f"onto each of {len(cluster.nodes)} nodes" in message
        assert "mirror" in message
        assert imagegate.counts("dry")["pending"] == len(cluster.nodes)
        assert imagegate.pullers("dry") == []
        assert not any("dry" in trace for trace in imagegate.traces())
        assert not imagegate.get("dry")["metadata"].get("finalizers")
        assert not any(node.has_image(image) for node in cluster.nodes.values())
        imagegate.prefetch("dry", image, dryRun=False)
        imagegate.wait_ready("dry")
        imagegate.prefetch("dry", image, dryRun=True)
        cluster.wait(lambda: imagegate.condition("dry", "Ready").get("reason") == "DryRun", "", 30)
        assert imagegate.counts("dry")["cached"] == len(cluster.nodes)
        assert len(imagegate.pullers("dry")) == len(cluster.nodes), "the pods stay"


def test_plan_in_the_operator_pod_reports_sizes_nodes_and_disk_space(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("app", "plan/table:1", seed=62)
    body = {
        "apiVersion": "imagegate.dev/v1alpha1",
        "kind": "ImagePrefetch",
        "metadata": {"name": "table"},
        "spec": {"images": [{"image": image}], "disk": {"maxUsagePercent": 99}},
    }

    def plan(*arguments: str, percent: int) -> str:
        body["spec"]["disk"]["maxUsagePercent"] = percent  # type: ignore[index]
        command = ["exec", "-i", "-n", NAMESPACE, "deploy/imagegate", "--"]
        command += ["imagegate", "plan", "-f", "-", *arguments]
        # If no node has enough disk space, the command fails, so that a pipeline stops.
        return cluster.kubectl(*command, stdin=yaml.safe_dump(body), check=percent > 1)

    table = plan(percent=99)
    print(f"\n{table}")
    lines = [line.split() for line in table.splitlines()]
    assert ["matched", str(len(cluster.nodes))] in lines

    entry: dict[str, Any] = {}

    def disks_not_read() -> list[Any]:
        """A kubelet sometimes reports no disk usage for some seconds."""
        nonlocal entry
        (entry,) = json.loads(plan("-o", "json", percent=99))
        return list(entry["disksNotRead"])

    cluster.wait(lambda: disks_not_read() == [], "every kubelet to report its disk", 60)
    assert entry["toPull"] == len(cluster.nodes)
    assert entry["images"][0]["compressedBytes"] > 100_000
    assert entry["bytesAll"] == entry["bytesPerNode"] * len(cluster.nodes)

    def without_room() -> set[str]:
        (full,) = json.loads(plan("-o", "json", percent=1))
        return {node["node"] for node in full["noRoom"]}

    cluster.wait(lambda: without_room() == set(cluster.nodes), "no room anywhere", 60)
    body["spec"]["disk"]["maxUsagePercent"] = 1  # type: ignore[index]
    asked = [
        "exec",
        "-i",
        "-n",
        NAMESPACE,
        "deploy/imagegate",
        "--",
        "imagegate",
        "plan",
        "-f",
        "-",
    ]
    with pytest.raises(ClusterError, match="exit code 1"):
        cluster.kubectl(*asked, stdin=yaml.safe_dump(body))
    assert imagegate.pullers("table") == []
