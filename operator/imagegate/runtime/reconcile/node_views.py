"""Observe: collects everything that is known about one node into the view for its decision."""

from __future__ import annotations

from collections.abc import Iterator

from imagegate.domain.effective import adopted
from imagegate.domain.facts import Node, Pod, Prefetch
from imagegate.domain.gate import Problem
from imagegate.domain.match import matches
from imagegate.domain.node import NodeView
from imagegate.domain.share import Share
from imagegate.domain.workloads import condition
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.reconcile.slots import Slots


class NodeViews:
    def __init__(self, known: Knowledge, slots: Slots) -> None:
        self._known = known
        self._store = known.store
        self._ledger = known.ledger
        self._gate = known.gate
        self._slots = slots

    def of(self, node: Node) -> NodeView:
        pods: dict[str, list[Pod]] = {}
        for pod in self._store.pods_on(node.name):
            pods.setdefault(pod.prefetch, []).append(pod)
        shares: list[Share] = []
        frozen: set[str] = set()
        problems: list[Problem] = []
        for name in sorted(self._store.prefetches):
            prefetch = self._known.size_limit.judge(self._store.prefetches[name])
            if (prefetch.invalid is not None or prefetch.dry_run) and not prefetch.deleting:
                frozen.add(name)
                kept = pods.pop(name, [])
                problems += self._problem(prefetch, node)
                if prefetch.forbidden:
                    # Unfinished pods are deleted as orphans, because otherwise they would continue
                    # to pull as long as the registry refuses.
                    pods[name] = [pod for pod in kept if not pod.finished]
                continue
            if not prefetch.live or not matches(prefetch, node):
                continue
            problems += self._problem(prefetch, node)
            if prefetch.unread and not prefetch.images:
                frozen.add(name)
                pods.pop(name, None)
                continue
            shares.append(self._share(node, prefetch, tuple(pods.pop(name, ()))))
        history = self._store.node_history
        return NodeView(
            node=node,
            taint_key=self._gate.key,
            earlier_keys=self._gate.earlier_keys,
            gate=self._store.gate,
            shares=tuple(shares),
            orphans=tuple(pod for orphans in pods.values() for pod in orphans),
            frozen=frozenset(frozen),
            problems=tuple(problems),
            first_ready=history.first_ready(node),
            unready_since=history.unready_since(node),
            labels_since=history.labels_since(node),
            seen=history.listed(node),
            usage=self._known.disks.known(node),
            taints_by_watch=self._gate.by_watch,
            control_planes=self._gate.control_planes,
        )

    def _share(self, node: Node, prefetch: Prefetch, pods: tuple[Pod, ...]) -> Share:
        ledger, history = self._ledger, self._store.pod_history
        images = self._known.images.known(prefetch)
        failed = {pod.uid: history.failed_at(pod.uid) for pod in pods}
        finished = {pod.uid: history.finished_at(pod.uid) for pod in pods}
        # Only a node with the gate's taint shows which slot it waits for.
        held = node.taint(self._gate.key) is not None
        return Share(
            prefetch,
            pods=pods,
            attempts=ledger.attempts.get(node.name, {}),
            pulled={pod.uid: history.pulled(pod.uid) for pod in pods},
            failed_at={uid: at for uid, at in failed.items() if at is not None},
            finished_at={uid: at for uid, at in finished.items() if at is not None},
            started=ledger.started.get(node.name, {}),
            has_slot=self._slots.has(node, prefetch),
            slots=ledger.entry(prefetch.name).wanted_slot(prefetch) if held else "",
            images=images or {},
            inspected=images is not None and adopted(prefetch, images),
            unready=self._known.start_after.unready(node, prefetch),
        )

    def _problem(self, prefetch: Prefetch, node: Node) -> Iterator[Problem]:
        """Why a prefetch that matches the node cannot be acted on, if it cannot. A spec that cannot
        be parsed holds no node, because it is unknown which nodes it matches; the API server's
        schema refuses such a spec.
        """
        if prefetch.dry_run or not prefetch.parsed or not matches(prefetch, node):
            return
        if prefetch.invalid is not None:
            reason, message = prefetch.invalid
            yield Problem(prefetch, f"{reason}: {message}")
        elif prefetch.unread:
            found = self._known.workloads.found(prefetch)
            _, reason, message = ("", "SourceNotRead", "") if found is None else condition(found)
            yield Problem(prefetch, f"{reason}: {message}")
