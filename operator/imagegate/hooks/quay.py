"""Quay, quay.io or one's own. It can prove nothing.

Notifications of other things than pushes name no updated tags.
"""

from __future__ import annotations

from typing import Any

from imagegate.hooks import body, verify
from imagegate.hooks.event import Delivery, Parsed, Receiver, Source


class _Notification(body.Part):
    docker_url: str | None = None
    updated_tags: list[str] | dict[str, Any] | None = None
    """Once a mapping from tags to image IDs."""


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    event = body.read(_Notification, delivery)
    if not event.updated_tags or not event.docker_url:
        return Parsed()
    image = body.reference(event.docker_url, "docker_url")
    return Parsed(tuple(body.named(image, tag) for tag in event.updated_tags if body.moves(tag)))


SOURCE = Source("quay", parse, verify.by_path, proofs=frozenset())
