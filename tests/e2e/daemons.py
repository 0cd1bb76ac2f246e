"""A DaemonSet that becomes Ready late, for tests in which joining nodes wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.e2e.installation import Installation, exists

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

NAMESPACE = "mirrors"


@contextmanager
def allowed(cluster: LocalCluster, imagegate: Installation) -> Iterator[None]:
    """Creates the namespace, and allows the operator to read it for the length of a test."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    cluster.wait(lambda: exists(cluster, account), "the namespace's service account", 30)
    imagegate.upgrade(**{"startAfter.namespaces": f"{{{NAMESPACE}}}"})
    try:
        yield
    finally:
        cluster.kubectl("-n", NAMESPACE, "delete", "daemonsets", "--all", "--wait=false")
        imagegate.upgrade()


def late(
    name: str,
    image: str,
    pool: str,
    *,
    seconds: int,
    then: str = "true",
    **container: Any,
) -> dict[str, Any]:
    """A DaemonSet on the nodes of a pool, also on held nodes. Each pod runs ``then`` after
    ``seconds`` and then becomes Ready. Other keywords are fields of the container; ``volumes`` are
    the pod's.
    """
    volumes = container.pop("volumes", [])
    script = f"sleep {seconds}; {then} && touch /ready; sleep 100000"
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "nodeSelector": {"pool": pool},
                    "tolerations": [{"operator": "Exists"}],
                    "terminationGracePeriodSeconds": 0,
                    "volumes": volumes,
                    "containers": [
                        {
                            "name": "agent",
                            "image": image,
                            "command": ["sh", "-c", script],
                            "readinessProbe": {
                                "exec": {"command": ["test", "-f", "/ready"]},
                                "periodSeconds": 1,
                            },
                            **container,
                        }
                    ],
                },
            },
        },
    }
