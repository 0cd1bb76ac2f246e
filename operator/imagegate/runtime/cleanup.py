"""Removes everything of Imagegate from the cluster; ``helm uninstall`` runs it first.

Idempotent. The order ensures that no step is undone: the operator stops, the NodeGate is deleted,
then taints, labels, annotations and puller pods are removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

from imagegate.domain.actions import PatchNode
from imagegate.domain.facts import FINALIZER, LABEL_PREFIX, Node
from imagegate.kube.client import MERGE_PATCH, Client
from imagegate.kube.errors import Conflict, NotFound
from imagegate.kube.gates import NAME as GATE_NAME
from imagegate.kube.gates import PATH as GATES
from imagegate.kube.gates import Gates
from imagegate.kube.leases import Leases
from imagegate.kube.nodes import Nodes, try_each
from imagegate.kube.pods import Pods
from imagegate.kube.prefetches import Prefetches
from imagegate.runtime.installation import Installation
from imagegate.runtime.taint_keys import every_key

logger = logging.getLogger(__name__)

STOP_TIMEOUT = 60.0
PODS_TIMEOUT = 20.0


class Cleanup:
    def __init__(
        self,
        client: Client,
        prefetches: Prefetches,
        installation: Installation,
        *,
        deployment: str,
        puller_namespaces: Sequence[str],
    ) -> None:
        self._client = client
        self._prefetches = prefetches
        self._nodes = Nodes(client)
        self._pods = Pods(client)
        self._gates = Gates(client)
        self._namespace = installation.namespace
        self._deployment = deployment
        self._leases = Leases(client, installation.namespace, installation.lease)
        self._puller_namespaces = puller_namespaces
        self._taint_key = installation.taint_key

    async def run(self) -> None:
        """Raises a KubeError at the first step that fails. Another run continues from there."""
        await self._stop_operator()
        keys = await every_key(self._gates, self._leases, self._taint_key)
        await self._delete(f"{GATES}/{GATE_NAME}")
        nodes = await self._nodes.list()
        # The nodes first, because then no node is held even if a later step fails.
        await self._tidy_all(nodes, keys)
        await self._delete_pods({node.name for node in nodes})
        for prefetch in await self._prefetches.list():
            if FINALIZER in prefetch.finalizers:
                await self._prefetches.remove_finalizer(prefetch)
        await self._wait_for_pods()
        # Once more, because the API server's admission sees the deletion of the NodeGate a moment
        # later: a node that joined in between was tainted after the first list.
        await self._tidy_all(await self._nodes.list(), keys)
        # Last, because a clean-up that is run again needs the keys.
        await self._leases.delete()
        logger.info("cleaned up")

    async def _tidy_all(self, nodes: Sequence[Node], keys: Collection[str]) -> None:
        def wanted(node: Node) -> PatchNode:
            return PatchNode(
                node,
                drop_labels=tuple(k for k in node.labels if k.startswith(LABEL_PREFIX)),
                remove=node.taints_of(keys),
                forget=bool(node.observed),
            )

        async def tidy(node: Node) -> bool:
            return await self._nodes.insist(node, wanted)

        await try_each(nodes, tidy)

    async def _stop_operator(self) -> None:
        """Scale the operator to zero and wait, because it would restore what is removed."""
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{self._deployment}"
        try:
            await self._client.patch(f"{path}/scale", {"spec": {"replicas": 0}}, MERGE_PATCH)
            body = await self._client.get(path)
        except NotFound:
            return
        labels = body["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        pods = f"/api/v1/namespaces/{self._namespace}/pods"
        async with asyncio.timeout(STOP_TIMEOUT):
            while (await self._client.get(pods, labelSelector=selector))["items"]:
                await asyncio.sleep(0.5)

    async def _delete_pods(self, nodes: Collection[str]) -> None:
        for namespace in self._puller_namespaces:
            for pod in await self._pods.list(namespace):
                try:
                    await self._pods.delete(pod, force=pod.node not in nodes)
                except (NotFound, Conflict):
                    continue

    async def _wait_for_pods(self) -> None:
        """Wait until the puller pods are deleted. A pod that was still pulling ends within seconds,
        unless its kubelet does not answer: such a pod is removed with its node later.
        """
        try:
            async with asyncio.timeout(PODS_TIMEOUT):
                for namespace in self._puller_namespaces:
                    while await self._pods.list(namespace):
                        await asyncio.sleep(0.5)
        except TimeoutError:
            logger.warning("puller pods are still terminating, because their nodes do not answer")

    async def _delete(self, path: str) -> None:
        try:
            await self._client.delete(path)
        except NotFound:
            logger.info("nothing to delete", extra={"path": path})
