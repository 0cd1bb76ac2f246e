"""Observe: collects everything that is known about one node into the view for its decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from imagegate.domain import repositories
from imagegate.domain.effective import adopted
from imagegate.domain.facts import Attempts, Node, Pod, Prefetch
from imagegate.domain.gate import Problem
from imagegate.domain.match import matches
from imagegate.domain.node import Decided, NodePlan, NodeView
from imagegate.domain.share import Share
from imagegate.domain.workloads import condition
from imagegate.runtime.knowledge import Knowledge
from imagegate.runtime.reconcile.slots import Slots

MANY = 8
"""Shares from which on a node's last decision is kept. It is not worth its memory for fewer."""


_NOTHING: Final[Mapping[str, Any]] = {}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a node for all of its shares."""

    node: Node
    held: bool
    attempts: Mapping[str, Attempts]
    started: Mapping[str, str]


class NodeViews:
    def __init__(self, known: Knowledge, slots: Slots) -> None:
        self._known = known
        self._store = known.store
        self._ledger = known.ledger
        self._gate = known.gate
        self._slots = slots
        self._decided: dict[str, Decided] = {}
        """The last decision about each node with many shares."""
        self._specs: dict[str, tuple[Prefetch, Prefetch]] = {}
        """By name: the prefetch as it was last seen, and the first one with the same spec."""

    def remember(self, node: Node, plan: NodePlan) -> None:
        """The plan's decision is used for the next one about this node."""
        if plan.decided is not None and len(plan.standings) >= MANY:
            self._decided[node.name] = plan.decided
        else:
            self.forget(node.name)

    def forget(self, node: str) -> None:
        self._decided.pop(node, None)

    def of(self, node: Node) -> NodeView:
        pods: dict[str, list[Pod]] = {}
        for pod in self._store.pods_on(node.name):
            pods.setdefault(pod.prefetch, []).append(pod)
        facts = _Facts(
            node,
            held=node.taint(self._gate.key) is not None,
            attempts=self._ledger.attempts.get(node.name, _NOTHING),
            started=self._ledger.started.get(node.name, _NOTHING),
        )
        shares: list[Share] = []
        frozen: set[str] = set()
        problems: list[Problem] = []
        for name in sorted(self._store.prefetches):
            prefetch = self._spec(self._store.prefetches[name])
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
            if prefetch.unread:
                problems += self._problem(prefetch, node)
                if not prefetch.images:
                    frozen.add(name)
                    pods.pop(name, None)
                    continue
            shares.append(self._share(facts, prefetch, tuple(pods.pop(name, ()))))
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
            before=self._decided.get(node.name),
        )

    def _spec(self, prefetch: Prefetch) -> Prefetch:
        """The prefetch to decide about. It is the same object while only its status changes, so
        that shares are compared fast, and kept shares do not keep a status each.
        """
        judged = self._known.size_limit.judge(prefetch)
        last, first = self._specs.get(judged.name, (None, judged))
        if last is judged:
            return first
        if last is None or first != judged:
            first = judged
            self._specs = {k: v for k, v in self._specs.items() if k in self._store.prefetches}
        self._specs[judged.name] = judged, first
        return first

    def _share(self, facts: _Facts, prefetch: Prefetch, pods: tuple[Pod, ...]) -> Share:
        node, history = facts.node, self._store.pod_history
        images = self._known.images.known(prefetch)
        unfinished = [pod.uid for pod in pods if pod.phase != "Succeeded"]
        return Share(
            prefetch,
            pods=pods,
            attempts=_of_groups(prefetch, facts.attempts),
            pulled=_of(unfinished, history.pulled),
            failed_at=_of(unfinished, history.failed_at),
            finished_at=history.finished_at,
            started=_of_groups(prefetch, facts.started),
            has_slot=self._slots.has(node, prefetch),
            # Only a node with the gate's taint shows which slot it waits for.
            slots=self._ledger.entry(prefetch.name).wanted_slot(prefetch) if facts.held else "",
            images=images or _NOTHING,
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
            yield Problem(prefetch, self._unread(prefetch))

    def _unread(self, prefetch: Prefetch) -> str:
        """Why the images of the prefetch may be incomplete."""
        selected = self._known.repositories.selected(prefetch)
        if selected is not None and selected.unread:
            _, reason, message = repositories.condition(selected)
        else:
            found = self._known.workloads.found(prefetch)
            _, reason, message = ("", "SourceNotRead", "") if found is None else condition(found)
        return f"{reason}: {message}"


def _of_groups(prefetch: Prefetch, known: Mapping[str, T]) -> Mapping[str, T]:
    return _of([group.key for group in prefetch.groups], known) if known else _NOTHING


def _of(keys: Sequence[str], known: Mapping[str, T]) -> Mapping[str, T]:
    """The facts with these keys, as they are now: a share keeps them while the ledger changes."""
    if not keys or not known:
        return _NOTHING
    return {key: known[key] for key in keys if key in known} or _NOTHING
