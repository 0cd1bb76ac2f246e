"""The images that an ImagePrefetch selects by ``spec.imagesFrom``: the images of workloads, which
are objects of any kind that name images.

Only the present pod template of a workload is used, for any number of replicas, because a workload
that is scaled to zero may be scaled up again. ReplicaSets of earlier templates are ignored, because
they are being replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from imagegate.api import references
from imagegate.domain.effective import listed
from imagegate.domain.facts import Image, Place, Prefetch
from imagegate.domain.match import selects
from imagegate.domain.policy import ANYTHING, PrefetchPolicy

LIMIT = 64
"""Largest number of images of one ImagePrefetch, the same as of ``spec.images``."""
MAX_REFERENCE = 512
"""Longest reference in characters, the same as in ``spec.images``."""
SHOWN = 3
"""Entries of a list in a message."""

SHOWN_REFERENCE = 80
"""Characters of a template in a message."""

PLACEHOLDERS = frozenset({"auto"})
"""Placeholders in a template that a webhook replaces by an image: Istio's ``auto``, for gateways
and sidecars. The workload does not tell which image the pods get."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The facts about one workload; few, because a cluster may have thousands of workloads."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    images: tuple[Image, ...] = ()
    """The images of its init containers, containers and image volumes; without pull secrets."""
    unusable: tuple[str, ...] = ()
    """Its values that are not valid image references, each with the reason."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The known workloads of one kind in one namespace."""

    workloads: Collection[Workload] = ()
    read: bool = False
    """Whether the list was read at least once."""
    problem: str = ""
    """Why the list is not up to date, with the remedy."""
    served: bool = True
    """Whether the problem is another one than that the API server does not serve the kind."""

    @property
    def awaited(self) -> bool:
        """Whether the first list has neither arrived nor failed yet."""
        return not self.read and not self.problem


@dataclass(frozen=True, slots=True)
class Found:
    """The result of ``imagesFrom``."""

    images: tuple[Image, ...] = ()
    """The images besides those of the spec."""
    workloads: int = 0
    """The number of selected workloads."""
    without: tuple[str, ...] = ()
    """Sources that select no workload."""
    imageless: tuple[str, ...] = ()
    """Sources that select workloads of which none has an image at the paths of the source."""
    left_out: tuple[str, ...] = ()
    """References of images beyond the limit."""
    unusable: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    """References of images that the policy does not allow."""
    without_secrets: tuple[str, ...] = ()
    """References of images that do not get the secrets of the spec."""
    without_puller_secrets: tuple[str, ...] = ()
    """References of images that are left out, because the puller pods' own secrets would be used
    for them."""
    problems: tuple[str, ...] = ()
    """Why some lists are not up to date, with the remedies."""
    served: bool = True
    """Whether a problem is another one than that the API server does not serve a kind."""
    unread: bool = False
    """Whether a source was never read and the status has no images of it."""


def find(
    declared: Prefetch, listings: Mapping[Place, Listing], policy: PrefetchPolicy = ANYTHING
) -> Found | None:
    """The images of the sources of a prefetch; None until the first list of every source.

    For a source that cannot be read, the images that the status recorded last stay, so that no node
    loses images because the operator restarted or lost a permission.
    """
    known = {source.place: listings.get(source.place, Listing()) for source in declared.images_from}
    if any(listing.awaited for listing in known.values()):
        return None
    selected: dict[tuple[Place, str], Workload] = {}
    without: list[str] = []
    imageless: list[str] = []
    for source in declared.images_from:
        listing = known[source.place]
        here = [w for w in listing.workloads if selects(source.selector, w.labels)]
        selected |= {(source.place, workload.name): workload for workload in here}
        named = f"{source.place.title} in {source.namespace}"
        if listing.read and not here:
            without.append(named)
        if here and not any(workload.images or workload.unusable for workload in here):
            imageless.append(named)
    images = [image for workload in selected.values() for image in workload.images]
    unread = {place for place, listing in known.items() if not listing.read}
    remembered = list(_remembered(declared, unread))
    images += remembered
    recorded = {_scope(image.source) for image in remembered}
    problems = [listing for listing in known.values() if listing.problem]
    permitted = _Permitted.sort(declared, _distinct(declared, images), policy)
    room = max(0, LIMIT - len(declared.images) - declared.reserved)
    return Found(
        images=tuple(permitted.images[:room]),
        workloads=len({(place.title, place.namespace, name) for place, name in selected}),
        without=tuple(dict.fromkeys(without)),
        imageless=tuple(dict.fromkeys(imageless)),
        left_out=tuple(image.reference for image in permitted.images[room:]),
        forbidden=tuple(permitted.forbidden),
        without_secrets=tuple(permitted.without_secrets),
        without_puller_secrets=tuple(permitted.without_puller_secrets),
        unusable=tuple(sorted({why for w in selected.values() for why in w.unusable})),
        problems=tuple(listing.problem for listing in problems),
        served=not problems or any(listing.served for listing in problems),
        unread=any((place.title, place.namespace) not in recorded for place in unread),
    )


