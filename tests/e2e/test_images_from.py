"""A workload's new images are on the nodes before its rollout continues."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.installation import Installation, exists

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

NAMESPACE = "serving"
STEADY = {"steady": "yes"}
PREFETCH = "imageprefetches.imagegate.dev/web"
WEB = {
    "kind": "Deployment",
    "namespace": NAMESPACE,
    "selector": {"matchLabels": {"app": "web"}},
}


@pytest.fixture
def serving(cluster: LocalCluster, imagegate: Installation) -> Iterator[None]:
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    cluster.wait(lambda: exists(cluster, account), "the namespace's service account", 30)
    yield
    imagegate.delete("web")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=90s")  # the next test makes it
    imagegate.upgrade()


def web(images: dict[str, str], *, paused: bool) -> dict[str, Any]:
    """A Deployment with an init container, and with an image volume if ``images`` has weights."""
    mounted = images.keys() & {"weights"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": NAMESPACE, "labels": {"app": "web"}},
        "spec": {
            "replicas": 2,
            "paused": paused,
            "strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}},
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "nodeSelector": STEADY,
                    "terminationGracePeriodSeconds": 0,
                    "initContainers": [
                        {"name": "fetch", "image": images["fetch"], "command": ["true"]}
                    ],
                    "containers": [
                        {
                            "name": "server",
                            "image": images["server"],
                            "command": ["sleep", "100000"],
                            "volumeMounts": [
                                {"name": name, "mountPath": f"/{name}"} for name in mounted
                            ],
                        }
                    ],
                    "volumes": [
                        {"name": name, "image": {"reference": images[name]}} for name in mounted
                    ],
                },
            },
        },
    }


def pull_events(cluster: LocalCluster) -> dict[str, list[str]]:
    """The messages of the kubelets' events about images, by pod."""
    said: dict[str, list[str]] = {}
    for event in cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/events")["items"]:
        if event["reason"] in ("Pulling", "Pulled", "Failed", "BackOff"):
            said.setdefault(event["involvedObject"]["name"], []).append(event["message"])
    return said


def has_image_volumes(cluster: LocalCluster) -> bool:
    """Whether the API server supports image volumes: by default since 1.35."""
    _, minor = cluster.api.get("/version")["gitVersion"].split(".")[:2]
    return int(minor) >= 35


def test_images_of_a_paused_rollout_are_on_the_nodes_before_it_resumes(
    cluster: LocalCluster, imagegate: Installation, serving: None
) -> None:
    versions = [
        {
            "fetch": cluster.push("busybox", f"serving/fetch:{version}", seed=90 + version),
            "server": cluster.push("busybox", f"serving/server:{version}", seed=92 + version),
        }
        for version in (1, 2)
    ]
    if has_image_volumes(cluster):
        for number, images in enumerate(versions, start=1):
            weights = cluster.push("medium", f"serving/weights:{number}", seed=94 + number)
            images["weights"] = weights
    cluster.apply(web(versions[0], paused=False))

    # Without the permission to list Deployments, the operator reports the remedy and starts no
    # pull.
    imagegate.prefetch("web", images=[], imagesFrom=[WEB], nodeSelector={"matchLabels": STEADY})
    remedy = (
        "the operator may not list deployments in namespace serving:"
        " add it to the chart's imagesFrom.namespaces"
    )

    def explained() -> bool:
        conditions = (imagegate.condition("web", type_) for type_ in ("ImagesFound", "Ready"))
        return all(remedy in condition.get("message", "") for condition in conditions)

    cluster.wait(explained, "both conditions with the remedy", 30)
    assert imagegate.pullers("web") == []
    imagegate.upgrade(**{"imagesFrom.namespaces": f"{{{NAMESPACE}}}"})
    imagegate.wait_ready("web")
    found = imagegate.get("web")["status"]["images"]
    assert {entry["image"]: entry["from"] for entry in found} == dict.fromkeys(
        versions[0].values(), "Deployment serving/web"
    )
    cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/web", "--timeout=60s")

    # The steps of docs/workloads.md: pause, change, wait, resume.
    old = set(pull_events(cluster))
    began = time.time()
    cluster.apply(web(versions[1], paused=True))
    new = versions[1]["server"]
    cluster.kubectl(
        "wait",
        PREFETCH,
        f'--for=jsonpath={{.status.images[?(@.image=="{new}")].image}}={new}',
        "--timeout=30s",
    )
    seen = time.time() - began
    cluster.kubectl("wait", PREFETCH, "--for=condition=Ready", "--timeout=90s")
    ready = time.time() - began
    for node in cluster.nodes.values():
        if "steady" in node.object()["metadata"]["labels"]:
            assert all(node.has_image(image) for image in versions[1].values())
    assert set(pull_events(cluster)) == old, "the paused rollout started pods"

    began = time.time()
    cluster.kubectl("-n", NAMESPACE, "rollout", "resume", "deployment/web")
    cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/web", "--timeout=60s")
    print(f"\nchange to status: {seen:.1f} s, to Ready: {ready:.1f} s")
    print(f"resume to rolled out: {time.time() - began:.1f} s")
    started = {pod: said for pod, said in pull_events(cluster).items() if pod not in old}
    assert len(started) == 2
    for pod, said in started.items():
        assert all("already present on machine" in message for message in said), (pod, said)
        assert all(any(image in message for message in said) for image in versions[1].values())


