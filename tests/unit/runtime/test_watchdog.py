"""The watchdog releases held nodes when the operator is dead, whichever client tainted them."""

from __future__ import annotations

from typing import Any

import pytest

from imagegate.api.fields import timestamp
from imagegate.kube import errors
from imagegate.runtime.clock import Clock
from imagegate.runtime.installation import Installation
from imagegate.runtime.watchdog import Watchdog
from tests.unit.runtime.world import KEY, NAMESPACE, World

GATE = "/apis/imagegate.dev/v1alpha1/nodegates/default"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/imagegate"
NOW = 1_800_000_000.0
OLD_KEY = "example.com/old"


def watchdog(world: World) -> Watchdog:
    client: Any = world.api
    return Watchdog(
        client,
        Installation(NAMESPACE, "imagegate", KEY),
        after=900,
        clock=Clock(now=lambda: NOW),
    )


def cluster(*, beat: float | None, lease: float | None = None) -> World:
    """Seconds since the last heartbeat (None: no NodeGate) and since the Lease was renewed."""
    world = World()
    world.api.watchers.clear()
    if beat is not None:
        world.add_gate()
        world.api.objects[GATE]["status"] = {"heartbeat": timestamp(NOW - beat)}
    if lease is not None:
        renewed = timestamp(NOW - lease).replace("Z", ".000000Z")
        annotations = {"imagegate.dev/taint-keys": f"{KEY},{OLD_KEY}"}
        world.api.put(
            LEASE,
            {
                "metadata": {"name": "imagegate", "annotations": annotations},
                "spec": {"holderIdentity": "op", "renewTime": renewed},
            },
        )
    world.add_node("policy", gated=True)
    for name, key, effect in (("hand", KEY, "NoExecute"), ("earlier", OLD_KEY, "NoSchedule")):
        world.add_node(name)
        taint = {"key": key, "effect": effect}
        path = f"/api/v1/nodes/{name}"
        world.api.change(path, lambda body, t=taint: body["spec"]["taints"].append(t))  # type: ignore[misc]
    world.add_node("free")
    return world


def held(world: World) -> set[str]:
    return {
        name
        for name in ("policy", "hand", "earlier", "free")
        if {KEY, OLD_KEY} & set(world.taints(name))
    }


@pytest.mark.parametrize(("beat", "lease"), [(899, 899), (5, None), (None, 899), (0, 5000)])
async def test_while_the_operator_lives_nothing_is_written(
    beat: float | None, lease: float | None
) -> None:
    world = cluster(beat=beat, lease=lease)
    world.api.requests.clear()
    assert await watchdog(world).run() == 0
    assert world.api.writes() == []
    assert held(world) == {"policy", "hand", "earlier"}


@pytest.mark.parametrize(
    ("beat", "lease"),
    [(900, 900), (5000, 1), (None, 5000), (-900, 1), (-70 * 365 * 86400, 1), (None, -5000)],
)
async def test_held_nodes_are_released_with_an_event_when_the_operator_is_dead(
    beat: float | None, lease: float | None
) -> None:
    """Also if the operator renews its Lease, but has not seen the cluster for a long time."""
    world = cluster(beat=beat, lease=lease)
    assert await watchdog(world).run() == 3
    assert held(world) == set()
    assert world.taints("policy") == ["node.kubernetes.io/not-ready"], "others' taints stay"
    events = [body for path, body in world.api.objects.items() if "/events/" in path]
    assert {event["involvedObject"]["name"] for event in events} == {"policy", "hand", "earlier"}
    assert {event["type"] for event in events} == {"Warning"}
    assert await watchdog(world).run() == 0, "nothing is left to do"


async def test_nodes_with_the_charts_key_are_released_without_gate_and_lease() -> None:
    world = cluster(beat=None, lease=None)
    assert await watchdog(world).run() == 2
    assert held(world) == {"earlier"}, "only the Lease has recorded the earlier key"


async def test_refused_patch_of_one_node_does_not_keep_others_held() -> None:
    world = cluster(beat=5000, lease=5000)

    def refuse(method: str, path: str) -> None:
        if method == "PATCH" and path == "/api/v1/nodes/policy":
            raise errors.Invalid("patch node", 422, "denied by a policy")

    world.api.before = refuse
    with pytest.raises(errors.Invalid):
        await watchdog(world).run()
    assert held(world) == {"policy"}
