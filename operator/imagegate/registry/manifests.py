"""What an image is made of: its platforms, and for one of them its layers and sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from imagegate.api.references import Reference
from imagegate.registry import documents
from imagegate.registry.cache import Cache
from imagegate.registry.client import Client
from imagegate.registry.documents import Index, Layer, Manifest
from imagegate.registry.errors import InvalidAnswer, NoSuchPlatform, UnsupportedManifest
from imagegate.registry.keychain import EMPTY, Keyring
from imagegate.registry.platforms import Platform, acceptable, choose

KEPT = 512
"""Documents in memory: an index and a manifest for each of some 250 images, about 10 KB a piece."""
KEPT_BYTES = 32 * 1024 * 1024
"""Of those documents in memory, estimated: whoever pushes an image decides how large they are."""
MOST_PLATFORMS = 100
"""Platforms that the facts about an image name: enough for any honest index."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image as a node of one platform pulls it. All sizes are of what is sent, in bytes."""

    reference: Reference
    """With the digest that the facts are about: the index's, where there is one."""
    platform: Platform | None
    """What the chosen image says it is for; None for an artifact, which does not say."""
    platforms: tuple[Platform, ...]
    """All that the image is there for; empty for an artifact."""
    manifest: str
    """The digest of the platform's own manifest."""
    layers: tuple[Layer, ...]
    config_bytes: int

    @property
    def distinct_layers(self) -> tuple[Layer, ...]:
        """Each layer once: one that is there twice is pulled once."""
        return tuple({layer.digest: layer for layer in self.layers}.values())

    @property
    def compressed_bytes(self) -> int:
        """What a node without any of its layers has to fetch."""
        return self.config_bytes + sum(layer.size for layer in self.distinct_layers)

    @property
    def largest_layer(self) -> Layer | None:
        """The first of the largest; None for an image without layers."""
        return max(self.layers, key=lambda layer: layer.size, default=None)


class Manifests:
    """Facts about images, asked for once: what a digest names never changes.

    Answers are kept by digest, whoever asked. So somebody who knows a private image's digest learns
    its sizes, but no content; a tag is resolved anew each time, with the asker's credentials.
    """

    def __init__(self, client: Client, *, kept: int = KEPT) -> None:
        self._client = client
        self._documents: Cache[str, Index | Manifest] = Cache(
            kept, most_bytes=KEPT_BYTES, weigh=_weight
        )
        self._configs: Cache[str, tuple[Platform | None]] = Cache(kept)

    async def resolve(self, reference: Reference, keyring: Keyring = EMPTY) -> str:
        """The digest that a tag has now: one HEAD, see `Client.resolve`."""
        return await self._client.resolve(reference, keyring)

    async def describe(
        self, reference: Reference, platform: Platform, keyring: Keyring = EMPTY
    ) -> ImageFacts:
        """The facts about an image for nodes of a platform, as in `Platform.of("linux", "arm64")`.

        The first time: a HEAD for a tag, a GET for the index and one for the platform's manifest;
        an image without an index takes a GET for its configuration instead, which alone says what
        platform it is for. Docker Hub counts GETs of manifests as pulls. Afterwards: the HEAD, and
        for a reference with a digest nothing.

        Raises `NoSuchPlatform`, `UnsupportedManifest` and what `Client` raises. An image without an
        index and for another platform is `NoSuchPlatform`, too, although containerd would pull it:
        no container could run it there.
        """
        digest = await self._client.resolve(reference, keyring)
        pinned = replace(reference, digest=digest)
        top = await self._document(pinned, digest, keyring)
        if isinstance(top, Manifest):
            own = await self._platform(pinned, top, keyring)
            return self._facts(pinned, digest, top, platform, own, (own,) if own else ())
        offered = tuple(dict.fromkeys(e.platform for e in top.entries if e.platform is not None))
        place = choose(platform, [entry.platform for entry in top.entries])
        if place is None:
            raise _missing(pinned, platform, offered)
        entry = top.entries[place]
        manifest = None if entry.nested else await self._document(pinned, entry.digest, keyring)
        if not isinstance(manifest, Manifest):
            raise UnsupportedManifest(
                pinned.domain,
                f"{_name(pinned)} has an index within its index",
                "push it with one index that names the image of each platform",
            )
        own = entry.platform or await self._platform(pinned, manifest, keyring)
        return self._facts(pinned, entry.digest, manifest, platform, own, offered)

    async def platforms(
        self, reference: Reference, keyring: Keyring = EMPTY
    ) -> tuple[Platform, ...]:
        """All platforms of an image, in the index's order; empty for an artifact.

        Requests and errors as for `describe`, but no platform's own manifest is asked for.
        """
        digest = await self._client.resolve(reference, keyring)
        pinned = replace(reference, digest=digest)
        top = await self._document(pinned, digest, keyring)
        if isinstance(top, Index):
            return tuple(dict.fromkeys(e.platform for e in top.entries if e.platform is not None))
        own = await self._platform(pinned, top, keyring)
        return (own,) if own else ()

    def _facts(
        self,
        reference: Reference,
        digest: str,
        manifest: Manifest,
        wanted: Platform,
        own: Platform | None,
        offered: tuple[Platform, ...],
    ) -> ImageFacts:
        if own is not None and own not in acceptable(wanted):
            raise _missing(reference, wanted, offered or (own,))
        return ImageFacts(
            reference,
            own,
            offered[:MOST_PLATFORMS],
            digest,
            manifest.layers,
            manifest.config.size,
        )

    async def _document(
        self, reference: Reference, digest: str, keyring: Keyring
    ) -> Index | Manifest:
        async with self._documents.turn(digest):
            known = self._documents.get(digest)
            if known is None:
                document = await self._client.manifest(reference, digest, keyring)
                known = documents.parse(document, registry=reference.domain, name=reference.path)
                self._documents.put(digest, known)
            return known

    async def _platform(
        self, reference: Reference, manifest: Manifest, keyring: Keyring
    ) -> Platform | None:
        """The platform that an image's configuration names; None for an artifact."""
        config = manifest.config
        if config.media_type not in documents.CONFIGS:
            return None
        async with self._configs.turn(config.digest):
            known = self._configs.get(config.digest)
            if known is None:
                found = await self._client.configuration(reference, config.digest, keyring)
                known = (documents.platform_of(found),)
                self._configs.put(config.digest, known)
        if known[0] is None:
            raise InvalidAnswer(
                reference.domain,
                f"{_name(reference)} has a configuration without os and architecture",
                "push the image again, or ask who built it",
            )
        return known[0]


def _weight(_: str, document: Index | Manifest) -> int:
    """Bytes that a document takes in memory, roughly: measured with tracemalloc."""
    descriptors = document.entries if isinstance(document, Index) else document.layers
    return 500 + 320 * len(descriptors)


def _name(reference: Reference) -> str:
    return str(reference).removeprefix(f"{reference.domain}/")


def _missing(
    reference: Reference, wanted: Platform, offered: tuple[Platform, ...]
) -> NoSuchPlatform:
    shown = ", ".join(str(platform) for platform in offered[:10]) or "none"
    return NoSuchPlatform(
        reference.domain,
        f"{_name(reference)} is there for {shown}, not for {wanted}",
        f"build it for {wanted}, or keep these nodes out of the nodeSelector",
        offered=tuple(str(platform) for platform in offered[:MOST_PLATFORMS]),
    )
