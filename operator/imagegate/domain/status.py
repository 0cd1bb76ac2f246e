"""The status of an ImagePrefetch and of the NodeGate: counts, conditions, a few failures.

Bounded at 16 KiB, whatever the spec and the number of nodes: `_fit` says what is left out first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imagegate.api.fields import timestamp
from imagegate.domain import advice, credentials, failures, retry, workloads
from imagegate.domain.advice import Severity
from imagegate.domain.effective import listed, reference_key, resolved
from imagegate.domain.facts import (
    Attempts,
    Image,
    ImageFacts,
    NodeState,
    Prefetch,
    Refreshed,
)
from imagegate.domain.forecast import Forecast, summary
from imagegate.domain.workloads import Found

MAX_FAILURES = 10
MAX_MESSAGE = 400
MAX_REASONS = 5
MAX_FOUND = 1000
MAX_CONDITION = 1000
"""Characters of a condition's message."""
MAX_SECRETS = 3
"""Pull secrets that a message names."""
MAX_IMAGES = 10 * 1024
"""Bytes for the images and their digests. What is said of them depends on nothing else, so that
a node that fails changes nothing there."""
SHORTER = (200, 100, 50, 20)
"""Characters of messages, and of the images of failures, where there is less room."""
MAX_STATUS = 16 * 1024
"""Bytes of a status that there is room for advice in."""
NOT_ADVICE = 8 * 1024
"""Bytes of it that are left to failures, conditions and counts, be they there or not: otherwise a
node that fails would change what is said of the images."""


@dataclass(frozen=True, slots=True)
class Failure:
    node: str
    attempts: Attempts


@dataclass(frozen=True, slots=True)
class Tally:
    """How the nodes stand with one prefetch."""

    counts: Mapping[NodeState, int]
    gated: int
    failures: tuple[Failure, ...] = ()
    """Newest first."""
    complete: bool = True
    """Whether every node has been decided about since the last change of the spec."""
    stopped: tuple[str, ...] = ()
    """Topology domains in which the rollout waits for seeds that failed."""
    skips: Mapping[str, int] = field(default_factory=dict)
    """Nodes that are left alone, by reason."""
    waiting: int = 0
    """Joining nodes whose pulls have to wait for a DaemonSet of ``startAfter``."""
    waits_for: tuple[str, str] = ("", "")
    """One of them, and what it waits for."""
    queued: int = 0
    """Joining nodes without a slot."""
    slots: str = ""
    """What these wait for."""
    exposed: int = 0
    """Nodes on which images that are pulled with secrets can be used without."""

    @property
    def desired(self) -> int:
        return sum(n for state, n in self.counts.items() if state is not NodeState.SKIPPED)

    def of(self, state: NodeState) -> int:
        return self.counts.get(state, 0)


def changes(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7396) that makes ``there`` equal to ``wanted``; empty if it is already.

    A field that is not wanted any more is removed by a null, at every depth: a merge patch keeps
    what it does not name. Lists are replaced as a whole.
    """
    patch: dict[str, Any] = {key: None for key in there if key not in wanted}
    for key, value in wanted.items():
        old = there.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if inner := changes(old, value):
                patch[key] = inner
        elif key not in there or old != value:
            patch[key] = value
    return patch


def prefetch_status(
    prefetch: Prefetch,
    tally: Tally,
    now: float,
    images: Mapping[str, ImageFacts],
    refreshed: Refreshed | None = None,
    found: Found | None = None,
) -> dict[str, Any]:
    """The whole ``status`` of an ImagePrefetch. Same facts, same status: nothing is written then.
    ``found``: what came of ``imagesFrom``, where there is that.

    Conditions keep their lastTransitionTime from ``prefetch.status`` unless they flip.
    """
    earlier = prefetch.status
    conditions = (
        _invalid(prefetch)
        if prefetch.invalid is not None
        else [
            _ready(prefetch, tally, found),
            _progressing(prefetch, tally),
            _degraded(prefetch, tally, refreshed),
            *_found(found),
            *([credentials.condition(tally.exposed)] if tally.exposed else []),
        ]
    )
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
        "conditions": merge_conditions(earlier, conditions, prefetch.generation, now),
    }
    if prefetch.invalid is not None:
        # The digests and workload images that were found are kept for when the spec is corrected.
        kept = ("target", "images", "moreImages", "digests")
        status |= {key: earlier[key] for key in kept if key in earlier}
        last = earlier.get("refresh")
        if prefetch.refresh is not None and isinstance(last, Mapping):
            # Nothing is looked up meanwhile, so what was wrong with the registry is not known.
            status["refresh"] = {key: last[key] for key in last if key != "message"}
        return _fit(status)
    status["target"] = prefetch.target
    status |= _images(prefetch, images, now)
    if prefetch.refresh is not None:
        status["refresh"] = _refresh(refreshed, earlier.get("refresh"))
    return _fit(status)


def _refresh(refreshed: Refreshed | None, before: object) -> dict[str, Any]:
    """Before the first look since the operator's start, what its predecessor found stays."""
    if refreshed is None:
        return dict(before) if isinstance(before, Mapping) else {}
    entry = {
        "lastCheckTime": timestamp(refreshed.at),
        "nextCheckTime": timestamp(refreshed.due),
    }
    return {**entry, "message": _cut(refreshed.problem)} if refreshed.problem else entry


