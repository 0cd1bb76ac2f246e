"""Uninstall leaves only what the docs name, and a second install works."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.cluster import NodeOptions
from tests.cluster.errors import ClusterError
from tests.e2e.installation import (
    GATE,
    KEY,
    NAMESPACE,
    POLICIES,
    PREFETCHES,
    PULLERS,
    Installation,
    exists,
)
from tests.e2e.test_gate import rejoin
from tests.e2e.watching import NodeWatch, held, released

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

KEPT_ON_PURPOSE = {
    "customresourcedefinition.apiextensions.k8s.io/imageprefetches.imagegate.dev",
    "customresourcedefinition.apiextensions.k8s.io/nodegates.imagegate.dev",
}


def leftovers(cluster: LocalCluster, imagegate: Installation) -> set[str]:
    """Every object in the cluster with our names, except the namespaces and the kept CRDs."""
    kinds = "clusterroles,clusterrolebindings,priorityclasses,customresourcedefinitions"
    kinds += ",validatingadmissionpolicies,validatingadmissionpolicybindings"
    if imagegate.policies is not None:
        kinds += f",{POLICIES},mutatingadmissionpolicybindings"
    names = cluster.kubectl("get", kinds, "-o", "name").split()
    pullers = cluster.kubectl("-n", PULLERS, "get", "pods,roles,rolebindings", "-o", "name").split()
    inside = cluster.kubectl(
        "-n",
        NAMESPACE,
        "get",
        "pods,deployments,services,roles,rolebindings,jobs,leases,poddisruptionbudgets,"
        "serviceaccounts",
        "-o",
        "name",
    ).split()
    ours = {name for name in [*names, *inside, *pullers] if "imagegate" in name or "ipf-" in name}
    return ours - KEPT_ON_PURPOSE


def wait_for_nothing_left(cluster: LocalCluster, imagegate: Installation) -> None:
    """Helm waits for the deletion of the hook's Job. The garbage collector deletes the Job's pod,
    and may still be busy with the thousand Leases of test_scale's nodes, because it makes only 20
    requests a second.
    """
    end = time.monotonic() + 240
    while found := leftovers(cluster, imagegate):
        assert time.monotonic() < end, found
        time.sleep(0.2)


def test_uninstall_while_in_use_removes_everything_and_reinstall_works(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("tiny", "uninstall/a:1", seed=41)
    missing = "open.registry.test/uninstall/never:1"
    selector = {"matchLabels": {"pool": "uninstall"}}
    imagegate.prefetch("stays", image)
    imagegate.wait_ready("stays")
    imagegate.prefetch("holds", missing, nodeSelector=selector, gate={"policy": "FailClosed"})
    node = cluster.add_node("node-uninstall", NodeOptions(labels={"pool": "uninstall"}))
    try:
        cluster.wait(lambda: imagegate.counts("holds").get("gated") == 1, "a held node", 30)
        # A taint that was changed by hand is removed too, because it has the gate's key.
        cluster.kubectl("taint", "nodes", "node-uninstall", f"{KEY}=by-hand:NoExecute")
        imagegate.uninstall()
        assert imagegate.traces() == []
        wait_for_nothing_left(cluster, imagegate)
        assert not exists(cluster, GATE)
        assert exists(cluster, f"{PREFETCHES}/stays"), "uninstall keeps the users' objects"
        cluster.kubectl("delete", "imageprefetches.imagegate.dev", "holds", "--timeout=10s")
        with NodeWatch(cluster) as watch:
            began = rejoin(cluster, node)
            first = watch.first(node.name, lambda seen: True, since=began)
            assert not held(first), "a node was tainted after uninstall"
            imagegate.install()
            imagegate.wait_ready("stays")
            again = rejoin(cluster, node)
            tainted = watch.first(node.name, held, since=again)
            watch.first(node.name, released, since=tainted.at)
    finally:
        cluster.remove_node("node-uninstall")
        imagegate.delete("holds")
        imagegate.delete("stays")


def test_uninstall_without_prefetches_removes_everything(
    cluster: LocalCluster, imagegate: Installation
) -> None:
    image = cluster.push("tiny", "uninstall/b:1", seed=42)
    imagegate.prefetch("last", image)
    imagegate.wait_ready("last")
    imagegate.delete("last")
    cluster.wait(lambda: not imagegate.pullers("last"), "its pods gone", 30)
    cluster.wait(
        lambda: not any("cached.imagegate.dev" in trace for trace in imagegate.traces()),
        "its labels gone",
        10,
    )
    imagegate.uninstall()
    assert imagegate.traces() == []
    wait_for_nothing_left(cluster, imagegate)
    with pytest.raises(ClusterError, match="not found"):
        cluster.helm("status", "imagegate", f"--namespace={NAMESPACE}")
