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
    RepositorySpec,
    Requirement,
    RetrySpec,
    RolloutSpec,
)

POLICY_VIOLATION = "PolicyViolation"
"""Reason of an ImagePrefetch whose spec the administrators do not allow (`domain.policy`)."""


@dataclass(frozen=True)
class Prefetch:
    """One ImagePrefetch. ``invalid`` explains why the operator cannot act on it. In that case the
    fields of the spec are meaningful only if the spec could be parsed (`parsed`).
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
    repositories: tuple[RepositorySpec, ...] = ()
    list_interval: float = 300.0
    """Seconds between two lists of the tags of a repository."""
    searching: bool = False
    """Whether the images of ``images_from`` and ``repositories`` are not known yet. Until then no
    pull starts, and the labels and puller pods of nodes stay as they are."""
    unread: bool = False
    """Whether ``images`` may be incomplete, because a source in ``images_from`` or a repository
    cannot be read and the status has no images of it."""
    pull_secrets: tuple[str, ...] = ()
    """The pull secrets for images that only ``images_from`` selects."""
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
    """Whether the operator only reports what it would do."""
    refresh: RefreshSpec | None = None
    """None: a tag is pulled once, and later pushes to the tag are ignored."""
    status: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        return LABEL_PREFIX + self.name

    @property
    def live(self) -> bool:
        """Whether nodes should hold its images: it is not being deleted, its spec can be acted on,
        and it is not a dry run.
        """
        return not self.deleting and self.invalid is None and not self.dry_run

    @property
    def forbidden(self) -> bool:
        """Whether the administrators do not allow its spec. Then it holds no node, not even under
        FailClosed.
        """
        return self.invalid is not None and self.invalid[0] == POLICY_VIOLATION

    @cached_property
    def private(self) -> bool:
        """Whether some image is pulled with secrets."""
        return any(image.pull_secrets for image in self.images)

    @property
    def parsed(self) -> bool:
        """Whether the spec could be parsed. A spec that was parsed names an image, a source or a
        repository.
        """
        return bool(self.images or self.images_from or self.repositories)

    @property
    def reserved(self) -> int:
        """How many images the tags of ``repositories`` may be."""
        return sum(each.tags.keep for each in self.repositories)

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
