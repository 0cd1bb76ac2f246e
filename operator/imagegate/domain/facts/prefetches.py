"""The ImagePrefetch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from imagegate.domain.facts import groups
from imagegate.domain.facts.groups import Group
from imagegate.domain.facts.images import Image
from imagegate.domain.facts.names import LABEL_PREFIX
from imagegate.domain.facts.specs import (
    DaemonSetRef,
    GateSpec,
    ImageSource,
    RefreshSpec,
    Requirement,
    RetrySpec,
    RolloutSpec,
)

POLICY_VIOLATION = "PolicyViolation"
"""Reason of an ImagePrefetch that asks for what administrators do not allow (`domain.policy`)."""


@dataclass(frozen=True)
class Prefetch:
    """One ImagePrefetch. ``invalid`` explains why it cannot be acted on; then the fields of the
    spec mean something only if it could be parsed (`parsed`).
    """

    name: str
    uid: str
    version: int = field(compare=False)
    generation: int = 1
    created_at: float = 0.0
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    invalid: tuple[str, str] | None = None
    """(reason in CamelCase, message with the remedy)."""
    images: tuple[Image, ...] = ()
    images_from: tuple[ImageSource, ...] = ()
    searching: bool = False
    """Whether it is not known yet which images ``images_from`` comes to: nothing is begun for it,
    and nothing that nodes have is doubted."""
    unread: bool = False
    """Whether a source in ``images_from`` cannot be read and nothing is remembered of it: there
    may be more images than ``images`` has."""
    pull_secrets: tuple[str, ...] = ()
    """For the images that ``images_from`` comes to."""
    selector: tuple[Requirement, ...] = ()
    namespace: str = ""
    start_after: tuple[DaemonSetRef, ...] = ()
    gate: GateSpec = field(default_factory=GateSpec)
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    retry: RetrySpec = field(default_factory=RetrySpec)
    keep: bool = True
    """retention.mode Keep: the finished puller pod stays, and so pins the images."""
    max_usage: int = 100
    """Percentage to which pulls may fill a node's image file system; 100: no guard."""
    dry_run: bool = False
    """Whether it is only to be said what would happen."""
    refresh: RefreshSpec | None = None
    """None: a tag is pulled once, whatever becomes of it."""
    status: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        return LABEL_PREFIX + self.name

    @property
    def live(self) -> bool:
        """Whether nodes should hold its images: neither going away, unusable nor a dry run."""
        return not self.deleting and self.invalid is None and not self.dry_run

    @property
    def forbidden(self) -> bool:
        """Whether it asks for what administrators do not allow: it holds no node then, not even
        under FailClosed.
        """
        return self.invalid is not None and self.invalid[0] == POLICY_VIOLATION

    @cached_property
    def private(self) -> bool:
        """Whether some image is pulled with secrets."""
        return any(image.pull_secrets for image in self.images)

    @property
    def parsed(self) -> bool:
        """Whether the spec could be parsed. A spec that was parsed names an image or a source."""
        return bool(self.images or self.images_from)

    @cached_property
    def target(self) -> str:
        """First 12 hex digits of SHA-256 over the sorted image references, with the digests that
        they were resolved to.
        """
        text = "\n".join(sorted(groups.identity(image) for image in self.images))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """How the images are spread over puller pods (`groups.spread`)."""
        return groups.spread(self.uid, self.images)

    @cached_property
    def references(self) -> frozenset[str]:
        """Every reference that puller pods pull, see `Group.references`."""
        return frozenset(each for group in self.groups for each in group.references)
