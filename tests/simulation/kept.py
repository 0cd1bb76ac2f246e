"""Seeds that once broke a promise. Each is played again by tests/unit/simulation/test_kept_seeds.py.

How to keep one: take seed, focus and hours from the line that ``python -m tests.simulation`` prints,
and shorten the hours until shortly after the promise was broken.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    seed: int
    focus: str
    hours: float
    why: str
    """What was wrong, and the number of the finding."""


KEPT: tuple[Kept, ...] = ()
