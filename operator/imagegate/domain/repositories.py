"""The images that an ImagePrefetch selects by ``spec.repositories``: the newest tags.

The status records the tags, so that an operator that starts continues with them, also while the
registry does not answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from imagegate.api import references
from imagegate.domain.facts import Image, Prefetch, RepositorySpec
from imagegate.domain.tags import NOTHING, At, Kept, Selection, choose, select

SOURCE = "Repository "
"""Begin of the source of an image, before the repository."""
NOT_LISTED = "TagsNotListed"
"""Reason of the condition while tags cannot be listed."""
SHOWN = 3
"""Repositories that a message names."""
MESSAGE = 200
"""Characters of a message in the status."""
ANY_ROOM = 1 << 20
"""Bytes that are enough for all tags, for output that is not a status."""
PATIENT = 2
"""Failed lists in a row from which on the condition reports a repository whose tags are known."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tags of one repository."""

    spec: RepositorySpec
    selection: Selection = NOTHING
    problem: str = ""
    """Why the tags could not be listed the last time, with the remedy."""
    failures: int = 0
    """How many times in a row."""
    kept: Kept = field(default_factory=Kept, compare=False)

    @property
    def tags(self) -> tuple[str, ...]:
        """The newest first."""
        return self.selection.tags

    @property
    def images(self) -> Iterator[Image]:
        repository = self.spec.repository
        for tag in self.tags:
            name = f"{repository}:{tag}"
            yield Image(
                name,
                self.spec.pull_secrets,
                listed_as=references.parse(name).listed_as,
                source=f"{SOURCE}{repository}",
            )


@dataclass(frozen=True, slots=True)
class Selected:
    """The result of ``repositories``, in the order of the spec."""

    chosen: tuple[Chosen, ...] = ()

    @property
    def unread(self) -> bool:
        """Whether a repository could not be read, and no tags of it are known."""
        return any(each.problem and not each.tags for each in self.chosen)


def listed(spec: RepositorySpec, tags: tuple[str, ...], before: Chosen | None, at: At) -> Chosen:
    """The choice from a new list of tags."""
    kept = before.kept if before is not None and before.spec == spec else Kept()
    if before is not None and before.spec != spec:
        kept = Kept(before.tags)
    selection, kept = choose(spec.tags, tags, kept, at)
    return Chosen(spec, selection, kept=kept)


def failed(spec: RepositorySpec, before: Chosen, problem: str) -> Chosen:
    """The choice after the tags could not be listed: as before, within the current policy."""
    selection = before.selection
    if before.spec != spec:
        selection = replace(selection, tags=select(spec.tags, before.tags).tags)
    return Chosen(spec, selection, problem, before.failures + 1, before.kept)


def recorded(declared: Prefetch, spec: RepositorySpec) -> tuple[Chosen, bool]:
    """The choice that the status records, and whether it is the complete choice of this spec. Its
    fields may have any type, because any client may have written the status.
    """
    for entry in _entries(declared):
        if entry.get("repository") != spec.repository:
            continue
        tags = tuple(tag for tag in _list(entry.get("tags")) if _is_tag(spec, tag))
        # As the policy orders them; this also leaves out tags that the policy does not accept.
        chosen = select(spec.tags, tags).tags
        message = _text(entry, "message")
        # A restart must not turn the condition while the registry still does not answer.
        failing = bool(chosen) and _reported(declared) == NOT_LISTED
        selection = Selection(
            chosen,
            _count(entry, "matching"),
            _count(entry, "listed"),
            "" if failing else message,
        )
        same = declared.status.get("observedGeneration") == declared.generation
        complete = same and len(chosen) == len(tags) > 0 and "moreTags" not in entry
        known = Chosen(spec, selection, kept=Kept(chosen))
        if failing and message:
            known = replace(known, problem=message, failures=PATIENT)
        return known, complete
    return Chosen(spec), False


def _reported(declared: Prefetch) -> str:
    """The reason of the condition ``TagsSelected`` in the status."""
    for each in _list(declared.status.get("conditions")):
        if isinstance(each, Mapping) and each.get("type") == "TagsSelected":
            return _text(each, "reason")
    return ""


