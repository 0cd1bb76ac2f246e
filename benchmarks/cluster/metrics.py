"""Metrics in the text format of Prometheus: the samples, and quantiles of a histogram."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_LABEL = re.compile(r'(\w+)="([^"]*)"')

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]


def parse(lines: Iterable[str], *names: str) -> Samples:
    """The samples of these metrics, by name and labels."""
    found: Samples = {}
    for line in lines:
        if not line.startswith(names):
            continue
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        labels, _, value = rest.rpartition(" ")
        if name in names:
            found[name, frozenset(_LABEL.findall(labels))] = float(value)
    return found


def buckets(samples: Samples, **labels: str) -> dict[float, float]:
    """The counts of a histogram by upper bound, over all series that have these labels."""
    wanted = frozenset(labels.items())
    found: dict[float, float] = {}
    for (_, own), value in samples.items():
        if wanted <= own:
            bound = float(dict(own)["le"])
            found[bound] = found.get(bound, 0.0) + value
    return found


def quantile(
    before: Mapping[float, float], after: Mapping[float, float], share: float
) -> float | None:
    """The quantile of what was observed in between, interpolated within its bucket as Prometheus
    does it. Beyond the last bound it is the last bound.
    """
    counts = {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}
    total = counts.get(float("inf"), 0.0)
    if not total:
        return None
    rank, low, below = share * total, 0.0, 0.0
    for bound, count in counts.items():
        if count >= rank:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    return low
