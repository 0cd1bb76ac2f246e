"""Every node gets a pushed image: quickly after a push hook, and later by polling."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster import images
from tests.cluster.local.registries import Registry
from tests.e2e.installation import HOOKS, NAMESPACE, Installation
from tests.e2e.pushing import Pulls, receive, service, told

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

BUDGET = 3.0
"""Seconds from the end of a push until the first node pulls."""
INTERVAL = 30
"""Seconds between two checks of a tag: the shortest time that the API allows."""


@pytest.fixture
def registry(cluster: LocalCluster) -> Registry:
    return cluster.registries["open"]


def pod(imagegate: Installation) -> str:
    """The address of one of the pods that receive push hooks."""
    first, *_ = imagegate.hooks_pods()
    return f"{first['status']['podIP']}:8081"


def push(registry: Registry, repository: str, seed: int) -> float:
    """Push another image under the same tag. Returns the time after the push."""
    layout = images.build("tiny", seed=seed)
    registry.push(layout, repository)
    return time.time()


def arrived(
    cluster: LocalCluster, imagegate: Installation, name: str, image: str, digest: str
) -> None:
    """Every node has the image of that digest under its tag; status and labels report it."""

    def rolled_out() -> bool:
        status = imagegate.get(name)["status"]
        found = {entry["image"]: entry.get("digest") for entry in status["images"]}
        return found[image] == digest and imagegate.is_true(name)

    cluster.wait(rolled_out, f"{name} Ready with {digest}", 60)
    target = imagegate.get(name)["status"]["target"]
    for node in cluster.nodes.values():
        labels = imagegate.node(node.name)["metadata"]["labels"]
        assert labels[f"cached.imagegate.dev/{name}"] == target
        listed = node.ctr("images", "ls", f"name=={image}")
        assert digest in listed, f"{node.name}: the tag means another image: {listed}"


def refuses_everything_else(cluster: LocalCluster) -> None:
    """The account of the pods that external senders reach may write pushes, and nothing else."""
    account = f"--as=system:serviceaccount:{NAMESPACE}:{HOOKS}"
    for verb, what, allowed in (
        ("get", "configmaps/imagegate-pushes", "yes"),
        ("patch", "configmaps/imagegate-pushes", "yes"),
        ("patch", "configmaps/kube-root-ca.crt", "no"),
        ("list", "configmaps", "no"),
        ("get", f"secrets/{HOOKS}", "no"),
        ("list", "nodes", "no"),
        ("create", "pods", "no"),
        ("get", "leases/imagegate", "no"),
        ("list", "imageprefetches.imagegate.dev", "no"),
    ):
        said = cluster.kubectl("auth", "can-i", verb, what, "-n", NAMESPACE, account, check=False)
        assert said.strip() == allowed, f"{verb} {what}: {said}"


def test_push_reaches_every_node_quickly_with_a_hook_and_later_by_polling(
    cluster: LocalCluster, imagegate: Installation, registry: Registry
) -> None:
    repositories = [f"push/told-{letter}:1" for letter in "abc"]
    followed = [cluster.push("tiny", name, seed=700 + n) for n, name in enumerate(repositories)]
    untold = cluster.push("tiny", "push/untold:1", seed=710)
    receive(cluster, imagegate, "the-old-secret")
    poll = {"mode": "Digest", "intervalSeconds": INTERVAL}
    with (
        imagegate.prefetching("told", *followed, refresh={"mode": "Digest"}),
        imagegate.prefetching("untold", untold, refresh=poll),
        Pulls(cluster) as pulls,
    ):
        imagegate.wait_ready("told")
        imagegate.wait_ready("untold")
        earlier = pulls.pods(imagegate, "told", "untold")
        quiet = push(registry, "push/untold:1", 711)
        seconds: list[float] = []

        def round_(number: int, within: float = 30) -> None:
            image, repository = followed[number], repositories[number]
            pods = pulls.pods(imagegate, "told", "untold")
            pushed = push(registry, repository, 720 + len(seconds))
            seconds.append(pulls.begun(image, pods, within) - pushed)
            arrived(cluster, imagegate, "told", image, registry.digest(repository))

        with told(registry, service(cluster), "the-old-secret"):
            round_(0)
            round_(1)
        receive(cluster, imagegate, "the-new-secret")
        with told(registry, pod(imagegate), "the-new-secret"):
            round_(2)
            # Without a leader the push waits for the next leader.
            leader = imagegate.leader()
            imagegate.kill(leader)
            round_(0, within=60)
            assert imagegate.leader() != leader
        counted = {
            name: count
            for each in (*imagegate.operator_pods(), *imagegate.hooks_pods())
            for name, count in imagegate.metrics(each["metadata"]["name"]).items()
            if name.startswith("imagegate_push_events_total")
        }
        print(f"\npush to the first pull: {', '.join(f'{each:.2f}' for each in seconds)} s", end="")
        print(f" (median {statistics.median(seconds):.2f} s); {counted}")
        assert any('"forwarded"' in name for name in counted), counted
        refuses_everything_else(cluster)
        assert min(seconds) > -1, "the pull began before the push"
        assert statistics.median(seconds) < BUDGET

        polled = pulls.begun(untold, earlier, 2 * INTERVAL) - quiet
        arrived(cluster, imagegate, "untold", untold, registry.digest("push/untold:1"))
        print(f"without a hook, polling every {INTERVAL} s: {polled:.1f} s")
        assert polled < INTERVAL + 2 * BUDGET
