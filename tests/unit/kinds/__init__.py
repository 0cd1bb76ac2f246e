"""Objects of the known kinds, with the images that they name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from imagegate.domain.facts import Place

NAMESPACE = "serving"


@dataclass(frozen=True, slots=True)
class Example:
    object: dict[str, Any]
    images: list[str]
    unusable: list[str] = field(default_factory=list)
    """The beginnings of the reports about values that are not image references."""
    ended: dict[str, Any] | None = None
    """The status of an object that has ended, if the kind has an end."""

    @property
    def place(self) -> Place:
        return Place(self.object["kind"], NAMESPACE, self.object["apiVersion"])

    @property
    def id(self) -> str:
        return self.place.title


EXAMPLES = [
    Example(**entry)
    for entry in yaml.safe_load(Path(__file__).with_name("objects.yaml").read_text("utf-8"))
]
