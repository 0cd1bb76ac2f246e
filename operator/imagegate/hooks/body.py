"""Bodies of deliveries: JSON, of which only the fields that a source needs are read."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import from_json

from imagegate.api import references
from imagegate.api.references import Reference
from imagegate.hooks.event import Delivery, Malformed, Push

MOST = 1000
"""Largest number of elements in a list. Event Grid's largest batches have about 1,000 events."""

Text = Annotated[str, StringConstraints(max_length=1024)]
"""A name, an id, a URL or a tag. Longer texts need a type of their own."""

LongText = Annotated[str, StringConstraints(max_length=256 << 10)]
"""A whole event that is embedded in another event."""

Item = TypeVar("Item")
Items = Annotated[list[Item], Field(max_length=MOST, fail_fast=True)]
"""Type of every list in a body. `fail_fast` limits memory: without it, pydantic keeps an error of
about 1 KB for each wrong element, and a body of 1 MiB can have half a million elements.
"""


class Part(BaseModel):
    """A part of a body. Senders may add fields, and may send null for absent values.

    Every field must have a limit: use `Text` and `Items` instead of ``str`` and ``list``.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)


Whole = TypeVar("Whole", bound=Part)


def read(model: type[Whole], delivery: Delivery) -> Whole:
    """Raises Malformed; its text names fields and quotes no value of the body."""
    return parse(model, delivery.body)


def parse(model: type[Whole], data: bytes) -> Whole:
    """Raises Malformed, as `read` does."""
    try:
        # Not model_validate_json, because it keeps a copy of the input for each missing field.
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
    """A push of the image that a reference names."""
    return Push(image.path, image.tag or "" if tag is None else tag, image.domain)


def moves(tag: str | None) -> bool:
    """Whether this is a tag. The children of an index are pushed by digest, which moves no tag."""
    return bool(tag) and ":" not in str(tag)
