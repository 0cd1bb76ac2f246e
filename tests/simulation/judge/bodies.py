"""Questions about one object of the API server."""

from __future__ import annotations

from typing import Any

from tests.simulation.asks import OBSERVED, Ask, Body


def phase(pod: Body) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def finished(pod: Body) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def images_of(pod: Body) -> set[str]:
    volumes = pod["spec"].get("volumes") or ()
    return {volume["image"]["reference"] for volume in volumes if "image" in volume}


def ready(node: Body) -> bool:
    conditions = node["status"].get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def listed(node: Body, ask: Ask) -> bool:
    """Whether its kubelet has said that the images are there: else they may have no room."""
    names = {name for image in node["status"].get("images") or () for name in image["names"]}
    return ask.references <= names


def substance(prefetch: Body) -> Any:
    """What a status says, without attempts that are counted and times that pass."""
    status = prefetch.get("status") or {}
    return {
        **{k: v for k, v in status.items() if k not in ("refresh", "failures", "conditions")},
        # Of many nodes that fail, the last ten to have been tried.
        "failures": sorted({f["reason"] for f in status.get("failures") or ()}),
        "conditions": [(c["type"], c["status"], c["reason"]) for c in status.get("conditions", ())],
    }


def of_another_life(node: Body) -> bool:
    """Whether its labels were true for an earlier boot, or for another machine."""
    observed = (node["metadata"].get("annotations") or {}).get(OBSERVED)
    identity = f"{node['metadata']['uid']}/{node['status']['nodeInfo']['bootID']}"
    return observed is not None and observed != identity
