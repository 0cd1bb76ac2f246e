"""What a registry says of one image, as `domain.facts.ImageFacts`, and how much of it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from imagegate.api.references import Reference
from imagegate.domain.facts import ImageFacts, ImageSize, LayerFacts
from imagegate.errors import ImagegateError
from imagegate.registry import manifests as registry
from imagegate.registry.errors import NoSuchPlatform
from imagegate.registry.keychain import Keyring
from imagegate.registry.manifests import Manifests
from imagegate.registry.platforms import Platform

MOST_LAYERS = 128
"""Layers of an image that are kept one by one: Docker builds no more than 127. Of an image with
more, only the sums are kept."""
LAYERS_BUDGET = 8192
"""Layers that are kept one by one of all images of an ImagePrefetch, for all platforms."""

Known = Mapping[str, ImageFacts]
"""By image reference."""


async def describe(
    manifests: Manifests, reference: Reference, platforms: Sequence[str], keyring: Keyring
) -> ImageFacts:
    """What a registry says of one image for nodes of these platforms. An error is returned in
    ``problem``.
    """
    facts = ImageFacts()
    try:
        # The tag is resolved once, because it may move meanwhile, and each lookup is a request.
        digest = await manifests.resolve(reference, keyring)
        facts = ImageFacts(digest=digest)
        pinned = replace(reference, digest=digest)
        for platform in platforms:
            try:
                found = await manifests.describe(pinned, Platform.parse(platform), keyring)
            except NoSuchPlatform as error:
                facts = replace(facts, missing=facts.missing | {platform}, platforms=error.offered)
                continue
            facts = replace(
                facts,
                sizes={**facts.sizes, platform: _size(found)},
                platforms=tuple(str(each) for each in found.platforms),
            )
    except ImagegateError as error:
        return replace(facts, problem=str(error))
    return facts


def lean(facts: ImageFacts, most: int = MOST_LAYERS) -> ImageFacts:
    """The facts, with only the sums of sizes that have more layers than ``most``."""
    if all(len(size.layers) <= most for size in facts.sizes.values()):
        return facts
    sizes = {
        platform: size if len(size.layers) <= most else replace(size, layers=())
        for platform, size in facts.sizes.items()
    }
    return replace(facts, sizes=sizes)


def within_budget(answers: Mapping[str, ImageFacts]) -> dict[str, ImageFacts]:
    """The answers, with the layers of the first images as far as the budget goes."""
    left, kept = LAYERS_BUDGET, {}
    for reference, facts in answers.items():
        count = sum(len(size.layers) for size in facts.sizes.values())
        kept[reference] = facts if count <= left else lean(facts, 0)
        left -= count if count <= left else 0
    return kept


def completed(before: Known, now: Known) -> Known:
    """The new answers; where a registry failed, its earlier answer."""
    return {**before, **{ref: _merged(before.get(ref), facts) for ref, facts in now.items()}}


def _merged(before: ImageFacts | None, now: ImageFacts) -> ImageFacts:
    if before is None or not now.problem:
        return now
    # The digest may be known although its manifest is not. The new digest is rolled out then.
    if now.digest and now.digest != before.digest:
        return now
    return replace(before, problem=now.problem)


def _size(found: registry.ImageFacts) -> ImageSize:
    seen: set[str] = set()
    layers: list[LayerFacts] = []
    for layer in found.layers:
        size = 0 if layer.digest in seen else layer.size
        seen.add(layer.digest)
        layers.append(LayerFacts(size, str(layer.compression), _key(layer.digest)))
    largest = found.largest_layer
    return ImageSize(found.compressed_bytes, largest.size if largest else 0, tuple(layers))


def _key(digest: str) -> int:
    try:
        return int(digest.partition(":")[2][:16], 16)
    except ValueError:
        return 0
