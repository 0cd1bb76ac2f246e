"""The cluster of a run: control plane, simulated nodes, registry, and the installed chart."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks import objects
from benchmarks.cluster import audit, metrics, nodes, programs
from benchmarks.cluster.plan import Plan
from benchmarks.cluster.process import Operator
from tests.cluster import ClusterOptions, LocalCluster
from tests.cluster.api import ApiError
from tests.cluster.errors import ClusterError
from tests.cluster.local import network
from tests.cluster.local.processes import Process, wait_until
from tests.cluster.progress import step
from tests.e2e.installation import CHART, NAMESPACE, PREFETCHES, PULLERS, RELEASE

USER = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
PREFETCH = "bench"
PORT = 9440
"""Of the first replica. The control plane has programs of its own on 8080."""
COMPONENTS = ("kube-apiserver", "etcd", "kube-controller-manager", "kwok")
REQUEST_SECONDS = "apiserver_request_duration_seconds_bucket"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclass(frozen=True, slots=True)
class Size:
    nodes: int
    images: int = 1
    pull_seconds: float = 2.0
    """From the creation of a puller pod until it succeeds, if kwok keeps up."""

    @property
    def joining(self) -> range:
        """The numbers of the nodes that join during a rollout: 500 for 5,000 nodes."""
        return range(self.nodes, self.nodes + max(1, self.nodes // 10))


@dataclass
class Bench:
    """One cluster. Everything that it starts ends with it."""

    cluster: LocalCluster
    size: Size
    known: audit.Known = field(init=False)
    _pushed: int = 0
    """How many contents the image's tag has had."""

    def __post_init__(self) -> None:
        numbers = range(self.size.joining.stop)
        joining = frozenset(map(objects.name, self.size.joining))
        self.known = audit.Known({objects.name(n): nodes.zone(n) for n in numbers}, joining)

    @classmethod
    @contextlib.contextmanager
    def started(cls, name: str, size: Size) -> Iterator[Bench]:
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
            policy = Path(folder, "audit-policy.yaml")
            policy.write_text(audit.policy(USER))
            # The controller manager's default of 20 requests a second is too low for 1,000 nodes:
            # it would remove their not-ready taints for minutes. And with its default of 50 s, the
            # nodes of a busy machine would be taken for dead, because kwok renews Leases late.
            extra = {
                "kube-apiserver": (f"--audit-policy-file={policy}",),
                "kube-controller-manager": (
                    "--kube-api-qps=500",
                    "--kube-api-burst=1000",
                    "--node-monitor-grace-period=5m",
                ),
            }
            cluster = LocalCluster.start(ClusterOptions(name=name, nodes=0, extra_args=extra))
            try:
                bench = cls(cluster, size)
                bench.set_up()
                yield bench
            finally:
                for each in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(each, signal.SIG_IGN)  # it ends already
                cluster.down()

    def set_up(self) -> None:
        """The nodes first, because the gate would hold nodes that join later."""
        group, authority = self.cluster.control_plane.group, self.cluster.control_plane.authority
        pair = authority.issue("bench", "bench", ["system:masters"])
        authority.kubeconfig(self.admin, f"https://{network.CONTROL_PLANE}:6443", pair)
        self.cluster.kwok(0, pull_seconds=self.size.pull_seconds)
        with step(f"{self.size.nodes} nodes"):
            self.run("nodes", "create", "0", str(self.size.nodes))
            needed = [process for process in [group.find("kwok")] if process]
            wait_until(self._managed, "leases and taints of all nodes", 600, needed)
        with step("Imagegate's chart"):
            self._install()
        for index in range(self.size.images):
            self.cluster.push("tiny", f"bench/app-{index}:1", seed=index)
        self._wait_for_kwok()

    def _managed(self) -> bool:
        """Whether kwok manages all nodes, and the controller manager has removed their not-ready
        taints: nothing has patched a Node for two seconds.
        """
        leases = self.cluster.api.get(f"{_LEASES}?limit=1")
        if _total(leases) < self.size.nodes:
            time.sleep(0.5)
            return False
        before = self._patches()
        time.sleep(2)
        return before == self._patches()

    def _patches(self) -> float:
        lines = self.cluster.api.raw("/metrics").splitlines()
        samples = metrics.parse(lines, "apiserver_request_total")
        wanted = {("resource", "nodes"), ("verb", "PATCH")}
        return sum(value for (_, labels), value in samples.items() if wanted <= labels)

    def _install(self) -> None:
        values = {
            # The benchmark runs the operator's process itself.
            "replicaCount": "0",
            "gate.watchdog.enabled": "false",
            "registry.plainHTTP[0]": network.OPEN_REGISTRY,
        }
        self.cluster.helm(
            *("install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--create-namespace"),
            *("--wait", "--timeout=3m"),
            *(f"--set={key}={value}" for key, value in values.items()),
        )

    def _wait_for_kwok(self) -> None:
        """Wait until pods succeed in time on nodes all over the list."""
        every = max(1, self.size.nodes // 20)
        names = [objects.name(number) for number in range(0, self.size.nodes, every)]
        limit = self.size.pull_seconds + 1.0
        with step("kwok keeps up with pods"):
            for attempt in range(30):
                began = time.monotonic()
                self._pull_on([(f"probe-{attempt}-{n}", name) for n, name in enumerate(names)])
                took = time.monotonic() - began
                if took < limit + len(names) * 0.05:
                    return
        raise ClusterError(f"kwok needs {took:.1f} s for {len(names)} pods")

    def _pull_on(self, wanted: Sequence[tuple[str, str]]) -> None:
        """Create a pod of this name on each node, wait until all succeed, and delete them."""
        pods = [self._probe(name, node) for name, node in wanted]
        self.cluster.wait(lambda: all(map(self._ended, pods)), "pods of kwok", 300)
        for pod in pods:
            self.cluster.api.delete(pod)

    def _probe(self, name: str, node: str) -> str:
        """Create a pod that kwok takes for a puller pod. Returns its path."""
        path = "/api/v1/namespaces/default/pods"
        container = {"name": "probe", "image": "probe"}
        self.cluster.api.post(
            path,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": {"imagegate.dev/prefetch": "probe"}},
                "spec": {
                    "nodeName": node,
                    "containers": [container],
                    "tolerations": [{"operator": "Exists"}],
                },
            },
        )
        return f"{path}/{name}"

    def _ended(self, pod: str) -> bool:
        return bool(self.cluster.api.get(pod)["status"].get("phase") == "Succeeded")

    # ---- programs in the cluster's network

    @property
    def folder(self) -> Path:
        return self.cluster.control_plane.folder

    @property
    def admin(self) -> Path:
        return self.folder / "bench.kubeconfig"

    @cached_property
    def kubeconfig(self) -> Path:
        """Of the operator's service account, at the API server's address in the cluster."""
        token = self.cluster.api.post(
            f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{RELEASE}/token",
            {"spec": {"expirationSeconds": 12 * 3600}},
        )["status"]["token"]
        config = yaml.safe_load(self.admin.read_text())
        config["users"][0]["user"] = {"token": token}
        path = self.folder / "operator.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    def run(self, module: str, *arguments: str, kubeconfig: Path | None = None) -> None:
        """Run a program of this package to its end."""
        programs.finish(self.cluster, self.begin(module, *arguments, kubeconfig=kubeconfig))

    def begin(self, module: str, *arguments: str, kubeconfig: Path | None = None) -> Process:
        return programs.launch(
            self.cluster,
            module,
            f"benchmarks.cluster.{module}",
            str(kubeconfig or self.admin),
            *arguments,
        )

    def play(self, plan: Plan) -> dict[str, Any]:
        """The floor's figures."""
        path, result = self.folder / "plan.json", self.folder / "floor.json"
        plan.save(path)
        result.unlink(missing_ok=True)
        self.run("player", str(self.admin), str(path), str(result), kubeconfig=self.kubeconfig)
        figures: dict[str, Any] = json.loads(result.read_text())
        return figures

    # ---- the operator

    def operator(self, number: int) -> Operator:
        """A replica, not started: the arguments and the environment are those of the chart's
        Deployment.
        """
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{RELEASE}"
        container = self.cluster.api.get(path)["spec"]["template"]["spec"]["containers"][0]
        identity = f"bench-{number}-{os.urandom(2).hex()}"
        variables = {"POD_NAME": identity, "POD_NAMESPACE": NAMESPACE}
        for entry in container["env"]:
            variables.setdefault(entry["name"], entry.get("value", ""))
        arguments = list(container["args"])
        for name in ("POD_NAME", "POD_NAMESPACE"):
            arguments = [each.replace(f"$({name})", variables[name]) for each in arguments]
        port = PORT + number
        return Operator(
            self.cluster,
            identity,
            port,
            (*arguments, f"--http-port={port}"),
            {**variables, "KUBECONFIG": str(self.kubeconfig)},
        )

    def leader(self) -> str:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{RELEASE}"
        return str(self.cluster.api.get(path)["spec"].get("holderIdentity") or "")

    # ---- the ImagePrefetch

    @property
    def path(self) -> str:
        return f"{PREFETCHES}/{PREFETCH}"

    def apply(self, parallel: str) -> None:
        images = [f"{network.OPEN_REGISTRY}/bench/app-{n}:1" for n in range(self.size.images)]
        spec = {
            "rollout": {"maxParallel": parallel},
            "refresh": {"mode": "Digest"},
            # Simulated kubelets report no disk usage.
            "disk": {"maxUsagePercent": 100},
        }
        self.cluster.api.post(PREFETCHES, objects.prefetch(PREFETCH, *images, **spec))

    def push(self) -> None:
        """The tag of every image gets another content."""
        self._pushed += 1
        for index in range(self.size.images):
            seed = 100 * self._pushed + index
            self.cluster.push("tiny", f"bench/app-{index}:1", seed=seed)

    def status(self) -> Mapping[str, Any]:
        try:
            body = self.cluster.api.get(self.path)
        except ApiError as error:
            if error.status == 404:
                return {}
            raise
        status: dict[str, Any] = body.get("status") or {}
        current = status.get("observedGeneration") == body["metadata"]["generation"]
        return {**status, "current": current}

    def cached(self) -> int:
        return int((self.status().get("nodes") or {}).get("cached", 0))

    def ready(self, nodes_: int) -> bool:
        """Whether the status says that so many nodes are cached, and that this is all."""
        status = self.status()
        counts = status.get("nodes") or {}
        return (
            bool(status.get("current"))
            and counts.get("cached") == counts.get("desired") == nodes_
            and any(
                condition["type"] == "Ready" and condition["status"] == "True"
                for condition in status["conditions"]
            )
        )

    def deleted(self) -> bool:
        return not self.status()

    def pods(self) -> int:
        page = self.cluster.api.get(f"/api/v1/namespaces/{PULLERS}/pods?limit=1")
        return _total(page)

    # ---- what the cluster says of itself

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    def request_seconds(self) -> metrics.Samples:
        return metrics.parse(self.cluster.api.raw("/metrics").splitlines(), REQUEST_SECONDS)

    def cpu(self) -> dict[str, float]:
        """CPU seconds of the components so far."""
        found = {name: self.cluster.control_plane.group.find(name) for name in COMPONENTS}
        return {name: programs.cpu(process.pid) for name, process in found.items() if process}


def _total(page: Mapping[str, Any]) -> int:
    """How many objects a collection has, from a page of it."""
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))
