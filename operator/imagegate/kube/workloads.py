"""Lists and watches workloads, which are objects of any kind that name images, and reads the needed
facts from them.

It uses the operator's own client, not kopf, because kopf watches only the puller namespaces and
cannot start or stop a watch while it runs.

The API server checks the objects of its own kinds. Objects of other kinds may have any shape, so
they are read with bounds, and a value of an unexpected type is skipped or reported.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from imagegate.api import kinds, paths, references
from imagegate.domain import workloads
from imagegate.domain.facts import Image, Place
from imagegate.domain.workloads import Workload
from imagegate.kube.client import PAGE, Client
from imagegate.kube.errors import Forbidden, KubeError, NotFound

MAX_ERROR = 200
PAGE_OF_ANY_KIND = 25
"""Objects of other kinds in a page of a list: each may have 1.5 MB, and a page is in memory."""
MAX_VALUES = 256
"""Largest number of different image references that are read from one object. An ImagePrefetch has
at most 64 images."""
MAX_UNUSABLE = 8
"""Largest number of invalid references of one object that are reported."""
SHOWN_NAME = 63
"""Characters of the name of a container or volume in a message."""
OCI = "oci://"


class NotServed(NotFound):
    """The API server does not serve the kind of a source. The message has the remedy."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f"GET /apis/{place.api_version}", 404, message)


@dataclass(frozen=True, slots=True)
class Change:
    """One event of a watch."""

    version: str
    """The resourceVersion at which a later watch continues."""
    name: str = ""
    """Empty: no workload has changed."""
    workload: Workload | None = None
    """None: the workload was deleted, or needs no images any more."""


class Workloads:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._plurals: dict[tuple[str, str], str] = {}
        """By API version and kind, from the API server's discovery."""

    async def list(self, place: Place) -> tuple[dict[str, Workload], str]:
        """All workloads of one kind in one namespace by name, and the list's resourceVersion.
        Raises NotServed if the API server does not serve the kind.
        """
        try:
            return await self._list(place)
        except NotServed:
            raise
        except NotFound:
            # The CRD was removed, or was replaced by one with other names.
            if self._plurals.pop((place.api_version, place.kind), None) is None:
                raise
            return await self._list(place)

    async def _list(self, place: Place) -> tuple[dict[str, Workload], str]:
        path, found = await self._path(place), dict[str, Workload]()
        limit = PAGE_OF_ANY_KIND if place.api_version else PAGE
        token = ""
        while True:
            page = await self._client.page(path, token=token, limit=limit)
            for body in page.items:
                workload = parse(place, body)
                if workload is not None:
                    found[workload.name] = workload
            token = page.token
            if not token:
                return found, page.version

    async def watch(self, place: Place, version: str) -> AsyncGenerator[Change]:
        """The changes after the version, until the API server ends the watch (`Client.watch`)."""
        async with aclosing(self._client.watch(await self._path(place), version)) as events:
            async for type_, body in events:
                metadata = body.get("metadata") or {}
                at = str(metadata.get("resourceVersion") or "")
                if type_ == "BOOKMARK":
                    yield Change(at)
                    continue
                workload = parse(place, body) if type_ != "DELETED" else None
                yield Change(at, str(metadata.get("name")), workload)

    def problem(self, place: Place, error: KubeError) -> str:
        """Why the workloads of a kind and namespace are not known, with a remedy."""
        named, where = self._named(place), f"in namespace {place.namespace}"
        match error:
            case NotServed():
                return error.message
            case Forbidden() if not place.api_version:
                return (
                    f"the operator may not list {named} {where}:"
                    " add it to the chart's imagesFrom.namespaces"
                )
            case Forbidden() if (place.api_version, place.kind) in self._plurals:
                return (
                    f"the operator may not list {named} {where}:"
                    " add both to the chart's imagesFrom.resources"
                )
            case Forbidden():
                return (
                    f"the operator may not read which kinds {place.api_version} has:"
                    " bind the ClusterRole system:discovery to its ServiceAccount"
                )
            case _:
                return f"{named} {where} are not known: {str(error)[:MAX_ERROR]}"

    def unanswered(self, place: Place) -> str:
        """The same text for a list that was not answered yet."""
        return f"{self._named(place)} in namespace {place.namespace} are not known: no answer yet"

    def _named(self, place: Place) -> str:
        """The resource as kubectl and the chart name it; the kind while the resource is unknown."""
        if not place.api_version:
            return kinds.BUILT_IN[place.kind].built_in[1]
        plural = self._plurals.get((place.api_version, place.kind))
        return f"{plural}.{kinds.group(place.api_version)}" if plural else place.title

    async def _path(self, place: Place) -> str:
        if not place.api_version:
            kind = kinds.BUILT_IN[place.kind]
            version, plural = kind.built_in
            return f"/apis/{kind.group}/{version}/namespaces/{place.namespace}/{plural}"
        key = place.api_version, place.kind
        if key not in self._plurals:
            self._plurals[key] = await self._discover(place)
        return f"/apis/{place.api_version}/namespaces/{place.namespace}/{self._plurals[key]}"

    async def _discover(self, place: Place) -> str:
        """The plural of a kind. Raises NotServed."""
        try:
            served = await self._client.get(f"/apis/{place.api_version}")
        except NotFound as error:
            raise NotServed(place, await self._missing(place)) from error
        for resource in served.get("resources") or ():
            name = str(resource.get("name"))
            if resource.get("kind") != place.kind or "/" in name:
                continue
            if not resource.get("namespaced"):
                text = f"{place.title} has no namespace: name its images in spec.images"
                raise NotServed(place, text)
            return name
        raise NotServed(place, _not_served(place))

    async def _missing(self, place: Place) -> str:
        """The message when the API server does not serve the API version."""
        try:
            group = await self._client.get(f"/apis/{kinds.group(place.api_version)}")
        except NotFound:
            return _not_served(place)
        served = [str(version.get("version")) for version in group.get("versions") or ()]
        # A new CRD appears in the group a moment before its own API version answers.
        others = [each for each in served if each != place.api_version.partition("/")[2]]
        return _not_served(place, f", only {', '.join(others)}" if others else "")


