"""Which objects the API server accepts and refuses, and with which message. Only the CRDs are
applied; nothing is installed yet."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.installation import exists
from tests.unit.api import objects

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

CRDS = Path(__file__).parents[2] / "deploy" / "crds"
PATHS = {"ImagePrefetch": "imageprefetches", "NodeGate": "nodegates"}


@pytest.fixture(scope="module")
def crds(cluster: LocalCluster) -> Iterator[None]:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/imageprefetches.imagegate.dev"
    if exists(cluster, path):
        pytest.skip("a kept cluster has an installation already")
    cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    yield
    cluster.kubectl("delete", "-f", str(CRDS), "--timeout=60s")


def dry_run(cluster: LocalCluster, body: objects.Object) -> subprocess.CompletedProcess[str]:
    command = cluster.command("kubectl", "apply", "--dry-run=server", "-o", "json", "-f", "-")
    return subprocess.run(
        command, input=json.dumps(body), capture_output=True, text=True, check=False
    )


def contains(whole: Any, part: Any) -> bool:
    """Whether ``whole`` has every field of ``part``."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(contains(whole.get(k), v) for k, v in part.items())
    return bool(whole == part)


@pytest.mark.parametrize("row", objects.ACCEPTED + objects.REFUSED, ids=lambda row: row.id)
def test_api_server_accepts_or_refuses_each_row(
    cluster: LocalCluster, crds: None, row: objects.Row
) -> None:
    if row.stored is not None:
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(row.stored))
    done = dry_run(cluster, row.body)
    if row.stored is not None:
        name = f"{PATHS[row.stored['kind']]}.imagegate.dev/{row.stored['metadata']['name']}"
        cluster.kubectl("delete", name)
    if row.refused is None:
        assert done.returncode == 0, done.stderr
        assert contains(json.loads(done.stdout), row.filled)
    else:
        assert done.returncode != 0
        # Kubernetes 1.34 still prints the type of the refused value.
        assert row.refused in done.stderr.replace('Invalid value: "object": ', "Invalid value: ")


def test_kubectl_lists_the_kinds_and_explains_their_fields(
    cluster: LocalCluster, crds: None
) -> None:
    resources = cluster.kubectl("api-resources", "--categories=imagegate")
    assert "imageprefetches" in resources
    assert "nodegates" in resources
    assert "ipf" in resources
    explained = cluster.kubectl("explain", "imageprefetches.imagegate.dev.spec.gate.policy")
    assert "FailOpen" in explained
