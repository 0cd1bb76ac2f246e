"""Imagegate in a cluster: installs it with Helm from this checkout, and reads its state."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.cluster import operator_image
from tests.cluster.api import ApiError
from tests.cluster.errors import ClusterError, Unsupported
from tests.cluster.provider import Cluster

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "imagegate"
NAMESPACE = "imagegate-system"
PULLERS = "imagegate-pullers"
"""The namespace of puller pods and pull secrets: the chart's default."""
RELEASE = "imagegate"
KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
PREFETCHES = "/apis/imagegate.dev/v1alpha1/imageprefetches"
GATE = "/apis/imagegate.dev/v1alpha1/nodegates/default"
POLICIES = "mutatingadmissionpolicies"
HOOKS = "imagegate-hooks"
"""The name of the Secret with the receivers of push hooks, and of the Service."""
SILENCE = 60
"""Seconds. A shorter time could end during a takeover: a takeover takes up to 20 s and may begin
after the longest pause between heartbeats."""


def push_operator(cluster: Cluster) -> str:
    """Build the operator's image and push it. Its tag is the digest of its sources, because a node
    does not pull a tag again that it already has."""
    layout = operator_image.build()
    return cluster.push_layout(layout, f"imagegate/imagegate:{layout.name}")


@dataclass(frozen=True)
class Installation:
    cluster: Cluster
    image: str
    """The operator's image, as nodes pull it."""
    pause: str
    busybox: str
    """The images of the puller pods: ``pause`` with image volumes, ``busybox`` without."""

    # ---- Helm

    def settle(self) -> None:
        """Keep the operator on the nodes that exist now, because tests remove the later nodes."""
        self.cluster.kubectl("label", "nodes", "--all", "steady=yes", "--overwrite")

    def install(self, **values: str) -> None:
        """`helm install`, and wait until there is a leader and the gate is armed."""
        self._helm("install", **values)
        self.wait_armed()

    def ensure(self, **values: str) -> None:
        """Install, or upgrade the installation of an earlier run if the cluster was kept."""
        names = self.cluster.helm("list", f"--namespace={NAMESPACE}", "--short").split()
        if RELEASE in names:
            self.upgrade(**values)
        else:
            self.install(**values)

    def upgrade(self, **values: str) -> None:
        self._helm("upgrade", **values)
        self.wait_armed()

    def uninstall(self) -> None:
        self.cluster.helm(
            "uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait", "--timeout=3m"
        )

    def _helm(self, verb: str, **values: str) -> None:
        repository, _, tag = self.image.rpartition(":")
        pause, _, pause_tag = self.pause.rpartition(":")
        busybox, _, busybox_tag = self.busybox.rpartition(":")
        settings = {
            "image.repository": repository,
            "image.tag": tag,
            "puller.image.repository": pause,
            "puller.image.tag": pause_tag,
            "puller.container.image.repository": busybox,
            "puller.container.image.tag": busybox_tag,
            "gate.silenceSeconds": str(SILENCE),
            # The watchdog has its own test. In other tests a pod every 5 minutes would disturb.
            "gate.watchdog.enabled": "false",
            # Small requests, because pods must not wait for capacity on small test machines.
            "resources.requests.cpu": "10m",
            "resources.requests.memory": "64Mi",
            "hooks.resources.requests.memory": "64Mi",
            "registry.plainHTTP[0]": "open.registry.test",
            # For test_push, which creates the Secret. Until then every push hook is refused.
            "hooks.enabled": "true",
            "hooks.secretName": HOOKS,
            "hooks.service.type": "NodePort",
            # The operator tolerates every taint, so it could move onto a node that a test removes.
            "nodeSelector.steady": "yes",
            **values,
        }
        self.cluster.helm(
            verb,
            RELEASE,
            str(CHART),
            f"--namespace={NAMESPACE}",
            "--create-namespace",
            "--wait",
            "--timeout=3m",
            *(f"--set={key}={value}" for key, value in settings.items()),
        )

    # ---- the API server

    @property
    def policies(self) -> str | None:
        """The path of MutatingAdmissionPolicies in the newest served version, if any."""
        for version in ("v1", "v1beta1"):
            path = f"/apis/admissionregistration.k8s.io/{version}"
            if exists(self.cluster, f"{path}/{POLICIES}"):
                return f"{path}/{POLICIES}"
        return None

    def require_policies(self) -> None:
        """Skip a test that needs joining nodes to be tainted from their first version on."""
        if self.policies is None:
            raise Unsupported("the API server serves no MutatingAdmissionPolicy")

    # ---- the operator

    def operator_pods(self) -> list[dict[str, Any]]:
        return self._pods("operator")

    def hooks_pods(self) -> list[dict[str, Any]]:
        """The pods that receive push hooks."""
        return self._pods("hooks")

    def _pods(self, component: str) -> list[dict[str, Any]]:
        selector = (
            f"app.kubernetes.io%2Fname%3Dimagegate,app.kubernetes.io%2Fcomponent%3D{component}"
        )
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={selector}"
        pods = self.cluster.api.get(path)["items"]
        return [pod for pod in pods if pod["status"].get("phase") == "Running"]

    def leader(self) -> str:
        """The name of the leader's pod."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{RELEASE}"
        return str(self.cluster.api.get(path)["spec"].get("holderIdentity") or "")

    def scale(self, replicas: int) -> None:
        self.cluster.kubectl(
            "-n", NAMESPACE, "scale", f"deployment/{RELEASE}", f"--replicas={replicas}"
        )
        self.cluster.wait(
            lambda: len(self.operator_pods()) == replicas, f"{replicas} operator pods", 90
        )

    def kill(self, pod: str) -> None:
        """Kill a pod (SIGKILL), as an out-of-memory kill or the death of its node would."""
        self.cluster.kubectl(
            "-n", NAMESPACE, "delete", "pod", pod, "--grace-period=0", "--force", "--wait=false"
        )

    def wait_armed(self, timeout: float = 60) -> None:
        def armed() -> bool:
            status = self.cluster.api.get(GATE).get("status") or {}
            return bool(status.get("armed")) and self.heartbeat_age() < SILENCE / 2

        self.cluster.wait(armed, "the NodeGate armed and its heartbeat fresh", timeout)

    def heartbeat_age(self) -> float:
        """Seconds since the leader's last heartbeat."""
        status = self.cluster.api.get(GATE).get("status") or {}
        if "heartbeat" not in status:
            return float("inf")
        return time.time() - datetime.fromisoformat(status["heartbeat"]).timestamp()

    def suspend(self, suspended: bool) -> None:
        self.patch_gate(suspend=suspended)

    def patch_gate(self, **spec: Any) -> None:
        self.cluster.api.patch(GATE, {"spec": spec})

    def gate(self) -> dict[str, Any]:
        return self.cluster.api.get(GATE)

    def replace_gate(self, spec: dict[str, Any]) -> None:
        """Delete the NodeGate and create it again, as `kubectl replace --force` does."""
        manifest = {
            "apiVersion": "imagegate.dev/v1alpha1",
            "kind": "NodeGate",
            "metadata": {"name": "default"},
            "spec": spec,
        }
        self.cluster.kubectl("replace", "--force", "-f", "-", stdin=json.dumps(manifest))

    def metrics(self, pod: str | None = None) -> dict[str, float]:
        """The metrics of the pod, or of the leader, by name and labels as in the exposition."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod or self.leader()}:8080/proxy/metrics"
        samples: dict[str, float] = {}
        for line in self.cluster.api.raw(path).splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def service_account(self) -> str:
        return f"system:serviceaccount:{NAMESPACE}:{RELEASE}"

    # ---- prefetches

    def prefetch(self, name: str, *images: str | dict[str, Any], **spec: Any) -> None:
        """Apply an ImagePrefetch."""
        entries = [{"image": image} if isinstance(image, str) else image for image in images]
        self.cluster.apply(
            {
                "apiVersion": "imagegate.dev/v1alpha1",
                "kind": "ImagePrefetch",
                "metadata": {"name": name},
                "spec": {
                    "images": entries,
                    "rollout": {"maxParallel": "100%"},
                    # The disks of test machines are full of other data.
                    "disk": {"maxUsagePercent": 100},
                    **spec,
                },
            }
        )

    def get(self, name: str) -> dict[str, Any]:
        return self.cluster.api.get(f"{PREFETCHES}/{name}")

    def counts(self, name: str) -> dict[str, int]:
        return dict((self.get(name).get("status") or {}).get("nodes") or {})

    def condition(self, name: str, type_: str) -> dict[str, Any]:
        conditions = (self.get(name).get("status") or {}).get("conditions") or []
        return next((c for c in conditions if c["type"] == type_), {})

    def is_true(self, name: str, type_: str = "Ready") -> bool:
        return self.condition(name, type_).get("status") == "True"

    def wait_ready(self, name: str, timeout: float = 180) -> None:
        """The default is long enough for a node whose first pulls failed: the kubelet tries again
        after 10, 20, 40 and 80 s. A test that claims a time gives it."""

        def current() -> bool:
            body = self.get(name)
            return (
                self.is_true(name)
                and body["status"]["observedGeneration"] == body["metadata"]["generation"]
            )

        try:
            self.cluster.wait(current, f"ImagePrefetch {name} Ready", timeout)
        except ClusterError as error:
            raise ClusterError(f"{error}: {self._progress(name)}") from None

    def _progress(self, name: str) -> str:
        """The status of a prefetch, and what its puller pods wait for, in one line."""
        status = self.get(name).get("status") or {}
        found = [f"nodes {status.get('nodes')}", f"failures {status.get('failures', [])}"]
        found += [
            f"{each['type']}={each['status']}: {each['message']}"
            for each in status.get("conditions") or ()
        ]
        for pod in self.pullers(name):
            states = [each.get("state") for each in pod["status"].get("containerStatuses") or ()]
            found.append(f"{pod['spec'].get('nodeName')} {pod['status'].get('phase')} {states}")
        return "; ".join(found)

    def delete(self, name: str, timeout: float = 60) -> None:
        self.cluster.kubectl(
            *("delete", "imageprefetches.imagegate.dev", name, "--ignore-not-found"),
            f"--timeout={timeout:.0f}s",
        )

    @contextmanager
    def prefetching(self, name: str, *images: str | dict[str, Any], **spec: Any) -> Iterator[None]:
        """An ImagePrefetch for the length of a test."""
        self.prefetch(name, *images, **spec)
        try:
            yield
        finally:
            self.delete(name)

    def pullers(self, prefetch: str, namespace: str = PULLERS) -> list[dict[str, Any]]:
        selector = f"imagegate.dev%2Fprefetch%3D{prefetch}"
        path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"
        pods: list[dict[str, Any]] = self.cluster.api.get(path)["items"]
        return pods

    # ---- nodes

    def node(self, name: str) -> dict[str, Any]:
        return self.cluster.api.get(f"/api/v1/nodes/{name}")

    def taints(self, name: str) -> list[str]:
        return [taint["key"] for taint in self.node(name)["spec"].get("taints") or []]

    def held(self, name: str) -> bool:
        return KEY in self.taints(name)

    def traces(self) -> list[str]:
        """All labels, annotations and taints of Imagegate on all Nodes."""
        found = []
        for node in self.cluster.api.get("/api/v1/nodes")["items"]:
            text = json.dumps(
                [
                    node["metadata"].get("labels"),
                    node["metadata"].get("annotations"),
                    node["spec"].get("taints"),
                ]
            )
            found += [
                f"{node['metadata']['name']}: {m}"
                for m in re.findall(r'"[^"]*imagegate[^"]*"', text)
            ]
        return found

    def events(self, kind: str, name: str) -> list[dict[str, Any]]:
        path = "/api/v1/namespaces/default/events?fieldSelector="
        selector = f"involvedObject.kind%3D{kind}%2CinvolvedObject.name%3D{name}"
        events: list[dict[str, Any]] = self.cluster.api.get(path + selector)["items"]
        return [event for event in events if event["source"].get("component") == "imagegate"]


def exists(cluster: Cluster, path: str) -> bool:
    try:
        cluster.api.get(path)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
