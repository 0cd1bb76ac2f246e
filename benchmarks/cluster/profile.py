"""A profile of the operator by py-spy, if it is installed: the functions with the most own time."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

WAITING = frozenset(
    {"_worker (concurrent/futures/thread.py)", "EpollSelector.select (selectors.py)"}
)
"""py-spy takes a thread that waits for a lock or for events for a busy one."""
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>.*?)(:\d+)?\)$")


@dataclass(frozen=True, slots=True)
class Profile:
    """Its samples slow the operator down: the times of a profiled scenario do not count."""

    program: str
    output: Path
    """Collapsed stacks, as flame graphs are made of."""

    @contextlib.contextmanager
    def recording(self, pid: int) -> Iterator[None]:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.unlink(missing_ok=True)
        command = [self.program, "record", "--pid", str(pid), "--format", "raw"]
        command += ["--output", str(self.output), "--duration", "100000"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGINT)

    def top(self, count: int = 40) -> dict[str, list[tuple[str, float]]]:
        """The functions with the most time: their own, and with what they called."""
        own, total = times(self.output.read_text().splitlines())
        return {"own": own[:count], "total": total[:count]}


def times(stacks: Iterable[str]) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Functions by their share of the samples: those in which they are the innermost frame, and
    those in which they are any frame. Samples of waiting threads are left out.
    """
    own, total = Counter[str](), Counter[str]()
    for line in stacks:
        stack, _, samples = line.rpartition(" ")
        names = [_name(frame) for frame in stack.split(";")]
        if names[-1] in WAITING:
            continue
        own[names[-1]] += int(samples)
        for name in set(names):
            total[name] += int(samples)
    count = own.total()
    shares = [[(name, n / count) for name, n in found.most_common()] for found in (own, total)]
    return shares[0], shares[1]


def _name(frame: str) -> str:
    """Without the number of the line."""
    match = _FRAME.match(frame)
    return f"{match['function']} ({match['file']})" if match else frame
