"""The fence on a real API server, with the tokens of real service accounts: it allows the requests
of the operator, and rejects other requests, so that a stolen token is of little use.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime as dt
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from imagegate.domain.actions import PatchNode
from imagegate.domain.facts import FINALIZER, Node, Taint
from imagegate.kube import nodes as kube_nodes
from imagegate.kube import prefetches as kube_prefetches
from imagegate.puller import build
from imagegate.puller.build import PullerSettings
from imagegate.puller.mode import Mode
from tests.cluster import ports
from tests.unit.domain.cases import node, prefetch

from . import apiserver, rendering
from .rendering import NAMESPACE, Object

pytestmark = pytest.mark.timeout(240)

KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
EARLIER = "example.com/earlier"
GATE = {"key": KEY, "value": "pending", "effect": "NoSchedule"}
CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
MAINTENANCE = {"key": "example.com/maintenance", "value": "disk", "effect": "NoExecute"}
PULLERS = "imagegate-pullers"
NODES = "/api/v1/nodes"
PODS = f"/api/v1/namespaces/{PULLERS}/pods"
PREFETCHES = "/apis/imagegate.dev/v1alpha1/imageprefetches"
GATES = "/apis/imagegate.dev/v1alpha1/nodegates"
ACCOUNTS = {
    "operator": "imagegate",
    "cleanup": "imagegate-cleanup",
    "watchdog": "imagegate-watchdog",
}

serial = itertools.count()

Answer = tuple[int, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Cluster:
    api: apiserver.ApiServer
    tokens: dict[str, str]
    """The tokens of the service accounts, issued by the API server."""

    def admin(self, method: str, path: str, body: object = None, patch: str = "") -> Object:
        code, answer = self.api.request(method, path, body, patch=patch)
        assert code < 300, answer
        found: Object = answer
        return found

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        patch: str = "",
        account: str = "operator",
    ) -> Answer:
        return self.api.request(method, path, body, token=self.tokens[account], patch=patch)

    def node(self, *taints: Object) -> Object:
        """A held node, with labels and annotations of the operator and of other programs."""
        name = f"node-{next(serial)}"
        metadata = {
            "name": name,
            "labels": {"pool": "gpu", "cached.imagegate.dev/llm": "1", "kubernetes.io/os": "linux"},
            "annotations": {"imagegate.dev/observed": "u/b", "volumes.example.com/attached": "yes"},
            "finalizers": ["example.com/drain"],
        }
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": metadata,
            "spec": {"providerID": "test:///one"},
        }
        self.admin("POST", NODES, body)
        # The taints are set afterwards, because the API server adds a taint to every new Node.
        tainted = {"spec": {"taints": list(taints) or [CORDON, GATE, MAINTENANCE]}}
        return self.admin("PATCH", f"{NODES}/{name}", tainted, "merge")

    def prefetch(self) -> Object:
        body = {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "ImagePrefetch",
            "metadata": {
                "name": f"prefetch-{next(serial)}",
                "labels": {"team": "ml"},
                "annotations": {"example.com/owner": "ml"},
                "finalizers": ["example.com/audit", FINALIZER],
            },
            "spec": {"images": [{"image": "reg.test/llm:1"}]},
        }
        return self.admin("POST", PREFETCHES, body)

    def set_gate(self, key: str = KEY) -> None:
        self.api.request("DELETE", f"{GATES}/default")
        self.admin("POST", GATES, gate(key))


def gate(key: str) -> Object:
    return {
        "apiVersion": "imagegate.dev/v1alpha1",
        "kind": "NodeGate",
        "metadata": {"name": "default"},
        "spec": {"taintKey": key},
    }


def puller(mode: Mode = Mode.IMAGE_VOLUME) -> Object:
    """A puller pod as the operator creates it."""
    settings = PullerSettings("pause", "busybox", mode, priority_class="imagegate-puller")
    wanted = dataclasses.replace(
        prefetch("llm", "reg.test/llm:1", "reg.test/data:1"), namespace=PULLERS
    )
    return build.build(wanted, node(), wanted.groups[0], next(serial), settings)


@pytest.fixture(scope="module", params=["v1.36", "v1.34"])
def cluster(
    request: pytest.FixtureRequest, helm: rendering.Helm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster with the installed chart and the accounts' tokens; the fence has taken effect."""
    version = str(request.param)
    with apiserver.running(tmp_path_factory.mktemp("apiserver"), {}, version) as api:
        flags = [
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--kubeconfig",
            str(api.kubeconfig),
        ]
        flags += ["--set", f"gate.otherTaintKeys={{{EARLIER}}}"]
        helm.run("install", "imagegate", str(rendering.CHART), *flags)
        cluster = Cluster(api, {})
        # Helm creates the cleanup's account and rights only during an uninstallation.
        for obj in helm.render().objects:
            if "-cleanup" in obj["metadata"]["name"] and obj["kind"] != "Job":
                cluster.admin("POST", collection(obj), obj)
        for role, account in ACCOUNTS.items():
            path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
            cluster.tokens[role] = cluster.admin("POST", path, {"spec": {}})["status"]["token"]
        # Created here, because no controller creates it.
        default = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        for namespace in (PULLERS, "default"):
            cluster.admin("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", default)
        # Pod Security is switched off, as in a user's namespace, so that only the fence rejects.
        level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": None}}}
        restricted = cluster.admin("GET", f"/api/v1/namespaces/{PULLERS}")["metadata"]["labels"]
        assert restricted["pod-security.kubernetes.io/enforce"] == "restricted"
        cluster.admin("PATCH", f"/api/v1/namespaces/{PULLERS}", level, "merge")
        wait_for_the_fence(cluster)
        yield cluster


