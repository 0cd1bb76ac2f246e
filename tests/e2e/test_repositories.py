"""New tags are on the nodes before anything names them: after a push event, and by polling."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from imagegate.puller import read
from tests.cluster import images
from tests.cluster.local.registries import Registry
from tests.e2e.installation import Installation
from tests.e2e.pushing import Pulls, receive, service, told

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

HOST = "open.registry.test"
BUDGET = 3.0
"""Seconds from the end of a push until the first node pulls."""
INTERVAL = 30
"""Seconds between two lists of tags: the shortest time that the API allows."""
MANY = 10_000


def builds(repository: str, **changes: Any) -> dict[str, Any]:
    """The entry of docs/repositories.md."""
    return {
        "repository": f"{HOST}/{repository}",
        "filterTags": {"pattern": "^main-[a-f0-9]+-(?P<ts>[0-9]+)$", "extract": "$ts"},
        "policy": {"numerical": {"order": "asc"}},
        "keep": 2,
        **changes,
    }


def tag(number: int) -> str:
    return f"main-{number * 7919 % 2**28:07x}-{1764240000 + number}"


@pytest.fixture
def registry(cluster: LocalCluster) -> Registry:
    return cluster.registries["open"]


@pytest.fixture(scope="module")
def secret(cluster: LocalCluster, imagegate: Installation) -> Iterator[str]:
    """The secret of the registry's push events. A new one, because the same Secret is not read
    again in a kept cluster."""
    made = secrets.token_hex(8)
    receive(cluster, imagegate, made)
    yield made
    for name in ("builds", "polled"):
        imagegate.delete(name)


def push(registry: Registry, repository: str, number: int) -> float:
    """Push the image of a build. Returns the time after the push."""
    layout = images.build("busybox", seed=800 + number)
    registry.push(layout, f"{repository}:{tag(number)}")
    return time.time()


def chosen(imagegate: Installation, name: str) -> list[str]:
    entries = imagegate.get(name).get("status", {}).get("repositories") or [{}]
    return list(entries[0].get("tags", []))


def pulled(imagegate: Installation, name: str) -> set[str]:
    """The images that the puller pods of a prefetch pull."""
    return {image for pod in imagegate.pullers(name) for image in read.pod(pod).images}


def arrived(
    cluster: LocalCluster, imagegate: Installation, name: str, repository: str, *numbers: int
) -> None:
    """These builds are the target, the newest first, and every node has them."""
    cluster.wait(
        lambda: chosen(imagegate, name) == [tag(n) for n in numbers] and imagegate.is_true(name),
        f"{name} Ready with the builds {numbers}",
        60,
    )
    for node in cluster.nodes.values():
        assert all(node.has_image(f"{HOST}/{repository}:{tag(n)}") for n in numbers)
        labels = imagegate.node(node.name)["metadata"]["labels"]
        assert labels[f"cached.imagegate.dev/{name}"] == imagegate.get(name)["status"]["target"]


def starts(cluster: LocalCluster, image: str) -> list[str]:
    """The kubelets' events about the image of a new Deployment with a pod on each node."""
    labels = {"app": "repositories"}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }
    container = {"name": "server", "image": image, "command": ["sleep", "100000"]}
    cluster.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "repositories", "namespace": "default"},
            "spec": {
                "replicas": len(cluster.nodes),
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "topologySpreadConstraints": [spread],
                        "containers": [container],
                    },
                },
            },
        }
    )
    try:
        kubectl = ("-n", "default", "rollout", "status", "deployment/repositories")
        cluster.kubectl(*kubectl, "--timeout=60s")
        return [
            event["message"]
            for event in cluster.api.get("/api/v1/namespaces/default/events")["items"]
            if event["reason"] in ("Pulling", "Pulled") and image in event["message"]
        ]
    finally:
        cluster.kubectl("-n", "default", "delete", "deployment", "repositories", "--wait=false")


