"""The benchmark runs. Its times with 50 nodes on a busy machine mean nothing, its counts do.

It has a cluster of its own, and a lane of its own, so that no other cluster waits beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cluster.scenarios import SCENARIOS
from tests.cluster import ClusterOptions
from tests.cluster.local.cluster import leftovers
from tests.cluster.paths import CHECKOUT

NODES = 50
JOINING = NODES // 10


def test_every_scenario_of_the_benchmark_runs_and_leaves_nothing(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    kubernetes = pytestconfig.getoption("--cluster-kubernetes")
    if (pytestconfig.getoption("--provider"), kubernetes) != ("local", ClusterOptions().kubernetes):
        pytest.skip("the benchmark starts a local cluster of the newest Kubernetes")
    # The lane's name ends the cluster's name, and `tests.jobs` removes a cluster of that name.
    name = f"{pytestconfig.getoption('--cluster-name').removesuffix('-bench')}-bench"
    output = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks.cluster", f"--nodes={NODES}", f"--name={name}"]
    command += ["--pull-seconds=0.3", "--idle-minutes=0.1", f"--output={output}"]
    subprocess.run(command, cwd=CHECKOUT, check=True)
    rows = {row["scenario"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == list(SCENARIOS)
    for name_, nodes in (("rollout-100", NODES), ("rollout-10", NODES), ("join", NODES + JOINING)):
        assert rows[name_]["requests"]["create pods"] == nodes
        assert rows[name_]["requests"]["patch nodes"] == nodes
        assert rows[name_]["labelled"]["count"] + rows[name_]["gone"]["count"] == nodes
    assert rows["digest"]["requests"]["delete pods"] == NODES
    assert rows["join"]["gone"]["count"] == JOINING
    for row in rows.values():
        floor = row.get("floor")
        if floor:
            assert floor["refused"] == {}
            assert floor["writes"] == (
                0 if row["scenario"] in ("start", "resync") else row["works"]
            )
        assert row["cpu"] >= 0
        assert row["peak"] > 2**20
        assert row["told"]["lag"]["probes"]
    assert leftovers(name) == []
