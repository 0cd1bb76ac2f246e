"""The figures of a rollout are kept node by node, and equal a count of all standings."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from imagegate.domain import failures
from imagegate.domain.actions import Standing
from imagegate.domain.facts import Attempts, NodeState, Prefetch
from imagegate.domain.rollout import Domain
from imagegate.runtime.ledger_entry import Entry

NODES = [f"node-{number}" for number in range(12)]
PREFETCH = Prefetch("llm", "uid", 1)


def counted(entry: Entry) -> dict[str, Domain]:
    nodes, cached, for_good = Counter[str](), Counter[str](), Counter[str]()
    failing: dict[str, set[str]] = {}
    for node, standing in entry.standings.items():
        domain, failure = entry.domains[node], entry.failures.get(node)
        nodes[domain] += standing.state is not NodeState.SKIPPED
        if node in entry.outdated:
            continue
        if standing.state is NodeState.CACHED:
            cached[domain] += 1
        elif standing.startable and failure and failure.reason not in failures.NODES_OWN:
            failing.setdefault(domain, set()).add(node)
            for_good[domain] += failure.permanent
    busy = Counter(entry.domains.get(node, "") for node in entry.slots - entry.held)
    return {
        name: Domain(
            nodes[name],
            cached[name],
            busy[name],
            frozenset(failing.get(name, ())),
            for_good[name],
        )
        for name in (+nodes).keys() | busy.keys()
    }


def standing(rng: random.Random) -> Standing:
    state = rng.choice(list(NodeState))
    reason = rng.choice(("ImageNotFound", failures.DISK_FULL.reason, ""))
    return Standing(
        state,
        pulling=rng.random() < 0.3,
        failure=rng.choice((None, Attempts(1, reason=reason, permanent=rng.random() < 0.5))),
        skipped=rng.choice(("cordoned", "")) if state is NodeState.SKIPPED else "",
        startable=rng.random() < 0.7,
    )


@pytest.mark.parametrize("seed", range(20))
def test_figures_equal_a_count_of_all_standings(seed: int) -> None:
    rng, entry = random.Random(seed), Entry()
    for _ in range(150):
        node, what = rng.choice(NODES), rng.random()
        if what < 0.75:
            domain = rng.choice(("a", "b", node))
            entry.record(node, domain, standing(rng), held=rng.random() < 0.3)
        elif what < 0.9:
            entry.forget(node)
        elif what < 0.95:
            entry.begin(set(rng.sample(NODES, 5)))
        else:
            entry.slots.add(node)
        assert dict(entry.rollout_view(PREFETCH).domains) == counted(entry)
        skipped = [s.skipped for s in entry.standings.values() if s.state is NodeState.SKIPPED]
        assert dict(entry.tally(PREFETCH).skips) == Counter(skipped)
    for node in NODES:
        entry.forget(node)
    assert not entry._figures, "domains without nodes are forgotten"
    assert not entry._skips
