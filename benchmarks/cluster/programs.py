"""Programs of this checkout in the network and the cgroup of the cluster, and their CPU time."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.cluster import LocalCluster
from tests.cluster.errors import ClusterError
from tests.cluster.local.processes import Process
from tests.cluster.paths import CHECKOUT

TICKS = os.sysconf("SC_CLK_TCK")


def launch(
    cluster: LocalCluster, name: str, module: str, *arguments: str, **environment: str
) -> Process:
    """Start a module. It ends with the cluster at the latest."""
    variables = {
        "PYTHONPATH": f"{CHECKOUT / 'operator'}:{CHECKOUT}",
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    command = ["/usr/bin/env", *(f"{key}={value}" for key, value in variables.items())]
    command += [sys.executable, "-m", module, *arguments]
    return cluster.control_plane.group.start(name, command)


def finish(cluster: LocalCluster, process: Process) -> None:
    """Wait for its end. Raises ClusterError if it has written anything, such as a traceback."""
    while process.alive:
        time.sleep(0.02)
    cluster.control_plane.group.stop(process.name)
    log = Path(process.log)
    text = log.read_text().strip()
    log.unlink()
    if text:
        raise ClusterError(f"{process.name}: {text[-2000:]}")


def cpu(pid: int) -> float:
    """CPU seconds of a process so far, of user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
