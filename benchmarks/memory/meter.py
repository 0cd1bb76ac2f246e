"""Divides the CPU time of one process between the operator and the simulated API server."""

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
    """Everything except the API server, the kubelets and the garbage collector. This includes the
    event loop and its virtual clock."""
    collector: float
    """Python's cyclic garbage collector, for the garbage of all parts."""
    api: float
    """The API server and the kubelets."""


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
        """CPU time since the last `reset`."""
        total = clock() - self._began
        return Seconds(total - self._charged - self._collected, self._collected, self._charged)

    def api(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Wrap a function so that its time counts for the API server. Calls may be nested."""

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
