"""Readers for common fields of Kubernetes objects. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def version(metadata: Mapping[str, Any]) -> int:
    """The resourceVersion as an integer; 0 if there is none.

    Two versions of one kind can be compared: KEP-5504 promises this since Kubernetes 1.35, and
    every etcd-backed API server has always done so.
    """
    text = str(metadata.get("resourceVersion") or "0")
    return _digits(text)


def _digits(text: str) -> int:
    """The text as an integer; 0 if it is not a number, or has more digits than 64 bits allow."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0


_SUFFIXES = {
    **{suffix: 10 ** (3 * (i + 1)) for i, suffix in enumerate("kMGTPE")},
    **{suffix: 1024 ** (i + 1) for i, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
}


def quantity(text: object) -> int:
    """A resource quantity of whole bytes (``100Gi``, ``5M``, ``123``); 0 for any other text."""
    if not isinstance(text, str):
        return 0
    number = text.rstrip("kMGTPEi")
    factor: int = _SUFFIXES.get(text[len(number) :], 1)
    return _digits(number) * factor


def seconds(text: object) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None if it is absent or malformed."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes it."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
