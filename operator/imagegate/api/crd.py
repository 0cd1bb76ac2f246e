"""The CustomResourceDefinitions, made from the models: `python -m imagegate.api.crd`.

Run from the root of the repository, the command writes deploy/crds/. With `--check` it writes
nothing, and fails with a diff if the files differ from the models.
"""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from imagegate.api import meta, schema, v1alpha1

DEFAULT_OUTPUT: Final = Path("deploy/crds")
_COMMAND: Final = "python -m imagegate.api.crd"
_HEADER: Final = f"""\
# Generated from operator/imagegate/api/v1alpha1 by `{_COMMAND}`. Do not edit: change the models.
"""
_READY: Final = '.status.conditions[?(@.type=="Ready")]'


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; with `wide`, only of `kubectl get -o wide`."""

    name: str
    type: str
    path: str
    description: str
    wide: bool = False

    def entry(self) -> dict[str, Any]:
        """Return the column in the form of a CRD."""
        entry = {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.path,
            "description": self.description,
        }
        return {**entry, "priority": 1} if self.wide else entry


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of the API: its model, and the parts of its CRD that are not in the schema."""

    model: type[v1alpha1.ImagePrefetch | v1alpha1.NodeGate]
    short_name: str
    columns: tuple[Column, ...]

    @property
    def file_name(self) -> str:
        """Name of the CRD's file, as controller-gen would name it."""
        return f"{meta.GROUP}_{self.model.plural}.yaml"

    def definition(self) -> dict[str, Any]:
        """Make the CustomResourceDefinition."""
        name = self.model.__name__
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{self.model.plural}.{meta.GROUP}"},
            "spec": {
                "group": meta.GROUP,
                "names": {
                    "kind": name,
                    "listKind": f"{name}List",
                    "plural": self.model.plural,
                    "singular": name.lower(),
                    "shortNames": [self.short_name],
                    "categories": ["imagegate"],
                },
                "scope": "Cluster",
                "versions": [
                    {
                        "name": meta.VERSION,
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": _object_schema(self.model)},
                        "subresources": {"status": {}},
                        "additionalPrinterColumns": [column.entry() for column in self.columns],
                    }
                ],
            },
        }

    def text(self) -> str:
        """Return the text of the CRD's file."""
        return _HEADER + yaml.dump(
            self.definition(), Dumper=_Dumper, sort_keys=True, width=100, allow_unicode=True
        )


_AGE: Final = Column("Age", "date", ".metadata.creationTimestamp", "Time since the creation.")

KINDS: Final = (
    Kind(
        v1alpha1.ImagePrefetch,
        short_name="ipf",
        columns=(
            Column(
                "Desired", "integer", ".status.nodes.desired", "Nodes that should hold the images."
            ),
            Column("Cached", "integer", ".status.nodes.cached", "Nodes that hold the images."),
            Column("Pulling", "integer", ".status.nodes.pulling", "Nodes that are pulling."),
            Column("Failed", "integer", ".status.nodes.failed", "Nodes whose last pull failed."),
            Column("Gated", "integer", ".status.nodes.gated", "Nodes held by the gate taint."),
            Column("Ready", "string", f"{_READY}.status", "Whether every node has every image."),
            _AGE,
            Column("Target", "string", ".status.target", "Hash of the images.", wide=True),
            Column("Message", "string", f"{_READY}.message", "Why it is ready or not.", wide=True),
        ),
    ),
    Kind(
        v1alpha1.NodeGate,
        short_name="ngate",
        columns=(
            Column("Armed", "boolean", ".status.armed", "Whether joining nodes are held."),
            Column("Held", "integer", ".status.held", "Nodes that are held now."),
            Column("Heartbeat", "date", ".status.heartbeat", "Time since the last heartbeat."),
            _AGE,
        ),
    ),
)


def _object_schema(model: type[v1alpha1.ImagePrefetch | v1alpha1.NodeGate]) -> schema.Schema:
    """Make the schema of a whole object. Only the spec has defaults.

    The operator compares the status that it read with the status that it would write. A default
    that the API server filled in would make the two differ forever.
    """
    whole = schema.structural(model)
    properties = whole["properties"]
    for name in ("apiVersion", "kind", "status"):
        properties[name] = _without_defaults(properties[name])
    whole["required"].remove("metadata")
    return whole


def _without_defaults(node: schema.Schema) -> schema.Schema:
    bare = {key: value for key, value in node.items() if key != "default"}
    if "properties" in bare:
        bare["properties"] = {
            name: _without_defaults(child) for name, child in bare["properties"].items()
        }
    if "items" in bare:
        bare["items"] = _without_defaults(bare["items"])
    return bare


class _Dumper(yaml.SafeDumper):
    """Writes YAML without anchors: a value that occurs twice is written twice."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def files() -> dict[str, str]:
    """Return the CRDs' files: name and text."""
    return {kind.file_name: kind.text() for kind in KINDS}


def differences(wanted: Mapping[str, str], directory: Path) -> str:
    """Return the diff between a directory and the wanted files; empty if they are current."""
    diff: list[str] = []
    for name, text in wanted.items():
        path = directory / name
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        diff += difflib.unified_diff(
            found.splitlines(keepends=True),
            text.splitlines(keepends=True),
            fromfile=str(path),
            tofile=f"{path} (from the models)",
        )
    return "".join(diff)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the files; return the exit code."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Make the CRDs from the models.")
    parser.add_argument(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="DIR",
        help="where the files are (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 and a diff when the files are not current",
    )
    options = parser.parse_args(arguments)
    if options.check:
        diff = differences(files(), options.output)
        sys.stdout.write(diff)
        return 1 if diff else 0
    options.output.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (options.output / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
