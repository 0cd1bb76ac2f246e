"""How the images of an ImagePrefetch are spread over puller pods."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from imagegate.domain.facts.images import Image

IMAGES_PER_POD = 8
"""Beyond this the kubelet's event spam filter (25 per object) starts to drop Pulled events."""
HASH_BITS = 256
"""Bits of SHA-256, by which images are spread over puller pods."""


@dataclass(frozen=True, slots=True)
class Group:
    """The images that one puller pod pulls: one set of secrets, at most eight images."""

    key: str
    images: tuple[str, ...]
    pull_secrets: tuple[str, ...]
    pins: Mapping[str, str] = field(default_factory=dict)
    """For each image with a followed tag: the image by its digest (`Image.pinned`)."""

    @property
    def references(self) -> tuple[str, ...]:
        """All references that the pod pulls: first the tag, so that the node lists the image by it,
        then the digest. If the tag resolved to that digest, the second pull transfers nothing. If a
        mirror is stale, only the digest gets the right image.
        """
        pairs = ((image, self.pins.get(image)) for image in self.images)
        return tuple(each for pair in pairs for each in pair if each)


def spread(owner: str, images: Sequence[Image]) -> tuple[Group, ...]:
    """The groups of these images: as few as hashing allows, see `_portions`. ``owner`` is the uid
    of the ImagePrefetch.
    """
    by_secrets: dict[tuple[str, ...], list[Image]] = {}
    for image in images:
        by_secrets.setdefault(tuple(sorted(image.pull_secrets)), []).append(image)
    return tuple(
        _group(owner, portion, secrets)
        for secrets, all_ in by_secrets.items()
        for portion in _portions(all_)
    )


def _group(owner: str, images: Sequence[Image], secrets: tuple[str, ...]) -> Group:
    text = "\n".join((owner, *sorted(map(identity, images)), "", *secrets))
    return Group(
        hashlib.sha256(text.encode()).hexdigest()[:10],
        tuple(image.reference for image in images),
        secrets,
        {image.reference: image.pinned for image in images if image.digest},
    )


def _portions(images: Sequence[Image]) -> list[Sequence[Image]]:
    """The images of each pod. An image with a followed tag takes two slots of the pod, because its
    tag and its digest are pulled.

    A portion that is too large is split in two by the next bit of each name's hash. So the portion
    of an image depends neither on the order nor on the images of other portions: a new image
    changes one portion, or splits one, and the pods of all others stay as they are.
    """
    position = {image.reference: index for index, image in enumerate(images)}
    hashed = [
        (int.from_bytes(hashlib.sha256(image.reference.encode()).digest()), image)
        for image in images
    ]
    portions = [
        sorted(portion, key=lambda image: position[image.reference])
        for portion in _split(hashed, HASH_BITS)
    ]
    return sorted(portions, key=lambda portion: position[portion[0].reference])


def _split(hashed: Sequence[tuple[int, Image]], bits: int) -> Iterator[list[Image]]:
    pulls = sum(2 if image.digest else 1 for _, image in hashed)
    if pulls <= IMAGES_PER_POD or len(hashed) == 1 or not bits:
        if hashed:
            yield [image for _, image in hashed]
        return
    for bit in (0, 1):
        yield from _split([each for each in hashed if each[0] >> (bits - 1) & 1 == bit], bits - 1)


def identity(image: Image) -> str:
    """The text of an image in a hash: the reference, with the digest that it was resolved to."""
    return f"{image.reference}@{image.digest}" if image.digest else image.reference
