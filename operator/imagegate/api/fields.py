"""Fields of Kubernetes objects that are read the same way everywhere. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def version(metadata: Mapping[str, Any]) -> int:
    """The resourceVersion as an integer; 0 when there is none.

    Comparable within one kind: promised since KEP-5504 (1.35), true of every etcd-backed API
    server before.
    """
    text = str(metadata.get("resourceVersion") or "0")
    return _digits(text)


def _digits(text: str) -> int:
    """0 for what is no number, or one of more digits than any that Kubernetes knows (64 bits)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0


_SUFFIXES = {
    **{suffix: 10 ** (3 * (i + 1)) for i, suffix in enumerate("kMGTPE")},
    **{suffix: 1024 ** (i + 1) for i, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
}


def quantity(text: object) -> int:
    """A resource quantity of whole bytes (``100Gi``, ``5M``, ``123``); 0 where it is none."""
    if not isinstance(text, str):
        return 0
    number = text.rstrip("kMGTPEi")
    factor: int = _SUFFIXES.get(text[len(number) :], 1)
    return _digits(number) * factor


def seconds(text: object) -> float | None:
    """Seconds since the epoch of an RFC 3339 time; None where there is none or it is garbled."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes it."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
