"""Text tables for the output of commands."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

NARROWEST = 24
"""Characters that a wrapped column keeps, even if the line then is wider than the terminal."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which each column is as wide as its widest cell. All rows must have the same number
    of cells.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def wrapped(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """As `aligned`, but the last column continues on further lines, so that no line is wider than
    ``width`` characters if the other columns leave enough room.
    """
    used = sum(max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]) - 1))
    room = max(NARROWEST, width - used)
    lines: list[Sequence[str]] = []
    for *cells, last in rows:
        # A word that is too long stays whole, so that it can be copied.
        parts = textwrap.wrap(last, room, break_long_words=False, break_on_hyphens=False) or [""]
        lines.append((*cells, parts[0]))
        lines += [(*("" for _ in cells), part) for part in parts[1:]]
    return aligned(lines)
