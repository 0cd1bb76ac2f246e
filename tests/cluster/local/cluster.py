"""The provider `local`: combines the parts of this package."""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tests.cluster import binaries, paths, ports
from tests.cluster.api import ApiError, Json
from tests.cluster.errors import ClusterError
from tests.cluster.local import cgroups, cleanup, network, state
from tests.cluster.local.controlplane import ControlPlane
from tests.cluster.local.faulty import SERVFAIL, SILENT, FaultyRegistry
from tests.cluster.local.kwok import Kwok
from tests.cluster.local.mirrors import Mirror
from tests.cluster.local.node import Node
from tests.cluster.local.pki import Authority
from tests.cluster.local.processes import Group
from tests.cluster.local.prometheus import Prometheus
from tests.cluster.local.registries import NAMES, Registry
from tests.cluster.progress import say, step
from tests.cluster.provider import Capability, Cluster, ClusterOptions, NodeOptions

INOTIFY_INSTANCES = 1024
TOOLS = ("runc", "iptables", "conntrack", "skopeo", "docker-registry", "htpasswd", "nsenter", "ip")


class LocalCluster(Cluster):
    """A cluster on this machine. `start` creates a cluster, `open` finds a running cluster."""

    capabilities = frozenset(Capability)

    def __init__(self, record: state.State) -> None:
        self.name = record.options.name
        self._state = record
        top, folder = cleanup.cgroup(self.name), record.folder / "control-plane"
        self.control_plane = ControlPlane(
            group=Group(folder, f"{top}/control-plane", ("--net",)),
            authority=Authority(record.folder / "pki"),
            kubernetes=binaries.kubernetes(record.options.kubernetes),
            ports=record.ports,
            extra_args=record.options.extra_args,
        )
        self.registries = {
            name: Registry(
                name, self.control_plane.group, self.control_plane.authority, record.ports[name]
            )
            for name in ("open", "secure")
        }
        self.faulty = FaultyRegistry(
            "faulty",
            self.control_plane.group,
            self.control_plane.authority,
            record.ports["faulty"],
            self.registries["open"],
        )
        self.registries["faulty"] = self.faulty

    # Life

    @classmethod
    def open(cls, name: str = "imagegate") -> Self:
        return cls(state.load(name))

    @classmethod
    def start(cls, options: ClusterOptions) -> Self:
        """Replaces an earlier cluster of this name. Waits until the new cluster is usable."""
        _check_machine(options)
        binaries.ensure(
            binaries.pause(), binaries.containerd(), binaries.kubernetes(options.kubernetes)
        )
        with paths.locked(f"cluster-{options.name}"):
            cleanup.remove(options.name)
            cluster = cls(state.create(options))
            try:
                with step(f"cluster {options.name} with {options.nodes} nodes"):
                    cluster._start()
            except BaseException:
                if "IMAGEGATE_KEEP_FAILED" not in os.environ:
                    cleanup.remove(options.name)
                raise
        return cluster

    def down(self) -> None:
        remove(self.name)

    def _start(self) -> None:
        allow_watchers()
        cgroups.create(cleanup.cgroup(self.name))
        if (weight := self._state.options.cpu_weight) != ClusterOptions().cpu_weight:
            cgroups.set_cpu_weight(cleanup.cgroup(self.name), weight)
        self.control_plane.prepare()
        for registry in self.registries.values():
            registry.prepare()
        self.control_plane.start_api()
        names = [f"node-{number}" for number in range(1, self._state.options.nodes + 1)]
        for name in names:
            self._record_node(name, self._state.options.node)
        self._start_services()
        with ThreadPoolExecutor(max(1, len(names))) as pool:
            booting = [pool.submit(self.node(name).start_runtime) for name in names]
            self.control_plane.wait_for_api()
            say("API server ready")
            self.control_plane.start_controllers()
            for name, boot in zip(names, booting, strict=True):
                boot.result()
                self.node(name).start_kubelet()
        for name in names:
            self.wait(self.node(name).ready, f"{name} Ready", 90)
        self.wait(self._usable, "service account of the default namespace", 30)

    def _start_services(self) -> None:
        """Starts the registries, the name server for pods, and the ports for this machine."""
        for registry in self.registries.values():
            registry.start(wait=False)
        program = str(Path(__file__).with_name("dns.py"))
        answers = NAMES | {SERVFAIL: "SERVFAIL", SILENT: "SILENCE"}
        pairs = [f"{name}={answer}" for name, answer in answers.items()]
        group = self.control_plane.group
        group.start("dns", [sys.executable, "-I", program, network.CONTROL_PLANE, *pairs])
        ports = self._state.ports
        rules = {ports[name]: registry.address for name, registry in self.registries.items()}
        rules |= {
            ports["api"]: f"{network.CONTROL_PLANE}:6443",
            ports["prometheus"]: "127.0.0.1:9090",
        }
        self.control_plane.start_forward("forward", rules)

    def _usable(self) -> bool:
        """Whether the service account exists. Without it the API server refuses every pod."""
        try:
            self.api.get("/api/v1/namespaces/default/serviceaccounts/default")
        except ApiError:
            return False
        return True

    # What every provider has

    @property
    def kubeconfig(self) -> Path:
        return self.control_plane.kubeconfig

    def program(self, name: str) -> Path:
        if name == "helm":
            return binaries.path(binaries.helm(), "helm")
        return self.control_plane.kubernetes.bin / name

    def push_layout(self, layout: Path, repository: str, *, registry: str = "open") -> str:
        return self.registries[registry].push(layout, repository)

    def logs(self) -> Iterator[Path]:
        yield from sorted(self._state.folder.glob("**/log/*.log"))

    # Nodes

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The real nodes, running or stopped, without the nodes of kwok."""
        return {name: self._node(name, record) for name, record in self._records().items()}

    def node(self, name: str) -> Node:
        records = self._records()
        if name not in records:
            known = ", ".join(records)
            raise ClusterError(f"cluster {self.name} has no node {name!r}: there is {known}")
        return self._node(name, records[name])

    def _node(self, name: str, record: state.NodeRecord) -> Node:
        return Node(name, record, self.control_plane, tuple(self.registries.values()), self.api)

    def _records(self) -> dict[str, state.NodeRecord]:
        """The current records of the file, because another process may have added a node."""
        return state.load(self.name).nodes

    def add_node(self, name: str, options: NodeOptions | None = None, *, wait: bool = True) -> Node:
        """Adds a new machine; with `wait`, waits until it is Ready."""
        self._record_node(name, options or NodeOptions())
        node = self.node(name)
        node.start()
        if wait:
            self.wait(node.ready, f"{name} Ready", 60)
        return node

    def remove_node(self, name: str, *, delete_object: bool = True) -> None:
        self.node(name).remove(delete_object=delete_object)
        with state.changed(self.name) as record:
            del record.nodes[name]

    def _record_node(self, name: str, options: NodeOptions) -> None:
        with state.changed(self.name) as record:
            if name in record.nodes:
                raise ClusterError(f"cluster {self.name} has a node {name!r} already")
            used = {each.index for each in record.nodes.values()}
            free = next(number for number in range(1, network.MAX_NODES) if number not in used)
            record.nodes[name] = state.NodeRecord(free, options)

    # On demand

    @cached_property
    def _kwok(self) -> Kwok:
        return Kwok(self.control_plane, self.api)

    def kwok(
        self,
        count: int,
        *,
        labels: Mapping[str, str] | None = None,
        pull_seconds: float = 2.0,
        zones: int = 3,
    ) -> list[str]:
        """Starts kwok and adds nodes; returns their names when all are Ready."""
        self._kwok.start(pull_seconds)
        return self._kwok.add(count, labels or {}, zones)

    def kwok_add(
        self, count: int, *, labels: Mapping[str, str] | None = None, zones: int = 3
    ) -> list[str]:
        return self._kwok.add(count, labels or {}, zones)

    def kwok_delete(self, names: Sequence[str]) -> None:
        self._kwok.delete(names)

    def kwok_stop(self) -> None:
        self._kwok.stop()

    def mirror(self, *, frozen: bool = False) -> Mirror:
        """A pull-through cache of the open registry, or with `frozen` a registry that serves only
        the images that were pushed to it. Nodes use it only after the test has configured them.
        """
        return Mirror(self.registries["open"], frozen=frozen)

    @cached_property
    def _prometheus(self) -> Prometheus:
        return Prometheus(self.control_plane, self._state.ports["prometheus"])

    def prometheus(self, scrape_configs: list[Json]) -> None:
        self._prometheus.start(scrape_configs)

    def prom_query(self, expression: str) -> list[dict[str, Any]]:
        return self._prometheus.query(expression)

    def audit(self) -> Iterator[Json]:
        return self.control_plane.audit()

    def forward(self, address: str, port: int) -> int:
        """A loopback port that forwards to an address in the cluster, until the cluster ends."""
        (chosen,) = ports.free(1, ports.CLUSTERS)
        self.control_plane.start_forward(f"forward-{chosen}", {chosen: f"{address}:{port}"})
        self.wait(lambda: _listening(chosen), f"port {chosen}", 10)
        return chosen

    def status(self) -> Json:
        """The running processes, with pids, ports and logs."""

        def processes(group: Group) -> Json:
            found = {name: group.find(name) for name in group.recorded()}
            return {
                name: dataclasses.asdict(process) if process else "dead"
                for name, process in found.items()
            }

        return {
            "name": self.name,
            "kubeconfig": str(self.kubeconfig),
            "ports": self._state.ports,
            "control-plane": processes(self.control_plane.group),
            "nodes": {name: processes(node.group) for name, node in self.nodes.items()},
            "processes": len(cgroups.processes(cleanup.cgroup(self.name))),
        }

    def status_text(self) -> str:
        return json.dumps(self.status(), indent=1)


def remove(name: str) -> None:
    """Removes the cluster of that name, in any state."""
    with paths.locked(f"cluster-{name}"), step(f"removing cluster {name}"):
        cleanup.remove(name)
    with contextlib.suppress(OSError):
        paths.state_root().rmdir()  # succeeds if this was the last cluster


def leftovers(name: str) -> list[str]:
    return cleanup.leftovers(name)


def _check_machine(options: ClusterOptions) -> None:
    if os.geteuid() != 0:
        raise ClusterError("the local provider makes namespaces and cgroups: run it as root")
    if missing := [tool for tool in TOOLS if not shutil.which(tool, path=paths.SYSTEM)]:
        script = paths.HERE / "install-debian.sh"
        raise ClusterError(f"missing: {', '.join(missing)}; run {script}")
    hidden = ("/run", "/var/run", "/var/lib", "/var/log", "/sys", "/proc")
    if any(state.folder(options.name).is_relative_to(each) for each in hidden):
        raise ClusterError(f"IMAGEGATE_STATE may not be below {', '.join(hidden)}")
    if options.nodes >= network.MAX_NODES:
        raise ClusterError(f"at most {network.MAX_NODES - 1} nodes; use kwok for more")


def allow_watchers() -> None:
    """Raise the kernel's limit of inotify instances. The default for a user is 128. A node needs 8
    and a control plane 9, so a few clusters with six nodes each need more. The kubelet changes
    other settings of the kernel in the same way. Where /proc/sys is read-only, the limit stays."""
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    with contextlib.suppress(OSError):
        if int(limit.read_text()) < INOTIFY_INSTANCES:
            limit.write_text(str(INOTIFY_INSTANCES))


def _listening(port: int) -> bool:
    """Whether a process listens on the port. Reads the kernel's table, because a test connection
    would reach the target."""
    local = f"0100007F:{port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[1] == local and row[3] == "0A" for row in rows)
