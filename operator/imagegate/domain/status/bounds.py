"""Limits the size of a status to 16 KiB, for every spec and every number of nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_FAILURES = 10
MAX_MESSAGE = 400
"""Characters of a message about one node or one image."""
MAX_CONDITION = 1000
"""Characters of a condition's message."""
SHORTER = (200, 100, 50, 20)
"""Smaller limits for messages, and for the images of failures: the first that fits is used."""
MAX_STATUS = 16 * 1024
"""Bytes of a status. Advice is left out first."""
NOT_ADVICE = 8 * 1024
"""Bytes of a status that advice never uses. They are reserved for failures, conditions and counts,
because otherwise a node that fails would change the advice."""


def fit(status: dict[str, Any]) -> dict[str, Any]:
    """The status within 16 KiB and the limits of the CRD. The images have their own bound, so the
    messages of failures are shortened first, and then those of conditions.
    """
    conditions = [_shortened(entry, "message", MAX_CONDITION) for entry in status["conditions"]]
    status = {**status, "conditions": conditions}
    for limit in SHORTER:
        if size(status) <= MAX_STATUS:
            return status
        failures = [
            _shortened(_shortened(entry, "message", limit), "image", limit)
            for entry in status["failures"]
        ]
        status = {**status, "failures": failures}
    for limit in SHORTER:
        if size(status) <= MAX_STATUS:
            return status
        conditions = [_shortened(entry, "message", limit) for entry in status["conditions"]]
        status = {**status, "conditions": conditions}
        if isinstance(refresh := status.get("refresh"), Mapping):
            status["refresh"] = _shortened(refresh, "message", limit)
    return status


def _shortened(entry: Mapping[str, Any], key: str, limit: int) -> dict[str, Any]:
    return {**entry, key: cut(entry[key], limit)} if key in entry else dict(entry)


def size(content: object) -> int:
    """Bytes of this content in a status."""
    return len(json.dumps(content))


def cut(message: str, limit: int = MAX_MESSAGE) -> str:
    """The message without its middle, because the cause is at the end, after names that may be
    long.
    """
    if len(message) <= limit:
        return message
    begin = limit // 4
    return f"{message[:begin]} … {message[begin + 3 - limit :]}"
