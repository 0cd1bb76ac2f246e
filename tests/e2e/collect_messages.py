"""Records real error messages of failed pulls: `python -m tests.e2e.collect_messages`.

Starts a cluster, makes one pod fail at each kind of fault, and writes the kubelet's `state.waiting`
to `tests/unit/domain/messages/`, where `test_messages.py` reads it.

CRI-O itself does not run here. skopeo uses the same image library, so skopeo meets the same faults,
and its messages are wrapped as CRI-O's source wraps them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import ClusterOptions, NodeOptions, binaries, paths, start_cluster
from tests.cluster.local import faulty, network
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.local.node import Node

FOLDER = Path(__file__).parents[1] / "unit" / "domain" / "messages"
STATUSES = (401, 403, 404, 429, 500, 502, 503, 504)
BREAKS: tuple[faulty.Kind, ...] = ("reset", "stall", "truncated", "corrupt")
NAMES = {
    "tls-untrusted": faulty.UNTRUSTED,
    "tls-mismatch": faulty.MISMATCH,
    "tls-plain-http": f"{faulty.PLAIN}:80",
    "refused": faulty.REFUSED,
    "unroutable": faulty.UNROUTABLE,
    "dns-nxdomain": faulty.UNRESOLVABLE,
    "dns-servfail": faulty.SERVFAIL,
    "dns-silent": faulty.SILENT,
}
BEARER = {
    "WWW-Authenticate": f'Bearer realm="http://{faulty.HOST}/token",service="test"',
}
FAILING = {
    "ErrImagePull",
    "ImageInspectError",
    "InvalidImageName",
    "RegistryUnavailable",
    "SignatureValidationFailed",
}
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}"]},
}
PROGRESS_TIMEOUT = "10s"
"""containerd cancels a stalled pull after this time. Its default is 5 minutes."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pod's `state.waiting`, at the failure and later in the kubelet's back-off."""

    fault: str
    image: str
    reason: str = ""
    message: str = ""
    back_off: str = ""


def prepare(cluster: LocalCluster) -> dict[str, str]:
    """Sets all faults, each for its own repository. Returns the images to pull, by fault."""
    registry = cluster.faulty
    images: dict[str, str] = {}

    def push(name: str, image: str = "tiny") -> str:
        seed = 900 + len(images)
        images[name] = cluster.push(image, f"faults/{name}:1", registry="faulty", seed=seed)
        return f"faults/{name}"

    for status in STATUSES:
        for operation in ("manifest", "blob"):
            repository = push(f"{operation}-{status}")
            registry.fault(status, repository=repository, operation=operation)
    for status in (200, 401, 403, 429, 503):  # 200: the token grants no access
        repository = push(f"token-{status}")
        registry.fault(401, repository=repository, operation="manifest", headers=BEARER)
        if status != 200:
            registry.fault(status, repository=repository, operation="token")
    for kind in BREAKS:
        registry.fault(kind, repository=push(f"manifest-{kind}"), operation="manifest")
        # containerd 2.4 tracks the progress of a download only after its first MiB. It never
        # cancels a download that stalls earlier.
        image, after = ("medium", 16 << 20) if kind == "stall" else ("tiny", 4096)
        repository = push(f"layer-{kind}", image)
        registry.fault(kind, repository=repository, operation="blob", after_bytes=after)
    images |= {name: f"{host}/faults/{name}:1" for name, host in NAMES.items()}
    images["no-tag"] = f"open.registry.test/{push('there')}:missing"
    del images["there"]
    images["no-repository"] = "open.registry.test/faults/nowhere:1"
    images["no-credentials"] = cluster.push("tiny", "faults/secret:1", registry="secure")
    images["no-platform"] = cluster.push("foreign", "faults/foreign:1")
    images["invalid-name"] = "open.registry.test/Faults/UPPER:1"
    return images


