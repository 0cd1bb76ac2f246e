"""Where every node stands with every prefetch, and who has a place in which rollout.

Derived from decisions, never from the cluster directly; kept up to date node by node, so that
counts, status and metrics are read off without going through the nodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from imagegate.domain import failures, retry, rollout, status
from imagegate.domain.actions import Standing
from imagegate.domain.facts import Attempts, Node, NodeState, Prefetch
from imagegate.domain.share import Share, same_life
from imagegate.domain.throttle import Throttle


@dataclass(slots=True)
class Entry:
    """One prefetch."""

    standings: dict[str, Standing] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    counts: Counter[NodeState] = field(default_factory=Counter)
    places: set[str] = field(default_factory=set)
    """Nodes that pull or have been granted a place to."""
    wants: dict[str, bool] = field(default_factory=dict)
    """Nodes that want a place, in the order in which they asked; True: a joining node."""
    held: set[str] = field(default_factory=set)
    failures: dict[str, Attempts] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    """Joining nodes whose pulls have to wait for a DaemonSet, and for which."""
    exposed: set[str] = field(default_factory=set)
    """Nodes on which images that are pulled with secrets can be used without."""
    outdated: set[str] = field(default_factory=set)
    """Nodes that have not been decided about since the spec changed: what stands of them is of
    an earlier target."""
    throttle: Throttle = field(default_factory=Throttle)
    stopped: tuple[str, ...] = ()
    """Topology domains whose seeds failed, as of the last rollout pass."""

    @property
    def nodes(self) -> int:
        return len(self.standings) - self.counts[NodeState.SKIPPED]

    def record(self, node: str, domain: str, standing: Standing, *, held: bool) -> bool:
        """Take in a decision. True if anything that others look at has changed."""
        caught_up = self._catch_up(node)
        before = self.standings.get(node)
        was_held, had_place = node in self.held, node in self.places
        if before is not None:
            self.counts[before.state] -= 1
        self.counts[standing.state] += 1
        self.standings[node] = standing
        self.domains[node] = domain
        _keep(self.held, node, held)
        _keep(self.exposed, node, standing.exposed)
        has_place = standing.pulling or (standing.reads_disk and had_place)
        _keep(self.places, node, has_place)
        if standing.wants:
            if self.wants.get(node) is not held:
                self.wants.pop(node, None)
                self.wants[node] = held
        else:
            self.wants.pop(node, None)
        if standing.failure is not None and standing.failure.reason:
            self.failures[node] = standing.failure
        else:
            self.failures.pop(node, None)
        if standing.waits_for:
            self.waiting[node] = standing.waits_for
        else:
            self.waiting.pop(node, None)
        moved = was_held is not held or had_place is not has_place
        return caught_up or moved or before != standing

    def forget(self, node: str) -> bool:
        """Drop a node, or learn that the prefetch is not for it. True if that changes anything."""
        caught_up = self._catch_up(node)
        had_place = node in self.places
        self.places.discard(node)
        before = self.standings.pop(node, None)
        if before is None:
            return caught_up or had_place
        self.counts[before.state] -= 1
        self.domains.pop(node, None)
        self.held.discard(node)
        self.exposed.discard(node)
        self.wants.pop(node, None)
        self.failures.pop(node, None)
        self.waiting.pop(node, None)
        return True

    def _catch_up(self, node: str) -> bool:
        """The node has been decided about. True if it was the last one to be."""
        if node not in self.outdated:
            return False
        self.outdated.discard(node)
        return not self.outdated

    def take_place(self, node: str, prefetch: Prefetch) -> bool:
        """A joining node asks for a place at once, without waiting for a rollout pass. It gets one
        only if there is one as well for every joining node that has waited longer.
        """
        if node in self.places:
            return True
        self.held.add(node)
        ahead, limit = self._ahead(node), self.throttle.limit
        if len(self.joining) + ahead >= self.gate_parallel(prefetch):
            return False
        if limit is not None and len(self.places) + ahead >= limit:
            return False
        self.places.add(node)
        return True

    @property
    def joining(self) -> set[str]:
        """The joining nodes that pull or have been granted a place to."""
        return self.places & self.held

    def overdrawn(self, node: str, prefetch: Prefetch) -> bool:
        """Whether more nodes like this one (joining, or in service) have a place than may have."""
        if self.throttle.limit is not None and len(self.places) > self.throttle.limit:
            return True
        if node in self.held:
            return len(self.joining) > self.gate_parallel(prefetch)
        in_service = len(self.places) - len(self.joining)
        return in_service > prefetch.rollout.parallel(max(self.nodes, 1))

    def _ahead(self, node: str) -> int:
        """How many joining nodes without a place have waited longer than this one."""
        ahead = 0
        for other, joining in self.wants.items():
            if other == node and joining:
                break
            ahead += joining and other != node and other not in self.places
        return ahead

    def gate_parallel(self, prefetch: Prefetch) -> int:
        """How many joining nodes may pull at once, if the registry does not refuse."""
        return prefetch.gate.parallel(max(self.nodes, 1))

    def parallel(self, prefetch: Prefetch) -> int:
        """How many nodes there are at most that may pull at once, if the registry does not refuse:
        those in service, and the joining nodes that are there now.
        """
        in_service = prefetch.rollout.parallel(max(self.nodes, 1))
        return in_service + min(self.gate_parallel(prefetch), len(self.held))

    def slots(self, prefetch: Prefetch) -> str:
        """What a joining node waits for that has no place, for people."""
        limit = self.throttle.limit
        if limit is not None and limit <= len(self.places):
            return f"a slot: the registry refuses, so {limit} nodes may pull at a time"
        count = self.gate_parallel(prefetch)
        return f"a slot: gate.maxParallel lets {count} joining nodes pull at a time"

    def tally(self, prefetch: Prefetch) -> status.Tally:
        queued = sum(joining and node not in self.places for node, joining in self.wants.items())
        newest = sorted(self.failures.items(), key=lambda item: (-item[1].at, item[0]))
        return status.Tally(
            counts={state: self.counts[state] for state in NodeState},
            gated=len(self.held),
            exposed=len(self.exposed),
            failures=tuple(status.Failure(node, attempts) for node, attempts in newest[:50]),
            complete=not self.outdated,
            stopped=self.stopped,
            skips=self._skips(),
            waiting=len(self.waiting),
            waits_for=min(self.waiting.items(), default=("", "")),
            queued=queued,
            slots=self.slots(prefetch) if queued else "",
        )

    def _skips(self) -> Mapping[str, int]:
        if not self.counts[NodeState.SKIPPED]:
            return {}
        skipped = (s for s in self.standings.values() if s.state is NodeState.SKIPPED)
        return Counter(standing.skipped for standing in skipped)

    def rollout_view(self, prefetch: Prefetch) -> rollout.RolloutView:
        nodes: Counter[str] = Counter()
        cached: Counter[str] = Counter()
        failing: dict[str, set[str]] = {}
        for_good: Counter[str] = Counter()
        for node, standing in self.standings.items():
            domain = self.domains[node]
            if standing.state is not NodeState.SKIPPED:
                nodes[domain] += 1
            if node in self.outdated:
                continue
            if standing.state is NodeState.CACHED:
                cached[domain] += 1
            elif not standing.startable:
                continue  # it cannot try again, and nobody shall wait for it
            elif node in self.failures and self.failures[node].reason not in failures.NODES_OWN:
                failing.setdefault(domain, set()).add(node)
                for_good[domain] += self.failures[node].permanent
        busy = Counter(self.domains.get(node, "") for node in self.places - self.held)
        return rollout.RolloutView(
            spec=prefetch.rollout,
            gate=self.gate_parallel(prefetch),
            joining_busy=len(self.joining),
            throttle=self.throttle,
            domains={
                name: rollout.Domain(
                    nodes[name],
                    cached[name],
                    busy[name],
                    frozenset(failing.get(name, ())),
                    for_good[name],
                )
                for name in nodes.keys() | busy.keys()
            },
            joining=tuple(
                node for node, joining in self.wants.items() if joining and node not in self.places
            ),
            waiting=tuple(
                (node, self.domains[node])
                for node, joining in self.wants.items()
                if not joining and node not in self.places
            ),
        )


FIRST_REFUSAL = 0.5
LAST_REFUSAL = 60.0
LAST_URGENT_REFUSAL = 3.0
"""Seconds until what the API server refuses is asked for again; of a held node at most so many."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the API server has refused: by a policy, or for want of a Role; for long, usually."""

    count: int
    until: float
    """Monotonic."""


