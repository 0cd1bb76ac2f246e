"""The chart on a real API server: Helm installs it, and its policy taints joining nodes."""

import dataclasses
import datetime as dt
import itertools
import time
from collections.abc import Callable, Iterator

import pytest

from imagegate.puller import build
from imagegate.puller.build import PullerSettings
from imagegate.puller.mode import Mode
from tests.unit.domain.cases import node, prefetch

from . import apiserver, rendering
from .rendering import NAMESPACE, PULLERS, Object

pytestmark = pytest.mark.timeout(180)

KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
GATE = {"key": KEY, "value": "pending", "effect": "NoSchedule"}
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
KUBELET = "kubelet-token"
GATES = "/apis/imagegate.dev/v1alpha1/nodegates"

serial = itertools.count()


@dataclasses.dataclass(frozen=True, slots=True)
class Cluster:
    """Operations of the tests on the API server."""

    api: apiserver.ApiServer

    def node(self, **changes: Object) -> Object:
        """Creates a node as a kubelet does; returns it as the API server stored it."""
        name = f"node-{next(serial)}"
        labels = {"kubernetes.io/hostname": name, **changes.get("labels", {})}
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "spec": changes.get("spec", {}),
            "status": changes.get("status", status()),
        }
        code, node = self.api.request("POST", "/api/v1/nodes", body)
        assert code == 201, node
        self.api.request("DELETE", f"/api/v1/nodes/{name}")
        result: Object = node
        return result

    def gated(self, **changes: Object) -> bool:
        taints = self.node(**changes)["spec"]["taints"]
        assert taints.count(GATE) == sum(taint["key"] == KEY for taint in taints) <= 1
        return GATE in taints

    def set_gate(self, spec: Object | None = None, heartbeat: dt.timedelta | None = None) -> None:
        """Writes the NodeGate; `heartbeat` is the age of the heartbeat, None for no heartbeat."""
        self.delete_gate()
        body = {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "NodeGate",
            "metadata": {"name": "default"},
            "spec": spec or {},
        }
        code, answer = self.api.request("POST", GATES, body)
        assert code == 201, answer
        if heartbeat is not None:
            patch = {"status": {"heartbeat": stamp(heartbeat)}}
            code, answer = self.api.request(
                "PATCH", f"{GATES}/default/status", patch, patch="merge"
            )
            assert code == 200, answer
        time.sleep(0.5)  # the policy reads the NodeGate from a watch

    def delete_gate(self) -> None:
        self.api.request("DELETE", f"{GATES}/default")
        time.sleep(0.2)


def stamp(age: dt.timedelta = dt.timedelta()) -> str:
    return (dt.datetime.now(dt.UTC) - age).strftime("%Y-%m-%dT%H:%M:%SZ")


def status(age: dt.timedelta = dt.timedelta()) -> Object:
    ready = {"type": "Ready", "status": "False", "lastHeartbeatTime": stamp(age)}
    return {"conditions": [{"type": "DiskPressure", "status": "False"}, ready]}


FRESH = dt.timedelta(seconds=20)
OLD = dt.timedelta(minutes=10)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apiserver.ApiServer]:
    tokens = {KUBELET: 'system:node:real,real,"system:nodes"'}
    with apiserver.running(tmp_path_factory.mktemp("apiserver"), tokens) as server:
        yield server


@pytest.fixture(scope="module")
def install(helm: rendering.Helm, api: apiserver.ApiServer) -> Callable[..., str]:
    """`helm upgrade --install` with values."""

    def run(*values: str) -> str:
        # --reset-values, because an upgrade without values would reuse those of the last release.
        flags = ["--install", "--create-namespace", "--reset-values", "--namespace", NAMESPACE]
        flags += ["--kubeconfig", str(api.kubeconfig), *(f"--set={value}" for value in values)]
        return helm.run("upgrade", "imagegate", str(rendering.CHART), *flags)

    return run


@pytest.fixture(scope="module")
def cluster(api: apiserver.ApiServer, install: Callable[..., str]) -> Cluster:
    """A cluster with the installed chart; its policy has taken effect."""
    # The same release contains the CRD and a policy that uses it as its parameter.
    notes = install()
    assert "GATE (source: policy)" in notes
    cluster = Cluster(api)
    cluster.set_gate(heartbeat=FRESH)
    deadline = time.monotonic() + 60
    while not cluster.gated():
        assert time.monotonic() < deadline, "the policy has no effect"
        time.sleep(0.5)
    return cluster


