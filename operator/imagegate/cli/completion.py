"""``imagegate completion``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer
from typer import Argument
from typer._completion_classes import completion_init

COMPLETE = "_IMAGEGATE_COMPLETE"
"""Variable by which a shell asks for completions."""
PROGRAM = "imagegate"


def serve() -> None:
    """Get ready to answer a shell that asks for completions, if one does."""
    if COMPLETE in os.environ:
        completion_init()


def ask(words: Sequence[str]) -> None:
    """Make this process answer as if bash asked it to complete the last of these words."""
    os.environ[COMPLETE] = "complete_bash"
    os.environ["COMP_WORDS"] = shlex.join((PROGRAM, *words))
    os.environ["COMP_CWORD"] = str(len(words))


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    context: typer.Context, shell: Annotated[Shell, Argument(help="For which shell.")]
) -> None:
    """Print a shell's completion script."""
    completion_init()
    os.environ[COMPLETE] = f"source_{shell.value}"
    context.find_root().command.main([], prog_name=PROGRAM, complete_var=COMPLETE)