def collection(obj: Object) -> str:
    group = "/api/v1" if obj["apiVersion"] == "v1" else f"/apis/{obj['apiVersion']}"
    namespace = obj["metadata"].get("namespace")
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{group}{inside}/{obj['kind'].lower()}s"


def wait_for_the_fence(cluster: Cluster) -> None:
    """Waits, because the API server enforces a policy some time after its creation."""
    name = cluster.node()["metadata"]["name"]
    cluster.set_gate()
    wanted = cluster.prefetch()["metadata"]["name"]
    tries: list[Callable[[], Answer]] = [
        lambda: cluster.ask("PATCH", f"{NODES}/{name}", [], "json"),
        lambda: cluster.ask("PATCH", f"{NODES}/{name}", LABEL, "merge"),
        lambda: cluster.ask("PATCH", f"{PREFETCHES}/{wanted}", LABEL, "merge"),
        lambda: cluster.ask("POST", PODS + "?dryRun=All", {**puller(), "metadata": {"name": "x"}}),
        lambda: cluster.ask("POST", GATES + "?dryRun=All", gate("example.com/x")),
    ]
    end = time.monotonic() + 60
    while [code for code, _ in (each() for each in tries)] != [200, 403, 403, 403, 403]:
        assert time.monotonic() < end, [
            (code, answer.get("message")) for code, answer in (t() for t in tries)
        ]
        time.sleep(0.5)


LABEL = {"metadata": {"labels": {"example.com/x": "y"}}}


def without(taints: list[Object], *gone: Object) -> Object:
    return {"spec": {"taints": [taint for taint in taints if taint not in gone]}}


def patched(**changes: Any) -> Callable[[Cluster], Answer]:
    """A merge patch of a Node's metadata."""

    def attack(cluster: Cluster) -> Answer:
        name = cluster.node()["metadata"]["name"]
        return cluster.ask("PATCH", f"{NODES}/{name}", {"metadata": changes}, "merge")

    return attack


def specified(**changes: Any) -> Callable[[Cluster], Answer]:
    """A merge patch of a Node's spec."""

    def attack(cluster: Cluster) -> Answer:
        name = cluster.node()["metadata"]["name"]
        return cluster.ask("PATCH", f"{NODES}/{name}", {"spec": changes}, "merge")

    return attack


def taints(*wanted: Object, of: tuple[Object, ...] = ()) -> Callable[[Cluster], Answer]:
    """Write a Node's taints; by default the Node has CORDON, GATE and MAINTENANCE."""

    def attack(cluster: Cluster) -> Answer:
        name = cluster.node(*of)["metadata"]["name"]
        body = {"spec": {"taints": list(wanted)}}
        return cluster.ask("PATCH", f"{NODES}/{name}", body, "merge")

    return attack


def on_prefetch(**changes: Any) -> Callable[[Cluster], Answer]:
    def attack(cluster: Cluster) -> Answer:
        name = cluster.prefetch()["metadata"]["name"]
        return cluster.ask("PATCH", f"{PREFETCHES}/{name}", changes, "merge")

    return attack


def pod(
    change: Callable[[Object], Any], mode: Mode = Mode.IMAGE_VOLUME
) -> Callable[[Cluster], Answer]:
    """Create a puller pod with a change that the operator does not make."""

    def attack(cluster: Cluster) -> Answer:
        body = copy.deepcopy(puller(mode))
        change(body)
        return cluster.ask("POST", PODS, body)

    return attack


