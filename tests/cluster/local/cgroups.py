"""cgroups, v1 or v2: each cluster has one cgroup at the top, which contains all of its processes.

So `down` finds every process of the cluster, also after a crash, and kills no other process.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import ClusterError


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup file system: one for each controller in v1, a single one in v2."""

    mount: Path
    controllers: frozenset[str]
    unified: bool


def hierarchies() -> list[Hierarchy]:
    """The hierarchies for processes. On a hybrid machine these are the v1 hierarchies, because the
    v2 hierarchy has no controllers."""
    found = list(_mounted())
    v1 = [hierarchy for hierarchy in found if not hierarchy.unified]
    if not found:
        raise ClusterError("no cgroup file system is mounted on this machine")
    return v1 or found


def _mounted() -> Iterator[Hierarchy]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount, (kind, _, options) = Path(before.split()[4]), after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            yield Hierarchy(mount, frozenset(options.split(",")), kind == "cgroup2")


def create(group: str) -> list[Path]:
    """Creates the group in every hierarchy. Returns the files for the pids of processes."""
    return [_create(hierarchy, group) / "cgroup.procs" for hierarchy in hierarchies()]


def _create(hierarchy: Hierarchy, group: str) -> Path:
    path = hierarchy.mount
    for part in Path(group).parts:
        if hierarchy.unified:
            _enable_controllers(path)
        path /= part
        path.mkdir(exist_ok=True)
        if "cpuset" in hierarchy.controllers:
            _inherit_cpuset(path)
    return path


def _enable_controllers(path: Path) -> None:
    for controller in (path / "cgroup.controllers").read_text().split():
        try:
            (path / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:
            continue  # not delegated on this machine; kubelet reports an error if it needs it


def _inherit_cpuset(path: Path) -> None:
    """In v1 a new cpuset is empty, and no process can enter it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (path / name).read_text().strip():
            (path / name).write_text((path.parent / name).read_text())


def set_cpu_weight(group: str, weight: int) -> None:
    """Sets the group's share of busy cores against its sibling groups. The default is 100."""
    for hierarchy in hierarchies():
        if hierarchy.unified:
            (hierarchy.mount / group / "cpu.weight").write_text(str(weight))
        elif "cpu" in hierarchy.controllers:
            (hierarchy.mount / group / "cpu.shares").write_text(str(weight * 1024 // 100))


def processes(group: str) -> set[int]:
    """Every pid in the group and below it."""
    pids: set[int] = set()
    for folder in _folders(group):
        try:
            pids.update(map(int, (folder / "cgroup.procs").read_text().split()))
        except OSError:
            continue  # removed meanwhile, or a threaded v2 group
    return pids


def kill(group: str, timeout: float = 20) -> None:
    """SIGKILLs all processes in the group until none is left, because they may fork meanwhile."""
    deadline = time.monotonic() + timeout
    while pids := processes(group):
        for pid in pids:
            _kill_member(pid, group)
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {sorted(pids)} in cgroup {group} do not die")
        time.sleep(0.01)


def _kill_member(pid: int, group: str) -> None:
    """Opens a pidfd first and then checks the group again, because another process may have got the
    pid meanwhile."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _is_member(pid, group):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)  # if it is a child of this process
    except (ProcessLookupError, ChildProcessError, FileNotFoundError):
        pass
    finally:
        os.close(handle)


def _is_member(pid: int, group: str) -> bool:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return any(f"{line.split(':', 2)[2]}/".startswith(f"/{group}/") for line in lines)


def remove(group: str, timeout: float = 10) -> None:
    """Removes the empty group from all hierarchies, with retries, because the kernel releases dead
    processes with a delay."""
    deadline = time.monotonic() + timeout
    while folders := list(_folders(group)):
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(f"cannot remove cgroup {folder}: {error}") from error
        time.sleep(0.01)


def exists(group: str) -> bool:
    return any(True for _ in _folders(group))


def _folders(group: str) -> Iterator[Path]:
    for hierarchy in _mounted():  # also v2 on a hybrid machine, because runc creates groups in it
        top = hierarchy.mount / group
        if top.is_dir():
            for folder, _, _ in os.walk(top):
                yield Path(folder)


def is_v2() -> bool:
    return all(hierarchy.unified for hierarchy in hierarchies())
