"""The map in docs/development.md names only files and functions that exist."""

from __future__ import annotations

import re

import pytest

from tests.cluster.paths import CHECKOUT

MAP = (CHECKOUT / "docs/development.md").read_text()
ROOTS = ("operator/imagegate", "tests", "deploy", "docs")
SPANS = sorted(
    {
        (path.rstrip("/"), name)
        for path, name in re.findall(r"`([\w./-]+)(?:: (\w+))?`", MAP)
        if re.search(r"/|\.(?:py|yaml|md|toml)$", path) and not path.startswith(".")
    }
)


@pytest.mark.parametrize(("path", "name"), SPANS)
def test_path_of_the_map_exists(path: str, name: str) -> None:
    """A path may begin in any folder of the tree, as a row names a folder only once."""
    there = [f for root in ROOTS for f in (CHECKOUT / root).rglob(path.rpartition("/")[2])]
    there = [f for f in [*there, CHECKOUT / path] if f.exists() and f"/{f}".endswith(f"/{path}")]
    assert there, f"{path} is not in the tree"
    if name:
        texts = [file.read_text() for file in there]
        assert any(re.search(rf"\bdef {name}\(", text) for text in texts), f"{path} has no {name}"


def test_the_map_names_many_paths() -> None:
    assert len(SPANS) > 60
