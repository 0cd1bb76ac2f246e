"""Whether the gate taint stays on the node: the gate's verdict on the claims of all prefetches."""

from __future__ import annotations

from imagegate.domain import gate, match
from imagegate.domain.gate import Claim, GateView, Verdict
from imagegate.domain.node.view import NodeView
from imagegate.domain.share.outcome import Outcome


def judge(view: NodeView, shares: tuple[Outcome, ...], now: float) -> Verdict | None:
    """The gate's verdict; None if the node has no gate taint or is being deleted."""
    if not view.taints or view.node.deleting:
        return None
    claims = _claims(view, shares)
    again = tuple(claim for claim in claims if claim.holds_again)
    gate_view = GateView(
        gate=view.gate,
        unsettled=match.unsettled(view.node),
        # If a prefetch holds nodes in service again, such a node waits only for these prefetches.
        # The other prefetches reach it by their rollouts.
        claims=again if view.node.observed and again else claims,
        since=gate.ready_since(view.node, view.first_ready, view.taints),
    )
    return gate.judge(gate_view, now)


def _claims(view: NodeView, shares: tuple[Outcome, ...]) -> tuple[Claim, ...]:
    impossible = match.skipped(view.node, gated=True) in match.NEVER
    return (
        *(
            Claim(
                outcome.prefetch,
                cached=outcome.cached,
                failure=outcome.standing.failure,
                impossible=outcome.standing.skipped in match.NEVER,
                why=outcome.standing.skipped,
                waits_for=outcome.waits_for,
            )
            for outcome in shares
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
