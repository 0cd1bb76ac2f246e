"""The text that carries pushes from the receiving process to the leader. Its size is limited.

The text holds the last pushes, each with an id. The leader handles those whose id is new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from imagegate.errors import ImagegateError
from imagegate.hooks import body
from imagegate.hooks.event import Malformed, Push, Told

MOST = 128
"""Largest number of pushes in the text."""
MOST_BYTES = 256 << 10
"""Longest text that is read. The longest text that `encode` writes is about half as long."""
_LONGEST = 256
"""Longest value in the text. No image reference has a longer registry or repository."""


class Unreadable(ImagegateError):
    """The text does not have the form that `encode` writes."""


@dataclass(frozen=True, slots=True)
class Entry:
    id: str
    told: Told


class _Entry(body.Part):
    id: body.Text
    receiver: body.Text
    source: body.Text
    registry: body.Text
    repository: body.Text
    tag: body.Text = ""


class _Entries(body.Part):
    pushes: body.Items[_Entry]


def encode(entries: Iterable[Entry]) -> str:
    """The text with the last `MOST` entries."""
    pushes = [
        {
            "id": entry.id,
            "receiver": entry.told.receiver[:_LONGEST],
            "source": entry.told.source,
            "registry": entry.told.push.registry,
            "repository": entry.told.push.repository,
            "tag": entry.told.push.tag,
        }
        for entry in list(entries)[-MOST:]
    ]
    return json.dumps({"pushes": pushes})


def decode(text: str) -> tuple[Entry, ...]:
    """Raises Unreadable."""
    if not text:
        return ()
    if len(text) > MOST_BYTES:
        raise Unreadable(f"longer than {MOST_BYTES} characters")
    try:
        entries = body.parse(_Entries, text.encode("utf-8", "surrogatepass")).pushes
    except Malformed as error:
        raise Unreadable(str(error)) from None
    return tuple(
        Entry(it.id, Told(Push(it.repository, it.tag, it.registry), it.receiver, it.source))
        for it in entries[-MOST:]
    )
