"""A node: network and mount namespaces with their own containerd, kubelet and kube-proxy."""

import datetime as dt
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import binaries, images
from tests.cluster.api import Api, ApiError, Json
from tests.cluster.errors import ClusterError
from tests.cluster.local import cgroups, network, nodefiles
from tests.cluster.local.controlplane import ControlPlane
from tests.cluster.local.events import ImageEvents
from tests.cluster.local.processes import Group, wait_until
from tests.cluster.local.registries import NAMES, Registry
from tests.cluster.local.state import NodeRecord

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
# The paths that each node has for itself, by bind mounts from its folder.
_OWN = ("run", "var/lib", "var/log", "etc/hosts")


@dataclass(frozen=True, slots=True)
class Node:
    """A node by its name. Its folder holds its disk, which outlives a stop or a reboot."""

    name: str
    record: NodeRecord
    control_plane: ControlPlane
    registries: Sequence[Registry]
    api: Api

    @property
    def folder(self) -> Path:
        return self.control_plane.folder.parent / "nodes" / self.name

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def etc(self) -> Path:
        return self.disk / "etc"

    @property
    def group(self) -> Group:
        top = self.control_plane.group.cgroup.rpartition("/")[0]
        flags = ("--net", "--mount", "--uts")
        return Group(self.folder, f"{top}/{self.name}", flags)

    @property
    def _containerd(self) -> binaries.Module:
        return binaries.containerd(self.record.options.containerd)

    @property
    def address(self) -> str:
        return network.node_address(self.record.index)

    @property
    def running(self) -> bool:
        return self.group.find("kubelet") is not None

    # Life

    def start(self) -> None:
        """Boots the node; does not wait until it is Ready. Does nothing if it runs."""
        if not self.running:
            self.start_runtime()
            self.start_kubelet()

    def start_runtime(self) -> None:
        """Starts namespaces and containerd, which need no API server."""
        cgroups.kill(
            self.group.cgroup
        )  # the remaining processes, if only some processes of the node ended
        self._write_files()
        self.group.hold(binaries.path(binaries.pause(), "pause"))
        network.connect_node(self.control_plane.group, self.group, self.record.index)
        self._mount()
        self._start_containerd()

    def start_kubelet(self) -> None:
        self._start_daemon("kubelet")
        self._start_daemon("kube-proxy")

    def stop(self) -> None:
        """Kills all processes of the node, as a power failure does. The Node object stays."""
        cgroups.kill(self.group.cgroup)
        network.disconnect_node(self.control_plane.group, self.record.index)

    def wipe(self) -> None:
        """Empties the disk of a stopped node, as an upgrade that re-images the machine. The Node
        object stays. The node returns with another boot id."""
        for folder in ("containerd", "kubelet"):
            shutil.rmtree(self.disk / "var" / "lib" / folder, ignore_errors=True)
        self._new_boot_id()

    def reboot(self) -> None:
        """Stops and starts the node with a new boot id; does not wait until it is Ready again."""
        self.stop()
        self._new_boot_id()
        self.start()

    def restart(self, daemon: str) -> None:
        """Restarts kubelet, containerd or kube-proxy; containers keep running."""
        if daemon not in ("kubelet", "containerd", "kube-proxy"):
            raise ClusterError(f"no daemon {daemon!r}: there is kubelet, containerd, kube-proxy")
        self.group.stop(daemon)
        if daemon == "containerd":
            self._start_containerd()
        else:
            self._start_daemon(daemon)

    def limit_bandwidth(self, rate: str | None) -> None:
        """Limits the node's network, so that a pull takes a known time: 300 MiB take 13 s with
        `200mbit`. None removes the limit, and so does a stop."""
        network.limit_bandwidth(self.control_plane.group, self.record.index, rate)

    def limit_disk(self, size: str) -> None:
        """Gives containerd an empty disk of this size (`16m`), until the node stops. Use it only
        for a node that has just joined, because its pods are lost with the old disk."""
        self.group.stop("containerd")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/var/lib/containerd"]
        network.run(self.group, mount)
        self.restart("containerd")

    def remove(self, *, delete_object: bool = True) -> None:
        """Removes the machine with its disk and, by default, its Node object."""
        self.stop()
        cgroups.remove(self.group.cgroup)
        shutil.rmtree(self.folder, ignore_errors=True)
        if delete_object:
            try:
                self.api.delete(f"/api/v1/nodes/{self.name}")
            except ApiError as error:
                if error.status != 404:
                    raise

    # State in Kubernetes

    def object(self) -> Json:
        return self.api.get(f"/api/v1/nodes/{self.name}")

    def ready(self) -> bool:
        """Whether the node is Ready in this boot and by the running kubelet.

        The condition alone is not enough, because a stopped node keeps its conditions for 50 s, and
        a restarted kubelet does not write an unchanged status. But the kubelet renews the node's
        Lease immediately.
        """
        try:
            status, lease = self.object()["status"], self.api.get(f"{_LEASES}/{self.name}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
        started = self._kubelet_start()
        return (
            conditions.get("Ready") == "True"
            and status["nodeInfo"]["bootID"] == self.boot_id()
            and started is not None
            and dt.datetime.fromisoformat(lease["spec"]["renewTime"]) >= started
        )

    def _kubelet_start(self) -> dt.datetime | None:
        if not self.running:
            return None
        written = (self.folder / "run" / "kubelet.json").stat().st_mtime
        return dt.datetime.fromtimestamp(written, dt.UTC)

    def boot_id(self) -> str:
        return (self.folder / "boot_id").read_text().strip()

    # State in containerd

    def ctr(self, *args: str) -> str:
        done = subprocess.run(self.ctr_command(*args), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"ctr {' '.join(args)} on {self.name}: {done.stderr.strip()}")
        return done.stdout

    def ctr_command(self, *args: str) -> list[str]:
        """The command line of ctr. It runs outside the node, because the socket is on the disk."""
        socket = self.disk / nodefiles.SOCKET.lstrip("/")
        program = binaries.path(self._containerd, "ctr")
        return [str(program), f"--address={socket}", "--namespace=k8s.io", *args]

    def images(self) -> set[str]:
        """The names of images in containerd, also `name@digest` and bare digests."""
        return set(self.ctr("images", "ls", "-q").split())

    def has_image(self, reference: str) -> bool:
        return reference in self.images()

    def remove_image(self, *references: str) -> set[str]:
        """Removes all names and the content of images, as kubelet's garbage collection does. The
        result is their digests."""
        rows = [line.split() for line in self.ctr("images", "ls").splitlines()[1:]]
        digests = {row[2] for row in rows if row[0] in references}
        if names := [row[0] for row in rows if row[2] in digests]:
            self.ctr("images", "rm", "--sync", *names)
        return digests

    def image_events(self, path: Path) -> ImageEvents:
        """Records containerd's image events to a file until closed (a context manager)."""
        return ImageEvents(self.ctr_command("events"), path)

    # Files and daemons

    def _write_files(self) -> None:
        shutil.rmtree(self.disk / "run", ignore_errors=True)  # /run does not survive a boot
        folders = [self.disk / each for each in _OWN if each != "etc/hosts"]
        for folder in [*folders, self.etc / "cni"]:
            folder.mkdir(parents=True, exist_ok=True)
        for registry in self.registries:
            for host, toml in registry.hosts_files().items():
                (self.etc / "certs.d" / host).mkdir(parents=True, exist_ok=True)
                (self.etc / "certs.d" / host / "hosts.toml").write_text(toml)
        cgroup, options = self.group.cgroup, self.record.options
        authority = self.control_plane.authority
        shim = binaries.path(self._containerd, "containerd-shim-runc-v2")
        write = {
            "containerd.toml": nodefiles.containerd_toml(self.etc, cgroup, shim, options),
            "cni/10-pods.conflist": nodefiles.cni_conflist(self.record.index),
            "kubelet.yaml": nodefiles.kubelet_yaml(
                self.etc, authority.folder, self.name, cgroup, options
            ),
            "resolv.conf": f"nameserver {network.CONTROL_PLANE}\n",
            "hosts": nodefiles.hosts(self.name, NAMES),
        }
        for file, text in write.items():
            (self.etc / file).write_text(text)
        if not (self.folder / "boot_id").exists():
            self._new_boot_id()
            self._issue_certificates()

    def _issue_certificates(self) -> None:
        authority = self.control_plane.authority
        server = f"https://{network.CONTROL_PLANE}:6443"
        kubelet = authority.issue(
            f"node-{self.name}",
            f"system:node:{self.name}",
            ["system:nodes"],
            [self.name],
            [self.address],
        )
        authority.kubeconfig(self.folder / "kubelet.kubeconfig", server, kubelet)
        proxy = authority.issue(f"proxy-{self.name}", "system:kube-proxy")
        authority.kubeconfig(self.folder / "kube-proxy.kubeconfig", server, proxy)

    def _new_boot_id(self) -> None:
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")

    def _mount(self) -> None:
        """Mounts the node's folders in its mount namespace, which ends with its last process.

        The mounts are shared, because kubelet needs mount propagation into containers. They are in
        their own peer group, because the holder has made the namespace private before.
        """
        binds = [f"mount --bind {self.disk / own} /{own}" for own in _OWN]
        # If /etc/resolv.conf is a link to a file below /run, the bind mount of /run hides the file.
        names = f"""
            target=$(readlink -m /etc/resolv.conf)
            [ -e "$target" ] || install -D /dev/null "$target"
            mount --bind {self.etc / "resolv.conf"} "$target"
            """
        script = "\n".join(["mount --make-rshared /", *binds, names, f"hostname {self.name}"])
        network.run(self.group, ["sh", "-eu", "-s"], stdin=script)

    def _start_containerd(self) -> None:
        program = str(binaries.path(self._containerd, "containerd"))
        config = str(self.etc / "containerd.toml")
        process = self.group.start("containerd", [program, "--config", config])
        wait_until(self._import_sandbox, f"containerd on {self.name}", 30, [process])

    def _import_sandbox(self) -> bool:
        """Imports the image of the sandbox container. Returns False while containerd starts."""
        try:
            if nodefiles.SANDBOX_IMAGE not in self.images():
                with tempfile.NamedTemporaryFile() as file:
                    tar = images.archive(
                        images.build("pause"), nodefiles.SANDBOX_IMAGE, Path(file.name)
                    )
                    self.ctr("images", "import", str(tar))
        except ClusterError:
            return False
        return True

    def _start_daemon(self, name: str) -> None:
        flags = [
            f"--kubeconfig={self.folder / name}.kubeconfig",
            f"--hostname-override={self.name}",
        ]
        if name == "kubelet":
            labels = ",".join(f"{key}={value}" for key, value in self.record.options.labels.items())
            flags += [
                f"--config={self.etc / 'kubelet.yaml'}",
                f"--node-ip={self.address}",
                f"--boot_id_file={self.folder / 'boot_id'}",
                f"--node-labels={labels}",
            ]
        else:
            # Do not set the size of the conntrack table, because it applies to the whole machine.
            flags += ["--proxy-mode=iptables", "--conntrack-max-per-core=0"]
            flags += [f"--cluster-cidr={network.PODS}"]
        flags += self.control_plane.extra_args.get(name, ())
        own = self.record.options.kubernetes
        kubernetes = binaries.kubernetes(own) if own else self.control_plane.kubernetes
        self.group.start(name, [str(binaries.path(kubernetes, name)), *flags])
