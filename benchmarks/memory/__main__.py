"""``python -m benchmarks.memory``: every scenario at several numbers of nodes, as JSON and a table.

Every case has a process of its own, so that no case starts with the memory of another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import report
from benchmarks.memory.scenarios import JOINING, Case, run
from benchmarks.report import Column, Row, Table, milliseconds, number

SCENARIOS = ("start", "rollout", "join", "delete", "heartbeats", "shares")
SHARES_NODES = 1_000
SHARES_PREFETCHES = (1, 20, 200)
OUTPUT = Path(".artifacts/bench-memory.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS)
    parser.add_argument(
        "--prefetches",
        type=int,
        nargs="+",
        default=SHARES_PREFETCHES,
        help=f"of the scenario shares, each with {SHARES_NODES} nodes",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of virtual time: heartbeats")
    parser.add_argument("--no-trace", action="store_true", help="leave out the runs of tracemalloc")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(asdict(run(Case(**json.loads(arguments.case))))))
        return 0
    found: list[Row] = []
    for case in _cases(arguments):
        found.append(_apart(case))
        head = TABLE.head() if len(found) == 1 else []
        print("\n".join((*head, _line(found[-1]))), flush=True)
        report.write(arguments.output, found)
    print("\n".join(("", *_flatness(found))))
    print(f"\n{arguments.output} has the requests, events and decisions of each case")
    return 0


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    for scenario in arguments.scenarios:
        if scenario == "shares":
            for count in arguments.prefetches:
                yield Case(scenario, SHARES_NODES, count)
            continue
        for nodes in arguments.nodes:
            yield Case(scenario, nodes, minutes=arguments.minutes)
            if scenario == "start" and not arguments.no_trace:
                yield Case(scenario, nodes, trace=True)


def _apart(case: Case) -> Row:
    """Run one case in another process."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    text = json.dumps({name: getattr(case, name) for name in case.__slots__})
    command = [sys.executable, "-m", "benchmarks.memory", "--case", text]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    row: Row = json.loads(done.stdout)
    return row


TABLE = Table(
    (
        Column("scenario", 16, left=True),
        Column("nodes", 7),
        Column("virtual", 8, "min"),
        Column("CPU", 8, "s"),
        Column("a node", 9, "ms"),
        Column("GC", 7, "s"),
        Column("API", 8, "s"),
        Column("memory", 13, "MiB"),
        Column("requests", 9),
        Column("events", 8),
        Column("decisions", 10),
        Column("shares", 9),
        Column("release", 9, "p99 ms"),
    )
)


def _line(row: Row) -> str:
    """CPU is the operator's; GC and API are beside it and not part of it."""
    name, cpu, nodes = _name(row), row["cpu"], _nodes(row)
    if row["traced"] is not None:
        # Times of a run with tracemalloc mean nothing.
        line = TABLE.line([name, nodes, *[None] * 5, number(row["traced"] / nodes)])
        return f"{line} bytes a node (tracemalloc)"
    return TABLE.line(
        [
            name,
            nodes,
            number(row["minutes"], 1),
            number(cpu["operator"], 2),
            number(1000 * cpu["operator"] / nodes, 3),
            number(cpu["collector"], 2),
            number(cpu["api"], 2),
            number(row["rss"] / 2**20),
            sum(row["requests"].values()),
            sum(row["events"].values()),
            row["decisions"].get("nodes", 0),
            row["decisions"].get("shares", 0),
            milliseconds(row["release"]["p99"]),
        ]
    )


def _flatness(rows: Sequence[Row]) -> list[str]:
    """The figures of the most nodes a node, divided by those of the fewest."""
    lines = ["flatness: a figure a node at the most nodes / at the fewest"]
    kept = {(_name(row), _nodes(row), row["traced"] is not None): row for row in rows}
    for name in dict.fromkeys(map(_name, rows)):
        for trace in (False, True):
            sizes = sorted(n for other, n, traced in kept if (other, traced) == (name, trace))
            if len(sizes) < 2:
                continue
            few, many = kept[name, sizes[0], trace], kept[name, sizes[-1], trace]
            ratios = {
                what: (_figure(many, what) / sizes[-1]) / (_figure(few, what) / sizes[0])
                for what in (("traced",) if trace else ("cpu", "requests", "decisions"))
                if _figure(few, what)
            }
            figures = ", ".join(f"{what} {ratio:.2f}" for what, ratio in ratios.items())
            lines.append(f"{name:<16} {sizes[-1]} / {sizes[0]}: {figures}")
    return lines


def _figure(row: Row, what: str) -> float:
    if what == "cpu":
        return float(row["cpu"]["operator"] + row["cpu"]["collector"])
    if what == "decisions":
        return float(row["decisions"].get("nodes", 0))
    return float(sum(row[what].values()) if isinstance(row[what], dict) else row[what])


def _name(row: Row) -> str:
    return f"shares x {row['prefetches']}" if row["scenario"] == "shares" else str(row["scenario"])


def _nodes(row: Row) -> int:
    return int(row["nodes"]) + (JOINING if row["scenario"] == "join" else 0)


if __name__ == "__main__":
    sys.exit(main())
