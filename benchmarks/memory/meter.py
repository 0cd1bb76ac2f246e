"""How much CPU time is the operator's, and how much is the API server's in the same process."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

clock = time.thread_time


@dataclass(frozen=True, slots=True)
class Seconds:
    """CPU seconds."""

    operator: float
    """Of everything but the API server, the kubelets and the garbage collector; the event loop and
    its virtual time are included."""
    collector: float
    """Of Python's cyclic garbage collector, whichever part made the garbage."""
    api: float
    """Of the API server and the kubelets."""


class Meter:
    def __init__(self) -> None:
        self._charged = self._collected = 0.0
        self._inside = False
        self._collecting = 0.0
        self._began = clock()
        gc.callbacks.append(self._collect)

    def reset(self) -> None:
        self._charged = self._collected = 0.0
        self._began = clock()

    def read(self) -> Seconds:
        """Since the last `reset`."""
        total = clock() - self._began
        return Seconds(total - self._charged - self._collected, self._collected, self._charged)

    def api(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Charge the time of this function to the API server; calls may be nested."""

        @functools.wraps(function)
        def charged(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._charged += clock() - began
                self._inside = False

        return charged

    def close(self) -> None:
        gc.callbacks.remove(self._collect)

    def _collect(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collecting = clock()
            return
        seconds = clock() - self._collecting
        self._collected += seconds
        if self._inside:
            self._charged -= seconds
