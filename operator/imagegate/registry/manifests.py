"""Facts about images: the platforms, and for each platform the layers and their sizes."""

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
"""Documents in the cache: index and manifest for about 250 images, each of about 10 KB."""
KEPT_BYTES = 32 * 1024 * 1024
"""Estimated memory of the cache. It is limited, because the author of an image decides how large
its documents are."""
MOST_PLATFORMS = 100
"""Largest number of platforms in the facts about an image. No normal index has more."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image as a node of one platform pulls it. All sizes are compressed, in bytes."""

    reference: Reference
    """With the digest of the described image: the index's digest, if there is an index."""
    platform: Platform | None
    """The platform of the chosen image; None for an artifact, which names none."""
    platforms: tuple[Platform, ...]
    """All platforms of the image; empty for an artifact."""
    manifest: str
    """The digest of the manifest for the platform."""
    layers: tuple[Layer, ...]
    config_bytes: int

    @property
    def distinct_layers(self) -> tuple[Layer, ...]:
        """Each layer once, because a layer that occurs twice is pulled once."""
        return tuple({layer.digest: layer for layer in self.layers}.values())

    @property
    def compressed_bytes(self) -> int:
        """Bytes that a node without any of the layers must fetch."""
        return self.config_bytes + sum(layer.size for layer in self.distinct_layers)

    @property
    def largest_layer(self) -> Layer | None:
        """The largest layer, the first of several; None for an image without layers."""
        return max(self.layers, key=lambda layer: layer.size, default=None)


class Manifests:
    """Facts about images, requested once per digest, because the content of a digest never changes.

    The cache does not depend on credentials. So the author of an ImagePrefetch who knows the digest
    of a private image learns its sizes, but no content. A tag is always resolved again, with the
    credentials of that ImagePrefetch.
    """

    def __init__(self, client: Client, *, kept: int = KEPT) -> None:
        self._client = client
        self._documents: Cache[str, Index | Manifest] = Cache(
            kept, most_bytes=KEPT_BYTES, weigh=_weight
        )
        self._configs: Cache[str, tuple[Platform | None]] = Cache(kept)

    async def tags(self, reference: Reference, keyring: Keyring = EMPTY) -> tuple[str, ...]:
        """All tags of the reference's repository; not cached."""
        return await self._client.tags(reference, keyring)

    async def resolve(self, reference: Reference, keyring: Keyring = EMPTY) -> str:
        """The digest that a tag has now: one HEAD, see `Client.resolve`."""
        return await self._client.resolve(reference, keyring)

    async def describe(
        self, reference: Reference, platform: Platform, keyring: Keyring = EMPTY
    ) -> ImageFacts:
        """The facts about an image for nodes of a platform, as in `Platform.of("linux", "arm64")`.

        Requests of the first call: a HEAD for a tag, a GET for the index, and a GET for the
        platform's manifest. For an image without an index: a GET for the configuration instead of
        the index, because only the configuration names the platform. Docker Hub counts GETs of
        manifests as pulls. Requests of later calls: the HEAD, or none for a reference with a
        digest.

        Raises `NoSuchPlatform`, `UnsupportedManifest` and the errors of `Client`. An image without
        an index for another platform is `NoSuchPlatform`, too: containerd would pull it, but no
        container could run it there.
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

        Requests and errors as in `describe`, but without the manifest of the platform.
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
                "push the image again, or ask its builder",
            )
        return known[0]


def _weight(_: str, document: Index | Manifest) -> int:
    """Estimated bytes of a document in memory, measured with tracemalloc."""
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
