"""One cluster and one installation for all tests of a run.

Tests keep out of each other's way by names and node labels. `LANES` gives their order, and the
lanes that `make test` runs beside each other, each on a cluster of its own (`--lane`). Some tests
begin early and end late, because they wait for slow clocks: the kubelet's image collector looks
every 5 minutes, and an image that a node does not list counts as removed only 3 minutes after its
pull and after the last change of the leader (`LISTED_AFTER`).
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
    "test_retry": "listed",
    "test_drift_end": "listed",
    "test_gate": "timed",
    "test_drift": "listed",
    "test_faults::test_a_seed_that_dies_in_its_pull_returns_its_slot": "large",
    "test_faults": "upgrades",
    "test_faults::test_kubelets_whose_port_is_dropped_delay_no_release": "timed",
    "test_faults::test_a_dry_run_over_silent_kubelets_stops_no_other_prefetch": "timed",
    "test_data_images": "large",
    "test_start_after": "timed",
    "test_images_from": "upgrades",
    "test_mirror": "upgrades",
    "test_refresh_end": "listed",
    "test_watch_source": "upgrades",
    "test_takeover": "timed",
    "test_scale": "large",
    "test_disk_end": "listed",
    "test_retention_end": "listed",
    "test_uninstall": "upgrades",
}
"""The lane of each module, of one test, or of those that begin or end something. The order is that
of a cluster's life: what breaks the installation comes last.

- timed: tests that assert seconds. Their cluster has ten times the CPU weight of the others.
- listed: tests that wait for the slow clocks. No test of this lane changes the leader, so these
  clocks run from the beginning of the lane to its end.
- upgrades: tests that change the installation.
- large: many nodes, data sets, and a slot that is waited for.
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
    """Imagegate from this checkout: its image built, pushed, and installed by Helm."""
    image = push_operator(cluster)
    pause = cluster.push("pause", "test/pause:3.10")
    busybox = cluster.push("busybox", "test/busybox:1.37.0-musl")
    installation = Installation(cluster, image, pause, busybox)
    installation.settle()
    installation.ensure()
    return installation
