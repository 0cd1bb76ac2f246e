"""``imagegate lint``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Argument, Option

from imagegate.cli import exits, values
from imagegate.cli.options import DockerConfig, Registries, TableOrJson
from imagegate.domain import advice


@dataclass(frozen=True, kw_only=True)
class Request(DockerConfig):
    images: Annotated[
        list[str], Argument(callback=values.image_references, metavar="IMAGE", help="As in a pod.")
    ]
    platform: Annotated[
        list[str] | None,
        Option(
            parser=values.platform,
            metavar="OS/ARCHITECTURE",
            help="Platform of the nodes; may be repeated. Default: all platforms of the image.",
        ),
    ] = None
    output: Annotated[TableOrJson, Option("--output", "-o")] = TableOrJson.TABLE
    disk_size: Annotated[
        int,
        Option(
            parser=values.gigabytes,
            metavar="GB",
            help=f"Size of the nodes' disks; default {advice.DISK / 1e9:g}.",
            show_default=False,
        ),
    ] = advice.DISK


def lint(registries: Registries, request: Request) -> int:
    """Show what makes images slow to pull, with remedies.

    Needs no cluster. Exit status: 1 if an image has an error or cannot be checked.
    """
    return asyncio.run(_lint(registries, request))


async def _lint(options: Registries, request: Request) -> int:
    from imagegate import lint
    from imagegate.registry import client as registry

    keyring = values.keyring("--docker-config", request.docker_config)
    async with registry.Client(options.registry()) as registries:
        linted = await lint.lint(
            request.images,
            tuple(dict.fromkeys(request.platform or ())),
            registries,
            keyring,
            disk_size=request.disk_size,
        )
    typer.echo((lint.as_json if request.output == "json" else lint.table)(linted))
    return exits.FAILED if any(each.failed for each in linted) else exits.OK
