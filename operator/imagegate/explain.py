"""What a survey says about one node, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from imagegate import tables
from imagegate.api import fields
from imagegate.domain import failures, forecast, match, rollout
from imagegate.domain.actions import CreatePod, PatchNode, Standing
from imagegate.domain.facts import GateMode, Node, NodeState, Prefetch
from imagegate.domain.gate import MAX_PROBLEM
from imagegate.survey import Survey


@dataclass(frozen=True, slots=True)
class Line:
    """One ImagePrefetch that selects the node."""

    prefetch: str
    state: str
    """One of `NodeState`, or ``invalid``, ``dryRun``, ``deleting``."""
    gate: str
    """``gate.policy``, or ``Never`` if the prefetch holds no node."""
    why: str
    """Empty for a node that holds the images."""


@dataclass(frozen=True, slots=True)
class Explanation:
    node: str
    held: bool
    taints: tuple[str, ...]
    """The gate's taints on the node, each as ``key:effect``."""
    since: str | None
    """When the node became Ready, or was tainted again."""
    why: str
    frees: str
    """What will free the node."""
    releasedBy: str | None  # noqa: N815 - the names of the JSON
    """When the gate frees it even without the images; None: not by time alone."""
    operator: str
    """Whether an operator is at work."""
    prefetches: tuple[Line, ...]


def explain(survey: Survey, name: str) -> Explanation:
    """Raises KeyError for a node that does not exist."""
    node, plan = survey.store.nodes[name], survey.plans[name]
    taints = node.taints_of(survey.keys)
    why, frees = _verdict(survey, node)
    lines = tuple(lines_of(survey, node))
    added = [at for taint in taints if (at := taint.time_added)]
    since = node.ready_since if node.ready else None
    return Explanation(
        node=name,
        held=bool(taints),
        taints=tuple(f"{t.key}:{t.effect}" for t in taints),
        since=(min(added, default=None) or _time(since)) if taints else None,
        why=why,
        frees=frees,
        releasedBy=_time(plan.released_by),
        operator=operator(survey),
        prefetches=lines,
    )


def operator(survey: Survey) -> str:
    """Whether an operator is at work, as a sentence without its full stop."""
    if survey.heartbeat is None:
        return "none has ever sent a heartbeat"
    ago = forecast.duration(max(0.0, survey.now - survey.heartbeat))
    if survey.alive:
        return f"at work, last heartbeat {ago} ago"
    return f"not at work, last heartbeat {ago} ago: see why its pods do not run"


def _verdict(survey: Survey, node: Node) -> tuple[str, str]:
    """Why the node is held or not, and what will free it."""
    plan = survey.plans[node.name]
    if not node.taints_of(survey.keys):
        return "no taint of the gate is on the node", ""
    if node.deleting:
        return "the Node is being deleted", "nothing has to free it"
    released = [a for a in plan.actions if isinstance(a, PatchNode) and a.release is not None]
    if released:
        when = "now" if survey.alive else "as soon as it works again"
        return released[0].message, f"the operator, {when}"
    if plan.released_by is not None:
        left = forecast.duration(max(0.0, plan.released_by - survey.now))
        timeout = f"the timeout at {_time(plan.released_by)} (in {left})"
        why, frees = plan.holding, f"the images; without them, {timeout}"
    elif match.unsettled(node) is not None:
        why = plan.holding
        frees = "the node itself: pulls start once it is Ready and initialized"
    else:
        why, frees = plan.holding, "only the images: gate.policy is FailClosed"
    return why, frees if survey.alive else f"{frees}; but first an operator has to work again"


def lines_of(survey: Survey, node: Node) -> Iterator[Line]:
    """The ImagePrefetches that select the node, by name."""
    for name, prefetch in sorted(survey.store.prefetches.items()):
        if not prefetch.parsed or not match.matches(prefetch, node):
            continue
        state, why = _state(survey, prefetch, node)
        gating = prefetch.gate.mode is GateMode.NEW_NODES
        yield Line(name, state, str(prefetch.gate.policy) if gating else "Never", why)


