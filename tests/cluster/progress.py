"""Prints one line per step on standard error, with the seconds since the program started."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_START = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _START:6.1f} s] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Prints the step and, if it took more than a second, its duration."""
    say(text)
    begin = time.monotonic()
    yield
    if (took := time.monotonic() - begin) > 1:
        say(f"{text}: done in {took:.1f} s")
