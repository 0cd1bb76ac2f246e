"""The command line: `imagegate`, also installed as the kubectl plugin `kubectl imagegate`.

Each module has one command, or those of one kind. A command imports what it needs when it runs, so
that `--help` and shell completion are fast, and no command costs the memory of another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from imagegate import __version__, logs
from imagegate.cli import completion, exits, lint, operate, plan, release, simulate, status, tags
from imagegate.cli.grouped import grouped
from imagegate.errors import ImagegateError

PLUGIN = "kubectl-imagegate"


app = typer.Typer(
    add_completion=False,  # `completion` prints the script, and changes no file in the home
    rich_markup_mode=None,  # plain help and errors, at any width and without colours
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _imagegate(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Show the version."),
    ] = False,
) -> None:
    """Pull images onto nodes before pods are scheduled there."""


_COMMANDS: tuple[Callable[..., int], ...] = (
    status.status,
    status.explain,
    status.wait,
    release.release,
    plan.plan,
    lint.lint,
    tags.tags,
    simulate.simulate,
    operate.run,
    operate.hooks,
    operate.watchdog,
    operate.cleanup,
)
for _command in _COMMANDS:
    app.command()(grouped(_command))
app.command()(completion.completion)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status (`exits`)."""
    # With trust_env, aiohttp also reads a .netrc, and sends its passwords to every host that it
    # names. A library may set trust_env to use the environment's proxies.
    os.environ["NETRC"] = os.devnull
    logs.configure("error", "text")
    completion.serve()
    try:
        get_command(app).main(argv, prog_name=program(), complete_var=completion.COMPLETE)
    except SystemExit as end:
        return int(end.code or 0)
    except (ImagegateError, TimeoutError, OSError) as error:
        typer.echo(f"Error: {str(error) or type(error).__name__}", err=True)
    return exits.FAILED


def complete_for_kubectl() -> int:
    """`kubectl_complete-imagegate`: kubectl runs it with the words after `kubectl imagegate`, of
    which the last is to be completed. The answer is in the form of cobra, kubectl's own library.
    """
    completion.ask(sys.argv[1:])
    main([])
    typer.echo(":4")  # cobra's ShellCompDirectiveNoFileComp
    return exits.OK


def program() -> str:
    """The name by which a person has called this program."""
    name = Path(sys.argv[0]).name
    return "kubectl imagegate" if name.startswith(PLUGIN) else "imagegate"


if __name__ == "__main__":
    sys.exit(main())
