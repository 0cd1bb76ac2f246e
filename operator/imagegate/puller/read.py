"""Reads puller pods, and the kubelet's events about them, into facts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagegate.api import fields
from imagegate.domain import failures
from imagegate.domain.facts import PREFETCH_LABEL, Pod
from imagegate.domain.messages import CREATE_ERRORS, PULL_ERRORS
from imagegate.domain.redact import redact
from imagegate.puller.build import GROUP_LABEL, HOLD, IMAGE, OBSERVED_ANNOTATION

Body = Mapping[str, Any]

_CREATED = "RunContainerError"
"""Waiting reason of a container that the runtime created, from an unpacked image, but cannot run
(pkg/kubelet/kuberuntime/kuberuntime_container.go, startContainer). The failure to create a
container (CreateContainerError) does not prove that the image is there, because the kubelet relies
on the runtime's list of images, which may contain an image without its content. The exception are
errors that need the image's files; `_UNPACKED` matches their messages."""
_UNPACKED = re.compile(
    r"no matching entries in (passwd|group) file|unable to find (user|group) ", re.IGNORECASE
)


_ERRORS = PULL_ERRORS | CREATE_ERRORS


def pod(body: Body) -> Pod:
    """The facts about a puller pod from its JSON form."""
    metadata: Body = body.get("metadata") or {}
    spec: Body = body.get("spec") or {}
    status: Body = body.get("status") or {}
    labels: Mapping[str, str] = metadata.get("labels") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    inits: Sequence[Body] = status.get("initContainerStatuses") or ()
    containers: Sequence[Body] = status.get("containerStatuses") or ()
    images = _images(spec)
    phase, reason, message = _end(spec, status, inits, containers)
    waiting, waiting_message, waiting_image = _waiting(spec, images, (*inits, *containers))
    finished = [_state(each, "terminated").get("finishedAt") for each in containers]
    return Pod(
        name=metadata.get("name", ""),
        namespace=metadata.get("namespace", ""),
        uid=metadata.get("uid", ""),
        version=fields.version(metadata),
        node=spec.get("nodeName", ""),
        prefetch=labels.get(PREFETCH_LABEL, ""),
        group=labels.get(GROUP_LABEL, ""),
        images=images,
        observed=annotations.get(OBSERVED_ANNOTATION, ""),
        phase=phase,
        reason=reason,
        # Redacted here, at the only entry of messages, so that no message anywhere contains a
        # signed URL.
        message=redact(message),
        waiting=waiting,
        waiting_message=redact(waiting_message),
        waiting_image=waiting_image,
        created_at=fields.seconds(metadata.get("creationTimestamp")) or 0.0,
        began=any(each.get("containerID") for each in (*inits, *containers)),
        finished_at=max(filter(None, map(fields.seconds, finished)), default=None),
        deleting="deletionTimestamp" in metadata,
        owned=_owned(metadata, spec.get("nodeName", "")),
    )


def _owned(metadata: Body, node: str) -> bool:
    """Whether the Node is the object's controller."""
    return any(
        (owner.get("apiVersion"), owner.get("kind"), owner.get("name")) == ("v1", "Node", node)
        and owner.get("controller") is True
        for owner in metadata.get("ownerReferences") or ()
    )


def _state(container: Body, name: str) -> Body:
    found: Body = (container.get("state") or {}).get(name) or {}
    return found


def _images(spec: Body) -> tuple[str, ...]:
    """The images that the pod pulls for the prefetch, for both kinds of puller pods."""
    mounted = tuple(
        volume["image"]["reference"]
        for volume in spec.get("volumes") or ()
        if "reference" in (volume.get("image") or {})
    )
    return mounted or tuple(
        container["image"]
        for container in spec.get("containers") or ()
        if container.get("name", "").startswith(IMAGE)
    )


