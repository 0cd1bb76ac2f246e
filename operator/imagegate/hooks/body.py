"""Bodies of deliveries: JSON, read into what a source needs of it and nothing else."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from imagegate.api import references
from imagegate.api.references import Reference
from imagegate.hooks.event import Delivery, Malformed, Push


class Part(BaseModel):
    """A part of a body. Senders add fields as they like, and write null for what is not there."""

    model_config = ConfigDict(extra="ignore", frozen=True)


Whole = TypeVar("Whole", bound=Part)


def read(model: type[Whole], delivery: Delivery) -> Whole:
    """Raises Malformed; its text names fields, and quotes nothing of what was sent."""
    try:
        return model.model_validate_json(delivery.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Malformed(f"{where}: {first['msg']}") from None


def reference(text: str, field: str) -> Reference:
    """An image reference in a body. Raises Malformed."""
    try:
        return references.parse(text)
    except references.InvalidReference:
        raise Malformed(f"{field}: not an image reference") from None


def named(image: Reference, tag: str | None = None) -> Push:
    """A push of what a reference names."""
    return Push(image.path, image.tag or "" if tag is None else tag, image.domain)


def moves(tag: str | None) -> bool:
    """Whether this is a tag: children of an index are pushed by digest, and move none."""
    return bool(tag) and ":" not in str(tag)