def test_joining_node_is_tainted_in_its_first_version(cluster: Cluster) -> None:
    cluster.set_gate(heartbeat=FRESH)
    taints = cluster.node()["spec"]["taints"]
    # The taint that the API server adds to every new node stays.
    assert taints == [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}, GATE]


@pytest.mark.parametrize("heartbeat", [OLD, None], ids=["old heartbeat", "no heartbeat"])
def test_old_or_missing_heartbeat_gates_no_node(
    cluster: Cluster, heartbeat: dt.timedelta | None
) -> None:
    cluster.set_gate(heartbeat=heartbeat)
    assert not cluster.gated()


def test_heartbeat_more_than_5_minutes_in_the_future_gates_no_node(cluster: Cluster) -> None:
    # 4 minutes are accepted, because the clocks of machines may differ a little.
    cluster.set_gate(heartbeat=dt.timedelta(minutes=-4))
    assert cluster.gated()
    cluster.set_gate(heartbeat=dt.timedelta(minutes=-6))
    assert not cluster.gated()
    cluster.set_gate(heartbeat=dt.timedelta(days=-365 * 70))
    assert not cluster.gated()


def test_missing_nodegate_gates_no_node(cluster: Cluster) -> None:
    cluster.delete_gate()
    time.sleep(0.5)
    assert not cluster.gated()


def test_silence_limit_is_that_of_the_nodegate(cluster: Cluster) -> None:
    cluster.set_gate({"silenceSeconds": 900}, heartbeat=OLD)
    assert cluster.gated()
    cluster.set_gate({"silenceSeconds": 60}, heartbeat=dt.timedelta(seconds=90))
    assert not cluster.gated()


def test_suspended_gate_adds_no_taint(cluster: Cluster) -> None:
    cluster.set_gate({"suspend": True}, heartbeat=FRESH)
    assert not cluster.gated()
    cluster.set_gate({"suspend": False}, heartbeat=FRESH)
    assert cluster.gated()


def test_taint_key_is_that_of_the_nodegate(cluster: Cluster) -> None:
    cluster.set_gate({"taintKey": "example.com/hold"}, heartbeat=FRESH)
    taints = cluster.node()["spec"]["taints"]
    assert {"key": "example.com/hold", "value": "pending", "effect": "NoSchedule"} in taints
    assert GATE not in taints


def test_existing_taints_stay(cluster: Cluster) -> None:
    cluster.set_gate(heartbeat=FRESH)
    mine = {"key": "example.com/mine", "value": "yes", "effect": "NoExecute"}
    taints = cluster.node(spec={"taints": [mine]})["spec"]["taints"]
    assert taints[0] == mine
    assert taints[-1] == GATE


def test_node_with_the_gate_taint_is_not_tainted_twice(cluster: Cluster) -> None:
    cluster.set_gate(heartbeat=FRESH)
    own = {"key": KEY, "value": "set-by-kubelet", "effect": "NoSchedule"}
    taints = cluster.node(spec={"taints": [own]})["spec"]["taints"]
    assert [taint for taint in taints if taint["key"] == KEY] == [own]


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {CONTROL_PLANE: ""}},
        {"spec": {"taints": [{"key": CONTROL_PLANE, "effect": "NoSchedule"}]}},
    ],
    ids=["by label", "by taint"],
)
def test_control_plane_node_is_not_gated(cluster: Cluster, changes: Object) -> None:
    cluster.set_gate(heartbeat=FRESH)
    assert not cluster.gated(**changes)


@pytest.mark.parametrize(
    "given",
    [{}, {"conditions": []}, {"conditions": [{"type": "Ready", "status": "False"}]}],
    ids=["no conditions", "no Ready condition", "no heartbeat in it"],
)
def test_node_that_no_kubelet_created_is_not_gated(cluster: Cluster, given: Object) -> None:
    cluster.set_gate(heartbeat=FRESH)
    assert not cluster.gated(status=given)


def test_kubelet_joins_and_keeps_reporting(cluster: Cluster) -> None:
    # With a kubelet's token, because NodeRestriction checks it: a heartbeat must be accepted.
    cluster.set_gate(heartbeat=FRESH)
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "real"}, "status": status()}
    code, node = cluster.api.request("POST", "/api/v1/nodes", body, token=KUBELET)
    assert (code, GATE in node["spec"]["taints"]) == (201, True)

    released: Object = {"spec": {"taints": []}}
    code, _ = cluster.api.request("PATCH", "/api/v1/nodes/real", released, patch="merge")
    assert code == 200
    path = "/api/v1/nodes/real/status"
    code, node = cluster.api.request(
        "PATCH", path, {"status": status()}, token=KUBELET, patch="strategic-merge"
    )
    assert (code, node["spec"].get("taints")) == (200, None), node