def _not_served(place: Place, others: str = "") -> str:
    return (
        f"the API server does not serve {place.kind} of {place.api_version}{others}: install its"
        " CustomResourceDefinition, or correct apiVersion and kind in spec.imagesFrom"
    )


def parse(place: Place, body: Mapping[str, Any]) -> Workload | None:
    """The images of a workload; None for a workload that is being deleted, one that has ended (a
    finished Job), or a Job of a CronJob. Such a Job exists only for minutes, so its CronJob counts
    instead.
    """
    metadata: Mapping[str, Any] = body.get("metadata") or {}
    kind = kinds.known(place.api_version, place.kind)
    if "deletionTimestamp" in metadata or (kind is not None and kind.ended(body)):
        return None
    if (place.api_version, place.kind) == ("", "Job") and _of_cron_job(metadata):
        return None
    name = str(metadata.get("name"))
    found = _References(workloads.named(place, name), complete=not place.api_version)
    if place.pod_templates or place.images:
        found.read(body, place.pod_templates, place.images)
    elif kind is not None:
        found.read(body, kind.pod_templates, kind.images)
        found.read_oci(body, kind.oci)
    labels = metadata.get("labels") or {}
    return Workload(
        name=name,
        # Interned, because the same keys and values occur thousands of times.
        labels={sys.intern(key): sys.intern(value) for key, value in labels.items()},
        images=tuple(found.images.values()),
        unusable=tuple(found.unusable),
    )


def _of_cron_job(metadata: Mapping[str, Any]) -> bool:
    owners = metadata.get("ownerReferences") or ()
    return any(o.get("controller") and o.get("kind") == "CronJob" for o in owners)


@dataclass(slots=True)
class _References:
    """The image references of one object."""

    source: str
    complete: bool
    """Whether each container must have an image. In other kinds than Kubernetes' own, a controller
    may add it (KServe takes it from the ServingRuntime)."""
    images: dict[str, Image] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)
    values: int = 0

    def read(
        self, body: Mapping[str, Any], pod_templates: Iterable[str], images: Iterable[str]
    ) -> None:
        for path in pod_templates:
            for template in paths.values(body, path):
                for what, value in _of_template(template):
                    self.add(what, value)
        for path in images:
            for value in paths.values(body, path):
                self.add(path, value)

    def read_oci(self, body: Mapping[str, Any], fields: Iterable[str]) -> None:
        """Images among URIs of any scheme."""
        for path in fields:
            for value in paths.values(body, path):
                if isinstance(value, str) and value.startswith(OCI):
                    self.add(path, value.removeprefix(OCI))

    def add(self, what: str, value: object) -> None:
        """Use a value, unless it is the same as an earlier one, or one too many."""
        absent = value is None or value == ""
        if (absent and not self.complete) or self.values == MAX_VALUES:
            return
        if isinstance(value, str) and value in self.images:
            return
        self.values += 1
        try:
            if not absent and not isinstance(value, str):
                raise references.InvalidReference(f"it is not a string, but {_TYPES[type(value)]}")
            reference = "" if value is None else str(value)
            self.images[reference] = workloads.image(reference, self.source)
        except references.InvalidReference as error:
            if len(self.unusable) < MAX_UNUSABLE:
                self.unusable.append(f"{what} of {self.source}: {error}")


_TYPES: Mapping[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _of_template(template: object) -> Iterator[tuple[str, object]]:
    """The images of a pod template or pod spec, each after the container or volume with it."""
    if not isinstance(template, Mapping):
        return
    spec = template.get("spec")
    pod = spec if isinstance(spec, Mapping) else template
    for part, what in (("initContainers", "init container"), ("containers", "container")):
        for container in _objects(pod.get(part)):
            yield f"{what} {_name(container)}", container.get("image")
    for volume in _objects(pod.get("volumes")):
        image = volume.get("image")
        if isinstance(image, Mapping):
            yield f"volume {_name(volume)}", image.get("reference")


def _objects(field: object) -> Iterator[Mapping[str, Any]]:
    for entry in field if isinstance(field, list) else ():
        if isinstance(entry, Mapping):
            yield entry


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("name"))[:SHOWN_NAME]
