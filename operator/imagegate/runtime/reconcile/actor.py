"""Carries out the decisions about a node, and records the results."""

from __future__ import annotations

import logging
from typing import Any, assert_never

from imagegate.domain import failures, retry, throttle
from imagegate.domain.actions import Action, CreatePod, DeletePod, PatchNode, Postpone
from imagegate.domain.facts import LABEL_PREFIX, PREFETCH_LABEL, Attempts, Pod
from imagegate.domain.gate import ready_since
from imagegate.kube.errors import AlreadyExists, Conflict, KubeError, NotFound, Unavailable
from imagegate.metrics import Metrics
from imagegate.puller import build
from imagegate.runtime.cluster import Cluster
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.queue import KeyedQueue

logger = logging.getLogger(__name__)

LATE_409 = 2.0
"""Seconds after which a pod that exists but is not known yet is looked for again."""


class Actor:
    def __init__(
        self, cluster: Cluster, known: Knowledge, queue: KeyedQueue, metrics: Metrics
    ) -> None:
        """``queue``: of the nodes that have to be decided about again."""
        self._nodes = cluster.nodes
        self._pods = cluster.pods
        self._events = cluster.events
        self._store = known.store
        self._ledger = known.ledger
        self._image_volumes = known.image_volumes
        self._clock = known.clock
        self._queue = queue
        self._metrics = metrics

    async def act(self, action: Action) -> None:
        match action:
            case PatchNode():
                await self._patch_node(action)
            case CreatePod():
                await self._create_pod(action)
            case DeletePod():
                await self._delete_pod(action)
            case Postpone():
                self._postpone(action)
            case _:
                assert_never(action)

    async def _patch_node(self, patch: PatchNode) -> None:
        name = patch.node.name
        try:
            self._store.see_node(await self._nodes.apply(patch))
        except NotFound:
            self._store.lose_node(name, patch.node.uid)
            return
        except Conflict:
            # Another client was faster, or the watch is stale. Read the node, and decide again.
            self._store.see_node(await self._nodes.get(name))
            self._queue.add(name, delay=0.02, urgent=True)
            return
        for label in patch.set_labels:
            self._succeeded(label.removeprefix(LABEL_PREFIX))
        if patch.release is not None:
            self._released(patch)
        if patch.add is not None:
            logger.info("node held", extra={"node": name})

    def _released(self, patch: PatchNode) -> None:
        node, now = patch.node, self._clock.now()
        assert patch.release is not None
        since = ready_since(node, self._store.node_history.first_ready(node), patch.remove)
        self._metrics.released(patch.release, held=now - node.created_at)
        for label in patch.set_labels:
            self._metrics.cached(label.removeprefix(LABEL_PREFIX), now - since)
        logger.info(
            "node released",
            extra={"node": node.name, "reason": str(patch.release), "message_": patch.message},
        )
        clean = patch.release in ("cached", "unmatched")
        self._events.node(
            node.name,
            node.uid,
            "ImagesCached" if patch.release == "cached" else "GateReleased",
            f"gate taint removed ({patch.release}): {patch.message}",
            now,
            warning=not clean and patch.release != "disabled",
        )

    async def _create_pod(self, action: CreatePod) -> None:
        prefetch, node = action.prefetch, action.node
        manifest = build.build(
            prefetch,
            node,
            action.group,
            action.attempt,
            self._image_volumes.puller,
            again=action.remember is not None,
            afresh=action.afresh,
        )
        try:
            created = await self._pods.create(manifest)
            if action.remember is not None:
                self._ledger.remember(node.name, action.group.key, action.remember)
            self._ledger.started.setdefault(node.name, {})[action.group.key] = created.uid
            self._store.see_pod(created)
        except AlreadyExists:
            # The operator's own pod, from before a restart or from another leader: the watch or a
            # resync reports it. If it is terminating, its deletion queues this node again.
            await self._look_at_existing(action, manifest)
        except KubeError as error:
            # The namespace is missing, a quota, Pod Security or a policy refuses the pod, or a
            # webhook fails. If the pod was created nevertheless, the watch reports it.
            failure = (
                failures.POD_NOT_CREATED if isinstance(error, Unavailable) else failures.POD_REFUSED
            )
            cause = retry.Cause(failure, str(error))
            self._failed(action, self._history(action).not_created(cause))

    def _history(self, action: CreatePod) -> retry.History:
        node, group = action.node.name, action.group.key
        return retry.History(
            self._ledger.attempts.get(node, {}).get(group),
            spec=action.prefetch.retry,
            key=f"{node}/{group}",
            now=self._clock.now(),
        )

    def _failed(self, action: CreatePod, attempts: Attempts) -> None:
        prefetch, node = action.prefetch, action.node.name
        self._ledger.remember(node, action.group.key, attempts)
        self._metrics.pull_failed(prefetch.name, attempts.reason)
        # Decide again immediately, to free the slot and to show the failure.
        self._queue.add(node)

    async def _look_at_existing(self, action: CreatePod, manifest: dict[str, Any]) -> None:
        """A pod with the name of the new pod exists. A puller pod without its labels is deleted,
        because no watch reports it; the kubelet continues its pull. A pod that no Node owns is not
        the operator's, and stays.
        """
        metadata = manifest["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        try:
            pod = await self._pods.get(namespace, name)
            if not pod.owned:
                text = (
                    f"pod {namespace}/{name} is there and is not Imagegate's, because"
                    f" {action.node.name} does not own it: delete it"
                )
                # The next pod has another name, so that a foreign pod stops nothing.
                cause = retry.Cause(failures.POD_REFUSED, text)
                self._failed(action, self._history(action).after(cause))
                return
            if pod.prefetch != metadata["labels"][PREFETCH_LABEL] or not pod.group:
                logger.warning("puller pod without its labels deleted", extra={"pod": pod.name})
                await self._pods.delete(pod)
            else:
                self._store.see_pod(pod)
        except (NotFound, Conflict):
            pass
        self._queue.add(action.node.name, delay=LATE_409)

    def _postpone(self, action: Postpone) -> None:
        node, prefetch, attempts = action.node.name, action.prefetch.name, action.remember
        self._ledger.remember(node, action.group.key, attempts)
        self._ledger.ended(node, action.group.key)
        self._metrics.pull_failed(prefetch, attempts.reason)
        self._queue.add(node, delay=max(0.01, attempts.next_at - self._clock.now()))
        logger.info(
            "pull put off",
            extra={
                "node": node,
                "prefetch": prefetch,
                "reason": attempts.reason,
                "attempt": attempts.count,
                "error": attempts.message,
            },
        )

    async def _delete_pod(self, action: DeletePod) -> None:
        pod = action.pod
        try:
            # If the watch is late, the failed pull may have started again, or may be complete.
            going = await self._pods.delete(pod, unchanged=not pod.finished)
        except NotFound:
            going = None
        except Conflict:
            if await self._see_again(pod):
                return
            going = None
        self._ledger.ended(pod.node, pod.group)
        if action.remember is not None:
            self._ledger.remember(pod.node, pod.group, action.remember)
            self._metrics.pull_failed(pod.prefetch, action.remember.reason)
            self._refused(pod.prefetch, action.remember.reason)
            logger.info(
                "pull failed",
                extra={
                    "node": pod.node,
                    "prefetch": pod.prefetch,
                    "reason": action.remember.reason,
                    "attempt": action.remember.count,
                    "error": action.remember.message,
                },
            )
        if going is None:
            self._store.lose_pod(pod.namespace, pod.name, pod.uid)
        else:
            self._store.see_pod(going)

    async def _see_again(self, pod: Pod) -> bool:
        """Read a pod that has changed, and decide again. False: it does not exist any more."""
        try:
            current = await self._pods.get(pod.namespace, pod.name)
        except NotFound:
            return False
        if current.uid != pod.uid:
            return False
        self._store.see_pod(current)
        self._queue.add(pod.node, delay=0.02)
        return True

    def _refused(self, name: str, reason: str) -> None:
        prefetch, entry = self._store.prefetches.get(name), self._ledger.entries.get(name)
        if prefetch is None or entry is None or reason not in throttle.REFUSALS:
            return
        before = entry.throttle.limit
        entry.throttle = entry.throttle.after_refusal(self._clock.now(), entry.parallel(prefetch))
        if entry.throttle.limit != before:
            logger.warning(
                "the registry refuses: fewer pulls at a time",
                extra={"prefetch": name, "limit": entry.throttle.limit, "reason": reason},
            )

    def _succeeded(self, name: str) -> None:
        prefetch, entry = self._store.prefetches.get(name), self._ledger.entries.get(name)
        if prefetch is None or entry is None:
            return
        full = entry.parallel(prefetch)
        entry.throttle = entry.throttle.after_success(self._clock.now(), full)
