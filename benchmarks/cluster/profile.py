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

    def top(self, count: int = 20) -> list[tuple[str, float]]:
        """The functions with the most own time, with their shares of all samples."""
        return own_time(self.output.read_text().splitlines())[:count]


def own_time(stacks: Iterable[str]) -> list[tuple[str, float]]:
    """Functions by their share of the samples in which they are the innermost frame."""
    found = Counter[str]()
    for line in stacks:
        stack, _, samples = line.rpartition(" ")
        frame = stack.rpartition(";")[2]
        match = _FRAME.match(frame)
        name = f"{match['function']} ({match['file']})" if match else frame
        found[name] += int(samples)
    total = found.total()
    return [(name, samples / total) for name, samples in found.most_common()]
