"""The arguments of ``imagegate simulate``, and what it does with them."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagegate import plan
from imagegate.domain.facts import Prefetch
from imagegate.domain.forecast import ORDINARY, Rates
from imagegate.errors import ImagegateError
from imagegate.simulate import report
from imagegate.simulate.rollout import simulate
from imagegate.simulate.strategies import compared
from imagegate.simulate.world import World, cut

FORMATS = (".svg", ".png")


class InvalidSimulation(ImagegateError):
    """What the command was told cannot be simulated or plotted."""


def add(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "simulate",
        help="simulate a rollout in virtual time: all at once, in fixed waves, with slow start;"
        " needs no cluster",
    )
    _add_world(parser)
    _add_rollout(parser)
    parser.add_argument("--seed", type=int, default=1, help="of all random choices; default 1")
    parser.add_argument("-o", "--output", default="table", choices=("table", "json"))
    parser.add_argument(
        "--plot", type=_picture, metavar="FILE", help="write a picture, too: FILE.svg or FILE.png"
    )


def _add_world(parser: argparse.ArgumentParser) -> None:
    usual = World()
    parser.add_argument("--nodes", type=_count, default=usual.nodes, help="default 1000")
    parser.add_argument("--zones", type=_count, default=usual.zones, help="default 3")
    parser.add_argument(
        "--image-size", type=_positive, default=7.0, metavar="GB", help="compressed; default 7"
    )
    parser.add_argument("--layers", type=_count, default=8, help="of equal size; default 8")
    parser.add_argument(
        "--largest-layer",
        type=_positive,
        metavar="GB",
        help="size of the last layer; default: as the others",
    )
    for name, value, text in (
        ("node", ORDINARY.node, "what one node receives"),
        ("registry", ORDINARY.registry, "what the registry sends to all nodes together"),
        ("unpack", ORDINARY.unpack, "compressed bytes that one core unpacks"),
    ):
        parser.add_argument(
            f"--{name}-rate",
            type=_positive,
            default=value / 1e6,
            metavar="MB/s",
            help=f"{text}; default {value / 1e6:g}",
        )
    parser.add_argument(
        "--mirror-rate",
        type=_positive,
        metavar="MB/s",
        help="what a pull-through mirror in each zone sends to its nodes; default: no mirrors",
    )
    parser.add_argument(
        "--latency",
        type=_not_negative,
        default=usual.latency,
        metavar="SECONDS",
        help="of a pull before its first byte; default 2",
    )
    parser.add_argument(
        "--spread",
        type=_not_negative,
        default=usual.spread,
        metavar="SIGMA",
        help="how much nodes differ in latency and unpacking (lognormal); default 0.35",
    )
    parser.add_argument(
        "--failure-rate",
        type=_not_negative,
        default=0.0,
        metavar="SHARE",
        help="share of pulls whose transfer breaks off, from 0 to 0.9; default 0",
    )
    parser.add_argument(
        "--registry-pulls",
        type=_count,
        metavar="COUNT",
        help="pulls that the registry serves at once; it refuses more with 429; default: all",
    )


def _add_rollout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--filename",
        help="an ImagePrefetch (YAML) whose rollout and retry are simulated; - for standard input;"
        " its images and nodes are not used",
    )
    parser.add_argument("--seeds", type=_count, help="instead of rollout.seeds; default 1")
    parser.add_argument("--fanout", type=_count, help="instead of rollout.fanout; default 2")
    parser.add_argument(
        "--max-parallel",
        type=_parallel,
        metavar="COUNT|PERCENT%",
        help="instead of rollout.maxParallel; default 10%%",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise InvalidSimulation(
            "--plot: this Python has no matplotlib: pip install 'imagegate[plot]'"
        )
    world = _world(arguments)
    courses = [simulate(world, each) for each in compared(_prefetch(arguments), world.nodes)]
    write = report.as_json if arguments.output == "json" else report.table
    sys.stdout.write(write(world, courses) + "\n")
    if arguments.plot is not None:
        from imagegate.simulate import plot  # noqa: PLC0415 - it needs matplotlib

        plot.write(arguments.plot, courses, report.headline(world))
    return 0 if all(course.complete for course in courses) else 1


def _world(arguments: argparse.Namespace) -> World:
    image, largest = int(arguments.image_size * 1e9), arguments.largest_layer
    mirror = arguments.mirror_rate
    return World(
        nodes=arguments.nodes,
        zones=arguments.zones,
        layers=cut(image, arguments.layers, None if largest is None else int(largest * 1e9)),
        rates=Rates(
            node=arguments.node_rate * 1e6,
            registry=arguments.registry_rate * 1e6,
            unpack=arguments.unpack_rate * 1e6,
        ),
        mirror=None if mirror is None else mirror * 1e6,
        latency=arguments.latency,
        spread=arguments.spread,
        failure_rate=arguments.failure_rate,
        registry_pulls=arguments.registry_pulls,
        seed=arguments.seed,
    )


def _prefetch(arguments: argparse.Namespace) -> Prefetch:
    """The ImagePrefetch of the file, or one with the defaults, with what the options change."""
    prefetch = Prefetch("simulated", "", 0)
    if arguments.filename is not None:
        standard = arguments.filename == "-"
        source = "standard input" if standard else arguments.filename
        text = sys.stdin.read() if standard else Path(source).read_text()
        found = plan.read(text, source)
        if len(found) > 1:
            raise InvalidSimulation(f"{source}: {len(found)} ImagePrefetches: give one of them")
        (prefetch,) = found
    spec = prefetch.rollout
    if arguments.max_parallel is not None:
        count, percent = arguments.max_parallel
        spec = replace(spec, max_parallel=count, percent=percent)
    spec = replace(
        spec, seeds=arguments.seeds or spec.seeds, fanout=arguments.fanout or spec.fanout
    )
    return replace(prefetch, rollout=spec)


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 9999999")
    return int(text)


def _positive(text: str) -> float:
    value = _not_negative(text)
    if value < 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r} is too small: give a number from 0.000001")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1e9")
    return value


def _parallel(text: str) -> tuple[int, bool]:
    """The number, and whether it is a percentage; as ``rollout.maxParallel``."""
    if not re.fullmatch(r"[1-9][0-9]{0,6}|[1-9][0-9]?%|100%", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of nodes: use a whole number from 1, or a percentage from"
            " 1% to 100%"
        )
    return int(text.removesuffix("%")), text.endswith("%")


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} is no picture: end its name with .svg or .png")
    return path
