"""The facts about an ImagePrefetch that do not come from nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from imagegate.domain.facts import ImageFacts, Refreshed
from imagegate.domain.repositories import Selected
from imagegate.domain.workloads import Found


@dataclass(frozen=True, slots=True)
class Findings:
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    """The registry's facts, by image reference."""
    refreshed: Refreshed | None = None
    """The last check for new digests at the registry; None: none since the operator's start."""
    found: Found | None = None
    """The images that ``imagesFrom`` selects, if the spec has it."""
    selected: Selected | None = None
    """The tags that ``repositories`` selects, if the spec has it."""


NOTHING: Final = Findings()
