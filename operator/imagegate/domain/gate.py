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
    """Why an ImagePrefetch that asks for a node cannot be acted on."""

    prefetch: Prefetch
    message: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What one matching prefetch says about the release of the node."""

    prefetch: Prefetch
    cached: bool
    failure: Attempts | None = None
    impossible: bool = False
    """The node can never hold these images (`match.NEVER`), or the prefetch is forbidden: nothing
    to wait for, not even under FailClosed, or a node of another platform would wait for ever."""
    why: str = ""
    """Why not, for people."""
    problem: Problem | None = None
    """Why it cannot be acted on: its images are not cached then, whatever their number."""
    waits_for: str = ""
    """What of ``startAfter`` keeps its pulls from starting, for people."""

    @property
    def obstacle(self) -> str:
        """Why it does not pull, as the end of a sentence that begins with its name."""
        if self.problem is not None:
            return f": {self.problem.message[:MAX_PROBLEM]}"
        return f", which waits for {self.waits_for}" if self.waits_for else ""

    @property
    def gating(self) -> bool:
        return self.prefetch.gate.mode is GateMode.NEW_NODES and not self.impossible

    @property
    def holds_again(self) -> bool:
        """Whether it holds nodes that were in service before, too."""
        return self.gating and self.prefetch.gate.on_reboot is OnReboot.HOLD


@dataclass(frozen=True, slots=True)
class Verdict:
    """Release with a reason, or hold (``release`` is None) and look again at ``requeue_at``."""

    release: ReleaseReason | None
    message: str
    requeue_at: float | None = None


def heartbeat_is_fresh(heartbeat: float, now: float, within: float) -> bool:
    """Whether an operator with this heartbeat lives, by the clock of the API server. A heartbeat
    from the future does not count, because it would never grow old.
    """
    return -within < now - heartbeat < within


def ready_since(node: Node, first_seen: float, taints: Iterable[Taint] = ()) -> float:
    """When the node became Ready, in seconds since the epoch, with a wrong node clock contained.

    The condition's transition time is by the node's own clock. It cannot truly lie before the
    Node was created nor after this operator first saw it Ready, so a clock that is hours off
    neither opens the gate at once nor holds it for hours. A node that was in service before and
    is held again after a reboot may never have left Ready: there, the time at which its gate
    taint was added counts (``taints``), which is in the cluster and so outlives a restart of the
    operator. Only for a taint that somebody else added without a time does ``first_seen`` count.
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
        return Verdict(ReleaseReason.DISABLED, "the NodeGate is gone")
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
        return Verdict(None, f"waiting for {text}", min(deadlines, default=None))
    reason = next(reason for reason in _RANK if any(each.release is reason for each in opinions))
    notes = [opinion.message for opinion in opinions if opinion.message]
    return Verdict(reason, "; ".join(notes) or "all images are cached")


_RANK = (ReleaseReason.TIMEOUT, ReleaseReason.FAILED, ReleaseReason.CACHED)
"""Of several reasons for a release, the first of these is the reason of the release."""


def _opinion(claim: Claim, since: float, now: float) -> Verdict:
    """The verdict as far as one claim is concerned."""
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
