"""The metrics of a deleted ImagePrefetch are removed."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from imagegate.metrics import Metrics
from imagegate.runtime.collector import Leader, StateCollector
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.queues import Queues


def test_deleted_prefetch_keeps_no_series_and_gets_no_new_series() -> None:
    existing = {"pr-1", "llm"}
    metrics = Metrics(CollectorRegistry(), version="test", exists=existing.__contains__)

    def count(prefetch: str) -> None:
        metrics.cached(prefetch, 1.0)
        metrics.pulled(prefetch, 1.0, 10**6)
        metrics.pull_failed(prefetch, "ImageNotFound")
        metrics.pull_failed(prefetch, "Throttled")
        metrics.rollout_allowed(prefetch, 3)

    for name in ("pr-1", "llm"):
        count(name)
    text = generate_latest(metrics.registry).decode()
    assert text.count('prefetch="pr-1"') > 4
    existing.discard("pr-1")
    metrics.forget("pr-1")
    metrics.pull_failed("pr-1", "Throttled")
    metrics.pulled("pr-1", 1.0, 1)
    metrics.cached("pr-1", 1.0)
    text = generate_latest(metrics.registry).decode()
    assert 'prefetch="pr-1"' not in text
    assert text.count('prefetch="llm"') > 4
    assert metrics.allowed == {"llm": 3}


def test_watch_and_gate_are_reported_by_the_leader_only() -> None:
    def text(*, leading: bool, problem: str | None, armed: bool | None) -> str:
        registry = CollectorRegistry()
        registry.register(
            StateCollector(
                Metrics(registry, version="test"),
                Ledger(),
                Queues.create(),
                Leader(
                    leading=lambda: leading,
                    lease="imagegate",
                    problem=lambda: problem,
                    armed=lambda: armed,
                    oldest_hold=lambda: 70.0,
                ),
            )
        )
        return generate_latest(registry).decode()

    leader = text(leading=True, problem="no watch", armed=False)
    assert "imagegate_watch_stale 1.0" in leader
    assert "imagegate_gate_armed 0.0" in leader
    assert "imagegate_gate_oldest_hold_seconds 70.0" in leader
    healthy = text(leading=True, problem=None, armed=None)
    assert "imagegate_watch_stale 0.0" in healthy
    assert "imagegate_gate_armed" not in healthy, "a suspended gate"
    standby = text(leading=False, problem="no watch", armed=False)
    assert "imagegate_watch_stale" not in standby
    assert "imagegate_gate_armed" not in standby
    assert "imagegate_gate_oldest_hold_seconds" not in standby