def _state(survey: Survey, prefetch: Prefetch, node: Node) -> tuple[str, str]:
    if prefetch.deleting:
        return "deleting", "the ImagePrefetch is being deleted"
    if prefetch.invalid is not None:
        reason, message = prefetch.invalid
        return "invalid", f"{reason}: {message[:MAX_PROBLEM]}"
    if prefetch.dry_run:
        return "dryRun", "nothing is pulled while spec.dryRun is true"
    standing = survey.plans[node.name].standings.get(prefetch.name)
    if standing is None:
        return "unknown", "its images are not known yet"
    return str(standing.state), _why(survey, prefetch, node, standing)


def _why(survey: Survey, prefetch: Prefetch, node: Node, standing: Standing) -> str:
    """Why the node does not hold the images of the prefetch yet."""
    if standing.state is NodeState.CACHED:
        return ""
    if standing.skipped:
        return standing.skipped
    pods = [
        f"{pod.namespace}/{pod.name}"
        for pod in survey.store.pods_on(node.name)
        if pod.prefetch == prefetch.name and not pod.finished
    ]
    failure = standing.failure
    if failure is not None and failure.reason:
        due = f"; next attempt at {_time(failure.next_at)}" if failure.next_at > survey.now else ""
        return (
            f"{failure.reason}: {failure.message[:MAX_PROBLEM]}; attempts: {failure.count}{due};"
            f" {failures.remedy(failure.reason)}"
        )
    if pods:
        return f"puller pod {', '.join(pods)} is at work"
    if standing.waits_for:
        return f"waits for {standing.waits_for}"
    if standing.wants:
        return f"waits for {_slot(survey, prefetch, node)}"
    creations = (a for a in survey.plans[node.name].actions if isinstance(a, CreatePod))
    if any(action.prefetch.name == prefetch.name for action in creations):
        return "its puller pod is created next"
    unsettled = match.unsettled(node)
    return f"waits for the node: {unsettled}" if unsettled is not None else "is decided about next"


def _slot(survey: Survey, prefetch: Prefetch, node: Node) -> str:
    if node.taints_of(survey.keys):
        return survey.ledger.entry(prefetch.name).wanted_slot(prefetch)
    if prefetch.rollout.paused:
        return "spec.rollout.paused to be false"
    view = survey.rollouts[prefetch.name]
    domain = node.labels.get(prefetch.rollout.topology_key, "")
    if rollout.held_back(view, domain, node.name):
        place = f"of {prefetch.rollout.topology_key}={domain}" if domain else "of this cluster"
        return f"the first nodes {place}, whose pulls have failed"
    here, busy = rollout.allowed(view, domain), view.domains[domain].busy
    if busy >= here:
        place = f" in {prefetch.rollout.topology_key}={domain}" if domain else ""
        return f"a slot: {busy} of {here} slots for nodes in service{place} are in use"
    return f"a slot: {view.busy} of {view.parallel} slots for nodes in service are in use"


def text(explanation: Explanation, width: int) -> str:
    """For people: plain lines, then a table, in lines of at most ``width`` characters."""
    rows: list[tuple[str, str]] = [("Node:", explanation.node)]
    if explanation.held:
        rows += [("Held by:", taint) for taint in explanation.taints]
        if explanation.since is not None:
            rows.append(("Since:", explanation.since))
        rows += [("Why:", explanation.why), ("Freed by:", explanation.frees)]
    else:
        rows += [("Held:", "no"), ("Why:", explanation.why)]
    rows.append(("Operator:", explanation.operator))
    lines = tables.wrapped(rows, width)
    if explanation.prefetches:
        head = ("PREFETCH", "STATE", "GATE", "WHY")
        body = [(each.prefetch, each.state, each.gate, each.why) for each in explanation.prefetches]
        lines += ["", *tables.wrapped([head, *body], width)]
    else:
        lines += ["", "No ImagePrefetch selects this node."]
    if explanation.held:
        lines += ["", f"To free it now, without its images: imagegate release {explanation.node}"]
    return "\n".join(lines)


def as_json(explanation: Explanation) -> dict[str, Any]:
    return asdict(explanation)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else fields.timestamp(seconds)