def container(**changes: Any) -> Callable[[Object], Any]:
    return lambda body: body["spec"]["containers"][0].update(changes)


def secured(**changes: Any) -> Callable[[Object], Any]:
    return lambda body: body["spec"]["containers"][0]["securityContext"].update(changes)


def spec(**changes: Any) -> Callable[[Object], Any]:
    return lambda body: body["spec"].update(changes)


def metadata(**changes: Any) -> Callable[[Object], Any]:
    return lambda body: body["metadata"].update(changes)


def volume(**source: Any) -> Callable[[Object], Any]:
    return lambda body: body["spec"]["volumes"].append({"name": "more", **source})


def unowned(cluster: Cluster, **changes: Any) -> str:
    """A user's pod with the labels of a puller pod."""
    body = puller()
    del body["metadata"]["ownerReferences"]
    body["metadata"].update(changes)
    return str(cluster.admin("POST", PODS, body)["metadata"]["name"])


OWNER = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "n1", "uid": "u", "controller": True}
NODE_OWNER = {**OWNER, "apiVersion": "v1", "kind": "Node"}

BY_THE_FENCE: dict[str, Callable[[Cluster], Answer]] = {
    # Nodes.
    "add a label": patched(labels={"node-role.kubernetes.io/control-plane": ""}),
    "change a label": patched(labels={"pool": "other"}),
    "remove a label": patched(labels={"kubernetes.io/os": None}),
    "add a label in the operator's domain": patched(labels={"imagegate.dev/x": "1"}),
    "add an annotation": patched(
        annotations={"cluster-autoscaler.kubernetes.io/scale-down-disabled": "true"}
    ),
    "change an annotation": patched(annotations={"volumes.example.com/attached": "no"}),
    "remove an annotation": patched(annotations={"volumes.example.com/attached": None}),
    "remove a finalizer": patched(finalizers=[]),
    "add a finalizer": patched(finalizers=["example.com/drain", "imagegate.dev/cleanup"]),
    "let the garbage collector delete a node": patched(
        ownerReferences=[{**OWNER, "controller": False}]
    ),
    "cordon a node": specified(unschedulable=True),
    "give a node an address range": specified(podCIDR="10.1.0.0/24", podCIDRs=["10.1.0.0/24"]),
    "remove a foreign taint": taints(CORDON, GATE),
    "remove every taint": taints(),
    "change a foreign taint": taints(CORDON, GATE, {**MAINTENANCE, "effect": "NoSchedule"}),
    "change a foreign taint into the gate's form": taints(
        CORDON, GATE, {**MAINTENANCE, "value": "pending", "effect": "NoSchedule"}
    ),
    "reorder foreign taints": taints(MAINTENANCE, GATE, CORDON),
    "add a taint": taints(CORDON, GATE, MAINTENANCE, {"key": "a.example/b", "effect": "NoExecute"}),
    "add a taint in the gate's form": taints(
        CORDON,
        GATE,
        MAINTENANCE,
        {**GATE, "key": "node.kubernetes.io/out-of-service"},
    ),
    "duplicate a taint with another effect": taints(
        CORDON, GATE, MAINTENANCE, {**CORDON, "effect": "NoExecute"}
    ),
    # ImagePrefetches.
    "change the images": on_prefetch(spec={"images": [{"image": "evil.test/x:1"}]}),
    "change the gate's policy": on_prefetch(spec={"gate": {"policy": "FailClosed"}}),
    "pause a rollout": on_prefetch(spec={"rollout": {"paused": True}}),
    "label a prefetch": on_prefetch(metadata={"labels": {"team": "web"}}),
    "annotate a prefetch": on_prefetch(metadata={"annotations": {"example.com/owner": "me"}}),
    "remove a foreign finalizer": on_prefetch(metadata={"finalizers": [FINALIZER]}),
    "add a finalizer to a prefetch": on_prefetch(
        metadata={"finalizers": ["example.com/audit", FINALIZER, "example.com/mine"]}
    ),
    "let the garbage collector delete a prefetch": on_prefetch(
        metadata={"ownerReferences": [{**OWNER, "controller": False}]}
    ),
    # The NodeGate.
    "create a NodeGate with another key": lambda cluster: cluster.ask(
        "POST", GATES + "?dryRun=All", gate("node.example.com/not-ready")
    ),
    # Pods.
    "a pod with the host's network": pod(spec(hostNetwork=True)),
    "a pod with the host's processes": pod(spec(hostPID=True)),
    "a pod with the host's IPC": pod(spec(hostIPC=True)),
    "a pod with a host path": pod(volume(hostPath={"path": "/"})),
    "a pod with a Secret": pod(volume(secret={"secretName": "pull"})),
    "a pod with a token": pod(
        volume(projected={"sources": [{"serviceAccountToken": {"path": "token"}}]})
    ),
    "a pod with a PersistentVolumeClaim": pod(volume(persistentVolumeClaim={"claimName": "data"})),
    "a pod with a CSI volume": pod(volume(csi={"driver": "secrets.csi.example.com"})),
    "a pod that mounts its account's token": pod(spec(automountServiceAccountToken=True)),
    "a pod that reads a Secret": pod(
        container(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "pull", "key": "k"}}}])
    ),
    "a pod that reads all of a Secret": pod(container(envFrom=[{"secretRef": {"name": "pull"}}])),
    "a privileged pod": pod(secured(privileged=True, allowPrivilegeEscalation=True)),
    "a pod that allows privilege escalation": pod(secured(allowPrivilegeEscalation=True)),
    "a pod with capabilities": pod(
        secured(capabilities={"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]})
    ),
    "a pod that keeps capabilities": pod(secured(capabilities={})),
    "a pod that runs as root": pod(secured(runAsUser=0)),
    "a pod that may run as root": pod(spec(securityContext={})),
    "a pod without seccomp": pod(secured(seccompProfile={"type": "Unconfined"})),
    "a privileged init container": pod(
        lambda body: body["spec"]["initContainers"][0]["securityContext"].update(
            privileged=True, allowPrivilegeEscalation=True
        ),
        Mode.CONTAINER,
    ),
    "a pod with a port of the host": pod(container(ports=[{"containerPort": 80, "hostPort": 80}])),
    "a pod that runs for ever": pod(spec(restartPolicy="Always")),
    "a pod that preempts other pods": pod(spec(priorityClassName="system-node-critical")),
    "a pod without an owner": pod(metadata(ownerReferences=[])),
    "a pod of a DaemonSet": pod(metadata(ownerReferences=[OWNER])),
    "a pod of another node": pod(metadata(ownerReferences=[{**NODE_OWNER, "name": "n2"}])),
    "a pod without our labels": pod(metadata(labels={"app": "miner"})),
    "a pod with another name": pod(metadata(name="kube-proxy")),
    "a pod that cannot be deleted": pod(metadata(finalizers=["example.com/stay"])),
    "delete a user's pod with our labels": lambda cluster: cluster.ask(
        "DELETE", f"{PODS}/{unowned(cluster)}"
    ),
    "delete a DaemonSet's pod with our labels": lambda cluster: cluster.ask(
        "DELETE", f"{PODS}/{unowned(cluster, ownerReferences=[OWNER])}"
    ),
    "delete a static pod": lambda cluster: cluster.ask(
        "DELETE",
        f"{PODS}/{unowned(cluster, name=f'etcd-{next(serial)}', ownerReferences=[NODE_OWNER])}",
    ),
}
"""Requests that RBAC allows and the fence must reject."""

BY_RBAC: dict[str, Callable[[Cluster], Answer]] = {
    "write a node's status": lambda cluster: cluster.ask(
        "PATCH",
        f"{NODES}/{cluster.node()['metadata']['name']}/status",
        {"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}},
        "merge",
    ),
    "delete a node": lambda cluster: cluster.ask(
        "DELETE", f"{NODES}/{cluster.node()['metadata']['name']}"
    ),
    "create a node": lambda cluster: cluster.ask(
        "POST", NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "mine"}}
    ),
    "delete a prefetch": lambda cluster: cluster.ask(
        "DELETE", f"{PREFETCHES}/{cluster.prefetch()['metadata']['name']}"
    ),
    "delete the NodeGate": lambda cluster: cluster.ask("DELETE", f"{GATES}/default"),
    "change the NodeGate": lambda cluster: cluster.ask(
        "PATCH", f"{GATES}/default", {"spec": {"suspend": True}}, "merge"
    ),
    "change a puller pod": lambda cluster: cluster.ask(
        "PATCH",
        f"{PODS}/{cluster.admin('POST', PODS, puller())['metadata']['name']}",
        {"metadata": {"labels": {"a": "b"}}},
        "merge",
    ),
    "run a command in a puller pod": lambda cluster: cluster.ask(
        "POST",
        f"{PODS}/{cluster.admin('POST', PODS, puller())['metadata']['name']}/exec?command=id",
    ),
    "create a pod in another namespace": lambda cluster: cluster.ask(
        "POST",
        "/api/v1/namespaces/default/pods",
        {**puller(), "metadata": {**puller()["metadata"], "namespace": "default"}},
    ),
    "delete the fence": lambda cluster: cluster.ask(
        "DELETE",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/imagegate-fence-nodes",
    ),
    "take another account's token": lambda cluster: cluster.ask(
        "POST",
        f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/imagegate-cleanup/token",
        {"spec": {}},
    ),
}


