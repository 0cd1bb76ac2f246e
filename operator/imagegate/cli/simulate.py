"""``imagegate simulate``."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from imagegate.cli import exits, values
from imagegate.cli.options import Bandwidths, TableOrJson, rate
from imagegate.domain.forecast import Rates
from imagegate.errors import ImagegateError
from imagegate.simulate.world import World, cut

if TYPE_CHECKING:
    from imagegate.domain.facts import Prefetch

_USUAL = World()


class InvalidSimulation(ImagegateError):
    """What the command was told cannot be simulated or plotted."""


def _count(help_: str) -> Any:
    return Option(parser=values.count, metavar="COUNT", help=help_)


def _number(metavar: str, help_: str) -> Any:
    return Option(parser=values.at_least_zero, metavar=metavar, help=help_)


@dataclass(frozen=True, kw_only=True)
class Place(Bandwidths):
    """The nodes, the images and the registry."""

    nodes: Annotated[int, _count("Nodes that pull.")] = _USUAL.nodes
    zones: Annotated[int, _count("Topology domains.")] = _USUAL.zones
    image_size: Annotated[
        int,
        Option(
            parser=values.gigabytes,
            metavar="GB",
            help="Compressed; default 7.",
            show_default=False,
        ),
    ] = 7 * 10**9
    layers: Annotated[int, _count("Layers of equal size.")] = 8
    largest_layer: Annotated[
        int | None,
        Option(
            parser=values.gigabytes,
            metavar="GB",
            help="Size of the last layer; default: as the others.",
        ),
    ] = None
    mirror_rate: Annotated[
        float | None,
        rate("What a pull-through mirror in each zone sends to its nodes; default: no mirrors."),
    ] = None
    latency: Annotated[float, _number("SECONDS", "Of a pull before its first byte.")] = (
        _USUAL.latency
    )
    spread: Annotated[
        float, _number("SIGMA", "How much nodes differ in latency and unpacking (lognormal).")
    ] = _USUAL.spread
    failure_rate: Annotated[
        float, _number("SHARE", "Share of pulls whose transfer breaks off, from 0 to 0.9.")
    ] = 0.0
    registry_pulls: Annotated[
        int | None,
        _count("Pulls that the registry serves at once; it refuses more with 429; default: all."),
    ] = None
    seed: Annotated[int, Option(help="Of all random choices.")] = 1

    def world(self) -> World:
        """Raises ImagegateError for a world that cannot be."""
        return World(
            nodes=self.nodes,
            zones=self.zones,
            layers=cut(self.image_size, self.layers, self.largest_layer),
            rates=Rates(node=self.node_rate, registry=self.registry_rate, unpack=self.unpack_rate),
            mirror=self.mirror_rate,
            latency=self.latency,
            spread=self.spread,
            failure_rate=self.failure_rate,
            registry_pulls=self.registry_pulls,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The ImagePrefetch whose rollout is simulated."""

    filename: Annotated[
        str | None,
        Option(
            "--filename",
            "-f",
            metavar="FILE",
            help="An ImagePrefetch (YAML) whose rollout and retry are simulated; - for standard"
            " input. Its images and nodes are not used.",
        ),
    ] = None
    seeds: Annotated[int | None, _count("Instead of rollout.seeds; default 1.")] = None
    fanout: Annotated[int | None, _count("Instead of rollout.fanout; default 2.")] = None
    max_parallel: Annotated[
        tuple[int, bool] | None,
        Option(
            parser=values.max_parallel,
            metavar="COUNT|PERCENT%",
            help="Instead of rollout.maxParallel; default 10%.",
        ),
    ] = None

    def prefetch(self) -> Prefetch:
        """The ImagePrefetch of the file, or one with the defaults, with what the options change."""
        from imagegate.domain.facts import Prefetch

        prefetch = Prefetch("simulated", "", 0)
        if self.filename is not None:
            from imagegate import plan

            found = plan.load(self.filename)
            if len(found) > 1:
                source = "standard input" if self.filename == "-" else self.filename
                raise InvalidSimulation(f"{source}: {len(found)} ImagePrefetches: give one of them")
            (prefetch,) = found
        spec = prefetch.rollout
        if self.max_parallel is not None:
            count, percent = self.max_parallel
            spec = replace(spec, max_parallel=count, percent=percent)
        spec = replace(spec, seeds=self.seeds or spec.seeds, fanout=self.fanout or spec.fanout)
        return replace(prefetch, rollout=spec)


@dataclass(frozen=True, kw_only=True)
class Output:
    output: Annotated[TableOrJson, Option("--output", "-o")] = TableOrJson.TABLE
    plot: Annotated[
        Path | None,
        Option(
            parser=values.picture,
            metavar="FILE",
            help="Write a picture, too: FILE.svg or FILE.png. Needs imagegate[plot].",
        ),
    ] = None


def simulate(place: Place, rollout: Rollout, output: Output) -> int:
    """Simulate a rollout in virtual time.

    All at once, in fixed waves, and with slow start. Needs no cluster. Exit status: 1
    if a rollout cannot be completed.
    """
    from imagegate.simulate import report
    from imagegate.simulate.rollout import simulate
    from imagegate.simulate.strategies import compared

    if output.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise InvalidSimulation(
            "--plot: this Python has no matplotlib: pip install 'imagegate[plot]'"
        )
    world = place.world()
    courses = [simulate(world, each) for each in compared(rollout.prefetch(), world.nodes)]
    write = report.as_json if output.output == "json" else report.table
    typer.echo(write(world, courses))
    if output.plot is not None:
        from imagegate.simulate import plot  # needs matplotlib

        plot.write(output.plot, courses, report.headline(world))
    return exits.OK if all(course.complete for course in courses) else exits.FAILED