def _entries(declared: Prefetch) -> Iterator[Mapping[str, Any]]:
    for entry in _list(declared.status.get("repositories")):
        if isinstance(entry, Mapping):
            yield entry


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _count(entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key)
    return value if isinstance(value, int) else 0


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""


def _is_tag(spec: RepositorySpec, tag: object) -> bool:
    if not isinstance(tag, str):
        return False
    try:
        return references.parse(f"{spec.repository}:{tag}").tag == tag
    except references.InvalidReference:
        return False


def joined(declared: Prefetch, selected: Selected | None) -> Prefetch:
    """The prefetch with the images of the chosen tags. ``selected``: None until they are known."""
    if not declared.repositories or declared.invalid is not None:
        return declared
    if selected is None:
        return replace(declared, searching=True)
    present = {image.listed_as for image in declared.images}
    new = (image for chosen in selected.chosen for image in chosen.images)
    images = (*declared.images, *(image for image in new if image.listed_as not in present))
    return replace(declared, unread=declared.unread or selected.unread, images=images)


def condition(selected: Selected) -> tuple[bool, str, str]:
    """Whether tags of all repositories are chosen: (status, reason, message)."""
    none = [each for each in selected.chosen if not each.tags]
    unread = [each for each in none if each.problem]
    if unread:
        return (False, NOT_LISTED, _named(unread, "problem"))
    if none:
        return (False, "NoTagMatches", _named(none, "why"))
    failing = [each for each in selected.chosen if each.failures >= PATIENT]
    if failing:
        stay = "until then the tags that were chosen last stay"
        return (False, NOT_LISTED, f"{_named(failing, 'problem')}; {stay}")
    return (True, "Selected", "; ".join(_summary(each) for each in selected.chosen))


def texts(selected: Selected) -> list[str]:
    """One line for each repository."""
    return [
        _summary(each) if each.tags else _named([each], "problem" if each.problem else "why")
        for each in selected.chosen
    ]


def _named(chosen: list[Chosen], what: str) -> str:
    texts = [
        f"{each.spec.repository}: {each.problem if what == 'problem' else each.selection.why}"
        for each in chosen[:SHOWN]
    ]
    more = [f"and {len(chosen) - SHOWN} more"] if len(chosen) > SHOWN else []
    return "; ".join((*texts, *more))


def _summary(chosen: Chosen) -> str:
    selection = chosen.selection
    text = (
        f"{len(chosen.tags)} of {selection.matching} matching tags, of {selection.listed} in all,"
        f" of {chosen.spec.repository}"
    )
    return f"{text} ({selection.why})" if selection.why else text


def sufficient(selected: Selected) -> bool:
    """Whether each repository has a chosen tag, so that a prefetch with all images is Ready."""
    return all(each.tags for each in selected.chosen)


def entries(selected: Selected, room: int) -> list[dict[str, Any]]:
    """``status.repositories``. The last tags of each entry are left out beyond ``room`` bytes; then
    an operator that starts lists the tags before it acts.
    """
    complete = [_entry(each, room) for each in selected.chosen]
    if len(json.dumps(complete)) <= room:
        return complete
    share = room // len(complete)
    return [_entry(each, share) for each in selected.chosen]


def _entry(chosen: Chosen, room: int) -> dict[str, Any]:
    selection = chosen.selection
    entry: dict[str, Any] = {
        "repository": chosen.spec.repository,
        "tags": list(chosen.tags),
        "matching": selection.matching,
        "listed": selection.listed,
    }
    if message := chosen.problem or selection.why:
        entry["message"] = message if len(message) <= MESSAGE else f"{message[: MESSAGE - 1]}…"
    while len(json.dumps(entry)) > room and entry["tags"]:
        entry["tags"].pop()
        entry["moreTags"] = len(chosen.tags) - len(entry["tags"])
    if len(json.dumps(entry)) > room:
        entry.pop("message", None)
    return entry
