"""The progress of ImagePrefetches: as bars in a terminal, else as a line for each change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from imagegate.progress import Progress

Show = Callable[[Sequence[tuple[Progress, str]]], None]
"""Shows each ImagePrefetch with its line (`progress.line`)."""


@contextmanager
def lines() -> Iterator[Show]:
    """For logs and pipes: a line is written when it has changed."""
    last: dict[str, str] = {}

    def show(shown: Sequence[tuple[Progress, str]]) -> None:
        for each, line in shown:
            counts = f"{each.nodes} {each.ready}"  # without the rate, which always changes
            if last.get(each.name) != counts:
                typer.echo(f"{each.name}: {line}")
                last[each.name] = counts

    yield show


@contextmanager
def bars(console: Console | None = None) -> Iterator[Show]:
    """For a terminal. Rich leaves out colours where NO_COLOR is set."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[line]}"),
    )
    tasks: dict[str, TaskID] = {}
    with RichProgress(*columns, console=console) as rich:

        def show(shown: Sequence[tuple[Progress, str]]) -> None:
            for gone in tasks.keys() - {each.name for each, _ in shown}:
                rich.remove_task(tasks.pop(gone))
            for each, line in shown:
                if each.name not in tasks:
                    tasks[each.name] = rich.add_task(escape(each.name), line="")
                rich.update(
                    tasks[each.name],
                    completed=each.nodes["cached"],
                    total=max(1, each.nodes["desired"]),
                    line=escape(line),
                )

        yield show
