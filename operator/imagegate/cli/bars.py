"""The progress of ImagePrefetches: as bars in a terminal, else as a line for each change."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from imagegate.progress import Progress

Shown = Sequence[tuple[Progress, str]]
"""Each ImagePrefetch with its line (`progress.line`)."""


class Lines:
    """For logs and pipes: a line is written when it has changed."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None: ...

    def show(self, shown: Shown) -> None:
        for each, line in shown:
            counts = f"{each.nodes} {each.ready}"  # without the rate, which always changes
            if self._last.get(each.name) != counts:
                typer.echo(f"{each.name}: {line}")
                self._last[each.name] = counts


class Bars:
    """For a terminal. Rich leaves out colours where NO_COLOR is set."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[line]}"),
            console=console or Console(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, shown: Shown) -> None:
        names = {each.name for each, _ in shown}
        for gone in self._tasks.keys() - names:
            self._progress.remove_task(self._tasks.pop(gone))
        for each, line in shown:
            if each.name not in self._tasks:
                self._tasks[each.name] = self._progress.add_task(each.name, line="")
            self._progress.update(
                self._tasks[each.name],
                description=escape(each.name),
                completed=each.nodes["cached"],
                total=max(1, each.nodes["desired"]),
                line=escape(line),
            )
