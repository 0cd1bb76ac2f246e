"""Nodes in service: the seeds pull first, and their failure does not reach the other nodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.e2e.installation import Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster


def test_failing_seed_blocks_the_other_nodes_until_it_succeeds(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    late = "open.registry.test/rollout/late:1"
    retry = {"minSeconds": 1, "maxSeconds": 3}
    with imagegate.prefetching("seeds", late, retry=retry):
        tried: set[str] = set()

        def degraded() -> bool:
            tried.update(pod["spec"]["nodeName"] for pod in imagegate.pullers("seeds"))
            return imagegate.condition("seeds", "Degraded").get("reason") == "SeedsFailed"

        cluster.wait(degraded, "SeedsFailed", 30)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            assert degraded()
            time.sleep(0.1)
        assert len(tried) == 1, "the failure reached more than the seed"
        assert "push the image" in imagegate.condition("seeds", "Degraded")["message"]
        cluster.push("tiny", "rollout/late:1", seed=71)
        imagegate.wait_ready("seeds")
        assert all(node.has_image(late) for node in cluster.nodes.values())
        assert imagegate.condition("seeds", "Degraded")["status"] == "False"


def test_pause_starts_no_pull_and_resume_continues_the_rollout(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("tiny", "rollout/paused:1", seed=72)
    with imagegate.prefetching("paused", image, rollout={"paused": True}):
        cluster.wait(
            lambda: imagegate.condition("paused", "Progressing").get("reason") == "Paused",
            "Paused",
            20,
        )
        time.sleep(2)
        assert imagegate.pullers("paused") == []
        imagegate.prefetch("paused", image, rollout={"paused": False, "maxParallel": 1})
        imagegate.wait_ready("paused")
