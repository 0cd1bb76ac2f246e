"""The courses as a picture. Needs matplotlib, which the operator's image does not contain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from imagegate.simulate.course import Course

_BINS = 300
"""Intervals over which the registry's bandwidth is averaged."""


def write(path: Path, courses: Sequence[Course], title: str) -> None:
    """Write the picture; the suffix of the path says its format. Raises OSError."""
    longest = max(course.ended_at for course in courses)
    figure = Figure(figsize=(9, 7), layout="constrained")
    completion, bandwidth = figure.subplots(2, 1, sharex=True)
    for course in courses:
        count = len(course.cached_at)
        completion.step(
            [0.0, *course.cached_at, longest],
            [0, *range(1, count + 1), count],
            where="post",
            label=course.strategy,
        )
        times = [longest * number / _BINS for number in range(_BINS + 1)]
        bandwidth.stairs(
            [rate * 8 / 1e9 for rate in averages(course.registry_rates, times)],
            times,
            label=course.strategy,
        )
    completion.set(title=title, ylabel="nodes that hold the image")
    bandwidth.set(xlabel="seconds", ylabel="registry, Gbit/s")
    for axes in (completion, bandwidth):
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    # Without a date and random ids, so that the same input gives the same file.
    with mpl.rc_context({"svg.hashsalt": "imagegate"}):
        dated = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=120, metadata=dated)


def averages(rates: Sequence[tuple[float, float]], times: Sequence[float]) -> list[float]:
    """The average rate between each two times. ``rates``: (time, the rate from then on)."""
    found: list[float] = []
    position = 0
    for begin, end in pairwise(times):
        total, at = 0.0, begin
        while at < end:
            while position + 1 < len(rates) and rates[position + 1][0] <= at:
                position += 1
            until = rates[position + 1][0] if position + 1 < len(rates) else end
            until = min(end, until)
            total += rates[position][1] * (until - at)
            at = until
        found.append(total / (end - begin) if end > begin else 0.0)
    return found
