"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler, in one network namespace."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import binaries
from tests.cluster.api import Api, ApiError, Json
from tests.cluster.errors import ClusterError
from tests.cluster.local import network
from tests.cluster.local.network import CONTROL_PLANE
from tests.cluster.local.pki import Authority
from tests.cluster.local.processes import Group, wait_until

_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""
_COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """The components by the names of their programs; `extra_args` are added to their flags."""

    group: Group
    authority: Authority
    kubernetes: binaries.Module
    ports: Mapping[str, int]  # of loopback: api, open, secure, prometheus
    extra_args: Mapping[str, tuple[str, ...]]

    @property
    def folder(self) -> Path:
        return self.group.folder

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig for this machine, with the loopback port."""
        return self.folder / "admin.kubeconfig"

    def prepare(self) -> None:
        """Prepares namespaces, network and certificates, without the components."""
        self.group.hold(binaries.path(binaries.pause(), "pause"))
        network.set_up_control_plane(self.group)
        self.authority.create()
        self._issue_certificates()
        (self.folder / "audit-policy.yaml").write_text(_AUDIT_POLICY)

    def start_api(self) -> None:
        """Starts etcd and the API server; does not wait."""
        self._spawn("etcd")
        self._spawn("kube-apiserver")

    def wait_for_api(self, timeout: float = 60) -> None:
        needed = [self.group.find(name) for name in _COMPONENTS[:2]]
        api = Api(self.kubeconfig)

        def ready() -> bool:
            try:
                return api.raw("/readyz") == "ok"
            except ApiError:
                return False

        wait_until(ready, "API server ready", timeout, [each for each in needed if each])

    def start_controllers(self) -> None:
        self._spawn("kube-controller-manager")
        self._spawn("kube-scheduler")

    def start(self, component: str) -> None:
        """Starts a stopped component. For etcd and the API server, waits until the API is ready."""
        self._spawn(component)
        if component in _COMPONENTS[:2]:
            self.wait_for_api()

    def stop(self, component: str, grace: float = 5) -> None:
        """Ends a component; `grace=0` kills it. A draining API server is killed after `grace`."""
        self._check(component)
        self.group.stop(component, grace)

    def restart(self, component: str, grace: float = 5) -> None:
        self.stop(component, grace)
        self.start(component)

    def etcdctl(self, *args: str) -> str:
        program = str(self.kubernetes.bin / "etcdctl")
        return network.run(self.group, [program, "--endpoints=http://127.0.0.1:2379", *args])

    def compact(self) -> int:
        """Compacts etcd's history, so that every watch from an old version gets 410 Gone. Returns
        the revision."""
        status: list[dict[str, Any]] = json.loads(
            self.etcdctl("endpoint", "status", "--write-out=json")
        )
        revision = int(status[0]["Status"]["header"]["revision"])
        self.etcdctl("compact", str(revision))
        return revision

    def audit(self) -> Iterator[Json]:
        """All requests so far, oldest first: user.username, verb, objectRef, responseStatus …"""
        with contextlib.suppress(FileNotFoundError), (self.folder / "audit.log").open() as file:
            for line in file:
                if line.endswith("\n"):  # the last line may be incomplete
                    yield json.loads(line)

    def start_forward(self, name: str, rules: Mapping[int, str]) -> None:
        """Forwards loopback ports to addresses in the namespaces. The forwarder starts in this
        machine's network namespace and enters the other namespace by itself."""
        holder = self.group.find("holder")
        if holder is None:
            raise ClusterError("the control plane is not running")
        program = Path(__file__).with_name("forward.py")
        pairs = [f"127.0.0.1:{port}={target}" for port, target in rules.items()]
        command = [sys.executable, "-I", str(program), str(holder.pid), *pairs]
        self.group.start_outside(name, command)

    def _spawn(self, component: str) -> None:
        self._check(component)
        flags = [*self._flags(component), *self.extra_args.get(component, ())]
        self.group.start(component, [str(self.kubernetes.bin / component), *flags])

    def _check(self, component: str) -> None:
        if component not in _COMPONENTS:
            raise ClusterError(f"no component {component!r}: there is {', '.join(_COMPONENTS)}")

    def _issue_certificates(self) -> None:
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        addresses = ["127.0.0.1", CONTROL_PLANE, network.KUBERNETES_SERVICE]
        issue, inside = self.authority.issue, f"https://{CONTROL_PLANE}:6443"
        issue("apiserver", "kube-apiserver", names=names, addresses=addresses)
        issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"])
        self.authority.key_pair("sa")
        admin = issue("admin", "kubernetes-admin", ["system:masters"])
        self.authority.kubeconfig(self.kubeconfig, f"https://127.0.0.1:{self.ports['api']}", admin)
        for user in ("kube-controller-manager", "kube-scheduler"):
            pair = issue(user, f"system:{user}")
            self.authority.kubeconfig(self.folder / f"{user}.kubeconfig", inside, pair)
        for user in ("kwok", "prometheus"):
            pair = issue(user, user, ["system:masters"])
            self.authority.kubeconfig(self.folder / f"{user}.kubeconfig", inside, pair)

    def _flags(self, component: str) -> list[str]:
        match component:
            case "etcd":
                return self._etcd()
            case "kube-apiserver":
                return self._apiserver()
            case "kube-controller-manager":
                return self._controller_manager()
            case _:
                config = self.folder / "kube-scheduler.kubeconfig"
                return [f"--kubeconfig={config}", "--leader-elect=false"]

    def _etcd(self) -> list[str]:
        return [
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",  # the data need not survive a power failure
            "--quota-backend-bytes=8589934592",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
            "--log-level=warn",
        ]

    def _apiserver(self) -> list[str]:
        pki = self.authority.folder
        return [
            f"--advertise-address={CONTROL_PLANE}",
            "--secure-port=6443",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
            f"--kubelet-certificate-authority={pki / 'ca.crt'}",
            "--kubelet-preferred-address-types=InternalIP",  # node names do not resolve
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            f"--service-cluster-ip-range={network.SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--enable-aggregator-routing=true",  # webhooks by endpoint, without kube-proxy
            f"--audit-policy-file={self.folder / 'audit-policy.yaml'}",
            f"--audit-log-path={self.folder / 'audit.log'}",
            "--audit-log-maxsize=8192",  # MiB; tests read one file, so it must not rotate
        ]

    def _controller_manager(self) -> list[str]:
        pki = self.authority.folder
        return [
            f"--kubeconfig={self.folder / 'kube-controller-manager.kubeconfig'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=false",  # CNI has its own subnets, and kwok's nodes need none
            "--leader-elect=false",
        ]