@pytest.mark.parametrize("attack", BY_THE_FENCE.values(), ids=BY_THE_FENCE)
def test_request_that_the_operator_does_not_send_is_rejected(
    cluster: Cluster, attack: Callable[[Cluster], Answer]
) -> None:
    code, answer = attack(cluster)
    assert code == 403, answer
    assert "ValidatingAdmissionPolicy 'imagegate-fence-" in answer["message"], answer


@pytest.mark.parametrize("attack", BY_RBAC.values(), ids=BY_RBAC)
def test_request_without_the_right_is_rejected(
    cluster: Cluster, attack: Callable[[Cluster], Answer]
) -> None:
    code, answer = attack(cluster)
    assert code == 403, answer


def test_fence_rejects_also_with_additional_rights(cluster: Cluster) -> None:
    """With cluster-admin rights, RBAC allows these requests, and the fence still rejects them."""
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "too-much"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "cluster-admin",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "imagegate", "namespace": NAMESPACE}],
    }
    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    cluster.admin("POST", path, binding)
    outside = {"delete the fence", "take another account's token"}
    try:
        time.sleep(0.5)
        for name, attack in BY_RBAC.items():
            if name in outside:
                continue
            code, answer = attack(cluster)
            assert code == 403, (name, answer)
            assert "imagegate-fence-" in str(answer), (name, answer)
    finally:
        cluster.admin("DELETE", f"{path}/too-much")


