"""Bodies of deliveries: JSON, read into what a source needs of it and nothing else."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from imagegate.api import references
from imagegate.api.references import Reference
from imagegate.hooks.event import Delivery, Malformed, Push

MOST = 1000
"""Elements of a list. Event Grid's largest batches have about as many events."""

Text = Annotated[str, StringConstraints(max_length=1024)]
"""A name, an id, a URL or a tag. Only what a source defines otherwise may be longer."""

LongText = Annotated[str, StringConstraints(max_length=256 << 10)]
"""A whole event inside of another."""

Item = TypeVar("Item")
Items = Annotated[list[Item], Field(max_length=MOST, fail_fast=True)]
"""Every list of a body. Without `fail_fast` pydantic keeps an error of about 1 KB for each element
that is wrong, and 1 MiB holds half a million elements.
"""


class Part(BaseModel):
    """A part of a body. Senders add fields as they like, and write null for what is not there.

    Every field of a Part has a bound: `Text` and `Items` rather than ``str`` and ``list``.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)


Whole = TypeVar("Whole", bound=Part)


def read(model: type[Whole], delivery: Delivery) -> Whole:
    """Raises Malformed; its text names fields, and quotes nothing of what was sent."""
    return parse(model, delivery.body)


def parse(model: type[Whole], data: bytes) -> Whole:
    """Raises Malformed, as `read` does."""
    try:
        # Not model_validate_json, which keeps a copy of the input for each field that is missing.
        content = from_json(data)
    except ValueError:
        raise Malformed("the body: not JSON") from None
    try:
        return model.model_validate(content)
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
