"""Images: the references that users write, and the facts that the registry gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Image:
    reference: str
    """Exactly as the user wrote it: the kubelet's credential records are keyed by this string."""
    pull_secrets: tuple[str, ...] = ()
    listed_as: str = ""
    """The normalized name, under which nodes list the image."""
    digest: str = ""
    """The digest that a followed tag was resolved to; see `Prefetch.refresh`."""
    tagged_as: str = ""
    """The normalized name with the tag, if ``digest`` is set: then ``listed_as`` has the digest."""
    source: str = field(default="", compare=False)
    """The workload whose pod template names the image (`domain.workloads`), or the repository of
    its tag (`domain.repositories`); empty: the spec names it."""

    @property
    def pinned(self) -> str:
        """The image by its digest, with the name spelled as in ``reference``; empty without a
        digest.
        """
        if not self.digest:
            return ""
        name, colon, rest = self.reference.rpartition(":")
        # The text after the last colon is a registry's port if there is a slash in it.
        return f"{name if colon and '/' not in rest else self.reference}@{self.digest}"

    def resolved(self, digest: str) -> Image:
        """The image with its tag resolved. An image that names its digest stays as it is."""
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
    """0 for the second occurrence of a layer, because a layer is pulled once."""
    compression: str = "gzip"
    """By its media type: ``gzip``, ``zstd`` or ``none``."""
    key: int = field(default=0, compare=False)
    """64 bits of its digest, by which shared layers are recognised; 0: not known."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The size of an image for nodes of one platform, in bytes as the registry sends them."""

    compressed: int
    """Every layer once, and the configuration."""
    largest_layer: int = 0
    layers: tuple[LayerFacts, ...] = ()
    """From the lowest to the topmost; empty if the single layers are not known."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The registry's facts about one image; empty if the registry could not be asked."""

    digest: str = ""
    """The digest that the reference resolves to: the digest of the index, if there is an index."""
    sizes: Mapping[str, ImageSize] = field(default_factory=dict)
    """By the platform of the nodes."""
    missing: frozenset[str] = frozenset()
    """Platforms of nodes for which the image does not exist."""
    platforms: tuple[str, ...] = ()
    """Platforms for which the image exists, as far as the registry was asked."""
    problem: str = ""
    """Why a fact is not known, with the remedy."""

    @property
    def largest(self) -> ImageSize | None:
        """The largest size among the platforms that nodes have."""
        return max(self.sizes.values(), key=lambda size: size.compressed, default=None)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The result of the last check for new digests at the registry."""

    at: float
    """When the last check was."""
    due: float
    """When the next check is, unless a push event comes before."""
    problem: str = ""
    failures: int = 0
    """How many checks in a row could not resolve every tag."""
