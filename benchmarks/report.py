"""The reports of all benchmarks: a table for people, and a JSON file with every figure."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    width: int
    unit: str = ""
    left: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    columns: Sequence[Column]

    def head(self) -> list[str]:
        """The titles and the units."""
        return [
            self.line([column.title for column in self.columns]),
            self.line([column.unit for column in self.columns]),
        ]

    def line(self, cells: Iterable[object]) -> str:
        """One row; None is an empty cell. The last cells may be missing."""
        aligned = [
            f"{'' if cell is None else cell:{'<' if column.left else '>'}{column.width}}"
            for column, cell in zip(self.columns, cells, strict=False)
        ]
        return " ".join(aligned).rstrip()


def number(value: float | None, digits: int = 0) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else number(1000 * seconds)


def quantile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that is not exceeded by this share of the values (nearest rank)."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def write(path: Path, rows: Sequence[Row], **about: Any) -> None:
    """Replace the file of an earlier run. ``about``: what all rows have in common."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": {**machine(), **about}, "rows": list(rows)}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def machine() -> dict[str, Any]:
    """The machine, the revision and the time of the figures."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