GROUP = "example.com"
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"pipelines.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": "pipelines", "kind": "Pipeline"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


@pytest.fixture
def pipelines(cluster: LocalCluster, serving: None) -> Iterator[None]:
    yield
    cluster.kubectl("delete", "crd", f"pipelines.{GROUP}", "--ignore-not-found")


def test_images_of_another_kind_are_pulled_once_its_crd_and_the_role_exist(
    cluster: LocalCluster, imagegate: Installation, pipelines: None
) -> None:
    worker = cluster.push("busybox", "serving/worker:1", seed=96)
    tool = cluster.push("busybox", "serving/tool:1", seed=97)
    source = {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Pipeline",
        "namespace": NAMESPACE,
        "podTemplates": ["spec.workers[*].template"],
        "images": ["spec.tool"],
    }
    imagegate.prefetch("web", images=[], imagesFrom=[source], nodeSelector={"matchLabels": STEADY})

    def said(text: str, reason: str) -> bool:
        condition = imagegate.condition("web", "ImagesFound")
        return condition.get("reason") == reason and text in condition.get("message", "")

    missing = f"the API server does not serve Pipeline of {GROUP}/v1: install its"
    cluster.wait(lambda: said(missing, "KindNotServed"), "the missing CRD in the condition", 30)
    cluster.apply(CRD)
    refused = (
        f"the operator may not list pipelines.{GROUP} in namespace {NAMESPACE}:"
        " add both to the chart's imagesFrom.resources"
    )
    cluster.wait(lambda: said(refused, "SourceNotRead"), "the missing Role in the condition", 60)
    imagegate.upgrade(
        **{
            "imagesFrom.resources[0].name": f"pipelines.{GROUP}",
            "imagesFrom.resources[0].namespaces": f"{{{NAMESPACE}}}",
        }
    )
    template = {"spec": {"containers": [{"name": "worker", "image": worker}]}}
    cluster.apply(
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Pipeline",
            "metadata": {"name": "nightly", "namespace": NAMESPACE},
            "spec": {"tool": tool, "workers": [{"template": template}]},
        }
    )
    cluster.wait(
        lambda: len(imagegate.get("web")["status"].get("images", [])) == 2, "both images", 60
    )
    imagegate.wait_ready("web")
    found = imagegate.get("web")["status"]["images"]
    assert {entry["image"]: entry["from"] for entry in found} == dict.fromkeys(
        (tool, worker), f"Pipeline.{GROUP} {NAMESPACE}/nightly"
    )
    for node in cluster.nodes.values():
        if "steady" in node.object()["metadata"]["labels"]:
            assert node.has_image(tool)
            assert node.has_image(worker)
