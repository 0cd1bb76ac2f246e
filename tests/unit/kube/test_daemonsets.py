"""Whether a DaemonSet has a Ready pod on a node, and the reason if it has none."""

from __future__ import annotations

from typing import Any

import pytest

from imagegate.domain.facts import DaemonSetRef
from imagegate.kube import errors
from imagegate.kube.daemonsets import DaemonSets
from tests.unit.memory_api import MemoryApi

MIRROR = DaemonSetRef("mirrors", "spegel")
AGENT = DaemonSetRef("agents", "agent")
PODS = "/api/v1/namespaces/mirrors/pods"
SET = "/apis/apps/v1/namespaces/mirrors/daemonsets/spegel"


def pod(name: str = "spegel-1", node: str = "n1", ready: str = "True", **owner: Any) -> Any:
    reference = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "spegel", "controller": True}
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "mirrors",
            "uid": name,
            "ownerReferences": [reference | owner],
        },
        "spec": {"nodeName": node},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


@pytest.fixture
def api() -> MemoryApi:
    made = MemoryApi()
    made.put(SET, {"kind": "DaemonSet", "metadata": {"name": "spegel"}})
    return made


async def unready(api: MemoryApi, *refs: DaemonSetRef) -> dict[DaemonSetRef, str]:
    client: Any = api
    return await DaemonSets(client).unready("n1", refs or (MIRROR,))


async def test_one_ready_pod_is_enough(api: MemoryApi) -> None:
    api.put(f"{PODS}/old", pod("old", ready="False"))
    api.put(f"{PODS}/new", pod("new"))
    assert await unready(api) == {}
    assert api.requests == [("LIST", PODS)]


async def test_unready_pod_is_named(api: MemoryApi) -> None:
    api.put(f"{PODS}/spegel-1", pod(ready="False"))
    assert await unready(api) == {MIRROR: "its pod spegel-1 is not Ready"}


async def test_pod_that_is_being_deleted_does_not_count(api: MemoryApi) -> None:
    body = pod()
    body["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/y"]}
    api.put(f"{PODS}/spegel-1", body)
    assert await unready(api) == {MIRROR: "its pod spegel-1 is not Ready"}


@pytest.mark.parametrize(
    "other",
    [
        pod(node="n2"),
        pod(kind="ReplicaSet"),
        pod(name="x", controller=False),
        pod(apiVersion="apps.kruise.io/v1alpha1"),
    ],
)
async def test_pod_of_another_owner_or_node_does_not_count(api: MemoryApi, other: Any) -> None:
    api.put(f"{PODS}/other", other)
    assert await unready(api) == {MIRROR: "it has no pod there: does it tolerate the taints?"}


async def test_missing_daemonset_is_reported(api: MemoryApi) -> None:
    missing = DaemonSetRef("mirrors", "dragonfly")
    assert await unready(api, missing, MIRROR) == {
        missing: "it does not exist",
        MIRROR: "it has no pod there: does it tolerate the taints?",
    }


async def test_forbidden_namespace_is_reported_with_the_value_of_the_chart(api: MemoryApi) -> None:
    api.put(f"{PODS}/spegel-1", pod())

    def forbid(method: str, path: str) -> None:
        if "/agents/" in path:
            raise errors.Forbidden(f"{method} {path}", 403, "pods is forbidden")

    api.before = forbid
    (why,) = (await unready(api, AGENT, MIRROR)).values()
    assert why.startswith("the operator may not look into namespace agents")
    assert "startAfter.namespaces" in why


async def test_api_error_is_returned_as_a_reason_and_not_raised(api: MemoryApi) -> None:
    def fail(method: str, path: str) -> None:
        raise errors.Unavailable(f"{method} {path}", 0, "TimeoutError: " + "x" * 1000)

    api.before = fail
    (why,) = (await unready(api)).values()
    assert why.startswith("not known: LIST ")
    assert "TimeoutError" in why
    assert len(why) < 300