def _end(
    spec: Body, status: Body, inits: Sequence[Body], containers: Sequence[Body]
) -> tuple[str, str, str]:
    """Phase, reason and message of the pod, with a phase that depends only on the pulls.

    A container exists only after its image and its image volumes were pulled. So the pod has
    succeeded even if the runtime refuses the container, or the container exits with an error. A pod
    that was rejected or evicted has a reason of its own, and proves no pull.
    """
    phase: str = status.get("phase", "Pending")
    reason: str = status.get("reason", "")
    message: str = status.get("message", "")
    if phase == "Succeeded" or reason:
        return phase, reason, message
    names = (container.get("name", "") for container in spec.get("containers") or ())
    ours = {name for name in names if name == HOLD or name.startswith(IMAGE)}
    if ours and ours <= {c.get("name") for c in containers if _pulled(c)}:
        return "Succeeded", "", ""
    if phase == "Failed":
        for container in inits:
            ended = _state(container, "terminated")
            if ended.get("exitCode") and container.get("imageID"):
                what = f"{ended.get('reason', '')} (exit code {ended['exitCode']})"
                text = f"init container {container['name']}: {what} {ended.get('message', '')}"
                return phase, failures.PULLER_FAILED.reason, text.rstrip()
    return phase, reason, message


def _pulled(container: Body) -> bool:
    """Whether a container needs no further step, and its image was pulled."""
    if _state(container, "terminated"):
        return bool(container.get("imageID"))
    waiting = _state(container, "waiting")
    if waiting.get("reason") == "CreateContainerError":
        return bool(_UNPACKED.search(waiting.get("message", "")))
    return waiting.get("reason") == _CREATED


def _waiting(
    spec: Body, images: tuple[str, ...], containers: Sequence[Body]
) -> tuple[str, str, str]:
    """Reason, message and image of the first container that waits because of an error. Other
    reasons, such as ContainerCreating, are no facts: each would cause a decision about the node.
    """
    waiting = ((c.get("name"), _state(c, "waiting")) for c in containers)
    found = next((each for each in waiting if each[1].get("reason") in _ERRORS), None)
    if found is None:
        return "", "", ""
    name, state = found
    reason: str = state["reason"]
    message: str = state.get("message", "")
    declared = (*(spec.get("initContainers") or ()), *(spec.get("containers") or ()))
    image: str = next((c.get("image", "") for c in declared if c.get("name") == name), "")
    if image in images:
        return reason, message, image
    if reason in PULL_ERRORS and image and image in message:
        return reason, f"the puller pod's own image cannot be pulled: {message}", image
    return reason, message, ""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A kubelet's report that it has pulled an image: fetched and unpacked."""

    pod_uid: str
    pod_name: str
    image: str
    seconds: float
    """Duration of the pull, without the wait in the kubelet's queue."""
    size: int | None = None
    """Bytes as the runtime counts them; containerd counts compressed bytes."""


_PULLED = re.compile(
    r'Successfully pulled image "(?P<image>[^"]+)" in (?P<took>[0-9hmsµu.]+)'
    r"(?: \([^)]*\))?(?:\. Image size: (?P<size>\d+) bytes)?"
)
_DURATION = re.compile(r"(?P<number>[0-9.]+)(?P<unit>h|ms|µs|us|ns|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}


def pulled(event: Mapping[str, Any]) -> Pulled | None:
    """The pull that a core/v1 Event of the kubelet reports; None if it reports no pull.

    "already present on machine" is not a proof, because the kubelet then relies on the runtime's
    list, which may contain an image without its content. In this case the end of the pod is the
    proof, because the pod had mounted the image. The kubelet's texts are in
    pkg/kubelet/images/image_manager.go.
    """
    involved: Mapping[str, Any] = event.get("involvedObject") or {}
    source: Mapping[str, Any] = event.get("source") or {}
    if event.get("reason") != "Pulled" or involved.get("kind") != "Pod":
        return None
    if source.get("component") != "kubelet" and event.get("reportingComponent") != "kubelet":
        return None
    message: str = event.get("message", "")
    uid, pod_name = involved.get("uid", ""), involved.get("name", "")
    if found := _PULLED.search(message):
        size = found["size"]
        return Pulled(
            uid,
            pod_name,
            found["image"],
            seconds=duration(found["took"]),
            size=int(size) if size is not None else None,
        )
    return None


def duration(text: str) -> float:
    """Seconds of a Go duration such as ``1m2.345s``."""
    return sum(float(part["number"]) * _UNITS[part["unit"]] for part in _DURATION.finditer(text))