def test_selector_gate_and_source_follow_an_upgrade(
    cluster: Cluster, install: Callable[..., str]
) -> None:
    def soon(expected: bool, **changes: Object) -> bool:
        deadline = time.monotonic() + 20
        while cluster.gated(**changes) != expected and time.monotonic() < deadline:
            time.sleep(0.5)
        return cluster.gated(**changes) == expected

    cluster.set_gate(heartbeat=FRESH)
    install("gate.objectSelector.matchLabels.pool=gpu", "networkPolicy.enabled=true")
    assert soon(expected=False)
    assert soon(expected=True, labels={"pool": "gpu"})
    install("gate.source=watch")
    assert soon(expected=False, labels={"pool": "gpu"})
    # The policy is created again with the same parameter kind, and must take effect again.
    install()
    assert soon(expected=True)


def test_pods_pass_restricted_pod_security(cluster: Cluster, helm: rendering.Helm) -> None:
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    code, answer = cluster.api.request(
        "PATCH", f"/api/v1/namespaces/{NAMESPACE}", level, patch="merge"
    )
    assert code == 200, answer
    for kind in ("Deployment", "Job"):
        # The Job's own account exists only while the Job runs.
        spec = helm.render().pod(kind) | {"serviceAccountName": "imagegate"}
        pod: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "probe"},
            "spec": spec,
        }
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All&fieldValidation=Strict"
        code, answer = cluster.api.request("POST", path, pod)
        assert code == 201, answer
    for mode in (Mode.IMAGE_VOLUME, Mode.CONTAINER):
        settings = PullerSettings("pause", "busybox", mode, priority_class="imagegate-puller")
        wanted = prefetch("llm", "reg.test/llm:1", "reg.test/data:1")
        pod = build.build(wanted, node(), wanted.groups[0], 1, settings)
        pod["spec"]["serviceAccountName"] = "imagegate"  # no controller creates `default` here
        code, answer = cluster.api.request("POST", path, pod)
        assert code == 201, answer
        images = {each["image"] for each in answer["spec"]["containers"]}
        assert ("reg.test/data:1" in images) is (mode is Mode.CONTAINER)