def _images(prefetch: Prefetch, images: Mapping[str, ImageFacts], now: float) -> dict[str, Any]:
    """The fields about the images, with the most important advice that there is room for, and how
    much there is besides.
    """
    before = listed(prefetch)
    current = prefetch.images if prefetch.refresh is None else resolved(prefetch.images, images)
    entries = [
        _image(image, images.get(image.reference), before.get(image.reference, {}), now)
        for image in current
    ]
    found: list[tuple[bool, int, int, str]] = []
    for place, image in enumerate(prefetch.images):
        facts = images.get(image.reference)
        if facts is not None:
            said = [
                each
                for each in advice.advise(image.reference, facts)
                # A tag that is followed may move.
                if prefetch.refresh is None or each.rule != advice.MUTABLE_TAG.name
            ]
            found += (
                (each.severity is not Severity.ERROR, rank, place, str(each)[: advice.MAX_TEXT])
                for rank, each in enumerate(said)
            )
    if _bytes(entries) > MAX_IMAGES:
        return _cut_images(entries)
    room = MAX_STATUS - NOT_ADVICE - _bytes(entries) - _bytes({"advice": [_more(len(found))]})
    if room < 0:
        return {"images": entries}
    found.sort()
    for number, (_, _, place, text) in enumerate(found):
        new = [] if "advice" in entries[place] else {"advice": []}
        room -= _bytes(text) + _bytes(new) + 2
        if room < 0:
            entries[place].setdefault("advice", []).append(_more(len(found) - number))
            break
        entries[place].setdefault("advice", []).append(text)
    return {"images": entries}


