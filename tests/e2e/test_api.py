"""What the API server takes and what it refuses, with which words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.installation import Installation

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster


def test_placeholder(cluster: LocalCluster, imagegate: Installation) -> None:
    assert "imagegate.dev" in cluster.kubectl("api-resources", "--categories=imagegate")
