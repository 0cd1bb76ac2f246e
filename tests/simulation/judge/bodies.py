"""Questions about one object of the API server."""

from __future__ import annotations

from typing import Any

from tests.simulation.asks import OBSERVED, Ask, Body
from tests.simulation.machines import Machine


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
    """Whether the Node lists every image. Until then the disk guard may count their sizes again."""
    names = {name for image in node["status"].get("images") or () for name in image["names"]}
    return ask.references <= names


def substance(prefetch: Body) -> Any:
    """The status without counters of attempts and without times."""
    status = prefetch.get("status") or {}
    return {
        **{k: v for k, v in status.items() if k not in ("refresh", "failures", "conditions")},
        # The status lists the ten nodes that failed last, so the nodes change with each attempt.
        "failures": sorted({f["reason"] for f in status.get("failures") or ()}),
        "conditions": [(c["type"], c["status"], c["reason"]) for c in status.get("conditions", ())],
    }


def of_this_life(pod: Body, machine: Machine, ask: Ask) -> bool:
    """Whether a puller pod was created for this machine, and with ``onReboot: Hold``, also for its
    present boot.
    """
    observed = str((pod["metadata"].get("annotations") or {}).get(OBSERVED))
    return observed == machine.identity or (
        not ask.again and observed.startswith(f"{machine.uid}/")
    )


def of_another_life(node: Body) -> bool:
    """Whether the labels of the Node belong to an earlier boot, or to an earlier machine."""
    observed = (node["metadata"].get("annotations") or {}).get(OBSERVED)
    identity = f"{node['metadata']['uid']}/{node['status']['nodeInfo']['bootID']}"
    return observed is not None and observed != identity