def pod(name: str, node: str, image: str, *, volume: bool) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "main", "image": image, "imagePullPolicy": "Always"}
    spec: dict[str, Any] = {
        "nodeName": node,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
    }
    if volume:
        container |= {"image": "imagegate.test/pause:1", "imagePullPolicy": "Never"}
        container["volumeMounts"] = [{"name": "image", "mountPath": "/image"}]
        spec["volumes"] = [{"name": "image", "image": {"reference": image}}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def collect(
    cluster: LocalCluster, node: str, images: dict[str, str], *, volume: bool, timeout: float = 150
) -> list[Waiting]:
    """Starts one pod for each image, all at once, and waits until each is in back-off."""
    cluster.apply(
        *(pod(f"{node}-{name}", node, image, volume=volume) for name, image in images.items())
    )
    found = {name: Waiting(name, image) for name, image in images.items()}
    end = time.monotonic() + timeout
    while time.monotonic() < end and not all(each.message for each in found.values()):
        _look(cluster, node, found)
        time.sleep(0.1)
    end = time.monotonic() + 30
    while time.monotonic() < end and not all(each.back_off for each in found.values()):
        _look(cluster, node, found)
        time.sleep(0.1)
    pods = cluster.api.get("/api/v1/namespaces/default/pods")["items"]
    cluster.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
    for name in [name for name, each in found.items() if not each.message]:
        status = next(p["status"] for p in pods if p["metadata"]["name"] == f"{node}-{name}")
        print(f"NOT FAILED: {name}: {status}")
        del found[name]
    return list(found.values())


def _look(cluster: LocalCluster, node: str, found: dict[str, Waiting]) -> None:
    for item in cluster.api.get("/api/v1/namespaces/default/pods")["items"]:
        name = item["metadata"]["name"].removeprefix(f"{node}-")
        if name not in found:
            continue
        statuses = item["status"].get("containerStatuses") or [{}]
        waiting = (statuses[0].get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        seen = found[name]
        if reason in FAILING and not seen.message:
            found[name] = Waiting(name, seen.image, reason, message, seen.back_off)
        elif reason == "ImagePullBackOff" and not seen.back_off:
            found[name] = Waiting(name, seen.image, seen.reason, seen.message, message)


def containerd(cluster: LocalCluster, images: dict[str, str], version: str) -> list[Waiting]:
    volume = not version
    quick = {"serializeImagePulls": False, "registryPullQPS": 0}
    options = NodeOptions(containerd=version, kubelet=quick, pull_progress_timeout=PROGRESS_TIMEOUT)
    name = f"messages-{version.replace('.', '-') or 'new'}"
    cluster.add_node(name, options)
    found = collect(cluster, name, images, volume=volume)
    cluster.remove_node(name)
    full = cluster.push("medium", "faults/full:1", seed=900)
    for case, size in (("disk-full-content", "16m"), ("disk-full-unpack", "48m")):
        eviction = {"imagefs.available": "0%", "imagefs.inodesFree": "0%"}
        options = NodeOptions(containerd=version, kubelet={"evictionHard": eviction})
        node = cluster.add_node(f"{name}-{size}", options)
        node.limit_disk(size)
        found += collect(cluster, node.name, {case: full}, volume=volume)
        cluster.remove_node(node.name)
    if not version:
        limited = {"serializeImagePulls": False, "registryPullQPS": 1, "registryBurst": 1}
        cluster.add_node(f"{name}-qps", NodeOptions(kubelet=limited))
        several = {f"qps-{n}": f"open.registry.test/faults/nowhere:{n}" for n in range(4)}
        found += [
            Waiting("kubelet-qps", each.image, each.reason, each.message, each.back_off)
            for each in collect(cluster, f"{name}-qps", several, volume=volume)
            if "QPS" in each.message
        ][:1]
        cluster.remove_node(f"{name}-qps")
    return found


def odd(cluster: LocalCluster) -> list[Waiting]:
    """Faults that need special images, and refusals by a node or its site: containerd 2.4."""
    registry = cluster.registries["open"]
    config = ("application/vnd.oci.image.config.v1+json", json.dumps(CONFIG).encode())
    layer = "application/vnd.oci.image.layer.v1.tar"
    chart = "application/vnd.cncf.helm"
    images = {
        "artifact": registry.push_manifest(
            "odd/chart:1",
            (f"{chart}.config.v1+json", b'{"name": "chart", "version": "1"}'),
            (f"{chart}.chart.content.v1.tar+gzip", gzip.compress(b"a chart")),
        ),
        "unknown-compression": registry.push_manifest(
            "odd/lz4:1", config, (f"{layer}+lz4", b"\x04\x22\x4d\x18" + b"x" * 5000)
        ),
        "damaged-tar": registry.push_manifest(
            "odd/tar:1", config, (f"{layer}+gzip", gzip.compress(b"no tar at all" * 999))
        ),
        "encrypted": registry.push_manifest(
            "odd/encrypted:1", config, (f"{layer}+gzip+encrypted", b"secret" * 999)
        ),
    }
    for fault, content_type in (
        ("web-page", "text/html"),
        ("schema-1", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ):
        repository = f"odd/{fault}"
        images[fault] = cluster.push("tiny", f"{repository}:1", registry="faulty", seed=990)
        headers = {"Content-Type": content_type}
        cluster.faulty.fault(200, repository=repository, operation="manifest", headers=headers)
    name = "messages-odd"
    cluster.add_node(name, NodeOptions(kubelet={"serializeImagePulls": False}))
    found = collect(cluster, name, images, volume=True, timeout=60)
    # containerd 2.4 mounts an artifact like any image, so the artifact volume does not fail.
    del images["artifact"]
    as_container = collect(cluster, name, images, volume=False, timeout=60)
    found += [dataclasses.replace(each, fault=f"{each.fault}-container") for each in as_container]
    cluster.remove_node(name)
    return [*found, *_verifier(cluster), *_proxy(cluster), *_failing_disk(cluster)]


def _verifier(cluster: LocalCluster) -> list[Waiting]:
    """containerd's image verifier refuses the image. The verifier is installed after the import of
    the sandbox image."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        plugin = 'plugins."io.containerd.image-verifier.v1.bindir"'
        toml = f'[{plugin}]\n  bin_dir = "{folder}"\n'
        node = cluster.add_node("messages-verifier", NodeOptions(containerd_toml=toml))
        refuses = Path(folder, "refuses")
        refuses.write_text("#!/bin/sh\necho not signed by anybody\nexit 1\n")
        refuses.chmod(0o755)
        image = cluster.push("tiny", "odd/unsigned:1", seed=991)
        found = collect(cluster, node.name, {"verifier": image}, volume=True, timeout=60)
        cluster.remove_node(node.name)
    return found


def _proxy(cluster: LocalCluster) -> list[Waiting]:
    """An HTTPS proxy refuses CONNECT, each time with another status."""
    found = []
    for number, status in enumerate((403, 407, 502)):
        port = 3128 + number
        program = (
            "import http.server as h\n"
            "class P(h.BaseHTTPRequestHandler):\n"
            f"    def do_CONNECT(self): self.send_error({status})\n"
            f"h.ThreadingHTTPServer(('{network.CONTROL_PLANE}', {port}), P).serve_forever()\n"
        )
        cluster.control_plane.group.start(f"proxy-{status}", [sys.executable, "-Ic", program])
        node = cluster.add_node(f"messages-proxy-{status}")
        node.group.stop("containerd")
        containerd = binaries.path(binaries.containerd(""), "containerd")
        proxy = f"HTTPS_PROXY=http://{network.CONTROL_PLANE}:{port}"
        command = ["env", proxy, str(containerd), "--config", str(node.etc / "containerd.toml")]
        node.group.start("containerd", command)
        images = {f"proxy-connect-{status}": f"{faulty.UNTRUSTED}/odd/proxy:1"}
        found += collect(cluster, node.name, images, volume=True, timeout=60)
        cluster.remove_node(node.name)
        cluster.control_plane.group.stop(f"proxy-{status}")
    return found


def _failing_disk(cluster: LocalCluster) -> list[Waiting]:
    """The kernel sets the file system read-only during a pull, as after an I/O error.

    The file system is ext4 on a loop device. `remount,abort` has the same effect as an error of
    the device.
    """
    name = "messages-disk"
    node = cluster.add_node(name)
    image = cluster.push("medium", "odd/disk:1", seed=992)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        device = f"{folder}/disk"
        node.group.stop("containerd")
        script = (
            f"truncate -s 1g {device}; mkfs.ext4 -q {device};"
            f" mount -o loop,errors=remount-ro {device} /var/lib/containerd"
        )
        network.run(node.group, ["sh", "-euc", script])
        node.restart("containerd")
        node.limit_bandwidth("20mbit")

        def fail() -> None:
            end = time.monotonic() + 60
            while time.monotonic() < end and not _pulling(cluster, name):
                time.sleep(0.2)
            time.sleep(2)
            network.run(node.group, ["mount", "-o", "remount,abort", "/var/lib/containerd"])

        failing = threading.Thread(target=fail)
        failing.start()
        found = collect(cluster, name, {"disk-read-only": image}, volume=True, timeout=120)
        failing.join()
        cluster.remove_node(name)
    return found


def _pulling(cluster: LocalCluster, node: str) -> bool:
    events = cluster.api.get("/api/v1/namespaces/default/events")["items"]
    return any(
        event["reason"] == "Pulling" and event["involvedObject"]["name"].startswith(node)
        for event in events
    )


def crio(cluster: LocalCluster, images: dict[str, str]) -> list[Waiting]:
    """skopeo's messages, wrapped as CRI-O 1.32 and later wraps them. skopeo runs on a node, where
    the registry names resolve.

    server/image_pull.go: `RegistryUnavailable: …` if ECONNREFUSED is in the error chain; internal/
    storage/image.go: `unable to pull image or OCI artifact: pull image err: …; artifact err: …`.
    The kubelet makes a separate reason of the first (image_manager.go, evalCRIPullErr).
    """
    node = cluster.add_node("messages-crio")
    found: list[Waiting] = []
    for name, image in images.items():
        if name.startswith("token"):
            continue  # the library expects the challenge at /v2/, where this registry sends none
        words = _skopeo(node, image)
        if not words:
            print(f"NOT FAILED: {name}")
            continue
        artifact = re.sub(r"^initializing source docker://\S+ ", "build image source: ", words)
        message = (
            f"unable to pull image or OCI artifact: pull image err: {words};"
            f" artifact err: get manifest: {artifact}"
        )
        reason = "ErrImagePull"
        if "connection refused" in words:
            reason = "RegistryUnavailable"
            message = (
                f"image pull failed for {image} because the registry is unavailable: {message}"
            )
        back_off = f'Back-off pulling image "{image}": {reason}: {message}'
        found.append(Waiting(name, image, reason, message, back_off))
    cluster.remove_node(node.name)
    return found


def _skopeo(node: Node, image: str) -> str:
    """The error message without skopeo's prefix; empty if the copy succeeded."""
    secure = any(host in image for host in (faulty.UNTRUSTED, faulty.MISMATCH, faulty.PLAIN))
    command = [
        paths.system("skopeo"),
        "--insecure-policy",
        "--command-timeout=20s",
        "copy",
        "--quiet",
    ]
    command += [f"--src-tls-verify={str(secure).lower()}", f"docker://{image}", "dir:/run/skopeo"]
    done = subprocess.run(node.group.enter(command), capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    found = re.search(r'level=fatal msg=(".*")', last)
    words = str(json.loads(found[1])) if found else last
    return words.removeprefix("copying image: ").removeprefix("Error ")


def write(file: str, about: str, found: list[Waiting]) -> None:
    FOLDER.mkdir(exist_ok=True)
    content = {
        "about": about,
        "messages": [
            {
                "fault": each.fault,
                "image": each.image,
                "reason": each.reason,
                "message": each.message,
                "back_off": each.back_off,
            }
            for each in sorted(found, key=lambda each: each.fault)
        ],
    }
    (FOLDER / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"{file}: {len(found)} messages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="imagegate-messages", help="of the cluster")
    parser.add_argument("runtimes", nargs="*", default=["2.4", "1.7", "odd", "crio"])
    options = parser.parse_args()
    kubelet = "kubelet 1.36 in a pod's state.waiting"
    with start_cluster(ClusterOptions(name=options.name, nodes=1)) as cluster:
        images = prepare(cluster)
        runs: dict[str, Callable[[], None]] = {
            "2.4": lambda: write(
                "containerd-2.4.json",
                f"recorded: containerd 2.4 and {kubelet}, image volumes",
                containerd(cluster, images, ""),
            ),
            "1.7": lambda: write(
                "containerd-1.7.json",
                f"recorded: containerd 1.7 and {kubelet}, images of containers",
                containerd(cluster, images, "1.7"),
            ),
            "odd": lambda: write(
                "odd.json",
                f"recorded: containerd 2.4 and {kubelet}, image volumes",
                odd(cluster),
            ),
            "crio": lambda: write(
                "crio.json",
                "derived: the words of skopeo 1.9 (containers/image 5.22) are recorded; around them"
                " are those of CRI-O 1.32 and later and of the kubelet, as their sources have them",
                crio(cluster, images),
            ),
        }
        for runtime in options.runtimes:
            runs[runtime]()


if __name__ == "__main__":
    main()
