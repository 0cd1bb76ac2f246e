"""Which nodes may start pulling now: the places of a rollout (section 2, ``rollout``).

``allowed(domain) = min(share of maxParallel, max(seeds, fanout x cached(domain)))``, evaluated
anew at every completion, without barriers between waves. Joining nodes go first and are bound by
maxParallel alone: somebody waits for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from imagegate.domain.facts import RolloutSpec


@dataclass(frozen=True, slots=True)
class Domain:
    """The figures of one topology domain."""

    nodes: int = 0
    cached: int = 0
    busy: int = 0
    """Nodes with a place: granted one, or pulling."""


@dataclass(frozen=True, slots=True)
class RolloutView:
    spec: RolloutSpec
    domains: Mapping[str, Domain] = field(default_factory=dict)
    joining: tuple[str, ...] = ()
    """Gated nodes that want a place, longest waiting first."""
    waiting: tuple[tuple[str, str], ...] = ()
    """(node, domain) of nodes in service that want a place."""

    @property
    def nodes(self) -> int:
        return sum(domain.nodes for domain in self.domains.values())

    @property
    def busy(self) -> int:
        return sum(domain.busy for domain in self.domains.values())


def allowed(view: RolloutView, domain: str) -> int:
    """How many nodes in service of this domain may pull at once."""
    figures = view.domains.get(domain, Domain())
    total, nodes = view.spec.parallel(view.nodes), max(1, view.nodes)
    share = max(1, -(-total * figures.nodes // nodes))
    return min(total, share, max(view.spec.seeds, view.spec.fanout * figures.cached))


def total_allowed(view: RolloutView) -> int:
    """Over all domains: the gauge ``imagegate_rollout_allowed``."""
    if view.spec.paused:
        return 0
    total = view.spec.parallel(view.nodes)
    return min(total, sum(allowed(view, domain) for domain in view.domains))


def grant(view: RolloutView) -> tuple[str, ...]:
    """The nodes that get a place now. Never more than maxParallel have one."""
    free = view.spec.parallel(view.nodes) - view.busy
    granted = list(view.joining[: max(0, free)])
    free -= len(granted)
    if view.spec.paused or free <= 0:
        return tuple(granted)
    room = {name: allowed(view, name) - figures.busy for name, figures in view.domains.items()}
    for node, domain in _in_turn(view.waiting):
        if free <= 0:
            break
        if room.get(domain, 0) > 0:
            room[domain] -= 1
            free -= 1
            granted.append(node)
    return tuple(granted)


def _in_turn(waiting: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Round-robin over the domains, so that each gets its seeds before one gets more."""
    rank: dict[str, int] = {}
    keyed: list[tuple[int, str, str]] = []
    for node, domain in waiting:
        position = rank.get(domain, 0)
        rank[domain] = position + 1
        keyed.append((position, domain, node))
    return [(node, domain) for _, domain, node in sorted(keyed)]
