"""Commands whose options are the fields of dataclasses, which several commands can share.

Typer reads options from the parameters of a function. `grouped` gives it a function with one
parameter for each field, and calls the command with the dataclasses.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ParameterInfo


class _Parsed:
    """For Typer, the type of an option with a parser: the parser alone decides on the value."""


def grouped(command: Callable[..., int]) -> Callable[..., None]:
    """A function for Typer. ``command`` takes dataclasses, whose fields are annotated with options
    or arguments, and returns the exit status.
    """
    hints = get_type_hints(command)
    groups: list[type[Any]] = [hints[name] for name in inspect.signature(command).parameters]

    def run(**values: Any) -> None:
        objects = [
            group(**{field.name: values[field.name] for field in dataclasses.fields(group)})
            for group in groups
        ]
        raise typer.Exit(command(*objects))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {}
    parameters = [each for group in groups for each in _parameters(group)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _parameters(group: type[Any]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        type_, info = get_args(hints[field.name])
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=_annotation(type_, info),
        )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _annotation(type_: Any, info: ParameterInfo) -> Any:
    parse: Callable[[str], Any] | None = info.parser
    if parse is None:
        return Annotated[type_, info]

    def parse_text(value: Any) -> Any:
        return parse(value) if isinstance(value, str) else value  # a default is a value already

    info = copy.copy(info)
    info.parser = parse_text
    several = any(get_origin(each) is list for each in (type_, *get_args(type_)))
    return Annotated[list[_Parsed] if several else _Parsed, info]
