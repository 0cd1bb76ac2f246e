"""One cluster and one installation for the whole suite.

Tests keep out of each other's way by names and node labels. The slow clock of the suite is the
kubelet's image collector, which looks every 5 minutes: its node joins first and is looked at last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.installation import Installation, push_operator

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

ORDER = (
    "test_api",
    "test_retention_begin",
    "test_disk_begin",
    "test_refresh_begin",
    "test_drift_begin",
    "test_prefetch",
    "test_refresh",
    "test_disk",
    "test_plan",
    "test_advice",
    "test_container_pullers",
    "test_rollout",
    "test_push",
    "test_retry",
    "test_drift_end",
    "test_gate",
    "test_drift",
    "test_faults",
    "test_data_images",
    "test_start_after",
    "test_images_from",
    "test_mirror",
    "test_refresh_end",
    "test_watch_source",
    "test_takeover",
    "test_scale",
    "test_disk_end",
    "test_retention_end",
    "test_uninstall",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of a cluster's life: what breaks the installation comes last."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        if name in ("test_retention", "test_disk", "test_refresh", "test_drift"):
            part = item.name.split("_")[1]
            name += f"_{part}" if part in ("begin", "end") else ""
        return ORDER.index(name) if name in ORDER else len(ORDER)

    items.sort(key=rank)


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
