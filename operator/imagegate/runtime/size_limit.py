"""Forbids the prefetches whose images are larger than administrators allow for one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from imagegate.domain.facts import POLICY_VIOLATION, ImageFacts, Prefetch
from imagegate.domain.policy import PrefetchPolicy, too_large

Known = Mapping[str, ImageFacts]


class SizeLimit:
    def __init__(self, known: Callable[[Prefetch], Known | None], policy: PrefetchPolicy) -> None:
        """``known``: what the registries say of a prefetch's images."""
        self._known = known
        self._policy = policy
        self._judged: dict[str, tuple[Prefetch, Known | None, Prefetch]] = {}
        """By name: a prefetch, the sizes by which it was judged, and the result."""

    def judge(self, prefetch: Prefetch) -> Prefetch:
        """The prefetch, forbidden if its images are known to be larger than the policy allows. The
        inspector still sees the original prefetch, and so continues to ask for sizes.
        """
        if not self._policy.max_gigabytes_per_node or not prefetch.live:
            return prefetch
        known = self._known(prefetch)
        before = self._judged.get(prefetch.name)
        if before is not None and before[0] is prefetch and before[1] is known:
            return before[2]
        judged, why = prefetch, too_large(prefetch, known or {}, self._policy)
        if why is not None:
            judged = replace(prefetch, invalid=(POLICY_VIOLATION, why))
        self._judged[prefetch.name] = (prefetch, known, judged)
        return judged

    def forget(self, name: str) -> None:
        self._judged.pop(name, None)
