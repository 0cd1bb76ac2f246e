"""Writes diagnostics after a failed test, for a reader who has only the files."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.errors import ClusterError

if TYPE_CHECKING:
    from tests.cluster.provider import Cluster

_TAIL = 256 * 1024
_KINDS = "nodes,pods,deployments,services,leases,jobs"


def dump(cluster: "Cluster", folder: Path, namespace: str = "imagegate-system") -> None:
    """Objects, events, the operator's logs and the tails of the components' logs."""
    folder.mkdir(parents=True, exist_ok=True)
    commands = {
        "objects.txt": ("get", _KINDS, "-A", "-o", "wide"),
        "nodes.yaml": ("get", "nodes", "-o", "yaml"),
        "pods.yaml": ("get", "pods", "-A", "-o", "yaml"),
        "imagegate.yaml": ("get", "imagegate", "-A", "-o", "yaml"),  # the category of our kinds
        "describe-nodes.txt": ("describe", "nodes"),
        "describe-pods.txt": ("describe", "pods", "-A"),
        "events.txt": ("get", "events", "-A", "--sort-by=.lastTimestamp"),
    }
    for file, arguments in commands.items():
        _write(cluster, folder / file, *arguments)
    for flag in ("", "--previous"):
        _operator_logs(cluster, folder, namespace, flag)
    for log in cluster.logs():
        with contextlib.suppress(OSError):
            target = folder / "logs" / f"{log.parent.parent.name}-{log.name}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(_tail(log))


def _operator_logs(cluster: "Cluster", folder: Path, namespace: str, flag: str) -> None:
    with contextlib.suppress(ClusterError, OSError):
        for pod in cluster.kubectl("-n", namespace, "get", "pods", "-o", "name").split():
            name = pod.rpartition("/")[2] + flag
            arguments = [
                "-n",
                namespace,
                "logs",
                pod,
                "--all-containers",
                *([flag] if flag else []),
            ]
            _write(cluster, folder / f"operator-{name}.log", *arguments)


def _write(cluster: "Cluster", path: Path, *arguments: str) -> None:
    try:
        path.write_text(cluster.kubectl("--request-timeout=20s", *arguments))
    except (ClusterError, OSError) as error:
        path.write_text(f"{error}\n")


def _tail(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        return file.read()
