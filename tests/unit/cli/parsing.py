"""What the command line makes of arguments, without running the command."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import typer.main

from imagegate import cli
from imagegate.cli.operate import Operator, Receiver
from imagegate.cli.options import Names, Outside, Place
from imagegate.settings import HooksSettings, Settings


def parse(arguments: Sequence[str]) -> SimpleNamespace:
    """The values of all options, by name. Raises the exception of a usage error."""
    name, *rest = arguments
    commands: Any = typer.main.get_command(cli.app)
    with commands.commands[name].make_context(name, rest) as context:
        return SimpleNamespace(**context.params)


def operator(arguments: Sequence[str]) -> Settings:
    """The settings of ``imagegate run``."""
    values = parse(arguments)
    options: Operator = _group(Operator, values)
    return options.settings(_group(Names, values), _group(Outside, values))


def receiver(arguments: Sequence[str]) -> HooksSettings:
    """The settings of ``imagegate hooks``."""
    values = parse(arguments)
    options: Receiver = _group(Receiver, values)
    return options.settings(_group(Place, values))


def _group(group: type[Any], values: SimpleNamespace) -> Any:
    return group(**{field.name: getattr(values, field.name) for field in dataclasses.fields(group)})
