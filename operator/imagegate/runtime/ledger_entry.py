"""The ledger's entry of one ImagePrefetch: the standing of every node, and the nodes with a slot.

It is updated node by node, so that counts, status and metrics need no pass over all nodes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from imagegate.domain import failures, rollout, status
from imagegate.domain.actions import Standing
from imagegate.domain.facts import Attempts, NodeState, Prefetch
from imagegate.domain.throttle import Throttle


@dataclass(slots=True)
class _Domain:
    """The nodes of one topology domain, counted for `Entry.rollout_view`."""

    nodes: int = 0
    cached: int = 0
    failing: set[str] = field(default_factory=set)
    failing_permanently: int = 0


@dataclass(slots=True)
class Entry:
    standings: dict[str, Standing] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    counts: Counter[NodeState] = field(default_factory=Counter)
    slots: set[str] = field(default_factory=set)
    """Nodes that pull, or that have been granted a slot."""
    wants: dict[str, bool] = field(default_factory=dict)
    """Nodes that want a slot, in the order of their requests; True: a joining node."""
    held: set[str] = field(default_factory=set)
    failures: dict[str, Attempts] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    """Joining nodes whose pulls wait for a DaemonSet, each with the DaemonSet's name."""
    exposed: set[str] = field(default_factory=set)
    """Nodes on which pods without the secret can use images that were pulled with it."""
    outdated: set[str] = field(default_factory=set)
    """Nodes without a decision since the spec changed: their standings are about an earlier
    target. Set by `begin`."""
    throttle: Throttle = field(default_factory=Throttle)
    stopped: tuple[str, ...] = ()
    """Topology domains whose seeds failed, as of the last rollout pass."""
    _figures: dict[str, _Domain] = field(default_factory=dict)
    """By topology domain: kept up to date node by node, because a pass over all nodes for each
    changed node would cost the square of their number."""
    _skips: Counter[str] = field(default_factory=Counter)
    """How many nodes are skipped, by reason."""

    @property
    def nodes(self) -> int:
        return len(self.standings) - self.counts[NodeState.SKIPPED]

    def begin(self, outdated: set[str]) -> None:
        """Note that the spec has changed, and which nodes need a new decision."""
        for node in self.standings:
            self._uncount(node)
        self.outdated = outdated
        for node in self.standings:
            self._count(node)

    def record(self, node: str, domain: str, standing: Standing, *, held: bool) -> bool:
        """Record a decision. True if it changes anything for the status or for other nodes."""
        before = self.standings.get(node)
        was_held, had_slot = node in self.held, node in self.slots
        has_slot = standing.pulling or (standing.reads_disk and had_slot)
        if (
            before == standing
            and (was_held, had_slot, self.domains[node]) == (held, has_slot, domain)
            and node not in self.outdated
        ):
            return False
        self._uncount(node)
        caught_up = self._catch_up(node)
        if before is not None:
            self.counts[before.state] -= 1
        self.counts[standing.state] += 1
        self.standings[node] = standing
        self.domains[node] = domain
        _keep(self.held, node, held)
        _keep(self.exposed, node, standing.exposed)
        _keep(self.slots, node, has_slot)
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
        self._count(node)
        moved = was_held is not held or had_slot is not has_slot
        return caught_up or moved or before != standing

    def forget(self, node: str) -> bool:
        """Drop a node that is deleted or no longer matches. True if that changes anything."""
        self._uncount(node)
        caught_up = self._catch_up(node)
        had_slot = node in self.slots
        self.slots.discard(node)
        before = self.standings.pop(node, None)
        if before is None:
            return caught_up or had_slot
        self.counts[before.state] -= 1
        self.domains.pop(node, None)
        self.held.discard(node)
        self.exposed.discard(node)
        self.wants.pop(node, None)
        self.failures.pop(node, None)
        self.waiting.pop(node, None)
        return True

    def _catch_up(self, node: str) -> bool:
        """The node has a decision now. True if it was the last outdated node."""
        if node not in self.outdated:
            return False
        self.outdated.discard(node)
        return not self.outdated

    def take_slot(self, node: str, prefetch: Prefetch) -> bool:
        """A joining node requests a slot at once, without waiting for a rollout pass. It gets one
        only if there is also one for every joining node that has waited longer.
        """
        if node in self.slots:
            return True
        self.held.add(node)
        ahead, limit = self._ahead(node), self.throttle.limit
        if len(self.joining) + ahead >= self.gate_parallel(prefetch):
            return False
        if limit is not None and len(self.slots) + ahead >= limit:
            return False
        self.slots.add(node)
        return True

    @property
    def joining(self) -> set[str]:
        """The joining nodes that have a slot."""
        return self.slots & self.held

    def overdrawn(self, node: str, prefetch: Prefetch) -> bool:
        """Whether too many nodes of this node's kind (joining, or in service) have a slot."""
        if self.throttle.limit is not None and len(self.slots) > self.throttle.limit:
            return True
        if node in self.held:
            return len(self.joining) > self.gate_parallel(prefetch)
        in_service = len(self.slots) - len(self.joining)
        return in_service > prefetch.rollout.parallel(max(self.nodes, 1))

    def _ahead(self, node: str) -> int:
        """How many joining nodes without a slot have waited longer than this one."""
        ahead = 0
        for other, joining in self.wants.items():
            if other == node and joining:
                break
            ahead += joining and other != node and other not in self.slots
        return ahead

    def gate_parallel(self, prefetch: Prefetch) -> int:
        """How many joining nodes may pull at once, if the registry does not refuse."""
        return prefetch.gate.parallel(max(self.nodes, 1))

    def parallel(self, prefetch: Prefetch) -> int:
        """How many nodes may pull at once, if the registry does not refuse: nodes in service, and
        the joining nodes that exist now.
        """
        in_service = prefetch.rollout.parallel(max(self.nodes, 1))
        return in_service + min(self.gate_parallel(prefetch), len(self.held))

    def wanted_slot(self, prefetch: Prefetch) -> str:
        """What a joining node without a slot waits for, as text for users."""
        limit = self.throttle.limit
        if limit is not None and limit <= len(self.slots):
            return f"a slot: the registry refuses, so {limit} nodes may pull at a time"
        count = self.gate_parallel(prefetch)
        return f"a slot: gate.maxParallel lets {count} joining nodes pull at a time"

    def tally(self, prefetch: Prefetch) -> status.Tally:
        queued = sum(joining and node not in self.slots for node, joining in self.wants.items())
        newest = sorted(self.failures.items(), key=lambda item: (-item[1].at, item[0]))
        return status.Tally(
            counts={state: self.counts[state] for state in NodeState},
            gated=len(self.held),
            exposed=len(self.exposed),
            failures=tuple(status.Failure(node, attempts) for node, attempts in newest[:50]),
            complete=not self.outdated,
            stopped=self.stopped,
            skips=dict(self._skips),
            waiting=len(self.waiting),
            waits_for=min(self.waiting.items(), default=("", "")),
            queued=queued,
            slots=self.wanted_slot(prefetch) if queued else "",
        )

    def _count(self, node: str) -> None:
        """Add the standing of a node to the figures of its domain."""
        self._add(node, 1)

    def _uncount(self, node: str) -> None:
        """Subtract it again. Called before a change of anything that `_add` reads."""
        standing = self.standings.get(node)
        if standing is None:
            return
        self._add(node, -1)
        if self._figures[self.domains[node]] == _Domain():
            del self._figures[self.domains[node]]
        if not self._skips[standing.skipped]:
            del self._skips[standing.skipped]

    def _add(self, node: str, count: int) -> None:
        standing = self.standings[node]
        figures = self._figures.setdefault(self.domains[node], _Domain())
        if standing.state is NodeState.SKIPPED:
            self._skips[standing.skipped] += count
        else:
            figures.nodes += count
        if node in self.outdated:
            return
        if standing.state is NodeState.CACHED:
            figures.cached += count
        elif not standing.startable:
            return  # it cannot try again, so no node may wait for it
        elif node in self.failures and self.failures[node].reason not in failures.NODES_OWN:
            _keep(figures.failing, node, count > 0)
            figures.failing_permanently += count * self.failures[node].permanent

    def rollout_view(self, prefetch: Prefetch) -> rollout.RolloutView:
        busy = Counter(self.domains.get(node, "") for node in self.slots - self.held)
        domains = {name for name, figures in self._figures.items() if figures.nodes} | busy.keys()
        return rollout.RolloutView(
            spec=prefetch.rollout,
            gate=self.gate_parallel(prefetch),
            joining_busy=len(self.joining),
            throttle=self.throttle,
            domains={name: self._domain(name, busy[name]) for name in domains},
            joining=tuple(
                node for node, joining in self.wants.items() if joining and node not in self.slots
            ),
            waiting=tuple(
                (node, self.domains[node])
                for node, joining in self.wants.items()
                if not joining and node not in self.slots
            ),
        )

    def _domain(self, name: str, busy: int) -> rollout.Domain:
        figures = self._figures.get(name, _Domain())
        return rollout.Domain(
            figures.nodes,
            figures.cached,
            busy,
            frozenset(figures.failing),
            figures.failing_permanently,
        )


def _keep(names: set[str], name: str, wanted: bool) -> None:
    if wanted:
        names.add(name)
    else:
        names.discard(name)
