"""Whether the gate taint stays on the node: the claims of all prefetches, brought before the
gate.
"""

from __future__ import annotations

from imagegate.domain import gate, match
from imagegate.domain.gate import Claim, GateView, Verdict
from imagegate.domain.node.view import NodeView
from imagegate.domain.share.decision import ShareDecision


def judge(view: NodeView, shares: tuple[ShareDecision, ...], now: float) -> Verdict | None:
    """The gate's verdict; None where there is no taint, or the node is being deleted."""
    if not view.taints or view.node.deleting:
        return None
    claims = _claims(view, shares)
    again = tuple(claim for claim in claims if claim.holds_again)
    gate_view = GateView(
        gate=view.gate,
        unsettled=match.unsettled(view.node),
        # A node that was in service before is held only for prefetches that hold it again: the
        # rollouts of the others reach it in their turn.
        claims=again if view.node.observed and again else claims,
        since=gate.ready_since(view.node, view.first_ready, view.taints),
    )
    return gate.judge(gate_view, now)


def _claims(view: NodeView, shares: tuple[ShareDecision, ...]) -> tuple[Claim, ...]:
    impossible = match.skipped(view.node, gated=True) in match.NEVER
    return (
        *(
            Claim(
                decision.prefetch,
                cached=decision.cached,
                failure=decision.failure,
                impossible=decision.skipped in match.NEVER,
                why=decision.skipped,
                waits_for=decision.waits_for or (decision.share.slots if decision.wants else ""),
            )
            for decision in shares
        ),
        *(
            Claim(
                problem.prefetch,
                cached=False,
                problem=problem,
                impossible=impossible or problem.prefetch.forbidden,
                why=problem.message if problem.prefetch.forbidden else "",
            )
            for problem in view.problems
        ),
    )
