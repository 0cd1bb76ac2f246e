"""What kubelets make of puller pods: it is the pulls that count, whatever the containers do."""

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
    """A pod of containers, as an old kubelet reports it: in whatever order."""
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
def test_a_container_that_cannot_run_has_its_image_all_the_same(
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
def test_one_that_is_made_and_never_runs_has_its_image_all_the_same(
    reason: str, message: str
) -> None:
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
def test_one_that_cannot_be_made_proves_nothing(
    reason: str, message: str, failure: str, mounted: bool
) -> None:
    """The label is the product's word: the node may not hold the image at all."""
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
def test_a_pod_is_not_done_before_the_last_of_its_images(last: dict[str, Any]) -> None:
    pod = read.pod(containers(exited(), exited(), last))
    assert pod.phase == "Pending"
    assert read.pod(containers(exited(), exited())).phase == "Pending", "one is not there yet"
    assert read.pod(body((1, 34), phase="Pending")).phase == "Pending"


@pytest.mark.parametrize("reason", ["Evicted", "OutOfcpu", "NodeAffinity", "Terminated"])
def test_a_pod_that_was_rejected_or_evicted_says_nothing(reason: str) -> None:
    seen = containers(exited(), exited(), exited())
    seen["status"] |= {"phase": "Failed", "reason": reason, "message": "why"}
    pod = read.pod(seen)
    assert (pod.phase, pod.reason, pod.message) == ("Failed", reason, "why")
    assert failures.ended(pod.reason) is failures.POD_REJECTED


def test_a_failed_pull_is_found_in_any_container() -> None:
    others = waiting("PodInitializing"), waiting("ErrImagePull", "no such thing")
    pod = read.pod(containers(*others, waiting("ContainerCreating")))
    assert (pod.waiting, pod.waiting_message) == ("ErrImagePull", "no such thing")
    assert pod.waiting_image == "reg.test/a:12"


def test_a_failed_pull_of_a_mounted_image_is_found_as_well() -> None:
    hold = {"name": "hold", **waiting("ErrImagePull", "reg.test/b:1: not found")}
    pod = read.pod(body((1, 36), phase="Pending", containerStatuses=[hold]))
    assert (pod.waiting, pod.waiting_message) == ("ErrImagePull", "reg.test/b:1: not found")
    assert pod.waiting_image == ""


def test_mounted_images_are_there_once_the_container_is() -> None:
    hold = {"name": "hold", **exited(2, "Error")}
    pod = read.pod(body((1, 36), phase="Failed", containerStatuses=[hold]))
    assert pod.phase == "Succeeded"


@pytest.mark.parametrize(
    ("kubelet", "container", "image"),
    [((1, 34), "busybox", SETTINGS.busybox), ((1, 36), "hold", SETTINGS.image)],
)
def test_an_image_of_the_puller_pod_itself_that_cannot_be_pulled_is_named(
    kubelet: tuple[int, int], container: str, image: str
) -> None:
    failed = {"name": container, **waiting("ImagePullBackOff", f'"{image}": not found')}
    field = "initContainerStatuses" if container == "busybox" else "containerStatuses"
    pod = read.pod(body(kubelet, phase="Pending", **{field: [failed]}))
    assert pod.waiting == "ImagePullBackOff"
    assert pod.waiting_message == f'{OF_PULLER}"{image}": not found'
    assert pod.waiting_image == image


def test_an_init_container_that_fails_is_a_failure_with_a_remedy() -> None:
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


def test_a_pulled_event_of_a_container_counts_like_one_of_a_volume() -> None:
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