@dataclass(slots=True)
class _Permitted:
    """The images of workloads by whether they may be pulled, and with which secrets."""

    images: list[Image] = field(default_factory=list)
    forbidden: list[str] = field(default_factory=list)
    without_secrets: list[str] = field(default_factory=list)
    without_puller_secrets: list[str] = field(default_factory=list)

    @classmethod
    def sort(
        cls, declared: Prefetch, images: Iterable[Image], policy: PrefetchPolicy
    ) -> _Permitted:
        permitted = cls()
        for image in images:
            reference = image.reference
            if not policy.allows(reference):
                permitted.forbidden.append(reference)
            elif policy.allows_secrets(reference):
                permitted.images.append(replace(image, pull_secrets=declared.pull_secrets))
            elif policy.puller_has_secrets:
                permitted.without_puller_secrets.append(reference)
            else:
                permitted.images.append(image)
                if declared.pull_secrets:
                    permitted.without_secrets.append(reference)
        return permitted


def _distinct(declared: Prefetch, images: Iterable[Image]) -> Iterable[Image]:
    """The images in the order of their names, each once, without the images of the spec. Many
    workloads name the same image.
    """
    present = {image.listed_as for image in declared.images}
    new: dict[str, Image] = {}
    for image in sorted(images, key=lambda image: (image.reference, image.source)):
        if image.listed_as not in present:
            new.setdefault(image.listed_as, image)
    return new.values()


def named(place: Place, name: str) -> str:
    """A workload in a message, and as the source of an image."""
    return f"{place.title} {place.namespace}/{name}"


def image(reference: str, source: str) -> Image:
    """An image that a workload names. Raises InvalidReference, also for a placeholder."""
    if reference in PLACEHOLDERS:
        raise references.InvalidReference(
            f"{reference!r} is replaced by a webhook in each pod (Istio's proxy): name the image"
            " that the pods get in spec.images"
        )
    if "{{" in reference:
        raise references.InvalidReference(
            f"{reference[:SHOWN_REFERENCE]!r} is a template that gets its value later: name the"
            " image that the pods get in spec.images"
        )
    if len(reference) > MAX_REFERENCE:
        raise references.InvalidReference(f"{len(reference)} characters are too many")
    return Image(reference, listed_as=references.parse(reference).listed_as, source=source)


def _remembered(declared: Prefetch, places: Collection[Place]) -> Iterator[Image]:
    """The images that the status recorded last for these sources."""
    scopes = {(place.title, place.namespace) for place in places}
    for reference, entry in listed(declared).items():
        source = entry.get("from")
        if not isinstance(source, str) or _scope(source) not in scopes:
            continue
        try:
            yield image(reference, source)
        except references.InvalidReference:
            continue


def _scope(source: str) -> tuple[str, str]:
    """The kind and namespace of a workload, from its name as the source of an image."""
    kind, _, name = source.partition(" ")
    return kind, name.partition("/")[0]


def joined(declared: Prefetch, found: Found | None) -> Prefetch:
    """The prefetch with the images that were found. ``found`` is None until they are known."""
    if not declared.images_from:
        return declared
    if found is None:
        return replace(declared, searching=True)
    images = (*declared.images, *found.images)
    return replace(declared, searching=False, unread=found.unread, images=images)


def condition(found: Found) -> tuple[bool, str, str]:
    """Whether all images of the sources are included: (status, reason, message)."""
    problems = [*found.problems[:SHOWN], *_more(found.problems)]
    if problems:
        return (
            False,
            "SourceNotRead" if found.served else "KindNotServed",
            f"{'; '.join(problems)}; until then the images that were found last stay",
        )
    if found.left_out:
        return (
            False,
            "TooManyImages",
            f"{len(found.left_out)} images beyond the {LIMIT} that one ImagePrefetch may have are"
            f" left out ({_some(found.left_out)}): narrow spec.imagesFrom[].selector, and make"
            " another ImagePrefetch for the rest",
        )
    if found.forbidden:
        return (
            False,
            "ImagesNotAllowed",
            f"{len(found.forbidden)} images are left out, because they are not from a registry in"
            f" prefetchPolicy.registries of the chart ({_some(found.forbidden)}): narrow"
            " spec.imagesFrom[].selector, or ask for their registries",
        )
    if found.without_puller_secrets:
        return (
            False,
            "ImagesNotAllowed",
            f"{len(found.without_puller_secrets)} images are left out, because they would be pulled"
            f" with puller.imagePullSecrets of the chart ({_some(found.without_puller_secrets)}):"
            " ask for their registries in imagesFrom.pullSecretRegistries of the chart",
        )
    text = f"{len(found.images)} images of {found.workloads} workloads besides spec.images"
    if found.without:
        text += f"; nothing is selected of {_some(found.without)}"
    if found.imageless:
        text += f"; no image is named by {_some(found.imageless)}"
    if found.unusable:
        text += f"; left out, as they name no valid image: {_some(found.unusable)}"
    if found.without_secrets:
        text += (
            "; without spec.imagePullSecrets, as their registries are not in"
            f" imagesFrom.pullSecretRegistries of the chart: {_some(found.without_secrets)}"
        )
    return (True, "Found", text)


def _some(texts: Collection[str]) -> str:
    shown = [*list(texts)[:SHOWN], *_more(texts)]
    return ", ".join(shown)


def _more(texts: Collection[str]) -> list[str]:
    return [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
