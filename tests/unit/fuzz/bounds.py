"""What one input may cost, and what may come of it."""

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
"""Of CPU time: 0.36 s for 1 MiB."""
TIMES_JSON = 16
"""On a slow or busy machine: as often as `json.loads` reads as many bytes of empty objects in that
very moment (0.04 s for 1 MiB on an idle one). A Secret's docker config, the slowest, takes 10."""
MEMORY = 512 * 1024
MEMORY_PER_BYTE = 64
"""`{},` becomes an empty dict of 64 bytes and a pointer of 8, a factor of 24; pydantic has a copy
of its own of parts of it."""
RESIDENT = 8 * MIB
LONGEST_MESSAGE = 4096
"""Characters of an error: they go to logs, Events and the status."""
LARGE = 256 * 1024
_TRIES = 4


def check(parser: Parser, data: bytes) -> None:
    """Raises AssertionError with what the parser should not have done."""
    _check_outcome_and_time(parser, data)
    _check_memory(parser, data)


def _run(parser: Parser, data: bytes) -> None:
    with contextlib.suppress(*parser.raises):
        parser.parse(data)


def _check_outcome_and_time(parser: Parser, data: bytes) -> None:
    most = SECONDS + SECONDS_PER_BYTE * len(data)
    taken = []
    for _ in range(_TRIES):
        begin = time.process_time()
        try:
            parser.parse(data)
        except parser.raises as error:
            length = len(str(error))
            assert length <= LONGEST_MESSAGE, f"{parser.name}: an error of {length} characters"
        except Exception as error:  # noqa: BLE001  # that is what is looked for
            # Not from the error, whose context may hold a document of megabytes.
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
    """Of Python's objects, and for large inputs of the process: extensions have memory as well."""
    most = MEMORY + MEMORY_PER_BYTE * len(data)
    peak = _least(lambda: _traced(parser, data), most)
    assert peak <= most, f"{parser.name} took {peak} bytes for {len(data)}, more than {most}"
    if len(data) < LARGE:
        return
    most += RESIDENT
    grown = _least(lambda: _grown(parser, data), most)
    assert grown <= most, f"{parser.name}: {grown} more bytes resident for {len(data)} of input"


def _least(measure: Callable[[], int], most: int) -> int:
    """The least of a few measurements, until one is small enough: a first one may load modules."""
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
    """The most bytes of this process that were resident since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc/self/status")
