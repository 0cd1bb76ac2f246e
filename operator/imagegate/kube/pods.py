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
        """The puller pods. Pods that only have a puller pod's labels are left out."""
        pages = self._client.list_all(_path(namespace), labelSelector=build.SELECTOR)
        return [pod for pod in [read.pod(body) async for body in pages] if pod.owned]

    async def create(self, manifest: dict[str, Any]) -> Pod:
        """Raises AlreadyExists if the pod exists, which counts as success: names are
        deterministic.
        """
        path = _path(manifest["metadata"]["namespace"])
        return read.pod(await self._client.create(path, manifest))

    async def get(self, namespace: str, name: str) -> Pod:
        """Raises NotFound if the pod does not exist."""
        return read.pod(await self._client.get(_path(namespace, name)))

    async def delete(self, pod: Pod, *, force: bool = False, unchanged: bool = False) -> Pod | None:
        """Delete a pod. Returns the terminating pod, or None if it was removed immediately, as
        finished pods are.

        The precondition ensures that the pod is the one of the decision, because a new pod may have
        the same name. ``force`` does not wait for a kubelet; it is for pods of deleted nodes.
        ``unchanged`` deletes the pod only in the known version, else raises Conflict.
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
        """Check by a dry-run create whether the API server keeps ``volumes[].image``.

        If the feature gate is off, the API server drops the field without a warning, and the volume
        becomes an emptyDir (kind#3745): the pod would succeed without a pull. Returns None if the
        API server refuses the pod for another reason, such as a quota or a failing webhook. That
        error is reported when a real pod is created.
        """
        path = _path(manifest["metadata"]["namespace"])
        try:
            body = await self._client.create(path, manifest, dryRun="All")
        except NotLeader:
            raise
        except KubeError as error:  # A failing webhook, too, must not prevent leadership.
            logger.warning("image volumes not probed", extra={"error": str(error)})
            return None
        volumes = (body.get("spec") or {}).get("volumes") or ()
        return any("image" in volume for volume in volumes)
