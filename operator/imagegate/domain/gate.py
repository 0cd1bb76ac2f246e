"""Whether the gate taint stays on a node or goes, and why (section 3, steps 2 to 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imagegate.domain.actions import ReleaseReason
from imagegate.domain.facts import Attempts, Gate, GateMode, GatePolicy, Node, Prefetch


@dataclass(frozen=True, slots=True)
class Claim:
    """What one matching prefetch says about letting the node go."""

    prefetch: Prefetch
    cached: bool
    failure: Attempts | None = None
    impossible: bool = False
    """The node can never hold images (`match.NEVER`): nothing to wait for."""
    waits_for: str = ""
    """What of ``startAfter`` keeps its pulls from starting, for people."""

    @property
    def gating(self) -> bool:
        return self.prefetch.gate.mode is GateMode.NEW_NODES and not self.impossible


def blocked(prefetch: Prefetch) -> Claim:
    """The claim of a prefetch that cannot be acted on until somebody corrects something."""
    assert prefetch.invalid is not None
    reason, message = prefetch.invalid
    return Claim(
        prefetch, cached=False, failure=Attempts(reason=reason, message=message, permanent=True)
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Release with a reason, or hold (``release`` is None) and look again at ``requeue_at``."""

    release: ReleaseReason | None
    message: str
    requeue_at: float | None = None


_RANK = (ReleaseReason.TIMEOUT, ReleaseReason.FAILED, ReleaseReason.CACHED)


def ready_since(node: Node, first_seen: float) -> float:
    """When the node became Ready, in seconds since the epoch, with a wrong node clock contained.

    The condition's transition time is by the node's own clock. It cannot truly lie before the
    Node was created nor after this operator first saw it Ready, so a clock that is hours off
    neither opens the gate at once nor holds it for hours. A node that was in service before and
    is held again after a reboot may never have left Ready: there, only what was seen counts.
    """
    if node.observed:
        return first_seen
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
    gating = [claim for claim in claims if claim.gating]
    if not gating:
        return Verdict(ReleaseReason.UNMATCHED, "no ImagePrefetch gates this node")
    reasons: set[ReleaseReason] = set()
    notes: list[str] = []
    blockers: list[str] = []
    deadlines: list[float] = []
    for claim in gating:
        name, policy = claim.prefetch.name, claim.prefetch.gate
        behind = f", which waits for {claim.waits_for}" if claim.waits_for else ""
        deadline = since + policy.timeout
        if claim.cached:
            reasons.add(ReleaseReason.CACHED)
        elif policy.policy is GatePolicy.FAIL_CLOSED:
            blockers.append(f"{name} (FailClosed){behind}")
        elif claim.failure is not None and claim.failure.permanent:
            reasons.add(ReleaseReason.FAILED)
            notes.append(f"{name}: {claim.failure.reason}: {claim.failure.message}")
        elif now >= deadline:
            reasons.add(ReleaseReason.TIMEOUT)
            note = f"{name}: not cached within {policy.timeout:g} s of Ready"
            notes.append(note + (f"; it waited for {claim.waits_for}" if behind else ""))
        else:
            blockers.append(name + behind)
            deadlines.append(deadline)
    if blockers:
        return Verdict(None, "waiting for " + ", ".join(blockers), min(deadlines, default=None))
    reason = next(reason for reason in _RANK if reason in reasons)
    return Verdict(reason, "; ".join(notes) or "all images are cached")
