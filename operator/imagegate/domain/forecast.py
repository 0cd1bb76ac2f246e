"""What an ImagePrefetch would change, for ``dryRun`` and ``imagegate plan``."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from imagegate.domain import disk, match, rollout
from imagegate.domain.disk import Usage
from imagegate.domain.facts import ImageFacts, Node, Prefetch
from imagegate.domain.rollout import Domain, RolloutView
from imagegate.domain.share.known import Share, labelled, no_image


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second; the defaults are those of an ordinary cloud node and region."""

    node: float = 300e6
    """What one node receives."""
    upload: float = 600e6
    """What one node sends to its peers through a mirror."""
    registry: float = 12.5e9
    """What the registry sends to all nodes together."""
    unpack: float = 120e6
    """Compressed bytes that one core unpacks: gzip, and one layer after the other."""


ORDINARY: Final = Rates()


@dataclass(frozen=True, slots=True)
class Forecast:
    matched: int = 0
    cached: int = 0
    to_pull: int = 0
    no_room: tuple[tuple[str, str], ...] = ()
    """(node, reason): nodes on which the disk guard allows no pull."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """The number of skipped nodes, by reason."""
    bytes_all: int = 0
    """Compressed, over all nodes that would pull."""
    bytes_node: int = 0
    """Compressed, on the node with the most bytes to pull."""
    unknown: tuple[tuple[str, str], ...] = ()
    """(image, reason): images of unknown size, which are counted as 0 bytes."""
    unread: tuple[tuple[str, str], ...] = ()
    """(node, reason): nodes whose disk usage could not be read."""
    seconds_direct: float = 0.0
    """Until the last node is cached, if every node pulls from the registry."""
    seconds_mirrored: float = 0.0
    """The same, if nodes pull through a mirror from the cached nodes of their domain."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """All nodes of a cluster, also those that do not match."""

    nodes: Sequence[Node] = ()
    usages: Mapping[str, Usage] = field(default_factory=dict)
    """By node name. The disks of other nodes are not checked."""


def forecast(
    prefetch: Prefetch,
    images: Mapping[str, ImageFacts],
    fleet: Fleet,
    rates: Rates = ORDINARY,
) -> Forecast:
    matching = [node for node in fleet.nodes if match.matches(prefetch, node)]
    share = Share(prefetch, images=images)
    cached = 0
    unread: list[tuple[str, str]] = []
    skipped: Counter[str] = Counter()
    no_room: list[tuple[str, str]] = []
    pulling: list[tuple[str, int]] = []
    domains: Counter[str] = Counter()
    cached_in: Counter[str] = Counter()
    for node in matching:
        domain = node.labels.get(prefetch.rollout.topology_key, "")
        if labelled(node, prefetch):
            cached += 1
            domains[domain] += 1
            cached_in[domain] += 1
            continue
        why = match.skipped(node, gated=False) or no_image(share, node)
        if why is not None:
            skipped[why] += 1
            continue
        sized = [(i.listed_as, share.size(i.reference, node)) for i in prefetch.images]
        held = disk.parts(each for each in sized if each[0] in node.listed)
        absent = [each for each in sized if each[0] not in node.listed]
        needed = {k: v for k, v in disk.parts(absent).items() if k not in held}
        usage = fleet.usages.get(node.name)
        if usage is not None:
            if usage.problem:
                unread.append((node.name, usage.problem))
            refused = disk.refusal(
                usage, node, disk.on_disk(sum(needed.values())), prefetch.max_usage
            )
            if refused is not None and prefetch.max_usage < 100:
                no_room.append((node.name, refused))
                continue
        domains[domain] += 1
        pulling.append((domain, sum(needed.values())))
    largest = max((size for _, size in pulling), default=0)
    facts = Forecast(
        matched=len(matching),
        cached=cached,
        to_pull=len(pulling),
        no_room=tuple(no_room),
        skipped=dict(skipped),
        bytes_all=sum(size for _, size in pulling),
        bytes_node=largest,
        unknown=tuple(
            (image.reference, images[image.reference].problem if image.reference in images else "")
            for image in prefetch.images
            if image.reference not in images or not images[image.reference].sizes
        ),
        unread=tuple(unread),
    )
    view = RolloutView(
        spec=replace(prefetch.rollout, paused=False),
        domains={name: Domain(count, cached_in[name]) for name, count in domains.items()},
    )
    queues = Counter(domain for domain, _ in pulling)
    course = _Course(view, queues, largest, rates)
    return replace(
        facts,
        seconds_direct=_simulate(course, mirrored=False),
        seconds_mirrored=_simulate(course, mirrored=True),
    )


@dataclass(frozen=True, slots=True)
class _Course:
    """A rollout whose time is estimated."""

    view: RolloutView
    queues: Mapping[str, int]
    """The number of nodes that have to pull, by domain."""
    size: int
    """Compressed bytes that each of them pulls."""
    rates: Rates


def _simulate(course: _Course, *, mirrored: bool) -> float:
    """Seconds of a rollout, with the operator's rule for slots and a rate for each pull.

    A pull is a transfer and then the unpacking, as with one dominating layer. Stragglers and
    retries are left out. The nodes that pull from the registry share its bandwidth. `sent` is the
    number of bytes that each of them has received since the beginning, so a transfer ends when
    `sent` has grown by `size`.
    """
    view, size, rates = course.view, course.size, course.rates
    waiting, domains = dict(course.queues), dict(view.domains)
    now = sent = 0.0
    transfers: list[tuple[float, str]] = []  # by the `sent` at which they end
    ends: list[tuple[float, str]] = []  # of whole pulls, by time
    busy = 0
    while True:
        for name in sorted(waiting):
            while waiting[name] and busy < view.parallel:
                domain = domains[name]
                if domain.busy >= rollout.allowed(replace(view, domains=domains), name):
                    break
                if mirrored and domain.cached:
                    rate = min(rates.node, rates.upload / view.spec.fanout)
                    heapq.heappush(ends, (now + size / rate + size / rates.unpack, name))
                else:
                    heapq.heappush(transfers, (sent + size, name))
                waiting[name] -= 1
                busy += 1
                domains[name] = replace(domain, busy=domain.busy + 1)
        if not busy:
            return now
        rate = min(rates.node, rates.registry / max(1, len(transfers)))
        arrival = now + (transfers[0][0] - sent) / rate if transfers else float("inf")
        if ends and ends[0][0] <= arrival:
            sent += (ends[0][0] - now) * rate
            now, name = heapq.heappop(ends)
            busy -= 1
            done = domains[name]
            domains[name] = replace(done, busy=done.busy - 1, cached=done.cached + 1)
        else:
            now = arrival
            sent, name = heapq.heappop(transfers)
            heapq.heappush(ends, (now + size / rates.unpack, name))


def summary(facts: Forecast) -> str:
    """One sentence or two, for a condition."""
    parts = [f"would pull {disk.size(facts.bytes_node)} onto each of {facts.to_pull} nodes"]
    parts[0] += f", {disk.size(facts.bytes_all)} in all"
    parts.append(f"{facts.cached} nodes hold the images")
    if facts.no_room:
        parts.append(f"{len(facts.no_room)} nodes have no room, for instance {facts.no_room[0][0]}")
    if facts.skipped:
        reasons = ", ".join(f"{why} {count}" for why, count in sorted(facts.skipped.items()))
        parts.append(f"{sum(facts.skipped.values())} nodes are skipped ({reasons})")
    if facts.unknown:
        parts.append(f"the size of {len(facts.unknown)} images is not known")
    if facts.to_pull:
        parts.append(
            f"about {duration(facts.seconds_direct)} without a mirror between nodes,"
            f" {duration(facts.seconds_mirrored)} with one"
        )
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
