"""Puller pods in the cluster."""

from __future__ import annotations

import logging
from typing import Any

from imagegate.domain.facts import Pod
from imagegate.kube.client import Client
from imagegate.kube.errors import KubeError, NotLeader
from imagegate.puller import build, read

logger = logging.getLogger(__name__)


def _path(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/pods" + (f"/{name}" if name else "")


class Pods:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self, namespace: str) -> list[Pod]:
        """The puller pods, without those that only bear the labels of one."""
        pages = self._client.list_all(_path(namespace), labelSelector=build.SELECTOR)
        return [pod for pod in [read.pod(body) async for body in pages] if pod.owned]

    async def create(self, manifest: dict[str, Any]) -> Pod:
        """Raises AlreadyExists when it is there, which for a deterministic name is success."""
        path = _path(manifest["metadata"]["namespace"])
        return read.pod(await self._client.create(path, manifest))

    async def get(self, namespace: str, name: str) -> Pod:
        """Raises NotFound when there is none."""
        return read.pod(await self._client.get(_path(namespace, name)))

    async def delete(self, pod: Pod, *, force: bool = False, unchanged: bool = False) -> Pod | None:
        """The pod as it ends, or None when it is gone at once (a finished pod is).

        The precondition makes sure that it is the pod that was decided about: names come back.
        ``force`` does not wait for a kubelet: for pods whose node is no more. ``unchanged`` deletes
        only the version that was seen, and raises Conflict where there is a later one.
        """
        preconditions = {"uid": pod.uid}
        if unchanged and pod.version:
            preconditions["resourceVersion"] = str(pod.version)
        options: dict[str, Any] = {"preconditions": preconditions}
        if force:
            options["gracePeriodSeconds"] = 0
        body = await self._client.delete(_path(pod.namespace, pod.name), options)
        going = read.pod(body)
        return going if going.deleting and not going.finished else None

    async def keeps_image_volumes(self, manifest: dict[str, Any]) -> bool | None:
        """Whether the API server keeps ``volumes[].image``, asked by a dry-run create.

        With the feature gate off the field is dropped without a word and the volume becomes an
        emptyDir (kind#3745): the pod would succeed and nothing would be pulled. None when the API
        server refuses the pod for another reason, as a quota or a webhook that fails: that is told
        when a real one is made.
        """
        path = _path(manifest["metadata"]["namespace"])
        try:
            body = await self._client.create(path, manifest, dryRun="All")
        except NotLeader:
            raise
        except KubeError as error:  # also a webhook that fails: no reason not to lead
            logger.warning("image volumes not probed", extra={"error": str(error)})
            return None
        volumes = (body.get("spec") or {}).get("volumes") or ()
        return any("image" in volume for volume in volumes)
