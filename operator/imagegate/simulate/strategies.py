"""The ways to roll out an image that are compared.

All but one are the operator's own rules with other figures. Only `fixed_waves` is not the
operator's: it is here for the comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from imagegate.domain import rollout
from imagegate.domain.facts import Prefetch, RolloutSpec
from imagegate.domain.rollout import RolloutView

Grant = Callable[[RolloutView], tuple[str, ...]]
"""Which nodes get a slot now."""


@dataclass(frozen=True, slots=True)
class Strategy:
    name: str
    prefetch: Prefetch
    grant: Grant = rollout.grant
    throttled: bool = True
    """Whether fewer nodes pull at a time after the registry has refused pulls."""


def compared(prefetch: Prefetch, nodes: int) -> tuple[Strategy, ...]:
    """The strategies for an ImagePrefetch and this number of nodes."""
    slow = replace(prefetch, rollout=replace(prefetch.rollout, paused=False))
    everything = RolloutSpec(
        max_parallel=100, seeds=nodes, topology_key=prefetch.rollout.topology_key
    )
    return (
        Strategy("all at once", replace(slow, rollout=everything)),
        Strategy("fixed waves", slow, fixed_waves, throttled=False),
        Strategy("slow start", slow),
    )


def fixed_waves(view: RolloutView) -> tuple[str, ...]:
    """Waves of ``maxParallel`` nodes, each of which begins when the wave before it is complete.

    Not a rule of the operator: it has no seeds, no topology domains, and no answer to a registry
    that refuses. A node whose pull has failed tries again as a part of its wave.
    """
    failing = {node for domain in view.domains.values() for node in domain.failing}
    if view.busy or failing:
        return tuple(node for node, _ in view.waiting if node in failing)
    return tuple(node for node, _ in view.waiting[: view.parallel])
