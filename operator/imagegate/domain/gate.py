"""Whether the gate taint stays on a node or is removed, and why (section 3, steps 2 to 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imagegate.api import fields
from imagegate.domain.actions import ReleaseReason
from imagegate.domain.facts import (
    Attempts,
    Gate,
    GateMode,
    GatePolicy,
    Node,
    OnReboot,
    Prefetch,
    Taint,
)

MAX_PROBLEM = 400
"""Characters of a problem in a message about one node."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an ImagePrefetch that selects a node cannot be acted on."""

    prefetch: Prefetch
    message: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The facts about one matching prefetch that decide on the release of the node."""

    prefetch: Prefetch
    cached: bool
    failure: Attempts | None = None
    impossible: bool = False
    """The node can never hold these images (`match.NEVER`), or the prefetch is forbidden. The gate
    does not wait for them, not even under FailClosed, because the node would wait for ever."""
    why: str = ""
    """Why the node is skipped or the prefetch forbidden, as text for people."""
    problem: Problem | None = None
    """Why the prefetch cannot be acted on. Then it is not cached, even if it has no images."""
    waits_for: str = ""
    """The DaemonSet or the slot that its pulls wait for, as text for people."""

    @property
    def obstacle(self) -> str:
        """Why no pull runs, as the end of a sentence that begins with the name of the prefetch."""
        if self.problem is not None:
            return f": {self.problem.message[:MAX_PROBLEM]}"
        return f", which waits for {self.waits_for}" if self.waits_for else ""

    @property
    def gating(self) -> bool:
        return self.prefetch.gate.mode is GateMode.NEW_NODES and not self.impossible

    @property
    def holds_again(self) -> bool:
        """Whether it also holds nodes that were in service before."""
        return self.gating and self.prefetch.gate.on_reboot is OnReboot.HOLD


@dataclass(frozen=True, slots=True)
class Verdict:
    """Release with a reason, or hold (``release`` is None) and decide again at ``requeue_at``."""

    release: ReleaseReason | None
    message: str
    requeue_at: float | None = None
    latest: float | None = None
    """When the gate releases the node even without the images; None: not by time alone, because the
    node is not Ready, or a prefetch with FailClosed holds it."""


def heartbeat_is_fresh(heartbeat: float, now: float, within: float) -> bool:
    """Whether an operator with this heartbeat is alive, by the clock of the API server. A heartbeat
    from the far future is not fresh, because it would not expire for a long time.
    """
    return -within < now - heartbeat < within


def ready_since(node: Node, first_seen: float, taints: Iterable[Taint] = ()) -> float:
    """When the node became Ready, in seconds since the epoch, corrected for a wrong node clock.

    The condition's transition time is by the node's own clock. The true time is neither before the
    creation of the Node nor after this operator first saw it Ready. Within these bounds, a clock
    that is hours off neither opens the gate immediately nor holds the node for hours.

    A node that was in service before and is held again after a reboot may never have left Ready.
    For such a node the time at which its gate taint was added is used (``taints``), because that
    time is in the cluster and survives a restart of the operator. ``first_seen`` is used only if
    another client added the taint without a time.
    """
    if node.observed:
        added = [at for taint in taints if (at := fields.seconds(taint.time_added)) is not None]
        return min(max(min(added), node.ready_since or 0.0), first_seen) if added else first_seen
    claimed = node.ready_since if node.ready_since is not None else first_seen
    return min(max(claimed, node.created_at), first_seen)


@dataclass(frozen=True, slots=True)
class GateView:
    """Everything that a verdict on one tainted node depends on."""

    gate: Gate | None
    unsettled: str | None
    """Why the node is not ready for pulls yet (`match.unsettled`)."""
    claims: tuple[Claim, ...]
    since: float
    """When the node became Ready (`ready_since`)."""


def judge(view: GateView, now: float) -> Verdict:
    """The verdict on a node that carries the gate taint."""
    if view.gate is None or view.gate.deleting:
        return Verdict(ReleaseReason.DISABLED, "the NodeGate was deleted")
    if view.gate.suspend:
        return Verdict(ReleaseReason.DISABLED, "the NodeGate is suspended")
    if view.unsettled is not None:
        return Verdict(None, f"waiting for the node: {view.unsettled}")
    gating = [claim for claim in view.claims if claim.gating]
    if not gating:
        never = [
            f"{c.prefetch.name}: {c.why[:MAX_PROBLEM]}"
            for c in view.claims
            if c.impossible and c.why
        ]
        text = "; ".join(never) or "no ImagePrefetch gates this node"
        return Verdict(ReleaseReason.UNMATCHED, text)
    opinions = [_opinion(claim, view.since, now) for claim in gating]
    holding = [opinion for opinion in opinions if opinion.release is None]
    if holding:
        deadlines = [opinion.requeue_at for opinion in holding if opinion.requeue_at is not None]
        text = ", ".join(opinion.message for opinion in holding)
        latest = max(deadlines) if len(deadlines) == len(holding) else None
        return Verdict(None, f"waiting for {text}", min(deadlines, default=None), latest)
    reason = next(reason for reason in _RANK if any(each.release is reason for each in opinions))
    notes = [opinion.message for opinion in opinions if opinion.message]
    return Verdict(reason, "; ".join(notes) or "all images are cached")


_RANK = (ReleaseReason.TIMEOUT, ReleaseReason.FAILED, ReleaseReason.CACHED)
"""If prefetches give several reasons, the first of them in this order is the release's reason."""


def _opinion(claim: Claim, since: float, now: float) -> Verdict:
    """The verdict for one claim alone."""
    name, policy = claim.prefetch.name, claim.prefetch.gate
    deadline = since + policy.timeout
    if claim.cached:
        return Verdict(ReleaseReason.CACHED, "")
    if policy.policy is GatePolicy.FAIL_CLOSED:
        return Verdict(None, f"{name} (FailClosed){claim.obstacle}")
    if claim.failure is not None and claim.failure.permanent:
        note = f"{name}: {claim.failure.reason}: {claim.failure.message}"
        return Verdict(ReleaseReason.FAILED, note)
    if claim.problem is not None:
        return Verdict(ReleaseReason.FAILED, name + claim.obstacle)
    if now >= deadline:
        note = f"{name}: not cached within {policy.timeout:g} s of Ready"
        waited = f"; it waited for {claim.waits_for}" if claim.waits_for else ""
        return Verdict(ReleaseReason.TIMEOUT, note + waited)
    return Verdict(None, name + claim.obstacle, deadline)
