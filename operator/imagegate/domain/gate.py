"""Whether the gate taint stays on a node or goes, and why (section 3, steps 2 to 5)."""

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
    """What one matching prefetch says about letting the node go."""

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
    """Whether an operator with this heartbeat lives, by the clock of the API server. One from the
    future counts as little as an old one: whoever wrote it, it would never grow old.
    """
    return -within < now - heartbeat < within


_RANK = (ReleaseReason.TIMEOUT, ReleaseReason.FAILED, ReleaseReason.CACHED)


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


def judge(
    *,
    gate: Gate | None,
    unsettled: str | None,
    claims: Iterable[Claim],
    since: float,
    now: float,
) -> Verdict:
    """The verdict on a node that carries the gate taint."""
    if gate is None or gate.deleting:
        return Verdict(ReleaseReason.DISABLED, "the NodeGate is gone")
    if gate.suspend:
        return Verdict(ReleaseReason.DISABLED, "the NodeGate is suspended")
    if unsettled is not None:
        return Verdict(None, f"waiting for the node: {unsettled}")
    claims = tuple(claims)
    gating = [claim for claim in claims if claim.gating]
    if not gating:
        never = [
            f"{c.prefetch.name}: {c.why[:MAX_PROBLEM]}" for c in claims if c.impossible and c.why
        ]
        text = "; ".join(never) or "no ImagePrefetch gates this node"
        return Verdict(ReleaseReason.UNMATCHED, text)
    reasons: set[ReleaseReason] = set()
    notes: list[str] = []
    blockers: list[str] = []
    deadlines: list[float] = []
    for claim in gating:
        name, policy = claim.prefetch.name, claim.prefetch.gate
        behind = claim.obstacle
        deadline = since + policy.timeout
        if claim.cached:
            reasons.add(ReleaseReason.CACHED)
        elif policy.policy is GatePolicy.FAIL_CLOSED:
            blockers.append(f"{name} (FailClosed){behind}")
        elif claim.failure is not None and claim.failure.permanent:
            reasons.add(ReleaseReason.FAILED)
            notes.append(f"{name}: {claim.failure.reason}: {claim.failure.message}")
        elif claim.problem is not None:
            reasons.add(ReleaseReason.FAILED)
            notes.append(name + behind)
        elif now >= deadline:
            reasons.add(ReleaseReason.TIMEOUT)
            note = f"{name}: not cached within {policy.timeout:g} s of Ready"
            notes.append(note + (f"; it waited for {claim.waits_for}" if claim.waits_for else ""))
        else:
            blockers.append(name + behind)
            deadlines.append(deadline)
    if blockers:
        return Verdict(None, "waiting for " + ", ".join(blockers), min(deadlines, default=None))
    reason = next(reason for reason in _RANK if reason in reasons)
    return Verdict(reason, "; ".join(notes) or "all images are cached")
