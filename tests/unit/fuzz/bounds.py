"""The limits of time, memory and error text for the parsing of an input."""

from __future__ import annotations

import contextlib
import gc
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tests.unit.fuzz.parsers import MIB, Parser

SECONDS = 0.05
SECONDS_PER_BYTE = 300e-9
"""CPU time: 0.36 s for 1 MiB."""
TIMES_JSON = 32
"""A second limit for slow or busy machines, as a multiple of the time that `json.loads` takes now
for as many bytes of empty objects (0.04 s for 1 MiB on an idle machine). The slowest parser, for a
Secret's docker config, takes 10 times as long as `json.loads`, and 17 times beside three other
processes on two cores."""
MEMORY = 512 * 1024
MEMORY_PER_BYTE = 64
"""`{},` becomes an empty dict of 64 bytes and a pointer of 8 bytes, a factor of 24; pydantic copies
parts of the document."""
RESIDENT = 8 * MIB
LONGEST_MESSAGE = 4096
"""Characters of an error text. It is limited because it goes to logs, Events and the status."""
LARGE = 256 * 1024
_TRIES = 4
PAUSE = 0.5
"""Seconds before the second try, and as many more before each further one: CPU time grows too while
another process has the other half of the core, or the host has taken the core away."""


def check(parser: Parser, data: bytes) -> None:
    """Raises AssertionError if the parser violates a limit or raises another error."""
    _check_outcome_and_time(parser, data)
    _check_memory(parser, data)


def _run(parser: Parser, data: bytes) -> None:
    with contextlib.suppress(*parser.raises):
        parser.parse(data)


def _check_outcome_and_time(parser: Parser, data: bytes) -> None:
    most = SECONDS + SECONDS_PER_BYTE * len(data)
    taken = []
    for number in range(_TRIES):
        time.sleep(number * PAUSE)
        begin = time.process_time()
        try:
            parser.parse(data)
        except parser.raises as error:
            length = len(str(error))
            assert length <= LONGEST_MESSAGE, f"{parser.name}: an error of {length} characters"
        except Exception as error:  # noqa: BLE001  # any other error is a defect
            # `from None`, because the error's context may contain a document of megabytes.
            said = f"{parser.name} raised {type(error).__name__}: {str(error)[:200]}"
            raise AssertionError(said) from None
        taken.append(time.process_time() - begin)
        if taken[-1] <= most or taken[-1] <= SECONDS + TIMES_JSON * _json_seconds(len(data)):
            return
    raise AssertionError(
        f"{parser.name} took {min(taken):.2f} s for {len(data)} bytes, more than {most:.2f} s"
    )


def _json_seconds(size: int) -> float:
    text = b"[" + b"{}," * (size // 3) + b"{}]"
    begin = time.process_time()
    json.loads(text)
    return time.process_time() - begin


def _check_memory(parser: Parser, data: bytes) -> None:
    """Checks Python's memory, and for large inputs also that of the process (C extensions)."""
    most = MEMORY + MEMORY_PER_BYTE * len(data)
    peak = _least(lambda: _traced(parser, data), most)
    assert peak <= most, f"{parser.name} took {peak} bytes for {len(data)}, more than {most}"
    if len(data) < LARGE:
        return
    most += RESIDENT
    grown = _least(lambda: _grown(parser, data), most)
    assert grown <= most, f"{parser.name}: {grown} more bytes resident for {len(data)} of input"


def _least(measure: Callable[[], int], most: int) -> int:
    """The smallest of a few measurements, because the first parse may load modules."""
    least = measure()
    for _ in range(_TRIES - 1):
        if least <= most:
            break
        least = min(least, measure())
    return least


def _traced(parser: Parser, data: bytes) -> int:
    tracemalloc.start()
    try:
        _run(parser, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _grown(parser: Parser, data: bytes) -> int:
    gc.collect()
    begin = _resident(reset=True)
    _run(parser, data)
    return _resident() - begin


def _resident(*, reset: bool = False) -> int:
    """The peak of resident bytes of this process since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc/self/status")
