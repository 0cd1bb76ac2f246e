"""The conditions of an ImagePrefetch. The message of a failure names the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from imagegate.api.fields import timestamp
from imagegate.domain import credentials, failures, repositories, retry, workloads
from imagegate.domain.facts import NodeState, Prefetch, Refreshed
from imagegate.domain.repositories import Selected
from imagegate.domain.status.bounds import MAX_FAILURES, MAX_MESSAGE, cut
from imagegate.domain.status.findings import Findings
from imagegate.domain.status.tally import Failure, Tally
from imagegate.domain.workloads import Found

MAX_REASONS = 5
MAX_FOUND = 1000
MAX_SECRETS = 3
"""Pull secrets that a message names."""
Condition = tuple[str, bool, str, str]
"""(type, status, reason, message)"""


def of_prefetch(prefetch: Prefetch, tally: Tally, findings: Findings) -> list[Condition]:
    if prefetch.invalid is not None:
        return _invalid(prefetch)
    return [
        _ready(prefetch, tally, findings),
        _progressing(prefetch, tally),
        _degraded(prefetch, tally, findings.refreshed),
        *images_found(findings.found),
        *tags_selected(findings.selected),
        *([credentials.condition(tally.exposed)] if tally.exposed else []),
    ]


def _invalid(prefetch: Prefetch) -> list[Condition]:
    assert prefetch.invalid is not None
    reason, message = prefetch.invalid
    return [
        ("Ready", False, reason, message),
        ("Progressing", False, reason, "nothing is pulled until this is corrected"),
        ("Degraded", True, reason, message),
    ]


def images_found(found: Found | None) -> list[Condition]:
    """The condition of ``imagesFrom``, if the spec has it."""
    if found is None:
        return []
    everything, reason, message = workloads.condition(found)
    return [("ImagesFound", everything, reason, message[:MAX_FOUND])]


def tags_selected(selected: Selected | None) -> list[Condition]:
    """The condition of ``repositories``, if the spec has it."""
    if selected is None:
        return []
    everything, reason, message = repositories.condition(selected)
    return [("TagsSelected", everything, reason, cut(message, MAX_FOUND))]


def _ready(prefetch: Prefetch, tally: Tally, findings: Findings) -> Condition:
    # Ready must not be True for half of the images, because other tools wait for it.
    incomplete = [each for each in images_found(findings.found) if not each[1]]
    if findings.selected is not None and not repositories.sufficient(findings.selected):
        incomplete += tags_selected(findings.selected)
    for _, _, reason, message in incomplete:
        return ("Ready", False, reason, message)
    desired, cached = tally.desired, tally.of(NodeState.CACHED)
    if not tally.complete:
        return ("Ready", False, "Reconciling", "the nodes are being looked at")
    if not prefetch.images:
        return ("Ready", False, "NoImages", "no workload that spec.imagesFrom selects has an image")
    skipped = _skipped(tally)
    if desired == 0:
        if skipped:
            return ("Ready", False, "NodesSkipped", f"no node is left: {skipped}")
        return (
            "Ready",
            False,
            "NoNodesMatch",
            "no node matches spec.nodeSelector; correct it, or ignore this until nodes join",
        )
    text = f"all images are on {cached} of {desired} nodes" + (f"; {skipped}" if skipped else "")
    if cached == desired:
        return ("Ready", True, "AllCached", text)
    return ("Ready", False, "NotAllCached", text)


def _skipped(tally: Tally) -> str:
    """How many nodes are skipped, and the most frequent reasons."""
    if not tally.of(NodeState.SKIPPED):
        return ""
    commonest = sorted(tally.skips.items(), key=lambda item: (-item[1], item[0]))[:MAX_REASONS]
    reasons = ", ".join(f"{count} {why}" for why, count in commonest)
    return f"{tally.of(NodeState.SKIPPED)} skipped ({reasons})"


def _progressing(prefetch: Prefetch, tally: Tally) -> Condition:
    pulling, pending = tally.of(NodeState.PULLING), tally.of(NodeState.PENDING)
    if not tally.complete:
        return ("Progressing", True, "Reconciling", "the nodes are being looked at")
    held_up = _held_up(tally)
    if pulling:
        text = f"{pulling} nodes pulling, {pending} pending"
        return ("Progressing", True, "Pulling", "; ".join(filter(None, (text, held_up))))
    if tally.waiting:
        return ("Progressing", True, "WaitingForDaemonSet", held_up)
    if tally.queued:
        return ("Progressing", True, "WaitingForSlot", held_up)
    if pending and prefetch.rollout.paused and not tally.gated:  # joining nodes are not paused
        text = f"{pending} nodes wait until spec.rollout.paused is false"
        return ("Progressing", False, "Paused", text)
    if pending:
        return ("Progressing", True, "Waiting", f"{pending} nodes wait for their turn")
    return ("Progressing", False, "Complete", "nothing is left to pull")


def _held_up(tally: Tally) -> str:
    """What joining nodes wait for before they pull."""
    said = []
    if tally.waiting:
        node, what = tally.waits_for
        said.append(f"{tally.waiting} joining nodes wait for spec.startAfter; {node}: {what}")
    if tally.queued:
        said.append(f"{tally.queued} joining nodes wait for {tally.slots}")
    return "; ".join(said)[:MAX_MESSAGE]


def _degraded(prefetch: Prefetch, tally: Tally, refreshed: Refreshed | None) -> Condition:
    failing = [f for f in tally.failures if retry.exhausted(f.attempts, prefetch.retry)]
    if tally.stopped and tally.failures:
        first = failing[0] if failing else tally.failures[0]
        where = ", ".join(domain or "(no domain)" for domain in tally.stopped[:MAX_FAILURES])
        return (
            "Degraded",
            True,
            "SeedsFailed",
            f"the rollout waits in {where} until a seed succeeds; {_explain(prefetch, first)}",
        )
    removed = [f for f in tally.failures if retry.removed_again(f.attempts)]
    if removed:
        text = f"{len(removed)} nodes lose images again and again; {_explain(prefetch, removed[0])}"
        return ("Degraded", True, failures.EVICTED_BY_KUBELET.reason, text)
    outdated = [f for f in tally.failures if retry.stale(f.attempts)]
    if outdated:
        text = (
            f"{len(outdated)} nodes have an old image by its tag; {_explain(prefetch, outdated[0])}"
        )
        return ("Degraded", True, failures.STALE_MIRROR.reason, text)
    if not tally.of(NodeState.FAILED) or not failing:
        if refreshed is not None and refreshed.failures > 1:
            text = f"tags cannot be resolved, the last digests stay: {cut(refreshed.problem)}"
            return ("Degraded", True, "RefreshFailed", text)
        return ("Degraded", False, "AsExpected", "no node has failed")
    failed = tally.of(NodeState.FAILED)
    text = f"{failed} nodes failed; {_explain(prefetch, failing[0])}"
    return ("Degraded", True, failing[0].attempts.reason, text)


def _explain(prefetch: Prefetch, failure: Failure) -> str:
    """The last failure, and its remedy."""
    attempts = failure.attempts
    remedy = failures.remedy(attempts.reason)
    if attempts.reason == "Unauthorized":
        secrets = sorted({s for i in prefetch.images for s in i.pull_secrets})
        more = [f"and {len(secrets) - MAX_SECRETS} more"] if len(secrets) > MAX_SECRETS else []
        named = ", ".join((*secrets[:MAX_SECRETS], *more)) or "none is named"
        remedy += f" (namespace {prefetch.namespace}: {named})"
    return f"{failure.node}: {cut(attempts.message)}; {remedy}"


def merge_conditions(
    earlier: Mapping[str, object],
    conditions: Iterable[Condition],
    generation: int,
    now: float,
) -> list[dict[str, Any]]:
    """Conditions in the shape of metav1.Condition; the transition time stays while the status
    does (Cluster API, ``util/conditions``).
    """
    known = earlier.get("conditions")
    before: dict[str, Any] = {}
    if isinstance(known, list):
        before = {c["type"]: c for c in known if isinstance(c, dict) and "type" in c}
    merged: list[dict[str, Any]] = []
    for type_, is_true, reason, message in conditions:
        status = "True" if is_true else "False"
        old = before.get(type_, {})
        kept = old.get("lastTransitionTime") if old.get("status") == status else None
        merged.append(
            {
                "type": type_,
                "status": status,
                "reason": reason,
                "message": message,
                "observedGeneration": generation,
                "lastTransitionTime": kept or timestamp(now),
            }
        )
    return merged