@pytest.mark.parametrize("account", ["cleanup", "watchdog"])
def test_cleanup_and_watchdog_can_only_remove(cluster: Cluster, account: str) -> None:
    def on_node(body: Object, *of: Object) -> Answer:
        name = cluster.node(*of)["metadata"]["name"]
        return cluster.ask("PATCH", f"{NODES}/{name}", body, "merge", account)

    refused: list[Object] = [
        {"metadata": {"labels": {"cached.imagegate.dev/other": "1"}}},
        {"metadata": {"annotations": {"imagegate.dev/observed": "x"}}},
        {"metadata": {"labels": {"pool": None}}},
        {"spec": {"unschedulable": True}},
        {"spec": {"taints": [GATE]}},
        {"spec": {"taints": [CORDON, GATE, MAINTENANCE, {**GATE, "effect": "NoExecute"}]}},
    ]
    tidy = {
        "labels": {"cached.imagegate.dev/llm": None},
        "annotations": {"imagegate.dev/observed": None},
    }
    if account == "watchdog":
        refused.append({"metadata": tidy})
    for body in refused:
        code, answer = on_node(body)
        assert (code, "fence-nodes" in answer["message"]) == (403, True), (body, answer)
    code, answer = on_node({"spec": {"taints": [CORDON, MAINTENANCE]}})
    assert code == 200, answer
    if account == "watchdog":
        return
    code, answer = on_node({"metadata": tidy, "spec": {"taints": [CORDON, MAINTENANCE]}})
    assert code == 200, answer
    name = cluster.prefetch()["metadata"]["name"]
    code, answer = cluster.ask(
        "PATCH", f"{PREFETCHES}/{name}", {"spec": {"dryRun": True}}, "merge", account
    )
    assert code == 403, answer
    code, answer = cluster.ask(
        "PATCH",
        f"{PREFETCHES}/{name}",
        {"metadata": {"finalizers": ["example.com/audit"]}},
        "merge",
        account,
    )
    assert code == 200, answer
    code, answer = cluster.ask("DELETE", f"{PODS}/{unowned(cluster)}", account=account)
    assert code == 403, answer
    mine = cluster.admin("POST", PODS, puller())["metadata"]["name"]
    code, answer = cluster.ask("DELETE", f"{PODS}/{mine}", account=account)
    assert code == 200, answer
    code, answer = cluster.ask("DELETE", f"{GATES}/default?dryRun=All", account=account)
    assert code == 200, answer


def facts(body: Object) -> Node:
    return kube_nodes.parse(body)


