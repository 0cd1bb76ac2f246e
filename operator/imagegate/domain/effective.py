"""The effective ImagePrefetch: its spec, with the digests that followed tags were resolved to.

The digests are read back from the object's own status. So they are in the cluster before the
operator acts on them, and an operator that starts finds the target that its predecessor rolled out.
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
    """The digests in its status, by reference. Values that are not digests are ignored."""
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
    """The short form of a reference in ``status.digests``, which has little room."""
    return hashlib.sha256(reference.encode()).hexdigest()[:12]


def listed(prefetch: Prefetch) -> dict[str, Mapping[str, Any]]:
    """The images in its status, by reference. Their fields may have any type, because any client
    may have written the status.
    """
    entries = prefetch.status.get("images")
    return {
        entry["image"]: entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping) and isinstance(entry.get("image"), str)
    }


def adopted(prefetch: Prefetch, images: Mapping[str, ImageFacts]) -> bool:
    """Whether the prefetch has the digests that the registry reported last. Until then no pull
    starts, because it would pull an outdated image.
    """
    return prefetch.refresh is None or resolved(prefetch.images, images) == prefetch.images


def resolved(images: Sequence[Image], known: Mapping[str, ImageFacts]) -> tuple[Image, ...]:
    """The images with the digests that the registry reported. Images without a reported digest stay
    as they are.
    """
    return tuple(
        image.resolved(known[image.reference].digest) if image.reference in known else image
        for image in images
    )
