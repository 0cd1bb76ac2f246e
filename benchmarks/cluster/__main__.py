"""``python -m benchmarks.cluster``: scenarios with a real API server, as JSON and a table.

Needs root, like the harness of the tests (tests/cluster/README.md). Nothing is left of the cluster
at the end.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from benchmarks import report
from benchmarks.cluster.cluster import Bench, Size
from benchmarks.cluster.scenarios import SCENARIOS, Run
from benchmarks.report import Column, Row, Table, milliseconds, number
from tests.cluster.errors import ClusterError

OUTPUT = Path(".artifacts/bench.json")
NAME = "imagegate-bench"
MOST_IMAGES = 64


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument(
        "--images", type=int, default=1, choices=range(1, MOST_IMAGES + 1), metavar="1-64"
    )
    parser.add_argument(
        "--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME"
    )
    parser.add_argument("--idle-minutes", type=float, default=5.0)
    parser.add_argument(
        "--pull-seconds", type=float, default=2.0, help="of a puller pod; default 2"
    )
    parser.add_argument(
        "--profile",
        nargs="+",
        choices=SCENARIOS,
        default=[],
        metavar="NAME",
        help="profile these scenarios with py-spy, which slows them down",
    )
    parser.add_argument("--name", default=NAME, help="of the cluster")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupted)
    size = Size(arguments.nodes, arguments.images, arguments.pull_seconds)

    def tell(rows: list[dict[str, Any]]) -> None:
        report.write(arguments.output, rows, **_about(size))

    with Bench.started(arguments.name, size) as bench:
        run = Run(
            bench,
            idle_minutes=arguments.idle_minutes,
            profiled=tuple(arguments.profile),
            artifacts=arguments.output.parent,
            tell=tell,
        )
        try:
            run.play(arguments.scenarios)
        finally:
            print("\n".join(("", *table(run.rows), "", *notes(run.rows))), flush=True)
    print(f"\n{arguments.output} has the requests, the watch events and the rest of each scenario")
    return 0


def _about(size: Size) -> dict[str, Any]:
    return {"nodes": size.nodes, "images": size.images, "pull_seconds": size.pull_seconds}


TABLE = Table(
    (
        Column("scenario", 12, left=True),
        Column("nodes", 6),
        Column("time", 7, "s"),
        Column("floor", 7, "s"),
        Column("ratio", 6),
        Column("CPU", 7, "s"),
        Column("a node", 7, "ms"),
        Column("memory", 7, "MiB"),
        Column("writes", 7, "a node"),
        Column("requests", 8),
        Column("gone p50", 8, "ms"),
        Column("p99", 6, "ms"),
        Column("PATCH p50", 9, "ms"),
        Column("p99", 6, "ms"),
        Column("lag p99", 8, "ms"),
        Column("max", 6, "ms"),
        Column("watches", 8, "MiB"),
    )
)


def table(rows: Iterable[Row]) -> list[str]:
    return [*TABLE.head(), *map(_line, rows)]


def _line(row: Row) -> str:
    """Time: until the last write, or until every node was decided. Gone: from the success of the
    pod to the removal of the joining node's taint.
    """
    floor = (row.get("floor") or {}).get("seconds")
    seconds, told = row["seconds"], row["told"]
    return TABLE.line(
        [
            row["scenario"],
            row["nodes"],
            number(seconds, 1),
            number(floor, 1),
            number(seconds / floor, 2) if floor and seconds else None,
            number(row["cpu"], 2),
            number(1000 * row["cpu"] / row["nodes"], 2),
            number(row["peak"] / 2**20),
            number(row["works"] / row["nodes"], 2),
            sum(row["requests"].values()),
            milliseconds(row["gone"]["p50"]),
            milliseconds(row["gone"]["p99"]),
            milliseconds(row["patch"]["p50"]),
            milliseconds(row["patch"]["p99"]),
            milliseconds(told["lag"]["p99"]),
            milliseconds(told["lag"]["max"]),
            number(sum(told["bytes"].values()) / 2**20, 1),
        ]
    )


def notes(rows: Iterable[Row]) -> list[str]:
    """The figures that only some scenarios have, and the profiles."""
    lines = []
    for row in rows:
        found = [f"{what} {value:.2f}" for what, value in row["notes"].items()]
        if found:
            lines.append(f"{row['scenario']}: {', '.join(found)}")
        for name, share in row.get("profile", {}).get("own", ())[:20]:
            lines.append(f"{row['scenario']}: {100 * share:5.1f} % {name}")
    return lines


def _interrupted(number_: int, _: FrameType | None) -> NoReturn:
    """Removes the cluster on the way out."""
    raise SystemExit(128 + number_)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClusterError as error:
        sys.exit(f"error: {error}")