def test_cleanup_hooks_are_valid(cluster: Cluster, helm: rendering.Helm) -> None:
    release = helm.render()
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
    paths = {"Job": f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", "Role": f"{rbac}/roles"}
    paths |= {"RoleBinding": f"{rbac}/rolebindings"}
    for kind, path in paths.items():
        hooks = [
            hook
            for name, hook in release.of(kind).items()
            if "-cleanup" in name and hook["metadata"]["namespace"] == NAMESPACE
        ]
        assert hooks
        for hook in hooks:
            query = "?dryRun=All&fieldValidation=Strict"
            code, answer = cluster.api.request("POST", path + query, hook)
            assert code == 201, answer


GATE_STATUS = {"group": "imagegate.dev", "resource": "nodegates", "subresource": "status"}
LEASES = {"namespace": NAMESPACE, "group": "coordination.k8s.io", "resource": "leases"}


@pytest.mark.parametrize(
    ("verb", "attributes", "allowed"),
    [
        ("patch", {"resource": "nodes"}, True),
        ("patch", {"resource": "nodes", "subresource": "status"}, False),
        ("get", {"resource": "nodes", "subresource": "proxy"}, False),
        ("create", {"resource": "pods", "namespace": PULLERS}, True),
        ("create", {"resource": "pods", "namespace": NAMESPACE}, False),
        ("create", {"resource": "pods", "namespace": "default"}, False),
        ("get", {"resource": "nodes", "subresource": "stats"}, False),
        ("get", {"resource": "secrets", "namespace": PULLERS}, True),
        ("list", {"resource": "secrets", "namespace": PULLERS}, False),
        ("get", {"resource": "secrets", "namespace": NAMESPACE}, False),
        ("get", {"resource": "secrets", "namespace": "default"}, False),
        ("update", {**LEASES, "name": "imagegate"}, True),
        ("update", {**LEASES, "name": "other"}, False),
        (
            "patch",
            {"group": "imagegate.dev", "resource": "imageprefetches", "subresource": "status"},
            True,
        ),
        ("delete", {"group": "imagegate.dev", "resource": "nodegates"}, False),
        ("patch", {**GATE_STATUS, "name": "default"}, True),
        ("patch", {**GATE_STATUS, "name": "other"}, False),
        ("create", {"resource": "events", "namespace": "default"}, True),
        ("patch", {"resource": "events", "namespace": "default"}, False),
        ("create", {"resource": "events", "namespace": "kube-system"}, False),
    ],
)
def test_operator_has_exactly_the_needed_rights_on_the_api_server(
    cluster: Cluster, verb: str, attributes: dict[str, str], allowed: bool
) -> None:
    spec = {
        "user": f"system:serviceaccount:{NAMESPACE}:imagegate",
        "resourceAttributes": {"verb": verb, **attributes},
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": spec,
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    code, answer = cluster.api.request("POST", path, review)
    assert (code, answer["status"]["allowed"]) == (201, allowed)


def keys_of_the_fence(cluster: Cluster) -> set[str]:
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/imagegate-fence-nodes"
    code, policy = cluster.api.request("GET", path)
    assert code == 200, policy
    return set(policy["metadata"]["annotations"]["imagegate.dev/taint-keys"].split(","))


def test_fence_has_the_keys_of_the_nodegate_and_of_the_last_release(
    cluster: Cluster, install: Callable[..., str]
) -> None:
    cluster.delete_gate()
    install("gate.taintKey=example.com/first")
    assert keys_of_the_fence(cluster) >= {"example.com/first"}
    cluster.set_gate({"taintKey": "example.com/by-hand"})
    install("gate.taintKey=example.com/second")
    wanted = {f"example.com/{name}" for name in ("first", "second", "by-hand")}
    assert keys_of_the_fence(cluster) >= wanted
    cluster.delete_gate()
    install()
    assert keys_of_the_fence(cluster) >= {KEY, *wanted}


def puller_namespaces(cluster: Cluster) -> str:
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/imagegate"
    code, deployment = cluster.api.request("GET", path)
    assert code == 200, deployment
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    flag = "--puller-namespaces="
    (found,) = (arg.removeprefix(flag) for arg in container["args"] if arg.startswith(flag))
    result: str = found
    return result


def test_upgrade_keeps_the_namespace_of_the_puller_pods(
    cluster: Cluster, install: Callable[..., str]
) -> None:
    """The release's namespace was the default, so the pods that pin images and the pull secrets are
    in it. An upgrade moves them only if a value says so.
    """
    assert puller_namespaces(cluster) == PULLERS
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles/imagegate-puller"
    install(f"puller.namespaces={{{NAMESPACE}}}")  # the earlier default
    assert cluster.api.request("GET", role)[0] == 200
    for _ in range(2):
        notes = install()
        assert puller_namespaces(cluster) == NAMESPACE
        assert f"puller.namespaces={{{PULLERS},{NAMESPACE}}}" in notes
    install(f"puller.namespaces={{{PULLERS},{NAMESPACE}}}")
    assert puller_namespaces(cluster) == f"{PULLERS},{NAMESPACE}"
    install(f"puller.namespaces={{{PULLERS}}}")
    assert cluster.api.request("GET", role)[0] == 404
    notes = install()
    assert puller_namespaces(cluster) == PULLERS
    assert "puller.namespaces=" not in notes


def test_uninstall_keeps_the_crds(
    cluster: Cluster, helm: rendering.Helm, install: Callable[..., str]
) -> None:
    arguments = ["uninstall", "imagegate", "--namespace", NAMESPACE, "--no-hooks"]
    helm.run(*arguments, "--kubeconfig", str(cluster.api.kubeconfig))
    cluster.set_gate(heartbeat=FRESH)  # works, because the CRD still exists
    time.sleep(2)
    assert not cluster.gated()
    code, _ = cluster.api.request(
        "GET", "/apis/scheduling.k8s.io/v1/priorityclasses/imagegate-puller"
    )
    assert code == 404
    code, namespace = cluster.api.request("GET", f"/api/v1/namespaces/{PULLERS}")
    assert (code, namespace["status"]["phase"]) == (200, "Active"), (
        "the namespace with the secrets is kept"
    )
    # A new installation adopts the kept CRDs and namespace, because they still name the release.
    install()
