"""Reading the status of puller pods: the pulls count, and the exit codes of containers do not."""

from __future__ import annotations

from typing import Any

import pytest

from imagegate.domain import failures, messages
from imagegate.domain.facts import Group
from imagegate.puller import build, read
from imagegate.puller.build import PullerSettings
from tests.unit.domain.cases import node, prefetch

SETTINGS = PullerSettings(image="reg.test/pause:3", busybox="reg.test/busybox:1")
IMAGES = ("reg.test/a:1", "reg.test/a:12", "reg.test/b:1")
OF_PULLER = "the puller pod's own image cannot be pulled: "


def body(kubelet: tuple[int, int], **status: Any) -> dict[str, Any]:
    of = prefetch("llm", *IMAGES)
    made = build.build(of, node(kubelet=kubelet), Group("g", IMAGES, ()), 1, SETTINGS)
    return {**made, "status": status}


def containers(*states: dict[str, Any]) -> dict[str, Any]:
    """A pod in container mode; the kubelet reports its containers in any order."""
    named = [{"name": f"image-{n}", **state} for n, state in enumerate(states)]
    named.append({"name": "report", **waiting("PodInitializing")})
    return body((1, 34), phase="Pending", containerStatuses=list(reversed(named)))


def exited(code: int = 0, reason: str = "Completed", **more: Any) -> dict[str, Any]:
    terminated = {"exitCode": code, "reason": reason, "finishedAt": "2026-01-01T00:00:10Z"}
    return {"imageID": "sha256:1", "state": {"terminated": terminated}, **more}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"imageID": "", "state": {"waiting": {"reason": reason, "message": message}}}


RUNNING = {"imageID": "sha256:1", "state": {"running": {}}}
START_ERROR = exited(128, "StartError")


@pytest.mark.parametrize("last", [exited(), exited(1, "Error"), START_ERROR])
@pytest.mark.parametrize("phase", ["Failed", "Pending"])
def test_image_is_pulled_although_its_container_cannot_run(
    last: dict[str, Any], phase: str
) -> None:
    seen = containers(exited(), START_ERROR, last)
    seen["status"]["phase"] = phase
    assert read.pod(seen).phase == "Succeeded"
    assert read.pod(seen).finished_at == pytest.approx(1767225610)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("RunContainerError", "exec: no such file or directory"),
        ("CreateContainerError", "unable to find user app: no matching entries in passwd file"),
    ],
)
def test_image_is_pulled_although_its_container_never_starts(reason: str, message: str) -> None:
    pod = read.pod(containers(exited(), exited(), waiting(reason, message)))
    assert pod.phase == "Succeeded"
    assert pod.finished_at is not None


LOST = (
    "failed to create containerd container: error unpacking image: failed to extract layer"
    " sha256:aa: failed to get reader from content store: content digest sha256:bb: not found"
)


@pytest.mark.parametrize(
    ("reason", "message", "failure"),
    [
        ("CreateContainerError", LOST, "NodeStoreDamaged"),
        ("CreateContainerError", "no command specified", "ContainerNotCreated"),
        ("CreateContainerError", "context deadline exceeded", "ContainerNotCreated"),
        ("CreateContainerConfigError", 'secret "x" not found', "ContainerNotCreated"),
    ],
)
@pytest.mark.parametrize("mounted", [False, True])
def test_container_that_cannot_be_created_does_not_prove_a_pull(
    reason: str, message: str, failure: str, mounted: bool
) -> None:
    """The node may not have the image, so it must not get the label."""
    if mounted:
        hold = {"name": "hold", **waiting(reason, message)}
        pod = read.pod(body((1, 36), phase="Pending", containerStatuses=[hold]))
    else:
        pod = read.pod(containers(exited(), exited(), waiting(reason, message)))
    assert pod.phase == "Pending"
    assert (pod.waiting, pod.waiting_message) == (reason, message)
    assert messages.classify(f"{pod.waiting}: {pod.waiting_message}").reason == failure


