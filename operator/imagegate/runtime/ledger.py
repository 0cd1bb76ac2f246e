"""The records of earlier decisions: each prefetch's standings and slots, each node's failures.

Derived from decisions, never from the cluster directly.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from imagegate.domain import retry
from imagegate.domain.actions import Standing
from imagegate.domain.facts import Attempts, Node
from imagegate.domain.share import Share, same_life
from imagegate.runtime.ledger_entry import Entry

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

FIRST_REFUSAL = 0.5
LAST_REFUSAL = 60.0
LAST_URGENT_REFUSAL = 3.0
"""Seconds until a request that the API server has refused is repeated: after the first refusal, at
most after further refusals, and at most for a held node."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the API server has refused, by a policy or for lack of a Role."""

    count: int
    until: float
    """Monotonic time until which the request is not repeated."""


class Ledger:
    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.attempts: dict[str, dict[str, Attempts]] = {}
        """Remembered failures: by node, then by group key."""
        self.started: dict[str, dict[str, str]] = {}
        """Puller pods that were seen unfinished, and that the operator did not delete: their uids,
        by node, then by group key. If such a pod is missing, another client has deleted it."""
        self.refusals: dict[str, dict[Hashable, Refusal]] = {}
        """Requests about a node, or its pods, that were refused: by node, then by request. Without
        this record every event of the node would repeat the request."""
        self.holding: dict[str, str] = {}
        """Every node that carries the gate taint, and what it waits for."""
        self._machines: dict[str, str] = {}
        """The uid of every node with a decision, by its name."""

    def entry(self, prefetch: str) -> Entry:
        entry = self.entries.get(prefetch)
        if entry is None:
            entry = self.entries[prefetch] = Entry()
        return entry

    def record(
        self,
        node: Node,
        standings: Mapping[str, Standing],
        topology: Mapping[str, str],
        *,
        held: bool,
        holding: str,
    ) -> list[str]:
        """Record a node's decision. Returns the prefetches for which something changed."""
        if held:
            self.holding[node.name] = holding
        else:
            self.holding.pop(node.name, None)
        changed = [
            name
            for name, entry in self.entries.items()
            if name not in standings and entry.forget(node.name)
        ]
        for name, standing in standings.items():
            domain = node.labels.get(topology[name], "")
            if self.entry(name).record(node.name, domain, standing, held=held):
                changed.append(name)
        return changed

    def meet(self, node: Node) -> list[str]:
        """Note a node. A new machine with a known name starts without the records of the old one.
        Returns the prefetches that had records.
        """
        replaced = self._machines.get(node.name, node.uid) != node.uid
        changed = self.forget_node(node.name) if replaced else []
        self._machines[node.name] = node.uid
        return changed

    def forget_node(self, node: str) -> list[str]:
        """Drop a deleted node. Returns the prefetches that had records of it."""
        self._machines.pop(node, None)
        self.holding.pop(node, None)
        self.attempts.pop(node, None)
        self.started.pop(node, None)
        self.refusals.pop(node, None)
        return [name for name, entry in self.entries.items() if entry.forget(node)]

    def refused_until(self, node: str, request: Hashable) -> float:
        """Until when (monotonic) the request is not repeated. In the past: it may be sent."""
        refusal = self.refusals.get(node, {}).get(request)
        return refusal.until if refusal is not None else -math.inf

    def refuse(self, node: str, request: Hashable, now: float, *, urgent: bool) -> None:
        """Record that the API server has refused the request. ``now``: monotonic."""
        known = self.refusals.setdefault(node, {})
        count = known[request].count + 1 if request in known else 1
        last = LAST_URGENT_REFUSAL if urgent else LAST_REFUSAL
        known[request] = Refusal(count, now + min(last, FIRST_REFUSAL * 2 ** min(count - 1, 16)))

    def keep_refusals(self, node: str, requests: Iterable[Hashable]) -> None:
        """Forget every other refusal: the request is not needed any more, or was granted."""
        _keep_only(self.refusals, node, requests)

    def note_pods(self, node: Node, shares: Iterable[Share]) -> None:
        """Note the pods that a decision has seen; those of other groups are forgotten."""
        before = self.started.get(node.name, {})
        started: dict[str, str] = {}
        for share in shares:
            noted = before and any(group.key in before for group in share.prefetch.groups)
            if not noted and all(pod.finished for pod in share.pods):
                continue  # nothing to note, as for nearly every share
            # A pod of an earlier boot, or in a namespace that is not wanted any more, does not
            # belong to the group, because the operator deletes it.
            mine = {
                pod.group: pod
                for pod in share.pods
                if pod.machine == node.uid
                and same_life(pod.observed, node, share.prefetch)
                and pod.namespace == share.prefetch.namespace
            }
            for group in share.prefetch.groups:
                pod = mine.get(group.key)
                if pod is None or pod.deleting:
                    if group.key in before:
                        started[group.key] = before[group.key]
                elif not pod.finished:
                    started[group.key] = pod.uid
        self.started.pop(node.name, None)
        if started:
            self.started[node.name] = started

    def ended(self, node: str, group: str) -> None:
        """The operator has deleted the group's pod, or has noted that it no longer exists."""
        started = self.started.get(node, {})
        started.pop(group, None)
        if not started:
            self.started.pop(node, None)

    def remember(self, node: str, group: str, attempts: Attempts) -> None:
        self.attempts.setdefault(node, {})[group] = attempts

    def keep_attempts(self, node: str, groups: Iterable[str]) -> None:
        """Forget the attempts of every other group: of earlier targets, and of ImagePrefetches that
        were deleted or do not match the node any more.
        """
        _keep_only(self.attempts, node, groups)

    def forgive(self, node: str, groups: Iterable[str], now: float) -> None:
        """An edit of the spec resets the back-off, because it usually fixes the cause. An image
        that was pulled through a stale mirror proves nothing any more, and is pulled again
        immediately.
        """
        known = self.attempts.get(node, {})
        for group in groups:
            attempts = known.get(group)
            if retry.stale(attempts):
                known[group] = replace(attempts, at=now, next_at=now)
            elif attempts is not None and not retry.outlives_success(attempts):
                known[group] = Attempts(pods=attempts.pods)

    def clear_attempts(self, node: str, groups: Iterable[str]) -> None:
        """Forget earlier failures of these groups, because the node has their images."""
        known = self.attempts.get(node)
        if known is None:
            return
        for group in groups:
            if group in known and not retry.outlives_success(known[group]):
                del known[group]
        if not known:
            del self.attempts[node]


def _keep_only(by_node: dict[str, dict[Key, Value]], node: str, keys: Iterable[Key]) -> None:
    """Drop the node's values with other keys."""
    known = by_node.get(node)
    if known is None:
        return
    for key in known.keys() - set(keys):
        del known[key]
    if not known:
        del by_node[node]
