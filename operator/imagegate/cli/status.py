"""``imagegate status``, ``wait`` and ``explain``: they read the cluster and change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from imagegate import progress, tables
from imagegate.cli import exits, values
from imagegate.cli.options import Cluster, Installation
from imagegate.errors import ImagegateError
from imagegate.progress import Pace, Progress

if TYPE_CHECKING:
    from imagegate.kube.client import Client
    from imagegate.survey import Survey

PERIOD = 1.0
"""Seconds between two looks of ``--watch`` and ``wait``."""


class Output(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


class For(StrEnum):
    READY = "ready"


class NoSuchObject(ImagegateError):
    """The object that the command line names does not exist."""


@dataclass(frozen=True, kw_only=True)
class Look:
    name: Annotated[
        str | None, Argument(metavar="NAME", help="An ImagePrefetch. Default: all.")
    ] = None
    nodes: Annotated[
        bool, Option("--nodes", help="Also each node, with the reason why it waits.")
    ] = False
    output: Annotated[Output, Option("--output", "-o")] = Output.TABLE
    watch: Annotated[
        bool, Option("--watch", "-w", help="Show the progress until Ctrl-C or until all is ready.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Wait:
    name: Annotated[str, Argument(metavar="NAME", help="An ImagePrefetch.")]
    for_: Annotated[For, Option("--for", help="Every desired node holds every image.")] = For.READY
    timeout: Annotated[
        float,
        Option(
            parser=values.seconds,
            metavar="TIME",
            help="As in kubectl: 90s, 10m, 1h30m; default 10m.",
            show_default=False,
        ),
    ] = 600.0


class Kind(StrEnum):
    NODE = "node"


@dataclass(frozen=True, kw_only=True)
class Subject:
    kind: Annotated[Kind, Argument(help="What is explained.")]
    name: Annotated[str, Argument(metavar="NAME", help="A Node.")]
    output: Annotated[Output, Option("--output", "-o")] = Output.TABLE


def status(installation: Installation, look: Look) -> int:
    """Show ImagePrefetches and, with --nodes, why nodes wait."""
    if look.watch and (look.nodes or look.output in (Output.JSON, Output.YAML)):
        raise typer.BadParameter(
            "it goes with neither --nodes nor -o json|yaml: leave them out", param_hint="--watch"
        )
    return asyncio.run(_watch(installation, look) if look.watch else _status(installation, look))


def wait(cluster: Cluster, asked: Wait) -> int:
    """Wait until an ImagePrefetch is ready.

    Exit status: 4 if it is not ready within the timeout.
    """
    return asyncio.run(_wait(cluster, asked))


def explain(installation: Installation, subject: Subject) -> int:
    """Say why a node is held, what will free it, and when."""
    return asyncio.run(_explain(installation, subject))


async def _status(installation: Installation, look: Look) -> int:
    from imagegate import explain, survey

    async with installation.connected("status") as (client, clock):
        found = await _read(client, look.name)
        seen = (
            await survey.take(client, await installation.find(client), clock)
            if look.nodes
            else None
        )
        now = clock.now()
    if look.output in (Output.JSON, Output.YAML):
        document: dict[str, Any] = {"prefetches": [each.as_json() for each in found]}
        if seen is not None:
            document |= {"operator": explain.operator(seen), "nodes": _node_records(seen, look)}
        _write(document, look.output)
        return exits.OK
    wide = look.output is Output.WIDE
    typer.echo(progress.table(found, now, _width(), wide=wide))
    if seen is not None:
        typer.echo(f"\nOperator: {explain.operator(seen)}\n")
        typer.echo(_node_table(_node_records(seen, look)))
    return exits.OK


def _node_records(seen: Survey, look: Look) -> list[dict[str, Any]]:
    """One for each node and ImagePrefetch, and one for each other held node."""
    from imagegate import explain

    records: list[dict[str, Any]] = []
    for name, node in sorted(seen.store.nodes.items()):
        lines = [
            line for line in explain.lines_of(seen, node) if look.name in (None, line.prefetch)
        ]
        held = seen.held(node)
        records += [
            {
                "node": name,
                "held": held,
                "prefetch": line.prefetch,
                "state": line.state,
                "why": line.why,
            }
            for line in lines
        ]
        if held and not lines and look.name is None:
            why = explain.explain(seen, name).why
            records.append({"node": name, "held": True, "prefetch": "", "state": "", "why": why})
    return records


def _node_table(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "No node matches."
    head = ("NODE", "HELD", "PREFETCH", "STATE", "WHY")
    rows = [
        (r["node"], "yes" if r["held"] else "no", r["prefetch"], r["state"], r["why"])
        for r in records
    ]
    return "\n".join(tables.wrapped([head, *rows], _width()))


async def _explain(installation: Installation, subject: Subject) -> int:
    from imagegate import explain, survey

    async with installation.connected("explain") as (client, clock):
        seen = await survey.take(client, await installation.find(client), clock)
    if subject.name not in seen.store.nodes:
        raise NoSuchObject(f"there is no Node {subject.name!r}: see kubectl get nodes")
    found = explain.explain(seen, subject.name)
    if subject.output in (Output.JSON, Output.YAML):
        _write(explain.as_json(found), subject.output)
    else:
        typer.echo(explain.text(found, _width()))
    return exits.OK


async def _read(client: Client, name: str | None) -> list[Progress]:
    from imagegate.kube.errors import NotFound
    from imagegate.kube.prefetches import PATH

    if name is None:
        try:
            return [Progress.of(body) async for body in client.list_all(PATH)]
        except NotFound as error:
            raise NoSuchObject(
                "the API server does not serve imagegate.dev: install Imagegate's chart, or choose"
                f" another cluster by --context ({error})"
            ) from error
    try:
        return [Progress.of(await client.get(f"{PATH}/{name}"))]
    except NotFound as error:
        raise NoSuchObject(
            f"there is no ImagePrefetch {name!r}: see imagegate status ({error})"
        ) from error


async def _looks(client: Client, name: str | None) -> AsyncIterator[list[Progress]]:
    """What `_read` returns, again and again. An API server that has answered, and then does not
    answer for some time, does not end the command.
    """
    from imagegate.kube.errors import Unavailable

    seen = await _read(client, name)
    while True:
        yield seen
        await asyncio.sleep(PERIOD)
        with contextlib.suppress(Unavailable):
            seen = await _read(client, name)


async def _wait(cluster: Cluster, asked: Wait) -> int:
    deadline = time.monotonic() + asked.timeout
    async with cluster.connected("wait") as (client, _):
        async for (found,) in _looks(client, asked.name):
            if found.ready == "True":
                typer.echo(f"imageprefetch.imagegate.dev/{asked.name} is ready")
                return exits.OK
            if time.monotonic() >= deadline:
                break
    typer.echo(
        f"Error: ImagePrefetch {asked.name!r} is not ready after {asked.timeout:g} s:"
        f" {found.reason}: {found.message}. Wait longer by --timeout, or see: imagegate status"
        f" {asked.name} --nodes",
        err=True,
    )
    return exits.TIMEOUT


async def _watch(installation: Installation, look: Look) -> int:
    from imagegate.cli.bars import bars, lines

    paces: dict[str, Pace] = {}
    async with installation.connected("status") as (client, _):
        with bars() if sys.stdout.isatty() else lines() as show:
            async for found in _looks(client, look.name):
                now = time.monotonic()
                for each in found:
                    paces.setdefault(each.name, Pace()).see(now, each.nodes["cached"])
                show([(each, progress.line(each, paces[each.name], now)) for each in found])
                if all(each.ready == "True" for each in found):
                    break
    if not found:
        typer.echo(progress.NONE)
    return exits.OK


def _write(document: Any, output: Output) -> None:
    if output is Output.JSON:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        import yaml

        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).rstrip())


def _width() -> int:
    """Columns of the terminal, or $COLUMNS; 80 without either."""
    return shutil.get_terminal_size().columns
