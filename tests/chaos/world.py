"""One round of chaos: load, faults, calm, and the judgement of the witness."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos import astray
from tests.chaos.evidence import Violation, Write
from tests.chaos.history import Entry
from tests.chaos.recorder import Recorder, insist
from tests.chaos.witness import Witness
from tests.chaos.workload import Workload, prepare
from tests.cluster.errors import ClusterError
from tests.cluster.fixtures import ARTIFACTS
from tests.e2e.installation import RELEASE, Installation

if TYPE_CHECKING:
    from tests.chaos.faults import Fault
    from tests.cluster.local.cluster import LocalCluster

BOUND = 120.0
"""Seconds within which the cluster must converge after the last fault."""
QUIET = 5.0
"""Seconds without a write, if a round does not set its own."""
SETTLE = 4.0
"""Seconds until the last write of a status, because counts are written at most every 2 s."""


@dataclass(slots=True)
class Round:
    faults: tuple[str, ...]
    converged: float | None
    """Seconds from the end of the last fault; None: not converged."""
    violations: tuple[Violation, ...]
    trouble: str = ""
    took: dict[str, float] = field(default_factory=dict)
    """Seconds by phase."""

    def __str__(self) -> str:
        how = "not converged"
        if self.converged is not None:
            how = f"converged {self.converged:.1f} s after it"
        took = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in self.took.items())
        lines = [
            f"{' + '.join(self.faults)}: {how} ({took})",
            self.trouble,
            *map(str, self.violations),
        ]
        return "\n  ".join(line for line in lines if line)


@dataclass(slots=True)
class World:
    cluster: LocalCluster
    imagegate: Installation
    folder: Path
    recorder: Recorder = field(init=False)
    witness: Witness = field(init=False)
    workload: Workload = field(init=False)
    rounds: list[Round] = field(default_factory=list)
    kwok_runs: int = 0
    leases: set[str] = field(default_factory=lambda: {RELEASE})
    """The names of the expected Leases."""
    later: list[Callable[[], None]] = field(default_factory=list)
    """Functions that end the faults which last until the cluster has converged."""

    def __post_init__(self) -> None:
        prepare(self.cluster)
        self.recorder = Recorder(self.cluster, self.folder)
        self.witness = Witness(
            self.recorder.containerd, self.recorder.audit, self.imagegate.service_account()
        )
        self.workload = Workload(self.cluster, self.imagegate, self.recorder.containerd)

    def begin(self) -> None:
        self.workload.begin()
        self.workload.stir(random.Random(0))
        self.workload.calm()
        self.converge()
        self._nothing_broken()

    def end(self) -> None:
        """Delete the load and check that nothing is left, including pods that Kubernetes
        garbage-collects late."""
        try:
            self.workload.end()
            self.converge(everything=True)
            self.quiet(10)
            self._nothing_broken()
        finally:
            self.recorder.close()

    def _nothing_broken(self) -> None:
        if broken := self.judge():
            raise ClusterError("\n".join(map(str, broken)))

    def round(self, faults: Sequence[Fault], rng: random.Random, *, quiet: float) -> Round:
        """Inject faults under load; several faults overlap. Raises ClusterError if a promise was
        broken, if the cluster does not converge, or if the operator writes in the last `quiet`
        seconds."""
        result = Round(tuple(fault.name for fault in faults), None, ())
        self.rounds.append(result)
        try:
            with _timed(result, "load"):
                self.workload.stir(rng)
            with _timed(result, "faults"):
                self._inject(faults, rng)
            with _timed(result, "calm"):
                self.workload.calm()
                result.converged = self.converge()
            if quiet or self.later:
                with _timed(result, "quiet"):
                    self.quiet(quiet or QUIET)
            if self.later:
                self._end_later()
                self.converge()
        except (ClusterError, OSError, AssertionError) as error:
            result.trouble = str(error)
            self._end_later()
        try:
            result.violations = tuple(self.judge())
        except (ClusterError, OSError) as error:
            result.trouble += f"\nthe witness could not read the history: {error}"
        print(f"\n{result}", flush=True)
        if result.trouble or result.violations:
            raise ClusterError(str(result))
        return result

    def _inject(self, faults: Sequence[Fault], rng: random.Random) -> None:
        with ThreadPoolExecutor(max(1, len(faults))) as pool:
            going = [
                pool.submit(self._one, fault, random.Random(rng.random()), rng.uniform(0, 3.0))
                for fault in faults
            ]
            for each in going:
                each.result()

    def _one(self, fault: Fault, rng: random.Random, delay: float) -> None:
        threading.current_thread().name = fault.name
        time.sleep(delay)
        fault.inject(self, rng)

    def _end_later(self) -> None:
        while self.later:
            self.later.pop()()

    def converge(self, *, everything: bool = False) -> float:
        """Wait until the cluster has converged; returns the seconds. Raises ClusterError with the
        remaining differences."""
        began = time.monotonic()
        while True:
            wrong = astray.look(
                self.cluster,
                self.imagegate,
                self.workload.expected,
                leases=self.leases,
                everything=everything,
            )
            took = time.monotonic() - began
            if not wrong:
                return took
            if took > BOUND:
                raise ClusterError(f"not converged after {took:.0f} s:\n  " + "\n  ".join(wrong))
            time.sleep(0.5)

    def judge(self) -> list[Violation]:
        """The violations that the witness has found since the last call."""
        known = len(self.witness.violations)
        entries = insist(self.recorder.next, "the history", 60)
        self.witness.read(entries)
        if broken := self.witness.violations[known:]:
            self._keep(entries)
        return broken

    def _keep(self, entries: Sequence[Entry]) -> None:
        """Save the history in which a promise was broken, for analysis."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"chaos-round-{len(self.rounds)}.jsonl"
        path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries))
        print(f"\nthe history of this round: {path}", flush=True)

    def quiet(self, span: float) -> None:
        """Check that the operator writes nothing for `span` seconds except Leases and
        heartbeats."""
        time.sleep(SETTLE)
        began = time.time()
        time.sleep(span)
        self.recorder.audit.refresh()
        writes = self.recorder.audit.by(self.imagegate.service_account(), began)
        if work := [write for write in writes if _is_work(write)]:
            counted = Counter((w.verb, w.resource, w.name) for w in work)
            raise ClusterError(f"writes in a settled cluster: {dict(counted)}")

    def table(self) -> str:
        """A table of the faults and results, for docs/reliability.md."""
        lines = [
            "| fault | runs | seconds to converge, median (most) | violations |",
            "|-" * 4 + "|",
        ]
        for name in sorted({name for each in self.rounds for name in each.faults}):
            those = [each for each in self.rounds if name in each.faults]
            took = sorted(each.converged for each in those if each.converged is not None)
            span = f"{took[len(took) // 2]:.0f} ({took[-1]:.0f})" if took else "never"
            bad = sum(len(each.violations) for each in those)
            failed = sum(bool(each.trouble) for each in those)
            extra = f", {failed} failed" if failed else ""
            lines.append(f"| {name} | {len(those)}{extra} | {span} | {bad} |")
        rules = "\n".join(f"  {count:6} x {rule}" for rule, count in self.witness.summary().items())
        return (
            "\n".join(lines)
            + f"\n{len(self.rounds)} rounds; rules applied:\n{rules}\n"
            + f"gaps in the watches: {self.recorder.gaps}, writes of the operator unseen in them:"
            + f" {self.witness.unseen}; questions to containerd without an answer:"
            + f" {self.witness.unknown}"
        )


@contextmanager
def _timed(result: Round, phase: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        result.took[phase] = time.monotonic() - began


def _is_work(write: Write) -> bool:
    return write.resource not in ("leases", "nodegates/status")
