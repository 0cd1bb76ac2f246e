"""Paths to fields of an object of any kind, such as ``spec.workers[*].template``.

A path is field names with a ``.`` between them. ``[*]`` after a name stands for each entry of a
list, or for each value of a map. A path needs no search: each step reads a field of the objects
that the step before has found, so the work is at most proportional to the size of the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

MAX_PATH: Final = 256
"""Longest path in characters."""
MAX_PATHS: Final = 16
"""Largest number of paths in one list."""

_NAME: Final = "[A-Za-z_][-A-Za-z0-9_]*"
GRAMMAR: Final = f"^{_NAME}(\\[[*]\\])?([.]{_NAME}(\\[[*]\\])?)*$"
COMPLAINT: Final = (
    "is not a path: write the names of fields with '.' between them, and [*] after a list or a map,"
    " such as spec.template or spec.workers[*].template"
)
_EACH: Final = "[*]"


@lru_cache(maxsize=1024)
def _steps(path: str) -> tuple[tuple[str, bool], ...]:
    """The names of the fields, each with whether its entries are meant."""
    steps = path.split(".")
    return tuple((step.removesuffix(_EACH), step.endswith(_EACH)) for step in steps)


def values(body: object, path: str) -> list[object]:
    """The values at a valid path. A field that does not exist, or has another type than the path
    says, has none. Never raises.
    """
    found: Iterable[object] = (body,)
    for name, each in _steps(path):
        fields = [value[name] for value in found if isinstance(value, Mapping) and name in value]
        found = [entry for field in fields for entry in _entries(field)] if each else fields
    return list(found)


def _entries(field: object) -> Iterable[object]:
    if isinstance(field, Mapping):
        return field.values()
    return field if isinstance(field, list) else ()
