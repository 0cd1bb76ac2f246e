"""``maxParallel``: a number of nodes, or a percentage of the matching nodes."""

from __future__ import annotations

import re
from typing import Final

MESSAGE: Final = (
    "is not a number of nodes: use a whole number from 1, or a percentage from 1% to 100%"
)
PERCENTAGE: Final = "^([1-9][0-9]?|100)%$"
"""A percentage, in the common syntax of Python's ``re`` and RE2."""


def parse(value: int | str) -> tuple[int, bool]:
    """The number, and whether it is a percentage. Raises ValueError with `MESSAGE`."""
    if isinstance(value, int):
        if value >= 1:
            return value, False
    elif re.fullmatch(PERCENTAGE, value):
        return int(value.removesuffix("%")), True
    raise ValueError(f'"{value}" {MESSAGE}')
