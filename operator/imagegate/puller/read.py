"""Puller pods and the kubelet's events about them, read back into facts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagegate.api import fields
from imagegate.domain.facts import PREFETCH_LABEL, Pod
from imagegate.puller.build import GROUP_LABEL, OBSERVED_ANNOTATION


def pod(body: Mapping[str, Any]) -> Pod:
    """A puller pod from its JSON form."""
    metadata: Mapping[str, Any] = body.get("metadata") or {}
    spec: Mapping[str, Any] = body.get("spec") or {}
    status: Mapping[str, Any] = body.get("status") or {}
    labels: Mapping[str, str] = metadata.get("labels") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    container: Mapping[str, Any] = next(iter(status.get("containerStatuses") or ()), {})
    state: Mapping[str, Any] = container.get("state") or {}
    waiting: Mapping[str, Any] = state.get("waiting") or {}
    finished = (state.get("terminated") or {}).get("finishedAt")
    return Pod(
        name=metadata.get("name", ""),
        namespace=metadata.get("namespace", ""),
        uid=metadata.get("uid", ""),
        version=fields.version(metadata),
        node=spec.get("nodeName", ""),
        prefetch=labels.get(PREFETCH_LABEL, ""),
        group=labels.get(GROUP_LABEL, ""),
        images=tuple(
            volume["image"]["reference"]
            for volume in spec.get("volumes") or ()
            if "reference" in (volume.get("image") or {})
        ),
        observed=annotations.get(OBSERVED_ANNOTATION, ""),
        phase=status.get("phase", "Pending"),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        waiting=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        created_at=fields.seconds(metadata.get("creationTimestamp")) or 0.0,
        finished_at=fields.seconds(finished),
        deleting="deletionTimestamp" in metadata,
    )


@dataclass(frozen=True, slots=True)
class Pulled:
    """A kubelet's word that an image is on its node."""

    pod_uid: str
    pod_name: str
    image: str
    seconds: float | None = None
    """How long the pull took, without waiting in the kubelet's queue; None: it was there."""
    size: int | None = None
    """Bytes, as the runtime counts them: containerd the compressed size."""


_PULLED = re.compile(
    r'Successfully pulled image "(?P<image>[^"]+)" in (?P<took>[0-9hmsµu.]+)'
    r"(?: \([^)]*\))?(?:\. Image size: (?P<size>\d+) bytes)?"
)
_PRESENT = re.compile(r'Container image "(?P<image>[^"]+)" already present on machine')
_DURATION = re.compile(r"(?P<number>[0-9.]+)(?P<unit>h|ms|µs|us|ns|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9}


def pulled(event: Mapping[str, Any]) -> Pulled | None:
    """What a core/v1 Event says about an image of a puller pod, or None if it says nothing.

    The texts are those of the kubelet (pkg/kubelet/images/image_manager.go).
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
    if found := _PRESENT.search(message):
        return Pulled(uid, pod_name, found["image"])
    return None


def duration(text: str) -> float:
    """Seconds of a Go duration such as ``1m2.345s``."""
    return sum(float(part["number"]) * _UNITS[part["unit"]] for part in _DURATION.finditer(text))
