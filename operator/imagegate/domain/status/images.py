"""``status.images``: sizes, digests, and the advice that there is room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagegate.api.fields import timestamp
from imagegate.domain import advice, repositories, thresholds
from imagegate.domain.effective import listed, reference_key, resolved
from imagegate.domain.facts import Image, ImageFacts, Prefetch
from imagegate.domain.status.bounds import MAX_STATUS, NOT_ADVICE, size
from imagegate.domain.status.findings import Findings
from imagegate.domain.thresholds import Severity

MAX_IMAGES = 10 * 1024
"""Bytes for the images, their digests, and the tags of repositories. This bound does not depend on
other fields, so that a node that fails does not change the images."""
MAX_REPOSITORIES = 4 * 1024
"""Bytes for the tags of repositories. The rest is enough for the digests of 64 images."""
_SIZES = ("compressedBytes", "largestLayerBytes")


def image_fields(prefetch: Prefetch, findings: Findings, now: float) -> dict[str, Any]:
    """The fields about the images and repositories, with the most important advice that there is
    room for, and the number of advices that are left out.
    """
    images, tags = findings.images, {}
    if findings.selected is not None:
        tags = {"repositories": repositories.entries(findings.selected, MAX_REPOSITORIES)}
    size_of_tags = size(tags) if tags else 0
    room = MAX_IMAGES - size_of_tags
    before = listed(prefetch)
    current = prefetch.images if prefetch.refresh is None else resolved(prefetch.images, images)
    entries = [
        _image(image, images.get(image.reference), before.get(image.reference, {}), now)
        for image in current
    ]
    if size(entries) > room:
        return {**tags, **_cut_images(entries, room)}
    _add_advice(entries, _advice(prefetch, images), NOT_ADVICE + size_of_tags)
    return {**tags, "images": entries}


def _advice(prefetch: Prefetch, images: Mapping[str, ImageFacts]) -> list[tuple[int, str]]:
    """The advice with the index of its image, the most important first."""
    ranked: list[tuple[bool, int, int, str]] = []
    for index, image in enumerate(prefetch.images):
        facts = images.get(image.reference)
        if facts is None:
            continue
        said = [
            each
            for each in advice.advise(image.reference, facts)
            # A followed tag may move, so that is not good advice.
            if prefetch.refresh is None or each.rule != thresholds.MUTABLE_TAG.name
        ]
        ranked += (
            (each.severity is not Severity.ERROR, rank, index, str(each)[: advice.MAX_TEXT])
            for rank, each in enumerate(said)
        )
    return [(index, text) for _, _, index, text in sorted(ranked)]


def _add_advice(
    entries: list[dict[str, Any]], said: list[tuple[int, str]], not_advice: int
) -> None:
    """As much advice as there is room for. ``not_advice``: bytes of the status that it leaves."""
    room = MAX_STATUS - not_advice - size(entries) - size({"advice": [_more(len(said))]})
    if room < 0:
        return
    for number, (index, text) in enumerate(said):
        new = [] if "advice" in entries[index] else {"advice": []}
        room -= size(text) + size(new) + 2
        if room < 0:
            entries[index].setdefault("advice", []).append(_more(len(said) - number))
            return
        entries[index].setdefault("advice", []).append(text)


def _cut_images(entries: list[dict[str, Any]], most: int) -> dict[str, Any]:
    """The images without their sizes, and as many as there is room for in ``most`` bytes. The
    digests of the others stay, in a shorter form, because the operator reads them back
    (`effective.recorded`). Images that only a workload names come first for the same reason; the
    tags of repositories have their own field.
    """
    without = [{k: v for k, v in e.items() if k not in _SIZES} for e in entries]
    if size(without) <= most:
        return {"images": without}
    order = sorted(range(len(without)), key=lambda index: not _is_of_workload(without[index]))
    digests = {
        reference_key(entry["image"]): entry["digest"] for entry in without if "digest" in entry
    }
    room = most - size(digests)
    shown: set[int] = set()
    for index in order:
        room -= size(without[index]) + 2
        if room < 0:
            break
        shown.add(index)
    left_out = [entry for index, entry in enumerate(without) if index not in shown]
    digests = {reference_key(e["image"]): e["digest"] for e in left_out if "digest" in e}
    return {
        "images": [entry for index, entry in enumerate(without) if index in shown],
        "moreImages": len(left_out),
        **({"digests": digests} if digests else {}),
    }


def _is_of_workload(entry: Mapping[str, Any]) -> bool:
    return not entry.get("from", repositories.SOURCE).startswith(repositories.SOURCE)


def _more(count: int) -> str:
    return f"{count} more about the images of this ImagePrefetch: imagegate lint shows all of them"


def _image(
    image: Image, facts: ImageFacts | None, before: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """One entry; its sizes are those of the platform with the largest image."""
    entry: dict[str, Any] = {"image": image.reference}
    if image.digest:
        entry["digest"] = image.digest
        same = before.get("digest") == image.digest
        entry["resolvedTime"] = (before.get("resolvedTime") if same else None) or timestamp(now)
    if image.source:
        entry["from"] = image.source
    largest = facts.largest if facts is not None else None
    if largest is not None:
        entry["compressedBytes"] = largest.compressed
        entry["largestLayerBytes"] = largest.largest_layer
    return entry
