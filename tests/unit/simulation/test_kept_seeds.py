"""The simulation repeats itself, and seeds that once broke a promise do so no longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.kept import KEPT, Kept

ROOT = Path(__file__).parents[3]


def play(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "operator")))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("IMAGEGATE_SIMULATION", None)
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.run(  # noqa: S603
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(300)
def test_same_seed_gives_the_same_requests_in_two_processes() -> None:
    arguments = ("--seed", "3", "--hours", "0.5", "--nodes", "6", "--hash")
    hashes = {play(*arguments).stdout.splitlines()[0].rpartition("hash ")[2] for _ in range(2)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 16


@pytest.mark.timeout(300)
def test_without_faults_every_promise_is_kept() -> None:
    ended = play("--focus", "calm", "--hours", "0.5")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: f"{kept.focus}-{kept.seed}")
def test_kept_seed_breaks_no_promise_any_more(kept: Kept) -> None:
    hours = ("--hours", str(kept.hours)) if kept.hours else ()
    ended = play("--seed", str(kept.seed), "--focus", kept.focus, *hours)
    assert ended.returncode == 0, f"{kept.why}\n{ended.stdout}{ended.stderr}"
