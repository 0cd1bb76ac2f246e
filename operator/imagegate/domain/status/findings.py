"""What was found out about an ImagePrefetch beside its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from imagegate.domain.facts import ImageFacts, Refreshed
from imagegate.domain.workloads import Found


@dataclass(frozen=True, slots=True)
class Findings:
    images: Mapping[str, ImageFacts] = field(default_factory=dict)
    """What the registry says, by reference."""
    refreshed: Refreshed | None = None
    """The last look at the registry for new digests; None: none since the operator's start."""
    found: Found | None = None
    """The images that ``imagesFrom`` selects, where the spec has it."""


NOTHING: Final = Findings()
