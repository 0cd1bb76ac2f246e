"""Removes a cluster, and checks that nothing of it is left.

This needs no state, because all processes are in the cluster's cgroup. Network interfaces, routes,
iptables rules and mounts are in namespaces that end with their last process.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.cluster import paths
from tests.cluster.errors import ClusterError
from tests.cluster.local import cgroups, state


def cgroup(name: str) -> str:
    return f"imagegate-{name}"


def remove(name: str) -> None:
    """Removes the cluster. Idempotent; works after a crash and with damaged state."""
    cgroups.kill(cgroup(name))
    cgroups.remove(cgroup(name))
    folder = state.folder(name)
    unmount_below(folder)
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise ClusterError(f"cannot remove {folder}")


def unmount_below(folder: Path) -> None:
    """Unmounts what an interrupted debootstrap or buildah may have mounted in this namespace. The
    harness itself mounts nothing here."""
    for mount in reversed(mounts_below(folder)):
        subprocess.run([paths.system("umount"), "--lazy", str(mount)], check=False)
    if left := mounts_below(folder):
        raise ClusterError(f"cannot unmount {', '.join(map(str, left))}")


def mounts_below(folder: Path) -> list[Path]:
    """The mounts below a folder, in the order of their creation, so that the deepest are last."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    return [mount for mount in mounts if mount.is_relative_to(folder)]


def leftovers(name: str) -> list[str]:
    """The remains that `down` should have removed, one line each."""
    found = [
        f"process {pid}: {_command(pid)}"
        for pid in sorted(cgroups.processes(cgroup(name)) | _strays(name))
    ]
    if cgroups.exists(cgroup(name)):
        found.append(f"cgroup {cgroup(name)}")
    found += [f"mount {mount}" for mount in mounts_below(state.folder(name))]
    found += [f"mount {mount}" for mount in mounts_below(paths.cache())]
    if state.folder(name).exists():
        found.append(f"folder {state.folder(name)}")
    return found + _network_leftovers()


def _strays(name: str) -> set[int]:
    """Processes outside the cgroup with a file of the cluster in their arguments."""
    ours = f"{state.folder(name)}/"
    strays = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = (entry / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            if any(ours in argument for argument in arguments.split("\0")):
                strays.add(int(entry.name))
    return strays


def _network_leftovers() -> list[str]:
    """The harness' names and addresses in this machine's own network, which must have none."""
    checks = (
        ([paths.system("ip"), "-o", "link"], ("bridge0", "cni0", "node1:")),
        ([paths.system("ip"), "-o", "route"], ("10.90.", "10.91.", "10.92.")),
        (["iptables-save"], ("KUBE-", "CNI-")),
    )
    found = []
    for command, marks in checks:
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            continue
        lines = output.splitlines()
        found += [f"{command[0]}: {line}" for line in lines if any(mark in line for mark in marks)]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()[:200]
    except OSError:
        return "?"
