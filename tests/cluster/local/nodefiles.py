"""The configuration files of a node: containerd, CNI, kubelet. Pure functions that return texts.

A node has its own mount namespace with its own /run, /var/lib, /var/log and /etc/hosts, so programs
keep their default paths if possible.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import paths
from tests.cluster.local import network
from tests.cluster.provider import NodeOptions

SANDBOX_IMAGE = "imagegate.test/pause:1"
SOCKET = "/run/containerd/containerd.sock"


def containerd_toml(etc: Path, cgroup: str, shim: Path, options: NodeOptions) -> str:
    """`pinned_images` protects the sandbox image from kubelet's garbage collection. `shim` is the
    full path of the same containerd's shim, because a bare name would select the first on PATH."""
    runc = paths.system("runc")
    if options.containerd == "1.7":
        return _containerd_1_7_toml(etc, cgroup, shim, options)
    return f"""\
version = 3
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  image_pull_progress_timeout = "{options.pull_progress_timeout}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{SANDBOX_IMAGE}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{etc}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
    conf_dir = "{etc}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = "{shim}"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "{runc}"
      ShimCgroup = "/{cgroup}/daemons"
{options.containerd_toml}
"""


def _containerd_1_7_toml(etc: Path, cgroup: str, shim: Path, options: NodeOptions) -> str:
    """The same settings in the older format, with one plugin for all of CRI."""
    runc = paths.system("runc")
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
[{cri}]
  sandbox_image = "{SANDBOX_IMAGE}"
  image_pull_progress_timeout = "{options.pull_progress_timeout}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [{cri}.registry]
    config_path = "{etc}/certs.d"
  [{cri}.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{etc}/cni"
  [{cri}.containerd]
    snapshotter = "overlayfs"
  [{cri}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = "{shim}"
    [{cri}.containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "{runc}"
      ShimCgroup = "/{cgroup}/daemons"
{options.containerd_toml}
"""


def cni_conflist(index: int) -> str:
    subnet = network.pod_subnet(index)
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/var/lib/cni/networks",
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    conflist = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, portmap]}
    return json.dumps(conflist, indent=1)


def kubelet_yaml(etc: Path, pki: Path, name: str, cgroup: str, options: NodeOptions) -> str:
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"node-{name}.crt"),
        "tlsPrivateKeyFile": str(pki / f"node-{name}.key"),
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [network.CONTROL_PLANE],
        "clusterDomain": "cluster.local",
        "resolvConf": str(etc / "resolv.conf"),
        # Low thresholds, because the disks of CI machines are nearly full and the tests are not
        # about kubelet's eviction.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        # localStorageCapacityIsolation stays on. Without it cAdvisor has no file system statistics,
        # so there is no image garbage collection, no eviction and no /stats/summary.
        "registerWithTaints": [_taint(text) for text in options.register_with_taints],
    }
    return yaml.safe_dump(_merged(config, options.kubelet))


def hosts(name: str, registries: dict[str, str]) -> str:
    lines = ["127.0.0.1 localhost", f"127.0.1.1 {name}"]
    return "\n".join(lines + [f"{address} {host}" for host, address in registries.items()]) + "\n"


def _taint(text: str) -> dict[str, str]:
    pair, _, effect = text.rpartition(":")
    key, _, value = pair.partition("=")
    return {"key": key, "value": value, "effect": effect}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result
