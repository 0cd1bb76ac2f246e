"""Apply an ImagePrefetch: every node in service gets the images; status and metrics report it."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

from tests.e2e.installation import NAMESPACE, PULLERS, Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster


def pull_secret(cluster: LocalCluster, name: str) -> dict[str, object]:
    """The pull secret for the registry with a password."""
    text = cluster.registries["secure"].dockerconfigjson()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": name, "namespace": PULLERS},
        "data": {".dockerconfigjson": base64.b64encode(text.encode()).decode()},
    }


def test_three_images_of_all_kinds_are_on_every_node(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    big = cluster.push("big", "prefetch/big:1", seed=1)
    data = cluster.push("data", "prefetch/data:1")
    private = cluster.push("app", "prefetch/private:1", registry="secure")
    cluster.apply(pull_secret(cluster, "prefetch-pull"))
    images: list[str | dict[str, Any]] = [
        big,
        data,
        {"image": private, "imagePullSecrets": [{"name": "prefetch-pull"}]},
    ]
    scrape = {
        "job_name": "imagegate",
        "scrape_interval": "1s",
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": [
            {
                "source_labels": [
                    "__meta_kubernetes_namespace",
                    "__meta_kubernetes_pod_container_port_name",
                ],
                "regex": f"{NAMESPACE};http",
                "action": "keep",
            }
        ],
    }
    cluster.prometheus([scrape])
    nodes = list(cluster.nodes.values())
    with imagegate.prefetching("three", *images):
        imagegate.wait_ready("three")
        for node in nodes:
            missing = {big, data, private} - node.images()
            assert not missing, f"{node.name} says Ready without {missing}"
        status = imagegate.get("three")["status"]
        assert status["nodes"]["desired"] == status["nodes"]["cached"] == len(nodes)
        assert {image["image"] for image in status["images"]} == {big, data, private}
        columns = cluster.kubectl("get", "imageprefetches.imagegate.dev", "three")
        header, row = (re.split(r"\s+", line.strip()) for line in columns.splitlines())
        assert header == ["NAME", "DESIRED", "CACHED", "PULLING", "FAILED", "GATED", "READY", "AGE"]
        count = str(len(nodes))
        assert row[:7] == ["three", count, count, "0", "0", "0", "True"]

        def scraped() -> bool:
            found = cluster.prom_query('imagegate_nodes{prefetch="three",state="cached"}')
            return [sample["value"][1] for sample in found] == [count]

        cluster.wait(scraped, "Prometheus to have scraped the figures", 30)
        pulled = cluster.prom_query('imagegate_image_pull_bytes_total{prefetch="three"}')
        assert float(pulled[0]["value"][1]) > 2 * 300 * 1024 * 1024 * 0.9
        for node in nodes:
            label = imagegate.node(node.name)["metadata"]["labels"]["cached.imagegate.dev/three"]
            assert label == status["target"]


def test_edit_rolls_out_the_new_image_and_deletes_the_old_pods(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    first = cluster.push("tiny", "prefetch/edit:1", seed=11)
    second = cluster.push("tiny", "prefetch/edit:2", seed=12)
    with imagegate.prefetching("edit", first):
        imagegate.wait_ready("edit")
        before = {pod["metadata"]["name"] for pod in imagegate.pullers("edit")}
        target = imagegate.get("edit")["status"]["target"]
        imagegate.prefetch("edit", second)
        imagegate.wait_ready("edit")
        assert imagegate.get("edit")["status"]["target"] != target
        assert all(node.has_image(second) for node in cluster.nodes.values())
        cluster.wait(
            lambda: before.isdisjoint(p["metadata"]["name"] for p in imagegate.pullers("edit")),
            "the pods of the old image gone",
            20,
        )


def test_nodes_without_an_image_for_their_platform_are_skipped_and_reported(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("foreign", "prefetch/foreign:1")
    with imagegate.prefetching("foreign", image):
        cluster.wait(
            lambda: imagegate.condition("foreign", "Ready").get("reason") == "NodesSkipped",
            "NodesSkipped",
            30,
        )
        assert imagegate.counts("foreign")["skipped"] == len(cluster.nodes)
        message = imagegate.condition("foreign", "Ready")["message"]
        assert f"{len(cluster.nodes)} no image for its platform" in message
        assert imagegate.pullers("foreign") == [], "the registry said it before anything was pulled"


def test_deleted_kept_pod_is_created_again(cluster: LocalCluster, imagegate: Installation) -> None:
    image = cluster.push("tiny", "prefetch/kept:1", seed=13)
    with imagegate.prefetching("kept", image):
        imagegate.wait_ready("kept")
        lost = imagegate.pullers("kept")[0]
        cluster.kubectl("-n", PULLERS, "delete", "pod", lost["metadata"]["name"], "--wait=true")

        def back() -> bool:
            pods = imagegate.pullers("kept")
            uids = {pod["metadata"]["uid"] for pod in pods if pod["status"]["phase"] == "Succeeded"}
            return len(uids) == len(cluster.nodes) and lost["metadata"]["uid"] not in uids

        cluster.wait(back, "the pod put back", 20)


def test_errors_that_only_the_operator_sees_become_conditions_with_a_remedy(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("tiny", "prefetch/elsewhere:1", seed=14)
    with imagegate.prefetching("elsewhere", image, pullerNamespace="kube-public"):
        cluster.wait(lambda: imagegate.is_true("elsewhere", "Degraded"), "Degraded", 20)
        condition = imagegate.condition("elsewhere", "Ready")
        assert condition["reason"] == "NamespaceNotAllowed"
        assert "puller.namespaces" in condition["message"]
    selector = {"matchLabels": {"pool": "there-is-none"}}
    with imagegate.prefetching("nowhere", image, nodeSelector=selector):
        cluster.wait(
            lambda: imagegate.condition("nowhere", "Ready").get("reason") == "NoNodesMatch",
            "NoNodesMatch",
            20,
        )
    private = cluster.push("app", "prefetch/locked:1", registry="secure")
    with imagegate.prefetching("locked", private, imagePullSecrets=[{"name": "not-there"}]):
        cluster.wait(lambda: imagegate.is_true("locked", "Degraded"), "Degraded", 30)
        condition = imagegate.condition("locked", "Degraded")
        assert condition["reason"] == "SeedsFailed", "one node is enough to know"
        assert "not-there" in condition["message"]
        assert imagegate.get("locked")["status"]["failures"][0]["reason"] == "Unauthorized"