class Ledger:
    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.attempts: dict[str, dict[str, Attempts]] = {}
        """Remembered failures: by node, then by group key."""
        self.started: dict[str, dict[str, str]] = {}
        """Puller pods that were seen unfinished, and that the operator did not delete: their uids,
        by node, then by group key. One that is gone has been removed by somebody else."""
        self.refusals: dict[str, dict[Hashable, Refusal]] = {}
        """Requests about a node, or its pods, that were refused: by node, then by request. Without
        this every event of the node would be a reason to ask again."""
        self.holding: dict[str, str] = {}
        """Every node that carries the gate taint, and what it waits for."""
        self._machines: dict[str, str] = {}
        """The uid of every node that has been decided about, by its name."""

    def entry(self, prefetch: str) -> Entry:
        return self.entries.setdefault(prefetch, Entry())

    def record(
        self,
        node: Node,
        standings: Mapping[str, Standing],
        topology: Mapping[str, str],
        *,
        held: bool,
        holding: str,
    ) -> list[str]:
        """Take in a node's decision. The prefetches for which something changed."""
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
        """Another machine under a known name begins with nothing. The prefetches it is new to."""
        replaced = self._machines.get(node.name, node.uid) != node.uid
        changed = self.forget_node(node.name) if replaced else []
        self._machines[node.name] = node.uid
        return changed

    def forget_node(self, node: str) -> list[str]:
        """Drop a node that is gone. The prefetches that knew it."""
        self._machines.pop(node, None)
        self.holding.pop(node, None)
        self.attempts.pop(node, None)
        self.started.pop(node, None)
        self.refusals.pop(node, None)
        return [name for name, entry in self.entries.items() if entry.forget(node)]

    def refused_until(self, node: str, request: Hashable) -> float:
        """Until when (monotonic) this is not asked for again; in the past where it may be."""
        refusal = self.refusals.get(node, {}).get(request)
        return refusal.until if refusal is not None else -math.inf

    def refuse(self, node: str, request: Hashable, now: float, *, urgent: bool) -> None:
        """The API server has refused this. ``now``: monotonic."""
        known = self.refusals.setdefault(node, {})
        count = known[request].count + 1 if request in known else 1
        last = LAST_URGENT_REFUSAL if urgent else LAST_REFUSAL
        known[request] = Refusal(count, now + min(last, FIRST_REFUSAL * 2 ** min(count - 1, 16)))

    def keep_refusals(self, node: str, requests: Iterable[Hashable]) -> None:
        """Forget every other refusal: nobody asks for that any more, or it was granted."""
        known = self.refusals.get(node)
        if known is None:
            return
        for request in known.keys() - set(requests):
            del known[request]
        if not known:
            del self.refusals[node]

    def note_pods(self, node: Node, shares: Iterable[Share]) -> None:
        """Note the pods that a decision has seen; those of other groups are forgotten."""
        before = self.started.get(node.name, {})
        started: dict[str, str] = {}
        for share in shares:
            # A pod of an earlier boot, or in a namespace that is not wanted any more, is not the
            # group's: the operator deletes it.
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
        """The operator has deleted the group's pod, or has noted that it is gone."""
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
        known = self.attempts.get(node)
        if known is None:
            return
        for group in known.keys() - set(groups):
            del known[group]
        if not known:
            del self.attempts[node]

    def forgive(self, node: str, groups: Iterable[str], now: float) -> None:
        """Somebody has edited the spec, and so has mended something. What was pulled past a mirror
        that was behind proves nothing any more: it is pulled anew, and at once.
        """
        groups = tuple(groups)
        self.clear_attempts(node, groups)
        known = self.attempts.get(node, {})
        for group in groups:
            attempts = known.get(group)
            if retry.stale(attempts):
                known[group] = replace(attempts, at=now, next_at=now)

    def clear_attempts(self, node: str, groups: Iterable[str]) -> None:
        """Forget what failed before: the node has what these groups are about, or will be asked
        for it anew.
        """
        known = self.attempts.get(node)
        if known is None:
            return
        for group in groups:
            if group in known and not retry.outlives_success(known[group]):
                del known[group]
        if not known:
            del self.attempts[node]


def _keep(names: set[str], name: str, wanted: bool) -> None:
    if wanted:
        names.add(name)
    else:
        names.discard(name)
