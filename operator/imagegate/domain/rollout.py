"""Which nodes may start to pull now: the slots of a rollout (section 2, ``rollout``).

``allowed(domain) = min(share of maxParallel, max(seeds, fanout x cached(domain)))``, evaluated
anew at every completion, without barriers between waves. Joining nodes do not count
here: pods wait for them, so only ``gate.maxParallel`` bounds them.

Two rules slow a rollout down. Until a node of a domain has succeeded, only the domain's seeds pull:
if they fail, no other node of the domain pulls until a seed succeeds. And if the registry refuses
pulls, fewer nodes pull at a time (`throttle`), joining nodes and nodes in service together; joining
nodes go first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from imagegate.domain.facts import RolloutSpec
from imagegate.domain.throttle import Throttle


@dataclass(frozen=True, slots=True)
class Domain:
    """The figures of one topology domain."""

    nodes: int = 0
    cached: int = 0
    busy: int = 0
    """Nodes in service with a slot: the slot was granted, or the node pulls."""
    failing: frozenset[str] = frozenset()
    """Nodes whose last attempt failed for a reason whose cause is not on the node itself."""
    failing_permanently: int = 0
    """The number of these nodes whose failure is permanent: a person has to fix the cause."""


@dataclass(frozen=True, slots=True)
class RolloutView:
    spec: RolloutSpec
    domains: Mapping[str, Domain] = field(default_factory=dict)
    gate: int = 1
    """How many joining nodes may pull at once."""
    joining_busy: int = 0
    """Joining nodes with a slot."""
    joining: tuple[str, ...] = ()
    """Gated nodes that want a slot, longest waiting first."""
    waiting: tuple[tuple[str, str], ...] = ()
    """(node, domain) of nodes in service that want a slot."""
    throttle: Throttle = field(default_factory=Throttle)

    @property
    def parallel(self) -> int:
        """How many nodes in service may pull at once now, over all domains."""
        return self.throttle.bound(self.spec.parallel(self.nodes))

    @property
    def nodes(self) -> int:
        return sum(domain.nodes for domain in self.domains.values())

    @property
    def busy(self) -> int:
        return sum(domain.busy for domain in self.domains.values())


def allowed(view: RolloutView, domain: str) -> int:
    """How many nodes in service may pull at once in this domain."""
    figures = view.domains.get(domain, Domain())
    total, nodes = view.parallel, max(1, view.nodes)
    share = max(1, -(-total * figures.nodes // nodes))
    return min(total, share, max(view.spec.seeds, view.spec.fanout * figures.cached))


def total_allowed(view: RolloutView) -> int:
    """Over all domains: the gauge ``imagegate_rollout_allowed``."""
    if view.spec.paused:
        return 0
    total = view.parallel
    return min(total, sum(allowed(view, domain) for domain in view.domains))


def grant(view: RolloutView) -> tuple[str, ...]:
    """The nodes that get a slot now: joining nodes up to ``gate.maxParallel``, nodes in service up
    to ``rollout.maxParallel``, and both together up to the limit of the registry (`throttle`).
    """
    limit = view.throttle.limit
    allowance = len(view.joining) + len(view.waiting)
    if limit is not None:
        allowance = max(0, limit - view.busy - view.joining_busy)
    granted = list(view.joining[: max(0, min(view.gate - view.joining_busy, allowance))])
    free = min(view.parallel - view.busy, allowance - len(granted))
    if view.spec.paused or free <= 0:
        return tuple(granted)
    room = {name: allowed(view, name) - figures.busy for name, figures in view.domains.items()}
    for node, domain in _in_turn(view.waiting):
        if free <= 0:
            break
        if room.get(domain, 0) > 0 and not held_back(view, domain, node):
            room[domain] -= 1
            free -= 1
            granted.append(node)
    return tuple(granted)


def seeds_failed(spec: RolloutSpec, domain: Domain) -> bool:
    """Whether the seeds of this domain have failed, so that its other nodes wait for them.

    The domain stops as soon as the number of permanent failures reaches the number of seeds. Other
    failures may pass, or may concern one node, so the domain stops only at twice that number.
    """
    if domain.cached:
        return False
    return domain.failing_permanently >= spec.seeds or len(domain.failing) >= 2 * spec.seeds


def held_back(view: RolloutView, domain: str, node: str) -> bool:
    """Whether this node waits for seeds that failed; the seeds themselves try again."""
    figures = view.domains.get(domain, Domain())
    return seeds_failed(view.spec, figures) and node not in figures.failing


def stopped(view: RolloutView) -> tuple[str, ...]:
    """The domains in which nodes wait for seeds that failed."""
    return tuple(sorted({domain for node, domain in view.waiting if held_back(view, domain, node)}))


def _in_turn(waiting: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Round-robin over the domains, so that every domain gets its seeds before a domain gets
    more. Lazy, because a pass usually grants few of thousands.
    """
    queues: dict[str, list[str]] = {}
    for node, domain in waiting:
        queues.setdefault(domain, []).append(node)
    names = sorted(queues)
    for turn in zip_longest(*(queues[name] for name in names)):
        for node, domain in zip(turn, names, strict=True):
            if node is not None:
                yield node, domain
