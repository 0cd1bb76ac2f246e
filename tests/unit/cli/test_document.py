"""docs/cli.md shows what the commands print, and names every command and exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer.main

from imagegate import cli
from imagegate.cli import exits

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "cli.md").read_text()
EXAMPLES = re.findall(r"<!-- golden: ([a-z-]+) -->\n```text\n(.*?)\n```\n", TEXT, re.DOTALL)


@pytest.mark.parametrize(("name", "shown"), EXAMPLES)
def test_example_is_what_the_command_prints(name: str, shown: str) -> None:
    golden = Path(__file__).with_name("golden") / f"{name}.json"
    assert shown.splitlines() == json.loads(golden.read_text())


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == TEXT.count("<!-- golden") == 3


def test_every_command_is_named() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    table = TEXT[TEXT.index("| command |") : TEXT.index("`imagegate COMMAND --help`")]
    assert set(re.findall(r"`([a-z]+)[ `]", table)) >= set(commands)


def test_every_exit_status_is_named() -> None:
    known = {value for name, value in vars(exits).items() if name.isupper()}
    assert known == set(map(int, re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)))
