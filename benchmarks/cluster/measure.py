"""What is measured while a scenario runs: the operator's costs, its requests, and its watches."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cluster import audit, metrics
from benchmarks.cluster.cluster import USER, Bench
from benchmarks.cluster.process import Operator
from benchmarks.cluster.profile import Profile
from benchmarks.report import quantile
from tests.cluster.errors import ClusterError
from tests.cluster.local.processes import wait_until

NODE_PATCH = {"verb": "PATCH", "resource": "nodes", "subresource": ""}


@dataclass
class Window:
    """The time of a scenario, from `opened` to the end of its ``with`` block."""

    bench: Bench
    operator: Operator
    scenario: str
    began: float = 0.0
    ended: float = 0.0
    """Seconds since the epoch."""
    requests: list[audit.Request] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        bench: Bench,
        operator: Operator,
        scenario: str,
        *,
        running: bool = True,
        period: float = 0.25,
        profile: Profile | None = None,
    ) -> Iterator[Window]:
        """``running``: whether the operator runs already. ``period``: seconds between two probes of
        its event loop.
        """
        window = cls(bench, operator, scenario)
        with _witness(bench, operator, period) as told:
            offset = bench.audit_log.stat().st_size
            others, before = bench.cpu(), bench.request_seconds()
            if running:
                operator.reset_peak()
            cpu = operator.cpu() if running else 0.0
            with profile.recording(operator.pid) if profile else contextlib.nullcontext():
                window.began = time.time()
                yield window
                window.ended = time.time()
            cpu = operator.cpu() - cpu
            after = bench.request_seconds()
            window.figures |= {
                "scenario": scenario,
                "consistent": window.ended - window.began,
                "cpu": cpu,
                "peak": operator.peak(),
                "others": {n: round(v - others[n], 2) for n, v in bench.cpu().items()},
                "patch": _patches(before, after),
            }
        window.figures["told"] = told
        window.requests = audit.read(bench.audit_log, offset)
        if profile:
            window.figures["profile"] = profile.top()
        window.figures |= window.asked()

    def asked(self) -> dict[str, Any]:
        """The figures that come from the operator's requests."""
        released, labelled = audit.latencies(self.requests, USER)
        works = [r for r in self.requests if r.user == USER and r.works]
        pods = [r.begun for r in works if r.key == "create pods"]
        patches = [r.ended - r.begun for r in works if r.key == "patch nodes"]
        return {
            "seconds": max(r.ended for r in works) - self.began if works else None,
            "first_pod": min(pods) - self.began if pods else None,
            "requests": audit.counted(self.requests, USER),
            "works": len(works),
            "gone": _spread(released),
            "labelled": _spread(labelled),
            "own_patch": _spread(patches),
        }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"count": len(values), "p50": quantile(values, 0.5), "p99": quantile(values, 0.99)}


def _patches(before: metrics.Samples, after: metrics.Samples) -> dict[str, float | None]:
    """The API server's own time for a PATCH of a Node, by any client."""
    bounds = [metrics.buckets(samples, **NODE_PATCH) for samples in (before, after)]
    return {
        "p50": metrics.quantile(bounds[0], bounds[1], 0.5),
        "p99": metrics.quantile(bounds[0], bounds[1], 0.99),
    }


@contextlib.contextmanager
def _witness(bench: Bench, operator: Operator, period: float) -> Iterator[dict[str, Any]]:
    """The figures of the witness; they are there at the end of the block."""
    figures: dict[str, Any] = {}
    result = bench.folder / "witness.json"
    result.unlink(missing_ok=True)
    process = bench.begin("witness", str(result), str(operator.port), str(period))
    try:
        wait_until(result.exists, "the witness", 60, [process])
        yield figures
    finally:
        bench.cluster.control_plane.group.stop("witness", grace=30)
    try:
        figures |= json.loads(result.read_text())
    except ValueError as error:
        raise ClusterError(f"no figures of the witness:\n{process.tail()}") from error