def _cut_images(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The images without their sizes, and as many as there is room for. Of the others the digests
    that their tags were resolved to stay, in a shorter form, because the operator reads them back
    (`effective.recorded`); images that only a workload names come first for the same reason.
    """
    without = [{k: v for k, v in e.items() if k not in _SIZES} for e in entries]
    if _bytes(without) <= MAX_IMAGES:
        return {"images": without}
    order = sorted(range(len(without)), key=lambda place: "from" not in without[place])
    digests = {
        reference_key(entry["image"]): entry["digest"] for entry in without if "digest" in entry
    }
    room = MAX_IMAGES - _bytes(digests)
    shown: set[int] = set()
    for place in order:
        room -= _bytes(without[place]) + 2
        if room < 0:
            break
        shown.add(place)
    left_out = [entry for place, entry in enumerate(without) if place not in shown]
    digests = {reference_key(e["image"]): e["digest"] for e in left_out if "digest" in e}
    return {
        "images": [entry for place, entry in enumerate(without) if place in shown],
        "moreImages": len(left_out),
        **({"digests": digests} if digests else {}),
    }


_SIZES = ("compressedBytes", "largestLayerBytes")


def _fit(status: dict[str, Any]) -> dict[str, Any]:
    """The status within 16 KiB and the limits of the CRD. The images have their own bound, so what
    is shortened is what failures say and then what conditions say.
    """
    conditions = [_short(entry, "message", MAX_CONDITION) for entry in status["conditions"]]
    status = {**status, "conditions": conditions}
    for limit in SHORTER:
        if _bytes(status) <= MAX_STATUS:
            return status
        failures = [
            _short(_short(entry, "message", limit), "image", limit) for entry in status["failures"]
        ]
        status = {**status, "failures": failures}
    for limit in SHORTER:
        if _bytes(status) <= MAX_STATUS:
            return status
        conditions = [_short(entry, "message", limit) for entry in status["conditions"]]
        status = {**status, "conditions": conditions}
        if isinstance(refresh := status.get("refresh"), Mapping):
            status["refresh"] = _short(refresh, "message", limit)
    return status


def _short(entry: Mapping[str, Any], key: str, limit: int) -> dict[str, Any]:
    return {**entry, key: _cut(entry[key], limit)} if key in entry else dict(entry)


def _more(count: int) -> str:
    return f"{count} more about the images of this ImagePrefetch: imagegate lint says them"


def _bytes(content: object) -> int:
    return len(json.dumps(content))


def _image(
    image: Image, facts: ImageFacts | None, before: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Of several platforms the one with the most to send."""
    entry: dict[str, Any] = {"image": image.reference}
    if image.digest:
        entry["digest"] = image.digest
        same = before.get("digest") == image.digest
        entry["resolvedTime"] = (before.get("resolvedTime") if same else None) or timestamp(now)
    if image.source:
        entry["from"] = image.source
    largest = facts.largest if facts is not None else None
    if largest is not None:
        entry["compressedBytes"] = largest.compressed
        entry["largestLayerBytes"] = largest.largest_layer
    return entry


def dry_run_status(
    prefetch: Prefetch,
    facts: Forecast,
    now: float,
    images: Mapping[str, ImageFacts],
    found: Found | None = None,
) -> dict[str, Any]:
    """The status of a prefetch that only says what it would do."""
    refused = [
        {"node": node, "reason": failures.DISK_FULL.reason, "message": why[:MAX_MESSAGE]}
        for node, why in facts.no_room[:MAX_FAILURES]
    ]
    text = f"nothing is changed while spec.dryRun is true; {summary(facts)}"
    conditions: list[Condition] = [
        ("Ready", False, "DryRun", text),
        ("Progressing", False, "DryRun", "set spec.dryRun to false to begin"),
        ("Degraded", False, "DryRun", "nothing is tried"),
        *_found(found),
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
        **_images(prefetch, images, now),
        "failures": refused,
        "conditions": merge_conditions(prefetch.status, conditions, prefetch.generation, now),
    }
    return _fit(wanted)


Condition = tuple[str, bool, str, str]
"""(type, status, reason, message)"""


def _invalid(prefetch: Prefetch) -> list[Condition]:
    assert prefetch.invalid is not None
    reason, message = prefetch.invalid
    return [
        ("Ready", False, reason, message),
        ("Progressing", False, reason, "nothing is pulled until this is corrected"),
        ("Degraded", True, reason, message),
    ]


def _found(found: Found | None) -> list[Condition]:
    if found is None:
        return []
    everything, reason, message = workloads.condition(found)
    return [("ImagesFound", everything, reason, message[:MAX_FOUND])]


def _ready(prefetch: Prefetch, tally: Tally, found: Found | None) -> Condition:
    # Who waits for Ready before going on with a rollout must not be told so of half the images.
    for _, everything, reason, message in _found(found):
        if not everything:
            return ("Ready", False, reason, message)
    desired, cached = tally.desired, tally.of(NodeState.CACHED)
    if not tally.complete:
        return ("Ready", False, "Reconciling", "the nodes are being looked at")
    if not prefetch.images:
        return ("Ready", False, "NoImages", "no workload that spec.imagesFrom selects names any")
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
    """How many nodes are left alone, and the commonest reasons."""
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
        text = f"{pulling} nodes pulling, {pending} to come"
        return ("Progressing", True, "Pulling", "; ".join(filter(None, (text, held_up))))
    if tally.waiting:
        return ("Progressing", True, "WaitingForDaemonSet", held_up)
    if tally.queued:
        return ("Progressing", True, "WaitingForSlot", held_up)
    if pending and prefetch.rollout.paused and not tally.gated:  # joining nodes go on
        return ("Progressing", False, "Paused", f"{pending} nodes wait for spec.rollout.paused")
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
    behind = [f for f in tally.failures if retry.stale(f.attempts)]
    if behind:
        text = f"{len(behind)} nodes have an old image by its tag; {_explain(prefetch, behind[0])}"
        return ("Degraded", True, failures.STALE_MIRROR.reason, text)
    if not tally.of(NodeState.FAILED) or not failing:
        if refreshed is not None and refreshed.failures > 1:
            text = f"tags are not looked up, what was known stays: {_cut(refreshed.problem)}"
            return ("Degraded", True, "RefreshFailed", text)
        return ("Degraded", False, "AsExpected", "no node has failed")
    failed = tally.of(NodeState.FAILED)
    text = f"{failed} nodes failed; {_explain(prefetch, failing[0])}"
    return ("Degraded", True, failing[0].attempts.reason, text)


def _explain(prefetch: Prefetch, failure: Failure) -> str:
    """What happened last, and what to do about it."""
    attempts = failure.attempts
    remedy = failures.remedy(attempts.reason)
    if attempts.reason == "Unauthorized":
        secrets = sorted({s for i in prefetch.images for s in i.pull_secrets})
        more = [f"and {len(secrets) - MAX_SECRETS} more"] if len(secrets) > MAX_SECRETS else []
        named = ", ".join((*secrets[:MAX_SECRETS], *more)) or "none is named"
        remedy += f" (namespace {prefetch.namespace}: {named})"
    return f"{failure.node}: {_cut(attempts.message)}; {remedy}"


def _cut(message: str, limit: int = MAX_MESSAGE) -> str:
    """The cause stands at the end, behind names that may be long; what is left out is between."""
    if len(message) <= limit:
        return message
    begin = limit // 4
    return f"{message[:begin]} … {message[begin + 3 - limit :]}"


def _failure(failure: Failure) -> dict[str, Any]:
    attempts = failure.attempts
    return {
        "node": failure.node,
        "image": attempts.image,
        "reason": attempts.reason,
        "message": _cut(attempts.message),
        "attempts": attempts.count,
        "nextAttempt": timestamp(attempts.next_at),
    }


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
