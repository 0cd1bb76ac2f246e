"""Records of the cluster's objects, and functions that read them.

This module and the witness import nothing of `imagegate`, because a checker must not share the
mistakes of the program. They repeat the few rules of the API that they need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Body = Mapping[str, Any]

TAINT = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
LABEL = "cached.imagegate.dev/"
OBSERVED = "imagegate.dev/observed"
PREFETCH = "imagegate.dev/prefetch"
GROUP = "imagegate.dev/group"
SIMULATED = "kwok.test/node"
"""Label of simulated nodes. They pull nothing, so the success of a puller pod proves the images."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One version of one object, from a watch event."""

    kind: str
    type: str
    """ADDED, MODIFIED or DELETED."""
    version: int
    """The resourceVersion. All kinds share one counter, so it orders the events of different
    watches."""
    at: float
    """When the event was received, in seconds since the epoch."""
    body: Body


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete list, after a watch could not resume from its version (410 Gone)."""

    kind: str
    version: int
    at: float
    items: tuple[Body, ...]
    since: float
    """The start of the gap in seconds since the epoch. All earlier events were received."""


Entry = Seen | Snapshot


def name(body: Body) -> str:
    return str(body["metadata"]["name"])


def uid(body: Body) -> str:
    return str(body["metadata"]["uid"])


def deleting(body: Body) -> bool:
    return "deletionTimestamp" in body["metadata"]


def labels(body: Body) -> Mapping[str, str]:
    return body["metadata"].get("labels") or {}


def notes(body: Body) -> Mapping[str, str]:
    return body["metadata"].get("annotations") or {}


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# ---- Nodes


def taints(node: Body) -> set[tuple[str, str, str]]:
    return {
        (taint["key"], taint.get("value", ""), taint["effect"])
        for taint in node["spec"].get("taints") or ()
    }


def held(node: Body) -> bool:
    return any(key == TAINT for key, _, _ in taints(node))


def foreign(node: Body) -> set[tuple[str, str, str]]:
    """Taints that neither Imagegate nor Kubernetes itself adds and removes."""
    return {
        taint
        for taint in taints(node)
        if taint[0] != TAINT and not taint[0].startswith(("node.kubernetes.io/", "node.cloud"))
    }


def ours(node: Body) -> dict[str, str]:
    """The targets in the labels of Imagegate, by prefetch."""
    return {
        key.removeprefix(LABEL): value
        for key, value in labels(node).items()
        if key.startswith(LABEL)
    }


def identity(node: Body) -> str:
    """The uid and the boot id of the node, in the format of the annotation."""
    return f"{uid(node)}/{(node.get('status') or {}).get('nodeInfo', {}).get('bootID', '')}"


def ready_since(node: Body) -> float | None:
    """When the node became Ready by its condition, but not earlier than its creation."""
    for condition in (node.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "True":
            created = seconds(node["metadata"]["creationTimestamp"])
            return max(created, seconds(condition["lastTransitionTime"]))
    return None


# ---- puller pods


def finished(pod: Body) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def succeeded(pod: Body) -> bool:
    return (pod.get("status") or {}).get("phase") == "Succeeded"


def machine(pod: Body) -> str:
    """The uid of the Node that owns the pod."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner["kind"] == "Node"), "")


def mounted(pod: Body) -> tuple[str, ...]:
    """The images of its volumes, which the kubelet pulls."""
    volumes = pod["spec"].get("volumes") or ()
    return tuple(v["image"]["reference"] for v in volumes if "image" in v)


def complaint(pod: Body) -> str:
    """The kubelet's reason and message of a failed pull; empty if there is none."""
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason.startswith(("Err", "ImagePull", "ImageInspect", "Invalid", "Registry")):
            return f"{reason}: {waiting.get('message', '')}"
    return ""


# ---- ImagePrefetches


@dataclass(frozen=True, slots=True)
class Ask:
    """The fields of an ImagePrefetch that the rules need. Edits of other fields leave it equal."""

    uid: str
    images: tuple[str, ...] = ()
    selector: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    gating: bool = True
    fail_open: bool = True
    gate_timeout: float = 600.0
    max_parallel: str = "10%"
    gate_parallel: str = "100%"
    retry_timeout: float | None = None
    deleting: bool = False

    @property
    def target(self) -> str:
        text = "\n".join(sorted(self.images))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def wants(self, node: Body) -> bool:
        return not self.deleting and all(
            _satisfied(labels(node).get(key), operator, values)
            for key, operator, values in self.selector
        )

    def parallel(self, nodes: int, *, joining: bool) -> int:
        text = self.gate_parallel if joining else self.max_parallel
        share = int(text[:-1]) * nodes // 100 if text.endswith("%") else int(text)
        return max(1, share)


def ask(body: Body) -> Ask:
    spec = body["spec"]
    gate, retry = spec.get("gate") or {}, spec.get("retry") or {}
    return Ask(
        uid=uid(body),
        images=tuple(entry["image"] for entry in spec.get("images") or ()),
        selector=tuple(_requirements(spec.get("nodeSelector") or {})),
        gating=gate.get("mode", "NewNodes") == "NewNodes",
        fail_open=gate.get("policy", "FailOpen") == "FailOpen",
        gate_timeout=float(gate.get("timeoutSeconds", 600)),
        max_parallel=str((spec.get("rollout") or {}).get("maxParallel", "10%")),
        gate_parallel=str(gate.get("maxParallel", "100%")),
        retry_timeout=retry.get("timeoutSeconds"),
        deleting=deleting(body),
    )


def _requirements(selector: Body) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for key, value in (selector.get("matchLabels") or {}).items():
        yield key, "In", (value,)
    for each in selector.get("matchExpressions") or ():
        yield each["key"], each["operator"], tuple(each.get("values") or ())


def _satisfied(value: str | None, operator: str, values: tuple[str, ...]) -> bool:
    match operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:
            return value is None
