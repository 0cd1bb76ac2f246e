"""Images: how users name them, and what the registry says about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Image:
    reference: str
    """Exactly as the user wrote it: the kubelet's credential records are keyed by this string."""
    pull_secrets: tuple[str, ...] = ()
    listed_as: str = ""
    """The normalized name, under which a node that has it lists it."""
    digest: str = ""
    """What its tag has been resolved to, where it is followed; see `Prefetch.refresh`."""
    tagged_as: str = ""
    """The normalized name with the tag, where there is a digest: ``listed_as`` has the digest."""
    source: str = field(default="", compare=False)
    """The workload whose pod template names it (`domain.workloads`); empty: the spec does."""

    @property
    def pinned(self) -> str:
        """The same image by its digest, the name spelled as in ``reference``; empty without one."""
        if not self.digest:
            return ""
        name, colon, rest = self.reference.rpartition(":")
        # The text after the last colon is a registry's port if there is a slash in it.
        return f"{name if colon and '/' not in rest else self.reference}@{self.digest}"

    def resolved(self, digest: str) -> Image:
        """The image with its tag resolved. One that names its digest already stays as it is."""
        if not digest or self.digest == digest or "@" in self.reference:
            return self
        tagged = self.tagged_as or self.listed_as
        name = tagged[: tagged.rindex(":")] if tagged else ""
        return replace(
            self, digest=digest, tagged_as=tagged, listed_as=f"{name}@{digest}" if name else ""
        )


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer of an image, in bytes as the registry sends them."""

    size: int
    """0 for one that is there a second time: it is pulled once."""
    compression: str = "gzip"
    """By its media type: ``gzip``, ``zstd`` or ``none``."""
    key: int = field(default=0, compare=False)
    """64 bits of its digest, by which images that share it are recognised; 0: not known."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What an image weighs for nodes of one platform, in bytes as the registry sends them."""

    compressed: int
    """Every layer once, and the configuration."""
    largest_layer: int = 0
    layers: tuple[LayerFacts, ...] = ()
    """From the lowest to the topmost; empty where they are not known one by one."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the registry says of one image; nothing where it could not be asked."""

    digest: str = ""
    """What the reference is resolved to: the index's digest, where there is one."""
    sizes: Mapping[str, ImageSize] = field(default_factory=dict)
    """By the platform of the nodes."""
    missing: frozenset[str] = frozenset()
    """Platforms of nodes that the image is not there for."""
    platforms: tuple[str, ...] = ()
    """Those that the image is there for, as far as the registry was asked."""
    problem: str = ""
    """Why something is not known, with what to do about it."""

    @property
    def largest(self) -> ImageSize | None:
        """Of the platforms that nodes have, the one with the most to send."""
        return max(self.sizes.values(), key=lambda size: size.compressed, default=None)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What came of looking at the registry for new digests."""

    at: float
    """When that was done last."""
    due: float
    """When it is done next, unless a push event comes before."""
    problem: str = ""
    failures: int = 0
    """How many looks in a row could not resolve every tag."""
