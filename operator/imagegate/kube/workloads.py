"""Lists and watches workloads that name images, and reads the needed facts from them.

It uses the operator's own client, not kopf, because kopf watches only the puller namespaces and
cannot start or stop a watch while it runs.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from imagegate.api import references
from imagegate.domain import workloads
from imagegate.domain.facts import Image
from imagegate.domain.workloads import Place, Workload
from imagegate.kube.client import PAGE, Client
from imagegate.kube.errors import Forbidden, KubeError

_PATHS = {
    "Deployment": ("apps/v1", "deployments"),
    "StatefulSet": ("apps/v1", "statefulsets"),
    "DaemonSet": ("apps/v1", "daemonsets"),
    "Job": ("batch/v1", "jobs"),
    "CronJob": ("batch/v1", "cronjobs"),
}
MAX_ERROR = 200


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

    async def list(self, place: Place) -> tuple[dict[str, Workload], str]:
        """All workloads of one kind in one namespace by name, and the list's resourceVersion."""
        path, found = _path(place), dict[str, Workload]()
        query: dict[str, str] = {}
        while True:
            page = await self._client.get(path, limit=str(PAGE), **query)
            for body in page.get("items") or ():
                workload = parse(place, body)
                if workload is not None:
                    found[workload.name] = workload
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return found, str(metadata.get("resourceVersion") or "")
            query = {"continue": metadata["continue"]}

    async def watch(self, place: Place, version: str) -> AsyncGenerator[Change]:
        """The changes after the version, until the API server ends the watch (`Client.watch`)."""
        async with aclosing(self._client.watch(_path(place), version)) as events:
            async for type_, body in events:
                metadata = body.get("metadata") or {}
                at = str(metadata.get("resourceVersion") or "")
                if type_ == "BOOKMARK":
                    yield Change(at)
                    continue
                workload = parse(place, body) if type_ != "DELETED" else None
                yield Change(at, str(metadata.get("name")), workload)


def problem(place: Place, error: KubeError) -> str:
    """Why the workloads of a kind and namespace are not known, with a remedy."""
    kind, namespace = place
    plural = _PATHS[kind][1]
    if isinstance(error, Forbidden):
        return (
            f"the operator may not list {plural} in namespace {namespace}:"
            " add it to the chart's imagesFrom.namespaces"
        )
    return f"{plural} in namespace {namespace} are not known: {str(error)[:MAX_ERROR]}"


def unanswered(place: Place) -> str:
    """The same text for a list that was not answered yet."""
    return f"{_PATHS[place[0]][1]} in namespace {place[1]} are not known: no answer yet"


def _path(place: Place) -> str:
    version, plural = _PATHS[place[0]]
    return f"/apis/{version}/namespaces/{place[1]}/{plural}"


def parse(place: Place, body: Mapping[str, Any]) -> Workload | None:
    """The images of a workload; None for a workload that is being deleted, a finished Job, or a Job
    of a CronJob. Such a Job exists only for minutes, so its CronJob counts instead.
    """
    metadata: Mapping[str, Any] = body.get("metadata") or {}
    spec: Mapping[str, Any] = body.get("spec") or {}
    kind, namespace = place
    if "deletionTimestamp" in metadata or (kind == "Job" and _passing(body)):
        return None
    if kind == "CronJob":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    template = (spec.get("template") or {}).get("spec") or {}
    name = str(metadata.get("name"))
    source = workloads.named(kind, namespace, name)
    images: dict[str, Image] = {}
    unusable: list[str] = []
    for what, reference in _references(template):
        if reference in images:
            continue
        try:
            images[reference] = workloads.image(reference, source)
        except references.InvalidReference as error:
            unusable.append(f"{what} of {source}: {error}")
    labels = metadata.get("labels") or {}
    return Workload(
        name=name,
        # Interned, because the same keys and values occur thousands of times.
        labels={sys.intern(key): sys.intern(value) for key, value in labels.items()},
        images=tuple(images.values()),
        unusable=tuple(unusable),
    )


def _passing(job: Mapping[str, Any]) -> bool:
    """Whether a Job has finished or belongs to a CronJob. A suspended Job has not finished."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    ended = any(
        c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in conditions
    )
    owners = job["metadata"].get("ownerReferences") or ()
    return ended or any(o.get("controller") and o.get("kind") == "CronJob" for o in owners)


def _references(template: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The images that a pod template names, each after the container or volume that names it."""
    for part, what in (("initContainers", "init container"), ("containers", "container")):
        for container in template.get(part) or ():
            yield f"{what} {container.get('name')}", str(container.get("image") or "")
    for volume in template.get("volumes") or ():
        if volume.get("image") is not None:
            reference = volume["image"].get("reference")
            yield f"volume {volume.get('name')}", str(reference or "")