@pytest.mark.parametrize(
    "foreign", [(), (CORDON,), (CORDON, MAINTENANCE)], ids=["alone", "one", "two"]
)
def test_nodes_are_released_labelled_and_held(
    cluster: Cluster, foreign: tuple[Object, ...]
) -> None:
    body = cluster.node(*foreign, GATE)
    path = f"{NODES}/{body['metadata']['name']}"
    held = facts(body)
    release = PatchNode(
        held,
        set_labels={"cached.imagegate.dev/web": "9f2c41d07a3b"},
        drop_labels=("cached.imagegate.dev/llm",),
        remove=held.taints_of({KEY}),
        observed="uid/boot",
    )
    code, answer = cluster.ask("PATCH", path, kube_nodes.operations(release), "json")
    assert code == 200, answer
    assert answer["spec"].get("taints", []) == list(foreign)
    hold = PatchNode(facts(answer), add=Taint(KEY, "NoSchedule", "pending"))
    code, answer = cluster.ask("PATCH", path, kube_nodes.operations(hold), "json")
    assert code == 200, answer
    forget = PatchNode(facts(answer), drop_labels=("cached.imagegate.dev/web",), forget=True)
    code, answer = cluster.ask("PATCH", path, kube_nodes.operations(forget), "json")
    assert code == 200, answer


@pytest.mark.parametrize(
    "held",
    [
        {"key": KEY, "effect": "NoExecute"},
        {"key": EARLIER, "effect": "NoSchedule"},
        {"key": "example.com/unlisted", "value": "pending", "effect": "NoSchedule"},
    ],
    ids=["of a node pool", "of an earlier key", "of the gate under a key that is not listed"],
)
def test_gate_taint_can_be_removed_in_every_form(cluster: Cluster, held: Object) -> None:
    body = cluster.node(CORDON, held, MAINTENANCE, GATE)
    given = facts(body)
    release = PatchNode(given, remove=given.taints_of({KEY, held["key"]}))
    path = f"{NODES}/{body['metadata']['name']}"
    code, answer = cluster.ask("PATCH", path, kube_nodes.operations(release), "json")
    assert code == 200, answer
    assert [taint["key"] for taint in answer["spec"]["taints"]] == [
        CORDON["key"],
        MAINTENANCE["key"],
    ]


def test_rejection_names_the_value_for_additional_taint_keys(cluster: Cluster) -> None:
    code, answer = taints(CORDON, of=(CORDON, {"key": "example.com/own", "effect": "NoExecute"}))(
        cluster
    )
    assert code == 403
    assert "gate.otherTaintKeys" in answer["message"]
    assert KEY in answer["message"]


def test_finalizer_and_status_of_a_prefetch_can_be_written(cluster: Cluster) -> None:
    reader = kube_prefetches.Reader([PULLERS])
    body = cluster.prefetch()
    path = f"{PREFETCHES}/{body['metadata']['name']}"
    for present in (False, True):
        operations = kube_prefetches.finalizer_operations(reader.parse(body), present=present)
        code, body = cluster.ask("PATCH", path, operations, "json")
        assert code == 200, body
        assert (FINALIZER in body["metadata"]["finalizers"]) is present
    status = {"status": {"observedGeneration": 1}}
    code, answer = cluster.ask("PATCH", f"{path}/status", status, "merge")
    assert code == 200, answer


def test_nodegate_and_its_status_can_be_written(cluster: Cluster) -> None:
    cluster.admin("DELETE", f"{GATES}/default")
    code, answer = cluster.ask("POST", GATES, gate(KEY))
    assert code == 201, answer
    status = {"status": {"armed": True, "held": 0}}
    code, answer = cluster.ask("PATCH", f"{GATES}/default/status", status, "merge")
    assert code == 200, answer


@pytest.mark.parametrize("mode", [Mode.IMAGE_VOLUME, Mode.CONTAINER])
def test_puller_pods_are_created_and_deleted(cluster: Cluster, mode: Mode) -> None:
    code, answer = cluster.ask("POST", PODS, puller(mode))
    assert code == 201, answer
    code, answer = cluster.ask("DELETE", f"{PODS}/{answer['metadata']['name']}")
    assert code == 200, answer


def test_image_volume_probe_and_deletion_of_an_unlabelled_pod_are_allowed(cluster: Cluster) -> None:
    settings = PullerSettings("pause", "busybox", priority_class="imagegate-puller")
    code, answer = cluster.ask("POST", PODS + "?dryRun=All", build.probe(PULLERS, settings))
    assert code == 201, answer
    body = puller()
    body["metadata"]["labels"] = {}
    name = cluster.admin("POST", PODS, body)["metadata"]["name"]
    code, answer = cluster.ask("DELETE", f"{PODS}/{name}")
    assert code == 200, answer


