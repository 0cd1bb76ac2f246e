"""The bounds that administrators set for ImagePrefetches: the chart's ``prefetchPolicy``.

The chart's ValidatingAdmissionPolicy refuses a spec beyond these bounds with the same sentences
(deploy/helm/imagegate/templates/prefetch-policy.yaml). This module checks the bounds for objects
that were stored before a bound was set, for sizes, which admission cannot know, and for the images
of workloads.

A prefetch that violates the policy pulls nothing and holds no node. This reason takes precedence
over every other reason why a parsed spec cannot be acted on, because under FailClosed the other
reasons hold nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from imagegate.api import references
from imagegate.domain import disk
from imagegate.domain.facts import GateMode, GatePolicy, ImageFacts, Prefetch

SHOWN = 10
"""Entries of a list in a message."""
GIGABYTE = 10**9


@dataclass(frozen=True, slots=True)
class PrefetchPolicy:
    """Registries are ``host[:port]`` or ``host[:port]/path``, as `references` normalises them."""

    registries: tuple[str, ...] = ()
    """Registries from which images may be pulled; empty: all."""
    images_from_pull_secret_registries: tuple[str, ...] = ()
    """Registries whose images get ``spec.imagePullSecrets`` even if only a workload names them."""
    pull_secrets: tuple[str, ...] = ()
    """The secrets that may be named; empty: any in the puller namespaces."""
    allow_fail_closed: bool = True
    max_hold_seconds: int = 0
    """The longest ``gate.timeoutSeconds``, which includes the wait for ``startAfter``; 0: any.
    FailClosed has no timeout, so it is not allowed together with this bound."""
    max_gigabytes_per_node: int = 0
    """The largest unpacked size of one prefetch's images on a node; 0: any size."""
    max_disk_usage_percent: int = 100
    """The highest ``disk.maxUsagePercent``."""
    require_node_selector: bool = False
    puller_has_secrets: bool = False
    """Whether puller pods have secrets for their own images (``puller.imagePullSecrets``), with
    which the kubelet pulls every image of the pod."""

    def allows(self, reference: str) -> bool:
        """Whether an image may be pulled at all. ``reference`` is known to be valid."""
        return not self.registries or within(reference, self.registries)

    def allows_secrets(self, reference: str) -> bool:
        """Whether secrets may be used for an image that only a workload names. A user who may
        create a workload may lack the right to read the images that the secrets open.
        """
        return within(reference, self.images_from_pull_secret_registries)


ANYTHING: Final = PrefetchPolicy()
"""There are no bounds, but images that only a workload names get no secrets."""


def within(reference: str, registries: Iterable[str]) -> bool:
    """Whether an image is in one of these registries or below one of these paths."""
    registries = tuple(registries)
    name = references.parse(reference).name if registries else ""
    return any(name == each or name.startswith(f"{each}/") for each in registries)


def violation(prefetch: Prefetch, policy: PrefetchPolicy) -> str | None:
    """The bounds that a spec exceeds, each with the value; None: it exceeds no bound."""
    return "; ".join(_violations(prefetch, policy)) or None


def _violations(prefetch: Prefetch, policy: PrefetchPolicy) -> Iterator[str]:
    for where, names in (
        ("images", [image.reference for image in prefetch.images]),
        ("repositories", [each.repository for each in prefetch.repositories]),
    ):
        outside = [name for name in names if not policy.allows(name)]
        if outside:
            yield (
                f'spec.{where}: "{outside[0]}" is not from an allowed registry'
                f" ({_some(policy.registries)}): use one of them, or ask for it in"
                " prefetchPolicy.registries of the chart"
            )
    own = [each.pull_secrets for each in prefetch.images]
    own += [each.pull_secrets for each in prefetch.repositories]
    named = (*prefetch.pull_secrets, *itertools.chain.from_iterable(own))
    foreign = [secret for secret in named if secret not in policy.pull_secrets]
    if policy.pull_secrets and foreign:
        yield (
            f'imagePullSecrets: "{foreign[0]}" is not an allowed secret'
            f" ({_some(policy.pull_secrets)}): use one of them, or ask for it in"
            " prefetchPolicy.pullSecrets of the chart"
        )
    if policy.require_node_selector and not prefetch.selector:
        yield (
            "spec.nodeSelector is empty, which selects every node: say which nodes"
            " (prefetchPolicy.requireNodeSelector of the chart is true)"
        )
    if prefetch.gate.mode is GateMode.NEW_NODES:
        yield from _hold(prefetch, policy)
    if prefetch.max_usage > policy.max_disk_usage_percent:
        yield (
            f"spec.disk.maxUsagePercent: {prefetch.max_usage} is too much: use at most"
            f" {policy.max_disk_usage_percent} (prefetchPolicy.maxDiskUsagePercent of the chart)"
        )


def _hold(prefetch: Prefetch, policy: PrefetchPolicy) -> Iterator[str]:
    longest = policy.max_hold_seconds
    if prefetch.gate.policy is GatePolicy.FAIL_CLOSED:
        if longest or not policy.allow_fail_closed:
            bound = f"maxHoldSeconds of the chart is {longest}"
            if not policy.allow_fail_closed:
                bound = "allowFailClosed of the chart is false"
            yield (
                "spec.gate.policy: FailClosed may hold nodes without end: use FailOpen"
                f" (prefetchPolicy.{bound})"
            )
    elif longest and prefetch.gate.timeout > longest:
        yield (
            f"spec.gate.timeoutSeconds: {prefetch.gate.timeout:.0f} is too long: use at most"
            f" {longest} (prefetchPolicy.maxHoldSeconds of the chart)"
        )


def too_large(
    prefetch: Prefetch, images: Mapping[str, ImageFacts], policy: PrefetchPolicy
) -> str | None:
    """Why the images are too large for one node, as far as their sizes are known; None: they are
    not.
    """
    bound = policy.max_gigabytes_per_node * GIGABYTE
    if not bound:
        return None
    known = [
        (image.listed_as, facts.sizes)
        for image in prefetch.images
        if (facts := images.get(image.reference)) is not None
    ]
    platforms = {platform for _, sizes in known for platform in sizes}
    needs = {
        platform: disk.on_disk(
            sum(disk.parts((name, sizes.get(platform)) for name, sizes in known).values())
        )
        for platform in platforms
    }
    worst = max(sorted(needs), key=lambda platform: needs[platform], default="")
    if not worst or needs[worst] <= bound:
        return None
    return (
        f"the images need {disk.size(needs[worst])} unpacked on a node ({worst}): leave images out,"
        f" or ask for more than {policy.max_gigabytes_per_node} GB in"
        " prefetchPolicy.maxGigabytesPerNode of the chart"
    )


def _some(texts: tuple[str, ...]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
