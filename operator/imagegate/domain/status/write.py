"""The whole status of an ImagePrefetch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagegate.api.fields import timestamp
from imagegate.domain import failures
from imagegate.domain.facts import NodeState, Prefetch, Refreshed
from imagegate.domain.forecast import Forecast, summary
from imagegate.domain.status import conditions
from imagegate.domain.status.bounds import MAX_FAILURES, MAX_MESSAGE, cut, fit
from imagegate.domain.status.conditions import Condition, merge_conditions
from imagegate.domain.status.findings import NOTHING, Findings
from imagegate.domain.status.images import image_fields
from imagegate.domain.status.tally import Failure, Tally


def prefetch_status(
    prefetch: Prefetch, tally: Tally, now: float, findings: Findings = NOTHING
) -> dict[str, Any]:
    """The whole ``status`` of an ImagePrefetch. The same facts give the same status, so that
    nothing is written.

    Conditions keep their lastTransitionTime from ``prefetch.status`` unless they flip.
    """
    earlier = prefetch.status
    current = conditions.of_prefetch(prefetch, tally, findings)
    status: dict[str, Any] = {
        "observedGeneration": prefetch.generation,
        "nodes": {
            "desired": tally.desired,
            "cached": tally.of(NodeState.CACHED),
            "pulling": tally.of(NodeState.PULLING),
            "pending": tally.of(NodeState.PENDING),
            "failed": tally.of(NodeState.FAILED),
            "skipped": tally.of(NodeState.SKIPPED),
            "gated": tally.gated,
        },
        "failures": [_failure(failure) for failure in tally.failures[:MAX_FAILURES]],
        "conditions": merge_conditions(earlier, current, prefetch.generation, now),
    }
    if prefetch.invalid is not None:
        # The digests, workload images and tags that were found are kept for when the spec is
        # corrected.
        kept = ("target", "images", "moreImages", "digests", "repositories")
        status |= {key: earlier[key] for key in kept if key in earlier}
        last = earlier.get("refresh")
        if prefetch.refresh is not None and isinstance(last, Mapping):
            # No tag is resolved meanwhile, so the problem of the registry may be over.
            status["refresh"] = {key: last[key] for key in last if key != "message"}
        return fit(status)
    status["target"] = prefetch.target
    status |= image_fields(prefetch, findings, now)
    if prefetch.refresh is not None:
        status["refresh"] = _refresh(findings.refreshed, earlier.get("refresh"))
    return fit(status)


def _refresh(refreshed: Refreshed | None, before: object) -> dict[str, Any]:
    """Before the first check since the operator's start, the entry of its predecessor stays."""
    if refreshed is None:
        return dict(before) if isinstance(before, Mapping) else {}
    entry = {
        "lastCheckTime": timestamp(refreshed.at),
        "nextCheckTime": timestamp(refreshed.due),
    }
    return {**entry, "message": cut(refreshed.problem)} if refreshed.problem else entry


def dry_run_status(
    prefetch: Prefetch, facts: Forecast, now: float, findings: Findings = NOTHING
) -> dict[str, Any]:
    """The status of a prefetch with ``dryRun``: the changes that it would make."""
    refused = [
        {"node": node, "reason": failures.DISK_FULL.reason, "message": why[:MAX_MESSAGE]}
        for node, why in facts.no_room[:MAX_FAILURES]
    ]
    text = f"nothing is changed while spec.dryRun is true; {summary(facts)}"
    current: list[Condition] = [
        ("Ready", False, "DryRun", text),
        ("Progressing", False, "DryRun", "set spec.dryRun to false to begin"),
        ("Degraded", False, "DryRun", "nothing is tried"),
        *conditions.images_found(findings.found),
        *conditions.tags_selected(findings.selected),
    ]
    wanted = {
        "observedGeneration": prefetch.generation,
        "target": prefetch.target,
        "nodes": {
            "desired": facts.cached + facts.to_pull + len(facts.no_room),
            "cached": facts.cached,
            "pulling": 0,
            "pending": facts.to_pull,
            "failed": len(facts.no_room),
            "skipped": sum(facts.skipped.values()),
            "gated": 0,
        },
        **image_fields(prefetch, findings, now),
        "failures": refused,
        "conditions": merge_conditions(prefetch.status, current, prefetch.generation, now),
    }
    return fit(wanted)


def _failure(failure: Failure) -> dict[str, Any]:
    attempts = failure.attempts
    return {
        "node": failure.node,
        "image": attempts.image,
        "reason": attempts.reason,
        "message": cut(attempts.message),
        "attempts": attempts.count,
        "nextAttempt": timestamp(attempts.next_at),
    }