def test_lease_and_token_for_kubelets_can_be_created(cluster: Cluster) -> None:
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "imagegate"},
        "spec": {"holderIdentity": "test"},
    }
    code, answer = cluster.ask("POST", leases, lease)
    assert code == 201, answer
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/imagegate-kubelets/token"
    code, answer = cluster.ask("POST", path, {"spec": {"expirationSeconds": 600}})
    assert code == 201, answer
    assert answer["spec"]["expirationSeconds"] == 600
    token = answer["status"]["token"]
    name = cluster.node()["metadata"]["name"]
    for path in (NODES, f"{NODES}/{name}", "/api/v1/pods", f"/api/v1/namespaces/{PULLERS}/secrets"):
        assert cluster.api.request("GET", path, token=token)[0] == 403
    # 403 comes from the API server itself, because no kubelet runs.
    assert cluster.api.request("GET", f"{NODES}/{name}/proxy/stats/summary", token=token)[0] == 403


def test_other_users_are_not_restricted(cluster: Cluster) -> None:
    """The policies match only our accounts; the administrator represents all other users."""
    name = cluster.node()["metadata"]["name"]
    cluster.admin("PATCH", f"{NODES}/{name}", LABEL, "merge")
    cluster.admin("PATCH", f"{NODES}/{name}", {"spec": {"taints": []}}, "merge")
    cluster.admin("PATCH", f"{NODES}/{name}/status", {"status": {"phase": "Running"}}, "merge")
    wanted = cluster.prefetch()["metadata"]["name"]
    cluster.admin("PATCH", f"{PREFETCHES}/{wanted}", {"spec": {"dryRun": True}}, "merge")
    body = {
        "metadata": {"name": "somebodys"},
        "spec": {"containers": [{"name": "c", "image": "c"}]},
    }
    cluster.admin("POST", "/api/v1/namespaces/default/pods", body)
    cluster.admin("DELETE", "/api/v1/namespaces/default/pods/somebodys?gracePeriodSeconds=0")


def test_fence_works_without_a_nodegate(cluster: Cluster) -> None:
    """The same holds without the CRD, because the policies have no parameter."""
    cluster.admin("DELETE", f"{GATES}/default")
    try:
        body = cluster.node(CORDON, GATE)
        path = f"{NODES}/{body['metadata']['name']}"
        cluster.admin("PATCH", path, LABEL, "merge")
        held = facts(body)
        release = PatchNode(held, remove=held.taints_of({KEY}))
        code, answer = cluster.ask("PATCH", path, kube_nodes.operations(release), "json")
        assert code == 200, answer
        code, answer = cluster.ask("PATCH", path, {"spec": {"unschedulable": True}}, "merge")
        assert code == 403, answer
    finally:
        cluster.set_gate()


def test_policies_have_no_type_errors(cluster: Cluster) -> None:
    for name in ("nodes", "prefetches", "gates", "pods"):
        path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
        policy = cluster.admin("GET", f"{path}/imagegate-fence-{name}")
        checked = (policy.get("status") or {}).get("typeChecking") or {}
        assert not checked.get("expressionWarnings"), json.dumps(checked, indent=1)


def kubeconfig(cluster: Cluster, account: str, folder: pathlib.Path) -> pathlib.Path:
    config = json.loads(cluster.api.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = cluster.tokens[account]
    path = folder / f"{account}.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def command(
    cluster: Cluster, account: str, folder: pathlib.Path, *arguments: str
) -> tuple[list[str], dict[str, str]]:
    """The command line and environment of ``imagegate`` with an account, outside the cluster."""
    common = [f"--namespace={NAMESPACE}", f"--puller-namespaces={PULLERS}", "--log-level=debug"]
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig(cluster, account, folder)),
        "PYTHONPATH": str(rendering.CHECKOUT / "operator"),
    }
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    return [sys.executable, "-m", "imagegate", *arguments, *common], environment


