"""What an ImagePrefetch comes to: what its spec says, with what was found out since.

The digests that tags have been resolved to are read back from the object's own status. So they are
in the cluster before anything is done about them, and an operator that starts finds the target
that its predecessor rolled out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from imagegate.api.references import valid_digest
from imagegate.domain.facts import Image, ImageFacts, Prefetch


def effective(declared: Prefetch) -> Prefetch:
    """The prefetch to act on."""
    if declared.refresh is None:
        return declared
    known = recorded(declared)
    images = tuple(image.resolved(known.get(image.reference, "")) for image in declared.images)
    return declared if images == declared.images else replace(declared, images=images)


def recorded(prefetch: Prefetch) -> dict[str, str]:
    """The digests in its status, by reference: only what is a digest counts."""
    entries = listed(prefetch).items()
    found = {reference: entry.get("digest") for reference, entry in entries}
    shorter = prefetch.status.get("digests")
    if isinstance(shorter, Mapping):
        for image in prefetch.images:
            found.setdefault(image.reference, shorter.get(reference_key(image.reference)))
    return {
        reference: digest
        for reference, digest in found.items()
        if isinstance(digest, str) and valid_digest(digest)
    }


def reference_key(reference: str) -> str:
    """A reference in ``status.digests``, where there is no room for it as a whole."""
    return hashlib.sha256(reference.encode()).hexdigest()[:12]


def listed(prefetch: Prefetch) -> dict[str, Mapping[str, Any]]:
    """The images in its status, by reference. Anybody may have written there: their fields may be
    anything.
    """
    entries = prefetch.status.get("images")
    return {
        entry["image"]: entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping) and isinstance(entry.get("image"), str)
    }


def adopted(prefetch: Prefetch, images: Mapping[str, ImageFacts]) -> bool:
    """Whether the prefetch is about the digests that the registry has told last. Until it is,
    nothing more is pulled: it would be of yesterday.
    """
    return prefetch.refresh is None or resolved(prefetch.images, images) == prefetch.images


def resolved(images: Sequence[Image], known: Mapping[str, ImageFacts]) -> tuple[Image, ...]:
    """The images with the digests that the registry has told; those that it could not tell stay."""
    return tuple(
        image.resolved(known[image.reference].digest) if image.reference in known else image
        for image in images
    )