def test_new_tag_is_on_every_node_before_a_deployment_names_it(
    cluster: LocalCluster, imagegate: Installation, registry: Registry, secret: str
) -> None:
    repository = "builds/app"
    for number in (1, 2):
        push(registry, repository, number)
    # cosign's tags, and a tag of another branch.
    signature = "sha256-" + registry.digest(f"{repository}:{tag(1)}").removeprefix("sha256:")
    registry.tag(f"{repository}:{tag(1)}", [f"{signature}.sig", "feature-12ab-1864240000"])
    imagegate.prefetch("builds", images=[], repositories=[builds(repository)])
    imagegate.wait_ready("builds")
    arrived(cluster, imagegate, "builds", repository, 2, 1)
    entry = imagegate.get("builds")["status"]["repositories"][0]
    assert (entry["matching"], entry["listed"]) == (2, 3)
    with Pulls(cluster) as pulls, told(registry, service(cluster), secret):
        seconds = []
        for number in (3, 4):
            pods = pulls.pods(imagegate, "builds")
            pushed = push(registry, repository, number)
            new = f"{HOST}/{repository}:{tag(number)}"
            seconds.append(pulls.begun(new, pods, 30) - pushed)
            arrived(cluster, imagegate, "builds", repository, number, number - 1)
            ready = time.time() - pushed
            print(f"\npush to the first pull: {seconds[-1]:.2f} s, to every node: {ready:.1f} s")
        # The next leader continues with the same tags, and finds the next.
        target = imagegate.get("builds")["status"]["target"]
        leader = imagegate.leader()
        imagegate.kill(leader)
        cluster.wait(lambda: imagegate.leader() not in ("", leader), "the next leader", 60)
        assert imagegate.get("builds")["status"]["target"] == target
        push(registry, repository, 5)
        arrived(cluster, imagegate, "builds", repository, 5, 4)
    said = starts(cluster, f"{HOST}/{repository}:{tag(5)}")
    assert len(said) == len(cluster.nodes)
    assert all("already present on machine" in text for text in said), said

    # The builds before the last two are released: no pod pins them, and no status names them.
    def released() -> bool:
        return pulled(imagegate, "builds") == {
            f"{HOST}/{repository}:{tag(number)}" for number in (4, 5)
        }

    cluster.wait(released, "the earlier puller pods to be deleted", 60)
    named = {entry["image"]: entry["from"] for entry in imagegate.get("builds")["status"]["images"]}
    assert named == dict.fromkeys(
        (f"{HOST}/{repository}:{tag(number)}" for number in (5, 4)),
        f"Repository {HOST}/{repository}",
    )
    assert min(seconds) > -1, "the pull began before the push"
    assert max(seconds) < BUDGET


def test_new_tag_of_ten_thousand_is_found_after_a_push_and_by_polling(
    cluster: LocalCluster, imagegate: Installation, registry: Registry, secret: str
) -> None:
    repository = "builds/many"
    push(registry, repository, 0)
    registry.tag(f"{repository}:{tag(0)}", (tag(-number) for number in range(1, MANY)))
    selected = {"images": [], "repositories": [builds(repository, keep=1)]}
    imagegate.prefetch("polled", **selected, refresh={"intervalSeconds": INTERVAL})
    imagegate.wait_ready("polled")
    arrived(cluster, imagegate, "polled", repository, 0)
    entry = imagegate.get("polled")["status"]["repositories"][0]
    assert (entry["matching"], entry["listed"]) == (MANY, MANY)
    message = imagegate.condition("polled", "TagsSelected")["message"]
    assert message == f"1 of {MANY} matching tags, of {MANY} in all, of {HOST}/{repository}"
    with Pulls(cluster) as pulls:
        pods = pulls.pods(imagegate, "polled")
        pushed = push(registry, repository, 1)
        polled = pulls.begun(f"{HOST}/{repository}:{tag(1)}", pods, 2 * INTERVAL) - pushed
        arrived(cluster, imagegate, "polled", repository, 1)
        with told(registry, service(cluster), secret):
            pods = pulls.pods(imagegate, "polled")
            pushed = push(registry, repository, 2)
            hooked = pulls.begun(f"{HOST}/{repository}:{tag(2)}", pods, 30) - pushed
            arrived(cluster, imagegate, "polled", repository, 2)
    print(f"\n{MANY} tags: {hooked:.2f} s with a hook, {polled:.1f} s by polling")
    assert hooked < BUDGET
    assert polled < INTERVAL + 2 * BUDGET
