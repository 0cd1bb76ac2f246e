"""Starts, watches and stops the processes of a cluster.

Each process is recorded with its start time, so that a later run recognises its processes and does
not confuse them with another process of the same pid. Each process enters its cgroup and namespaces
before it executes the program, so that the program never runs outside of them.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster import paths
from tests.cluster.errors import ClusterError
from tests.cluster.local import cgroups

# Writes its pid into the cgroup files before `--`, then executes the remaining arguments.
_ENTER = (
    'ulimit -n "$(ulimit -H -n)"; '
    'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'
)
_ENV = {"PATH": paths.SYSTEM, "HOME": "/root"}
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD}


@dataclass(frozen=True, slots=True)
class Process:
    """A process that this harness started."""

    name: str
    pid: int
    start_time: int  # in clock ticks since boot, from /proc; unique together with the pid
    log: str

    @property
    def alive(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)  # reaps it if it is a child of this process
        stat = _stat(self.pid)
        return stat is not None and stat == self.start_time

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, grace: float = 5) -> None:
        """Sends SIGTERM, and SIGKILL after `grace` seconds, because the API server may take a
        minute to stop."""
        self.signal(signal.SIGTERM if grace else signal.SIGKILL)
        if not _until(lambda: not self.alive, grace):
            self.signal(signal.SIGKILL)
            if not _until(lambda: not self.alive, 10):
                raise ClusterError(f"{self.name} (pid {self.pid}) survives SIGKILL")

    def tail(self, lines: int = 20) -> str:
        try:
            text = Path(self.log).read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])


@dataclass(frozen=True, slots=True)
class Group:
    """Processes that share a cgroup and a holder's namespaces: a node or the control plane."""

    folder: Path  # records in run/, logs in log/
    cgroup: str
    namespaces: tuple[str, ...] = ()  # flags of nsenter(1) and unshare(1)

    def hold(self, pause: Path) -> Process:
        """Creates the namespaces and a holder process. They exist as long as a process is in them.
        A process holds them, because a bind mount would stay after the cluster."""
        flags = [*self.namespaces, "--propagation=private"]
        holder = self._spawn("holder", [paths.system("unshare"), *flags, "--", str(pause)])
        own = Path("/proc/self/ns/net").readlink()

        def made() -> bool:
            comm = Path(f"/proc/{holder.pid}/comm").read_text().strip()
            return comm == "pause" and Path(f"/proc/{holder.pid}/ns/net").readlink() != own

        wait_until(made, f"namespaces of {self.cgroup}", 10, [holder])
        return holder

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside the namespaces.

        It does not use `ip netns exec`, which mounts another /sys and hides the cgroups from
        kubelet.
        """
        holder = self.find("holder")
        if holder is None:
            raise ClusterError(f"{self.folder.name} is not running")
        return [paths.system("nsenter"), f"--target={holder.pid}", *self.namespaces, "--", *command]

    def start(self, name: str, command: Sequence[str]) -> Process:
        return self._spawn(name, self.enter(command))

    def start_outside(self, name: str, command: Sequence[str]) -> Process:
        """Starts a process in the group's cgroup, but in this machine's namespaces."""
        return self._spawn(name, command)

    def find(self, name: str) -> Process | None:
        """The process of that name if it is alive, or None."""
        try:
            process = Process(**json.loads((self.folder / "run" / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return process if process.alive else None

    def recorded(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "run").glob("*.json"))

    def stop(self, name: str, grace: float = 5) -> None:
        if process := self.find(name):
            process.stop(grace)
        (self.folder / "run" / f"{name}.json").unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    def _spawn(self, name: str, command: Sequence[str]) -> Process:
        if running := self.find(name):
            raise ClusterError(f"{name} of {self.folder.name} already runs: pid {running.pid}")
        record, log = self.folder / "run" / f"{name}.json", self.log(name)
        for folder in (record.parent, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        files = [str(path) for path in cgroups.create(f"{self.cgroup}/daemons")]
        argv = ["sh", "-c", _ENTER, "sh", *files, "--", *command]
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            "/bin/sh",
            argv,
            _ENV,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,  # Ctrl-C reaches only the harness, which stops the processes in order
            setsigmask=[],
            setsigdef=_SIGNALS,
        )
        process = Process(name, pid, _stat(pid) or 0, str(log))
        record.write_text(json.dumps(asdict(process)))
        return process


def wait_until(
    done: Callable[[], bool], what: str, timeout: float, needed: Sequence[Process] = ()
) -> None:
    """Polls until `done`. Fails early with the log if a needed process has died."""
    deadline = time.monotonic() + timeout
    while True:
        dead = next((process for process in needed if not process.alive), None)
        try:
            if done():
                return
        except OSError:
            pass
        if dead:
            raise ClusterError(f"{dead.name} ended at start; log {dead.log}:\n{dead.tail()}")
        if time.monotonic() > deadline:
            logs = "".join(f"\n--- {each.log}:\n{each.tail()}" for each in needed)
            raise ClusterError(f"{what}: not within {timeout:.0f} s{logs}")
        time.sleep(0.05)


def _until(done: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _stat(pid: int) -> int | None:
    """The process' start time; None if the process does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
