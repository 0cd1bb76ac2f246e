"""Parses manifests and indexes: untrusted JSON becomes validated records.

The formats are OCI image-spec (manifest.md, image-index.md) and Docker's manifest v2, schema 2.
They differ only in media types.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from imagegate.api.references import valid_digest
from imagegate.registry.client import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Document,
)
from imagegate.registry.errors import InvalidAnswer, UnsupportedManifest
from imagegate.registry.platforms import Platform

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
"""Media types of configurations that name the image's platform; artifacts have other types."""

_ATTESTATION = "vnd.docker.reference.type"
_MAX_SIZE = 2**63 - 1

MOST_DESCRIPTORS = 2000
"""Largest number of layers in a manifest, or of entries in an index. overlayfs cannot mount more
than 500 layers, and the largest indexes have some dozens of entries; 4 MiB of JSON could contain
40,000."""
LONGEST_MEDIA_TYPE = 255
"""Characters (RFC 6838, 4.2: 127 for each half)."""
LONGEST_PLATFORM = 64
"""Longest operating system, architecture or variant, in characters."""


class Compression(StrEnum):
    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Blob:
    digest: str
    size: int
    """Compressed bytes, as the registry sends them."""
    media_type: str


@dataclass(frozen=True, slots=True)
class Layer(Blob):
    foreign: bool = False
    """Whether another server sends it (`urls`, non-distributable), as for Windows' base layers."""

    @property
    def compression(self) -> Compression:
        """The compression that the media type names. An OCI media type may have more suffixes
        (`…tar+zstd+encrypted`); Docker's media type ends in `.gzip`.
        """
        parts = re.split("[+.]", self.media_type.partition(";")[0].strip().lower())
        for compression in (Compression.GZIP, Compression.ZSTD):
            if compression in parts:
                return compression
        return Compression.NONE


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of an index."""

    digest: str
    platform: Platform | None
    nested: bool
    """Whether the entry is another index."""


@dataclass(frozen=True, slots=True)
class Index:
    entries: tuple[Entry, ...]
    """Without attestations, because they are not images."""


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Blob
    layers: tuple[Layer, ...]
    """From the lowest to the topmost; the same layer may occur twice."""


def parse(document: Document, *, registry: str, name: str) -> Index | Manifest:
    """Read a manifest or an index; `registry` and `name` are for messages.

    Raises `UnsupportedManifest` for schema 1, and `InvalidAnswer` for a violation of the format. A
    document that could be both is refused, as in containerd (CVE-2021-41190).
    """
    content = document.content
    where = _Where(registry, f"{name}@{document.digest}")
    if content.get("schemaVersion") == 1 or "fsLayers" in content:
        raise UnsupportedManifest(
            registry,
            f"{name} is an image of schema 1, which containerd 2 does not pull",
            "build and push it again with a current tool",
        )
    declared = content.get("mediaType") or document.media_type
    if not isinstance(declared, str):
        raise where.wrong("has a mediaType that is not a string")
    is_index = declared in INDEXES or (declared not in MANIFESTS and "manifests" in content)
    if is_index:
        if content.get("layers") or content.get("config"):
            raise where.wrong("is both an index and a manifest")
        entries = where.objects(content, "manifests")
        return Index(tuple(_entry(where, each) for each in entries if not _is_attestation(each)))
    if content.get("manifests"):
        raise where.wrong("is both an index and a manifest")
    config = content.get("config")
    if not isinstance(config, dict):
        raise where.wrong("has no config")
    layers = tuple(_layer(where, each) for each in where.objects(content, "layers"))
    return Manifest(Blob(*_descriptor(where, config)), layers)


@dataclass(frozen=True, slots=True)
class _Where:
    registry: str
    name: str

    def wrong(self, problem: str) -> InvalidAnswer:
        return InvalidAnswer(
            self.registry, f"{self.name} {problem}", "push the image again, or ask its builder"
        )

    def objects(self, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
        found = content.get(name)
        if found is None:
            found = []
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self.wrong(f"has {name} which are not a list of objects")
        if len(found) > MOST_DESCRIPTORS:
            raise self.wrong(
                f"has {len(found)} {name}, and no more than {MOST_DESCRIPTORS} are read"
            )
        return found


def _is_attestation(entry: Mapping[str, Any]) -> bool:
    """Whether the entry is an attestation of BuildKit (provenance, SBOM), not an image."""
    annotations, platform = entry.get("annotations"), entry.get("platform")
    if isinstance(annotations, dict) and _ATTESTATION in annotations:
        return True
    return isinstance(platform, dict) and "unknown" in (
        platform.get("os"),
        platform.get("architecture"),
    )


def _entry(where: _Where, entry: Mapping[str, Any]) -> Entry:
    digest, _, media_type = _descriptor(where, entry)
    return Entry(digest, platform_of(entry.get("platform")), media_type in INDEXES)


def platform_of(content: object) -> Platform | None:
    """The platform in a descriptor or in a configuration: `{"os", "architecture", "variant"}`."""
    if not isinstance(content, dict):
        return None
    os, architecture = content.get("os"), content.get("architecture")
    variant = content.get("variant") or ""
    if not all(isinstance(part, str) for part in (os, architecture, variant)):
        return None
    if not os or not architecture or max(map(len, (os, architecture, variant))) > LONGEST_PLATFORM:
        return None
    return Platform.of(os, architecture, variant)


def _layer(where: _Where, layer: Mapping[str, Any]) -> Layer:
    digest, size, media_type = _descriptor(where, layer)
    return Layer(
        digest, size, media_type, bool(layer.get("urls")) or "nondistributable" in media_type
    )


def _descriptor(where: _Where, content: Mapping[str, Any]) -> tuple[str, int, str]:
    digest, size = content.get("digest"), content.get("size")
    media_type = content.get("mediaType") or ""
    if not isinstance(digest, str) or valid_digest(digest) is None:
        raise where.wrong("has a descriptor without a digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        raise where.wrong(f"has no size for {digest}")
    if not isinstance(media_type, str) or len(media_type) > LONGEST_MEDIA_TYPE:
        raise where.wrong(f"has no media type for {digest}")
    # Interned, because thousands of cached layers have the same few media types.
    return digest, size, sys.intern(media_type)
