"""Two leaders act on the same objects at the same time, with two Leases.

One installation cannot have two leaders. So the test copies the Deployment and changes
`--lease-name`: each Deployment has a leader, which holds its own Lease.
"""

from __future__ import annotations

import random
import time
from typing import Any

from tests.chaos.recorder import insist
from tests.chaos.workload import JOINING
from tests.chaos.world import World
from tests.cluster.api import ApiError
from tests.e2e.installation import NAMESPACE, RELEASE

NAME = "imagegate-second"
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"


def two_leaders(world: World, rng: random.Random) -> None:
    """Both leaders stay until the end of the round, because the cluster must converge with both."""
    since = time.time()

    def over() -> None:
        world.leases.discard(NAME)
        _remove(world)
        world.witness.leaders[-1] = (since, time.time(), 2)

    world.leases.add(NAME)
    world.witness.leaders.append((since, float("inf"), 2))
    world.later.append(over)
    _second(world)
    world.cluster.wait(lambda: bool(_holder(world)), "the second leader", 60)
    world.workload.apply_again()
    world.workload.join(JOINING[0])
    time.sleep(rng.uniform(0, 3))


def _second(world: World) -> None:
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"
    body: dict[str, Any] = insist(lambda: world.cluster.api.get(path), "the Deployment")
    pod = body["spec"]["template"]
    pod["metadata"]["labels"] = {"app": NAME}
    container = pod["spec"]["containers"][0]
    container["args"] = [
        f"--lease-name={NAME}" if arg.startswith("--lease-name=") else arg
        for arg in container["args"]
    ]
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": NAME}}, "template": pod},
    }
    metadata = {"name": NAME, "namespace": NAMESPACE}
    kind = "rbac.authorization.k8s.io"
    role = {
        "apiVersion": f"{kind}/v1",
        "kind": "Role",
        "metadata": metadata,
        "rules": [
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "resourceNames": [NAME],
                "verbs": ["get", "update"],
            }
        ],
    }
    binding = {
        "apiVersion": f"{kind}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": kind, "kind": "Role", "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": RELEASE, "namespace": NAMESPACE}],
    }
    insist(lambda: world.cluster.apply(role, binding, deployment), "the second Deployment")


def _holder(world: World) -> str:
    return str(world.cluster.api.get(f"{_LEASES}/{NAME}")["spec"].get("holderIdentity") or "")


def _remove(world: World) -> None:
    def gone() -> None:
        world.cluster.kubectl(
            "-n", NAMESPACE, "delete", f"deployment/{NAME}", f"rolebinding/{NAME}", f"role/{NAME}",
            "--ignore-not-found", "--cascade=foreground", "--timeout=60s",
        )  # fmt: skip
        try:
            world.cluster.api.delete(f"{_LEASES}/{NAME}")
        except ApiError as error:
            if error.status != 404:
                raise

    insist(gone, "the second Deployment gone", 120)
