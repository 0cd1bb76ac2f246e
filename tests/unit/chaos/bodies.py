"""Small objects in the format of the API server."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.chaos.history import GROUP, LABEL, OBSERVED, PREFETCH, TAINT

Body = dict[str, Any]

IMAGE = "open.registry.test/team/app:1"
FOREIGN = {"key": "example.com/keep", "value": "x", "effect": "NoSchedule"}
GATE = {"key": TAINT, "value": "pending", "effect": "NoSchedule"}
GOING: Body = {"deletionTimestamp": "1970-01-01T00:17:40Z"}


def target(*images: str) -> str:
    return hashlib.sha256("\n".join(sorted(images)).encode()).hexdigest()[:12]


CACHED = {LABEL + "p": target(IMAGE)}


def node(
    name: str = "n1",
    *,
    taints: tuple[Body, ...] = (GATE, FOREIGN),
    labels: Any = (),
    boot: str = "b",
    **metadata: Any,
) -> Body:
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": "1970-01-01T00:16:40Z",
            "labels": dict(labels),
            **metadata,
        },
        "spec": {"taints": list(taints)},
        "status": {
            "nodeInfo": {"bootID": boot},
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:16:41Z"}
            ],
        },
    }


def prefetch(name: str = "p", *, images: tuple[str, ...] = (IMAGE,), **spec: Any) -> Body:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "generation": 1},
        "spec": {
            "images": [{"image": image} for image in images],
            "rollout": {"maxParallel": 1},
            **spec,
        },
    }


def pod(
    name: str = "ipf-p-1",
    *,
    on: str = "n1",
    phase: str = "Pending",
    waiting: tuple[str, str] = ("", ""),
    **metadata: Any,
) -> Body:
    statuses = (
        [{"state": {"waiting": {"reason": waiting[0], "message": waiting[1]}}}]
        if waiting[0]
        else []
    )
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": "1970-01-01T00:16:50Z",
            "labels": {PREFETCH: "p", GROUP: "g"},
            "annotations": {OBSERVED: f"uid-{on}/b"},
            "ownerReferences": [{"kind": "Node", "name": on, "uid": f"uid-{on}"}],
            **metadata,
        },
        "spec": {"nodeName": on, "volumes": [{"name": "i", "image": {"reference": IMAGE}}]},
        "status": {"phase": phase, "containerStatuses": statuses},
    }
