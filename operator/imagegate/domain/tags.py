"""Which tags of a repository are the newest, by the rules of an ImagePolicy of Flux.

A list of tags comes from a registry, and a registry may answer with an empty or a shorter list for
a moment. So a list never takes all tags away, and a tag that was chosen stays until it was missing
for a whole interval.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

from imagegate.api import semver_ranges, tag_filters
from imagegate.domain.facts import TagOrder, TagPolicy

SHOWN = 60
"""Characters of a tag in a message."""
MISSING = 0.9
"""Part of the interval after which a tag that is missing in the lists is released. Less than 1, so
that the next list is late enough."""

_ARTIFACT = re.compile(r"sha256-[a-f0-9]{64}(\.[a-z]+)?")
"""Tags of signatures, attestations and SBOMs (cosign), and of the referrers of an image where the
registry has no API for them (OCI distribution specification). They are not images."""
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Selection:
    """The newest tags of one list."""

    tags: tuple[str, ...] = ()
    """The newest first."""
    matching: int = 0
    """How many tags the pattern and the policy accept."""
    listed: int = 0
    """How many tags there are, without those of signatures and other artifacts."""
    why: str = ""
    """Why no tag is selected, with the remedy, or why tags are that the list does not contain."""


NOTHING: Final = Selection()


@dataclass(frozen=True, slots=True)
class Kept:
    """The tags that were chosen before."""

    tags: tuple[str, ...] = ()
    missing: Mapping[str, float] = field(default_factory=dict)
    """Those that the last lists did not contain, and since when."""


@dataclass(frozen=True, slots=True)
class At:
    """When a list was read, in seconds since the epoch, and the seconds between two lists."""

    now: float
    interval: float


def select(policy: TagPolicy, tags: Iterable[str]) -> Selection:
    """The newest tags. Tags that compare equal are ordered by their names, so that the result does
    not depend on the order of the list. Raises InvalidPattern or InvalidRange for a policy that was
    not validated.
    """
    images = {tag for tag in tags if not _ARTIFACT.fullmatch(tag)}
    filter_ = tag_filters.TagFilter(policy.pattern, policy.extract)
    compared = _comparison(policy)
    matched = 0
    accepted: list[tuple[Any, str]] = []
    for tag in images:
        text = filter_.key(tag)
        if text is None:
            continue
        matched += 1
        key = compared(text) if len(text) <= tag_filters.MAX_KEY else None
        if key is not None:
            accepted.append((key, tag))
    newest = (heapq.nsmallest if policy.descending else heapq.nlargest)(policy.keep, accepted)
    why = "" if newest else _why(policy, images, matched)
    return Selection(tuple(tag for _, tag in newest), len(accepted), len(images), why)


def _comparison(policy: TagPolicy) -> Callable[[str], Any]:
    """The function from the text of a tag to what is compared; None: the tag does not take part."""
    if policy.order is TagOrder.SEMVER:
        range_ = semver_ranges.parse(policy.versions)

        def version(text: str) -> Any:
            found = semver_ranges.version(text)
            return found if found is not None and range_.accepts(found) else None

        return version
    return _number if policy.order is TagOrder.NUMERICAL else str


def _number(text: str) -> Decimal | None:
    """Exact, unlike Flux' floating point numbers, which cannot tell two nanoseconds apart."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _why(policy: TagPolicy, images: Collection[str], matched: int) -> str:
    if not images:
        return "the repository has no tags: push an image"
    example = f'(such as "{max(images)[:SHOWN]}")'
    if not matched:
        return (
            f"none of its {len(images)} tags {example} matches filterTags.pattern: correct the"
            " pattern, or push such a tag"
        )
    which = f"{matched} tags {example if matched == len(images) else 'that match the pattern'}"
    what = "filterTags.extract" if policy.extract else "the tag"
    if policy.order is TagOrder.NUMERICAL:
        return f"{which}, and of none {what} is a number: correct filterTags.extract"
    return (
        f"{which}, and of none {what} is a version within {policy.versions}: correct policy.semver,"
        " or push such a tag"
    )


def choose(
    policy: TagPolicy, tags: Collection[str], before: Kept, at: At
) -> tuple[Selection, Kept]:
    """The newest tags, after what was chosen before."""
    listed = set(tags)
    found = select(policy, listed)
    absent = {tag: before.missing.get(tag, at.now) for tag in before.tags if tag not in listed}
    grace = at.interval * MISSING
    late = {tag for tag, since in absent.items() if at.now - since < grace}
    chosen = select(policy, listed | late).tags if late else found.tags
    if not chosen and before.tags:
        chosen = select(policy, before.tags).tags
    missing = {tag: absent[tag] for tag in chosen if tag in absent}
    why = found.why
    if chosen and not found.tags:
        why += "; the tags that were chosen last stay"
    elif missing:
        why = f"{len(missing)} chosen tags are not in the last list, and stay for one interval"
    return replace(found, tags=chosen, why=why), Kept(chosen, missing)
