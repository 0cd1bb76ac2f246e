"""The merge patch that writes a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def changes(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7396) that makes ``there`` equal to ``wanted``; empty if it is already.

    A field that is not wanted any more is removed by a null, at every depth, because a merge patch
    keeps the fields that it does not name. Lists are replaced as a whole.
    """
    patch: dict[str, Any] = {key: None for key in there if key not in wanted}
    for key, value in wanted.items():
        old = there.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if inner := changes(old, value):
                patch[key] = inner
        elif key not in there or old != value:
            patch[key] = value
    return patch
