"""The results as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from imagegate import tables
from imagegate.domain import disk
from imagegate.simulate.course import Course
from imagegate.simulate.rollout import LONGEST
from imagegate.simulate.world import World

_POINTS = 100
"""Points of the completion curve in the JSON."""


def table(world: World, courses: Sequence[Course]) -> str:
    rows = [("", *(course.strategy.upper() for course in courses))]
    for percent in (50, 95, 100):
        title = f"{percent} % of the nodes cached" if percent < 100 else "all nodes cached"
        rows.append((title, *(_seconds(course.seconds_to(percent)) for course in courses)))
    rows += [
        ("sent by the registry", *(disk.size(round(c.registry_bytes)) for c in courses)),
        ("registry at its peak", *(f"{c.registry_peak * 8 / 1e9:.1f} Gbit/s" for c in courses)),
        ("pulls at a time, at most", *(str(c.most_pulls) for c in courses)),
        ("failed attempts", *(str(c.failed) for c in courses)),
        ("begun before the first ended", *(str(c.exposed) for c in courses)),
    ]
    lines = [headline(world), _rates(world), "", *tables.aligned(rows)]
    lines += [
        f"{course.strategy}: {len(course.cached_at)} of {course.nodes} nodes were cached when the"
        f" simulation was given up, after {_seconds(course.ended_at)}"
        for course in courses
        if not course.complete
    ]
    return "\n".join(lines)


def headline(world: World) -> str:
    layers = f"{len(world.layers)} layers" if len(world.layers) > 1 else "1 layer"
    zones = f"{world.zones} zones" if world.zones > 1 else "1 zone"
    return f"{world.nodes} nodes in {zones} pull {disk.size(world.image)} in {layers}"


def _rates(world: World) -> str:
    rates = [("registry", world.rates.registry), ("mirror", world.mirror)]
    rates += [("node", world.rates.node), ("unpacking", world.rates.unpack)]
    return ", ".join(f"{name} {rate / 1e6:g} MB/s" for name, rate in rates if rate is not None)


def _seconds(seconds: float | None) -> str:
    return f"{seconds:.0f} s" if seconds is not None else "never"


def as_json(world: World, courses: Sequence[Course]) -> str:
    """The same figures, in bytes and seconds. A time is null if it was not reached in
    `LONGEST`.
    """
    return json.dumps(
        {
            "nodes": world.nodes,
            "zones": world.zones,
            "layers": list(world.layers),
            "seed": world.seed,
            "givenUpAfterSeconds": LONGEST,
            "strategies": [_course(course) for course in courses],
        },
        indent=2,
    )


def _course(course: Course) -> dict[str, object]:
    step = max(1, course.nodes // _POINTS)
    curve = [
        [round(at, 3), number]
        for number, at in enumerate(course.cached_at, start=1)
        if number % step == 0 or number == len(course.cached_at)
    ]
    return {
        "name": course.strategy,
        **{f"secondsTo{percent}Percent": _rounded(course, percent) for percent in (50, 95, 100)},
        "registryBytes": round(course.registry_bytes),
        "registryPeakBytesPerSecond": round(course.registry_peak),
        "mostPulls": course.most_pulls,
        "failedAttempts": course.failed,
        "refusedAttempts": course.refused,
        "begunBeforeTheFirstEnded": course.exposed,
        "cached": len(course.cached_at),
        "completion": curve,
    }


def _rounded(course: Course, percent: int) -> float | None:
    seconds = course.seconds_to(percent)
    return None if seconds is None else round(seconds, 3)
