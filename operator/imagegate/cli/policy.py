"""The chart's ``prefetchPolicy``, as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, with_config
from pydantic.alias_generators import to_camel

from imagegate.domain.policy import PrefetchPolicy


@with_config(ConfigDict(alias_generator=to_camel, extra="forbid", strict=True))
@dataclass(frozen=True, slots=True)
class _PrefetchPolicy(PrefetchPolicy):
    """Unknown fields are an error, because a limit that this version does not know must not be
    ignored.
    """


def parse(text: str) -> PrefetchPolicy:
    """Raises ValueError."""
    return TypeAdapter(_PrefetchPolicy).validate_json(text)
