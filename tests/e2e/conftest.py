"""One cluster and one installation for all tests of a run.

Tests use different names and node labels, so that they do not disturb each other. `LANES` gives
their order, and the lanes that `make test` runs in parallel, each on its own cluster (`--lane`).
Some tests have a part that runs early and a part that runs late, because they wait for slow
timers: the kubelet's image garbage collection runs every 5 minutes, and an image that a node does
not list counts as removed only 3 minutes after its pull and after the last change of the leader
(`LISTED_AFTER`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.installation import Installation, push_operator

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

LANES = {
    "test_api": "upgrades",
    "test_retention_begin": "listed",
    "test_disk_begin": "listed",
    "test_refresh_begin": "listed",
    "test_drift_begin": "listed",
    "test_prefetch": "listed",
    "test_refresh": "listed",
    "test_disk": "listed",
    "test_plan": "listed",
    "test_advice": "timed",
    "test_container_pullers": "listed",
    "test_rollout": "listed",
    "test_push": "timed",
    "test_repositories": "timed",
    "test_pulls": "timed",
    "test_retry": "listed",
    "test_drift_end": "listed",
    "test_gate": "timed",
    "test_drift": "listed",
    "test_faults::test_seed_that_dies_during_its_pull_frees_its_slot": "large",
    "test_faults": "upgrades",
    "test_faults::test_unreachable_kubelets_do_not_delay_a_release": "timed",
    "test_faults::test_dry_run_over_unreachable_kubelets_does_not_delay_others": "timed",
    "test_data_images": "large",
    "test_start_after": "timed",
    "test_images_from": "upgrades",
    "test_cli": "upgrades",
    "test_mirror": "upgrades",
    "test_refresh_end": "listed",
    "test_watch_source": "upgrades",
    "test_simulate": "timed",
    "test_takeover": "timed",
    "test_scale": "large",
    "test_benchmark": "bench",
    "test_disk_end": "listed",
    "test_retention_end": "listed",
    "test_uninstall": "upgrades",
}
"""The lane of a module, of one test, or of a module's `test_begin_` or `test_end_` tests. The order
is the order in a cluster's life: tests that break the installation come last.

- timed: tests that assert seconds. Their cluster has ten times the CPU weight of the others.
- listed: tests that wait for the slow timers. No test of this lane changes the leader, so these
  timers run from the beginning of the lane to its end.
- upgrades: tests that change the installation.
- large: tests with many nodes or data sets, and a test that waits for a slot. It has five times the
  weight, because a starved leader of 1,000 nodes loses its lease.
- bench: the benchmark, which starts a cluster itself.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lane", choices=sorted(set(LANES.values())), help="only these tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = list(LANES)
    items.sort(key=lambda item: order.index(part(item)))
    if lane := config.getoption("--lane"):
        dropped = [item for item in items if LANES[part(item)] != lane]
        items[:] = [item for item in items if LANES[part(item)] == lane]
        config.hook.pytest_deselected(items=dropped)


def part(item: pytest.Item) -> str:
    """The key of an item in LANES."""
    name = item.path.stem
    for key in (f"{name}::{item.name}", f"{name}_{item.name.split('_')[1]}", name):
        if key in LANES:
            return key
    raise pytest.UsageError(f"{item.path} is in no lane: add it to LANES of {__file__}")


@pytest.fixture(scope="session")
def imagegate(cluster: LocalCluster) -> Installation:
    """Imagegate from this checkout: builds and pushes its image, and installs it with Helm."""
    image = push_operator(cluster)
    pause = cluster.push("pause", "test/pause:3.10")
    busybox = cluster.push("busybox", "test/busybox:1.37.0-musl")
    installation = Installation(cluster, image, pause, busybox)
    installation.settle()
    installation.ensure()
    return installation
