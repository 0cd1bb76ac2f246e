"""Write the generated parts of the chart; `--check` only compares.

Run it after a change of values.yaml or of deploy/crds/. Only the comments of values.yaml document
the values. This script copies them into the table of the chart's README.md and into the
descriptions of values.schema.json; the rest of both files is written by hand. It also copies the
CRDs, which are generated from the API models, to a folder that Helm can read.
Standard library only.
"""

# ruff: noqa: INP001 (a script, not part of a package)

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

HELM = pathlib.Path(__file__).resolve().parent
CHART = HELM / "imagegate"
CRDS = HELM.parent / "crds"
BEGIN, END = "<!-- values: begin (deploy/helm/generate.py) -->", "<!-- values: end -->"


class Value(NamedTuple):
    path: tuple[str, ...]
    default: str  # empty if the default is a block
    description: str


def read_values(text: str) -> Iterator[Value]:
    """Yield the documented values: the keys with a comment directly above.

    Reads only the subset of YAML that values.yaml uses: block mappings with an indent of two; a
    value is on the line of its key, or in the deeper lines below.
    """
    parents: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        depth = (len(line) - len(line.lstrip())) // 2
        if bare.startswith("#"):
            comment.append(bare.removeprefix("#").strip())
        elif not bare or bare.startswith("- ") or depth > len(parents):
            comment = []
        else:
            key, _, default = bare.partition(":")
            parents[depth:] = [key]
            if comment:
                yield Value(tuple(parents), default.strip(), " ".join(comment))
                parents[depth:] = []  # The lines below belong to the default of this value.
            comment = []


def table(values: list[Value]) -> str:
    rows = ["| value | default | |", "|---|---|---|"]
    for value in values:
        default = f"`{value.default}`" if value.default else "see values.yaml"
        cells = (f"`{'.'.join(value.path)}`", default, value.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def readme(text: str, values: list[Value]) -> str:
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(values)}\n{END}{after}"


def schema(text: str, values: list[Value]) -> str:
    document: dict[str, Any] = json.loads(text)
    for value in values:
        node = document
        for key in value.path:
            node = node["properties"][key]
        node["description"] = value.description
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def derived() -> dict[pathlib.Path, str | None]:
    """The wanted text of every generated file; None for a file that must be deleted."""
    values = list(read_values((CHART / "values.yaml").read_text(encoding="utf-8")))
    files: dict[pathlib.Path, str | None] = dict.fromkeys((CHART / "crds-src").glob("*.yaml"))
    files |= {
        CHART / "crds-src" / path.name: path.read_text(encoding="utf-8")
        for path in CRDS.glob("*.yaml")
    }
    files[CHART / "README.md"] = readme((CHART / "README.md").read_text(encoding="utf-8"), values)
    files[CHART / "values.schema.json"] = schema(
        (CHART / "values.schema.json").read_text(encoding="utf-8"), values
    )
    return files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file is out of date"
    )
    arguments = parser.parse_args(argv)

    stale = []
    for path, text in sorted(derived().items()):
        if (path.read_text(encoding="utf-8") if path.exists() else None) == text:
            continue
        stale.append(path)
        if arguments.check:
            continue
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        verb = "out of date" if arguments.check else "written"
        sys.stdout.write(f"{verb}: {path.relative_to(HELM.parent.parent)}\n")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
