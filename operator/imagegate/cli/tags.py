"""``imagegate tags``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Option

from imagegate.cli import exits, values
from imagegate.cli.options import DockerConfig, Registries, TableOrJson


@dataclass(frozen=True, kw_only=True)
class Request(DockerConfig):
    filename: Annotated[
        str, Option("--filename", "-f", metavar="FILE", help="YAML; - for standard input.")
    ]
    output: Annotated[TableOrJson, Option("--output", "-o")] = TableOrJson.TABLE


def tags(registries: Registries, request: Request) -> int:
    """Show which tags spec.repositories chooses.

    Needs no cluster. Exit status: 1 if a repository has no such tag or cannot be read.
    """
    return asyncio.run(_tags(registries, request))


async def _tags(options: Registries, request: Request) -> int:
    from imagegate import plan, tags
    from imagegate.registry import client as registry

    prefetches = plan.load(request.filename)
    keyring = values.keyring("--docker-config", request.docker_config)
    async with registry.Client(options.registry()) as registries:
        choices = await tags.choose(prefetches, registries, keyring)
    typer.echo((tags.as_json if request.output == "json" else tags.table)(choices))
    return exits.FAILED if any(each.failed for each in choices) else exits.OK