@contextlib.contextmanager
def operating(cluster: Cluster, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Runs the operator as a process with its own token; yields the path of its log."""
    port = ports.one()
    settings = [f"--http-port={port}", "--puller-priority-class=imagegate-puller"]
    settings += [
        "--gate-source=watch",
        "--identity=test",
        "--kubelet-service-account=imagegate-kubelets",
    ]
    line, environment = command(cluster, "operator", folder, "run", *settings)
    log = folder / "operator.log"
    with log.open("wb") as output:
        process = subprocess.Popen(line, env=environment, stdout=output, stderr=output)
        try:
            yield log
        finally:
            process.terminate()
            process.wait(20)


def soon(condition: Callable[[], Any], log: pathlib.Path, timeout: float = 40) -> Any:
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.2)
    return found


def joins(cluster: Cluster) -> str:
    """Creates a Ready node as a kubelet registers it."""
    name = f"node-{next(serial)}"
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {
        "type": "Ready",
        "status": "True",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    info = {"kubeletVersion": "v1.36.0", "containerRuntimeVersion": "containerd://2.1.0"}
    info |= {"bootID": "b", "operatingSystem": "linux", "architecture": "amd64"}
    info |= {"machineID": "", "systemUUID": "", "kernelVersion": "", "osImage": ""}
    info |= {"kubeProxyVersion": ""}
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"joins": "yes"}},
        "status": {"conditions": [ready], "nodeInfo": info},
    }
    cluster.admin("POST", NODES, body)
    cluster.admin("PATCH", f"{NODES}/{name}", {"spec": {"taints": [CORDON, GATE]}}, "merge")
    return name


def pullers(cluster: Cluster, node: str) -> list[Object]:
    pods: list[Object] = cluster.admin("GET", PODS)["items"]
    return [pod for pod in pods if pod["spec"].get("nodeName") == node]


def test_operator_and_cleanup_work_completely_with_the_fence(
    cluster: Cluster, tmp_path: pathlib.Path
) -> None:
    """Runs the real programs; the test simulates the kubelet."""
    for kind in (NODES, PREFETCHES, PODS):
        for each in cluster.admin("GET", kind)["items"]:
            path = f"{kind}/{each['metadata']['name']}"
            if each["metadata"].get("finalizers"):
                cluster.admin("PATCH", path, {"metadata": {"finalizers": []}}, "merge")
            cluster.api.request("DELETE", f"{path}?gracePeriodSeconds=0")
    cluster.api.request("DELETE", f"{GATES}/default")
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    cluster.api.request("DELETE", f"{leases}/imagegate")

    def prefetched(name: str, image: str) -> None:
        spec = {
            "images": [{"image": image}],
            "nodeSelector": {"matchLabels": {"joins": "yes"}},
            "disk": {"maxUsagePercent": 99},
        }
        body = {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "ImagePrefetch",
            "metadata": {"name": name},
            "spec": spec,
        }
        cluster.admin("POST", PREFETCHES, body)

    def labels(node: str) -> set[str]:
        found = cluster.admin("GET", f"{NODES}/{node}")["metadata"]["labels"]
        return {key for key in found if "imagegate" in key}

    def taints_of(node: str) -> list[str]:
        spec = cluster.admin("GET", f"{NODES}/{node}")["spec"]
        return [taint["key"] for taint in spec.get("taints", [])]

    with operating(cluster, tmp_path) as log:
        soon(lambda: cluster.api.request("GET", f"{GATES}/default")[0] == 200, log)
        gate_path = f"{GATES}/default"
        soon(lambda: cluster.admin("GET", gate_path).get("status", {}).get("armed"), log)
        prefetched("first", "127.0.0.1:1/llm:1")
        joined = joins(cluster)
        (pod,) = soon(lambda: pullers(cluster, joined), log)
        assert KEY in taints_of(joined)
        done = {"status": {"phase": "Succeeded"}}
        cluster.admin("PATCH", f"{PODS}/{pod['metadata']['name']}/status", done, "merge")
        soon(lambda: labels(joined) == {"cached.imagegate.dev/first"}, log)
        assert taints_of(joined) == [CORDON["key"]]
        path = f"{PREFETCHES}/first"
        soon(lambda: cluster.admin("GET", path)["status"]["nodes"]["cached"] == 1, log)
        assert FINALIZER in cluster.admin("GET", path)["metadata"]["finalizers"]
        cluster.admin("DELETE", path)
        soon(lambda: cluster.api.request("GET", path)[0] == 404, log)
        soon(lambda: not labels(joined) and not pullers(cluster, joined), log)
        prefetched("second", "127.0.0.1:1/llm:2")
        held = joins(cluster)
        soon(lambda: pullers(cluster, held), log)
        assert KEY in taints_of(held)
    assert "imagegate-fence" not in log.read_text()

    arguments = ["cleanup", "--deployment=imagegate"]
    line, environment = command(cluster, "cleanup", tmp_path, *arguments)
    done_ = subprocess.run(
        line, env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done_.returncode == 0, done_.stdout + done_.stderr
    assert taints_of(held) == [CORDON["key"]]
    assert not labels(held)
    assert FINALIZER not in cluster.admin("GET", f"{PREFETCHES}/second")["metadata"].get(
        "finalizers", []
    )
    assert cluster.api.request("GET", f"{GATES}/default")[0] == 404