@pytest.mark.parametrize(
    "last",
    [
        waiting("ContainerCreating"),
        waiting("PodInitializing"),
        waiting("ErrImagePull", "not found"),
        RUNNING,
        {**exited(137, "ContainerStatusUnknown"), "imageID": ""},
    ],
)
def test_pod_is_pending_until_its_last_image_is_pulled(last: dict[str, Any]) -> None:
    pod = read.pod(containers(exited(), exited(), last))
    assert pod.phase == "Pending"
    assert read.pod(containers(exited(), exited())).phase == "Pending", (
        "the status of an image is missing"
    )
    assert read.pod(body((1, 34), phase="Pending")).phase == "Pending"


@pytest.mark.parametrize("reason", ["Evicted", "OutOfcpu", "NodeAffinity", "Terminated"])
def test_rejected_or_evicted_pod_is_retried_later(reason: str) -> None:
    seen = containers(exited(), exited(), exited())
    seen["status"] |= {"phase": "Failed", "reason": reason, "message": "why"}
    pod = read.pod(seen)
    assert (pod.phase, pod.reason, pod.message) == ("Failed", reason, "why")
    assert failures.ended(pod.reason) is failures.POD_REJECTED


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_progress_of_a_container_changes_no_fact(reason: str) -> None:
    created = read.pod(body((1, 36), phase="Pending"))
    hold = {"name": "hold", **waiting(reason)}
    assert read.pod(body((1, 36), phase="Pending", containerStatuses=[hold])) == created


def test_failed_pull_is_found_in_any_container() -> None:
    others = waiting("PodInitializing"), waiting("ErrImagePull", "no such thing")
    pod = read.pod(containers(*others, waiting("ContainerCreating")))
    assert (pod.waiting, pod.waiting_message) == ("ErrImagePull", "no such thing")
    assert pod.waiting_image == "reg.test/a:12"


def test_failed_pull_of_an_image_volume_is_found() -> None:
    hold = {"name": "hold", **waiting("ErrImagePull", "reg.test/b:1: not found")}
    pod = read.pod(body((1, 36), phase="Pending", containerStatuses=[hold]))
    assert (pod.waiting, pod.waiting_message) == ("ErrImagePull", "reg.test/b:1: not found")
    assert pod.waiting_image == ""


def test_image_volumes_are_pulled_once_the_container_has_started() -> None:
    hold = {"name": "hold", **exited(2, "Error")}
    pod = read.pod(body((1, 36), phase="Failed", containerStatuses=[hold]))
    assert pod.phase == "Succeeded"


@pytest.mark.parametrize(
    ("kubelet", "container", "image"),
    [((1, 34), "busybox", SETTINGS.busybox), ((1, 36), "hold", SETTINGS.image)],
)
def test_failed_pull_of_the_puller_pods_own_image_is_named(
    kubelet: tuple[int, int], container: str, image: str
) -> None:
    failed = {"name": container, **waiting("ImagePullBackOff", f'"{image}": not found')}
    field = "initContainerStatuses" if container == "busybox" else "containerStatuses"
    pod = read.pod(body(kubelet, phase="Pending", **{field: [failed]}))
    assert pod.waiting == "ImagePullBackOff"
    assert pod.waiting_message == f'{OF_PULLER}"{image}": not found'
    assert pod.waiting_image == image


def test_failed_init_container_is_a_failure_with_a_remedy() -> None:
    failed = {"name": "busybox", **START_ERROR}
    failed["state"]["terminated"]["message"] = 'exec: "/bin/busybox": no such file'
    later = [{"name": f"image-{n}", **waiting("PodInitializing")} for n in range(3)]
    pod = read.pod(
        body((1, 34), phase="Failed", initContainerStatuses=[failed], containerStatuses=later)
    )
    assert pod.phase == "Failed"
    assert pod.message == (
        'init container busybox: StartError (exit code 128) exec: "/bin/busybox": no such file'
    )
    assert "puller.container.image" in failures.ended(pod.reason).remedy


def test_pulled_event_of_a_container_is_read_as_of_a_volume() -> None:
    said = read.pulled(
        {
            "reason": "Pulled",
            "message": 'Successfully pulled image "reg.test/a:12" in 1s (1s including waiting).',
            "source": {"component": "kubelet"},
            "involvedObject": {
                "kind": "Pod",
                "name": "ipf-llm",
                "uid": "u",
                "fieldPath": "spec.containers{image-1}",
            },
        }
    )
    assert said == read.Pulled("u", "ipf-llm", "reg.test/a:12", 1.0)
