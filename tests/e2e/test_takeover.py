"""The leader dies: the standby takes over, running pulls continue, and no image is pulled twice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.cluster import NodeOptions
from tests.e2e.installation import Installation
from tests.e2e.watching import NodeWatch, held, released

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

POOL = {"matchLabels": {"pool": "takeover"}}


def test_standby_takes_over_a_running_pull_from_a_killed_leader(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    big = cluster.push("big", "takeover/big:1", seed=3)
    with (
        imagegate.prefetching("takeover", big, nodeSelector=POOL),
        NodeWatch(cluster) as watch,
    ):
        node = cluster.add_node(
            "node-takeover", NodeOptions(labels={"pool": "takeover"}), wait=False
        )
        try:
            # 300 MiB at 100 Mbit/s take 25 s, which is longer than a takeover may take.
            node.limit_bandwidth("100mbit")
            cluster.wait(lambda: len(imagegate.pullers("takeover")) == 1, "the puller pod", 60)
            (puller,) = imagegate.pullers("takeover")
            old = imagegate.leader()
            killed = time.time()
            imagegate.kill(old)
            cluster.wait(lambda: imagegate.leader() not in ("", old), "another leader", 30)
            taken = time.time() - killed
            print(f"\nleader killed to standby leading: {taken:.1f} s")
            assert taken < 20
            assert held(watch.of(node.name)[-1]), "released before its images were cached"
            assert not node.has_image(big), "the pull ended before the takeover"
            watch.first(node.name, released, timeout=90)
            assert node.has_image(big)
            (same,) = imagegate.pullers("takeover")
            assert same["metadata"]["uid"] == puller["metadata"]["uid"]
            pulls = [
                event
                for event in cluster.api.get("/api/v1/namespaces/imagegate-pullers/events")["items"]
                if event["reason"] == "Pulling"
                and event["involvedObject"]["name"] == puller["metadata"]["name"]
                and big in event["message"]
            ]
            assert [event.get("count", 1) for event in pulls] == [1], "pulled more than once"
        finally:
            cluster.remove_node("node-takeover")
    cluster.wait(lambda: len(imagegate.operator_pods()) == 2, "two operators again", 90)


def test_leader_that_is_asked_to_stop_hands_over_immediately(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    old = imagegate.leader()
    began = time.time()
    cluster.kubectl("-n", "imagegate-system", "delete", "pod", old, "--wait=false")
    cluster.wait(lambda: imagegate.leader() not in ("", old), "another leader", 30)
    print(f"\nleader asked to stop to standby leading: {time.time() - began:.1f} s")
    assert time.time() - began < 10
    cluster.wait(lambda: len(imagegate.operator_pods()) == 2, "two operators again", 90)
    imagegate.wait_armed()
