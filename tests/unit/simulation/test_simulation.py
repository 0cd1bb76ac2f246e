"""The simulation is repeatable, and finds faults that a test adds to the operator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[3]
DIGEST = "from tests.simulation.__main__ import run; print(run({seed}, hours=0.5, nodes=8).digest)"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a separate process, because the order of sets of strings is part of a run."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_same_seed_gives_the_same_run() -> None:
    first, second, other = (python("-c", DIGEST.format(seed=seed)).stdout for seed in (7, 7, 8))
    assert len(first.strip()) == 64
    assert first == second
    assert first != other


def test_simulation_finds_a_slot_that_is_never_released() -> None:
    code = (
        "from imagegate.domain import match; match.AWAY_AFTER = float('inf')\n"
        "from tests.simulation.__main__ import run\n"
        "print(run(1, 'dead-seed').broken[0].promise)"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "no-progress", done.stderr


def test_simulation_finds_a_queue_that_serves_the_last_node_first() -> None:
    code = (
        "from dataclasses import replace; from imagegate.domain import rollout\n"
        "grant = rollout.grant\n"
        "rollout.grant = lambda view: grant(replace(view, joining=view.joining[::-1]))\n"
        "from tests.simulation.__main__ import run\n"
        "print(run(1, 'queue-order').broken[0].promise)"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "queue-jumped", done.stderr
