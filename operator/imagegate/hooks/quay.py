"""Quay: quay.io, or a self-hosted Quay. Its deliveries have no proof.

Only notifications about pushes have updated tags.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from imagegate.hooks import body, verify
from imagegate.hooks.event import Delivery, Parsed, Receiver, Source

_Mapping = Annotated[dict[body.Text, Any], Field(max_length=body.MOST)]


class _Notification(body.Part):
    docker_url: body.Text | None = None
    updated_tags: body.Items[body.Text] | _Mapping | None = None
    """A list of tags; in old versions a mapping from tags to image IDs."""


def parse(delivery: Delivery, _: Receiver) -> Parsed:
    event = body.read(_Notification, delivery)
    if not event.updated_tags or not event.docker_url:
        return Parsed()
    image = body.reference(event.docker_url, "docker_url")
    return Parsed(tuple(body.named(image, tag) for tag in event.updated_tags if body.moves(tag)))


SOURCE = Source("quay", parse, verify.by_path, proofs=frozenset())
