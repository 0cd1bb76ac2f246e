"""`make test`: runs targets of the Makefile in parallel and reports the result of each.

A test on a cluster mostly waits. So several clusters run at the same time, each with its own pytest
process (`LANES` in `tests/e2e/conftest.py`). Each line of output begins with the job's name, and
`.artifacts/JOB.log` has the output of one job. `tests/cluster/README.md` explains which jobs run at
the same time, and why.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.cluster.local import cluster as local
from tests.cluster.paths import CHECKOUT

ARTIFACTS = CHECKOUT / ".artifacts"
CLUSTERS_AT_A_TIME = 4
"""For two cores, because a cluster and its pytest need about half of a core on average."""
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
GRACE = 60.0
"""Seconds for an interrupted job to remove its cluster, before the job is killed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A target of the Makefile."""

    name: str
    target: tuple[str, ...]
    cluster: str = ""
    """The name of its cluster, to remove the cluster if an interrupted pytest did not."""
    idle: bool = False
    """Whether it runs with SCHED_IDLE: it gets only the CPU time that other jobs leave."""
    nice: int = 0
    """The nice value of its session's autogroup."""

    @property
    def log(self) -> Path:
        return ARTIFACTS / f"{self.name}.log"

    @property
    def command(self) -> list[str]:
        return [*(("chrt", "--idle", "0") if self.idle else ()), "make", *self.target]


def lane(name: str, nice: int = 0) -> Job:
    return Job(f"e2e-{name}", ("e2e", f"LANE={name}"), f"imagegate-e2e-{name}", nice=nice)


CHECKS = (Job("lint", ("lint",)), Job("unit", ("unit",)))
"""Run first, before any cluster, because they keep the cores busy all the time."""
CLUSTERS = (
    lane("listed"),
    lane("upgrades"),
    lane("large"),
    lane("timed", nice=-10),
    Job("chaos", ("chaos",), "imagegate-e2e-chaos"),
    lane("bench"),
    Job("e2e-older", ("e2e-older",), "imagegate-e2e-older"),
)
"""The longest first. Each job that ends frees a slot for the next job."""
SIMULATION = Job("simulate", ("simulate",), idle=True, nice=19)


@dataclass(slots=True)
class Result:
    job: Job
    status: int
    seconds: float
    failed: list[str] = field(default_factory=list)
    """The lines about failed tests in pytest's summary."""

    def __str__(self) -> str:
        how = "passed" if self.status == 0 else f"FAILED ({self.status})"
        return f"{self.job.name:14} {how:12} {self.seconds / 60:5.1f} min  {self.job.log}"


class Runner:
    """Starts each job in its own process group, so that an interrupt reaches the job only once. A
    second interrupt would stop pytest while it removes its cluster."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, job: Job) -> Result:
        began = time.monotonic()
        failed: list[str] = []
        with job.log.open("w") as log:
            process = self._start(job)
            if process is None:
                return Result(job, -signal.SIGTERM, 0)
            assert process.stdout is not None
            with process.stdout as output:
                for line in output:
                    log.write(line)
                    log.flush()
                    self._print(f"{job.name:14} {line}")
                    if line.startswith(("FAILED ", "ERROR tests")):
                        failed.append(line.strip())
        with self._lock:  # after wait() another process group may get this number
            status = process.wait()
            self._running.discard(process)
        result = Result(job, status, time.monotonic() - began, failed)
        self._print(f"---- {result}\n")
        return result

    def _start(self, job: Job) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                job.command,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
            self._running.add(process)
        if job.nice:
            _set_nice(process.pid, job.nice)
        return process

    def _print(self, text: str) -> None:
        with self._lock:
            sys.stdout.write(text)
            sys.stdout.flush()

    def stop(self, number: signal.Signals) -> None:
        """Signals every process of every job. No job starts after this."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)


def _set_nice(session: int, nice: int) -> None:
    """If the kernel groups tasks by session (sched(7), autogroup), nice values and SCHED_IDLE have
    an effect only within a session. Against other sessions the nice value of the session counts."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{session}/autogroup").write_text(str(nice))


def run_all(checks: Sequence[Job], clusters: Sequence[Job], beside: Sequence[Job]) -> list[Result]:
    """Runs the checks and, if they pass, the clusters. ``beside`` runs in parallel to both."""
    runner = Runner()
    results: list[Result] = []
    with (
        ThreadPoolExecutor(len(checks) + len(beside)) as others,
        ThreadPoolExecutor(CLUSTERS_AT_A_TIME) as slots,
    ):
        started: list[Future[Result]] = [others.submit(runner.run, job) for job in checks]
        beginning = [others.submit(runner.run, job) for job in beside]
        try:
            results += [future.result() for future in started]
            if any(result.status for result in results):
                runner.stop(signal.SIGTERM)
                return results
            started = [slots.submit(runner.run, job) for job in clusters] + beginning
            results += [future.result() for future in started]
        except BaseException:
            started += beginning
            for future in started:
                future.cancel()
            runner.stop(signal.SIGTERM)
            # A job ends when no process has its output open, because make ends before pytest does.
            wait(started, GRACE)
            runner.stop(signal.SIGKILL)
            raise
    return results


def summary(results: Sequence[Result], since: float) -> str:
    """One line for each job, then the failed tests, their logs, and the dumps of this run."""
    lines = ["", *map(str, results)]
    for result in results:
        if result.status:
            tail = result.failed or result.job.log.read_text().splitlines()[-15:]
            lines += ["", f"{result.job.name} failed, log {result.job.log}:"]
            lines += [f"  {line}" for line in tail]
    dumps = sorted(
        path for path in ARTIFACTS.iterdir() if path.is_dir() and path.stat().st_mtime >= since
    )
    if any(result.failed for result in results) and dumps:
        lines += ["", "objects, events and logs of the clusters of failed tests:"]
        lines += [f"  {folder}" for folder in dumps]
    return "\n".join(lines)


def take_down() -> None:
    """Removes the clusters that an interrupted pytest may have left."""
    for job in CLUSTERS:
        local.remove(job.cluster)


def main() -> int:
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    if sys.argv[1:] == ["down"]:
        take_down()
        return 0
    ARTIFACTS.mkdir(exist_ok=True)
    began = time.time()
    try:
        results = run_all(CHECKS, CLUSTERS, [SIMULATION])
    except SystemExit:
        take_down()
        raise
    print(summary(results, began))
    return int(any(result.status for result in results))


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    """Ends the run at the first signal and ignores the next ones, because the process group and
    make may both send the same signal."""
    for each in INTERRUPTS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
