"""Machines with a kubelet and a container runtime, and their registry.

A kubelet pulls one image at a time. A pull continues when its pod is deleted, and ends when the
machine loses power. All timestamps of a kubelet are by its machine's clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

from imagegate.domain.disk import Usage
from imagegate.domain.facts import Node as NodeFacts
from tests.simulation.apiserver import ApiServer, Body, timestamp
from tests.simulation.loop import elapsed

HEARTBEAT = 300.0
IMAGES_LISTED_AFTER = (10.0, 70.0)
NAMES = 5
"""Names of one image in ``status.images`` (the kubelet's MaxNamesPerImageInNodeStatus)."""
GB = 10**9
DISK = 100 * GB


@dataclass(slots=True)
class Registry:
    """The digests of the tags, and whether the registry answers."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Compressed bytes by digest."""
    tags: dict[str, str] = field(default_factory=dict)
    """Digest by ``repository:tag``; absent: no such image."""
    down: bool = False
    mute: bool = False
    """Whether the operator's requests get no answer at all."""

    def digest(self, reference: str) -> str | None:
        name, at, digest = reference.partition("@")
        if at:
            return digest
        return self.tags.get(name)

    def size(self, reference: str) -> int:
        return self.sizes.get(self.digest(reference) or "", GB)

    def push(self, tag: str, content: str, size: int) -> None:
        digest = self.tags[tag] = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
        self.sizes[digest] = size


@dataclass(slots=True)
class Machine:
    """The real state of the machine that has a Node's name now."""

    name: str
    uid: str = ""
    boot: int = 1
    skew: float = 0.0
    link: float = 50e6
    """Bytes a second."""
    on: bool = True
    connected: bool = True
    stalled: bool = False
    fails: str = ""
    """The message with which every pull on it fails; empty: pulls work."""
    spelled: bool = False
    """Whether its runtime lists other image names than the spec."""
    loses_events: float = 0.0
    images: dict[str, str] = field(default_factory=dict)
    """Its images: reference as pulled -> digest."""
    used: int = 10 * GB
    ready_at: float | None = None
    """When it was first Ready in this boot."""
    pulling: dict[str, str] = field(default_factory=dict)
    """Running pulls: reference -> uid of the pod."""
    port_dropped: bool = False
    wiped_at: float = -1e9
    """When images were last removed."""

    @property
    def identity(self) -> str:
        return f"{self.uid}/boot-{self.boot}"

    @property
    def alive(self) -> bool:
        return self.on and self.connected


class Kubelet:
    """The kubelet and the runtime of one machine."""

    def __init__(
        self, server: ApiServer, registry: Registry, machine: Machine, rng: random.Random
    ) -> None:
        self.machine = machine
        self._server, self._registry, self._rng = server, registry, rng
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pods: dict[str, asyncio.Task[Any]] = {}
        self._serial = asyncio.Lock()
        self._dirty = False

    @property
    def actor(self) -> str:
        return f"kubelet/{self.machine.name}"

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- start and end

    def join(self, labels: dict[str, str], late_labels: dict[str, str] | None = None) -> None:
        """Register, and be Ready some seconds later."""
        machine = self.machine
        body = {
            "metadata": {
                "name": machine.name,
                "labels": {"kubernetes.io/hostname": machine.name, **labels},
                "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
            },
            "spec": {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]},
            "status": self._status(ready=False),
        }
        made = self._server.do(self.actor, "POST", "nodes", ("", machine.name), body)
        if made is None:
            return
        machine.uid = made["metadata"]["uid"]
        self._spawn(self._boot(late_labels))

    async def _boot(self, late_labels: dict[str, str] | None = None) -> None:
        await asyncio.sleep(self._rng.uniform(3, 20))
        if late_labels:
            self._server.change("cloud", "nodes", ("", self.machine.name), _labelled(late_labels))
        if not self.machine.alive:
            return
        self.machine.ready_at = elapsed()
        self._write(ready=True, changed=True)
        self._server.change(
            "node-controller", "nodes", ("", self.machine.name), _untainted("node.kubernetes.io/")
        )
        self._spawn(self._beat())
        for pod in self._server.all("pods"):
            if pod["spec"].get("nodeName") == self.machine.name:
                self.sees(pod)

    async def _beat(self) -> None:
        boot = self.machine.boot
        while self.machine.on and self.machine.boot == boot:
            await asyncio.sleep(HEARTBEAT * self._rng.uniform(0.95, 1.05))
            if self.machine.alive and self.machine.boot == boot:
                self._write(ready=True)

    def power_off(self) -> None:
        """All its work ends, without any report."""
        self.machine.on = False
        self.machine.pulling.clear()
        for task in list(self._tasks):
            task.cancel()
        self._pods.clear()
        self._serial = asyncio.Lock()

    def power_on(self) -> None:
        """A reboot: the disk is as it was."""
        self.power_off()
        self.machine.on = True
        self.machine.boot += 1
        self.machine.ready_at = None
        self._write(ready=False, changed=True)
        self._spawn(self._boot())

    def reconnect(self) -> None:
        self.machine.connected = True
        if self.machine.ready_at is None:  # it has booted without the API server
            self._spawn(self._boot())
            return
        self._write(ready=True, changed=True)
        for name in list(self._pods):
            if self._server.get("pods", name.partition("/")[2], name.partition("/")[0]) is None:
                self._pods.pop(name).cancel()
        for pod in self._server.all("pods"):
            if pod["spec"].get("nodeName") == self.machine.name:
                self.sees(pod)

    def collect(self, references: set[str]) -> None:
        """The runtime removes images: an image goes with all its names."""
        gone = {self.machine.images.get(reference) for reference in references}
        for reference in [name for name, digest in self.machine.images.items() if digest in gone]:
            digest = self.machine.images.pop(reference)
            if digest not in self.machine.images.values():
                size = self._registry.sizes.get(digest, GB)
                self.machine.used = max(10 * GB, self.machine.used - int(3.5 * size))
        self.machine.wiped_at = elapsed()
        self._relist()

    # ---- its Node

    def _status(self, *, ready: bool) -> Body:
        machine, now = self.machine, timestamp(self.machine.skew)
        return {
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
            "nodeInfo": {
                "bootID": f"boot-{machine.boot}",
                "kubeletVersion": "v1.36.0",
                "containerRuntimeVersion": "containerd://2.4.0",
                "operatingSystem": "linux",
                "architecture": "amd64",
            },
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "capacity": {"ephemeral-storage": "100Gi"},
            "images": self._images(),
        }

    def _images(self) -> list[Body]:
        """Digests first, five names at most, as the kubelet lists them."""
        by_digest: dict[str, set[str]] = {}
        for reference, digest in self.machine.images.items():
            repository = reference.partition("@")[0].rpartition(":")[0]
            by_digest.setdefault(digest, set()).add(f"{repository}@{digest}")
            if "@" not in reference:
                by_digest[digest].add(reference)
        listed: list[Body] = []
        for digest, names in by_digest.items():
            ordered = sorted(names, key=lambda name: ("@" not in name, name))
            if self.machine.spelled:
                ordered = [name.replace("registry.test/", "mirror.test/") for name in ordered]
            size = self._registry.sizes.get(digest, GB)
            listed.append({"names": ordered[:NAMES], "sizeBytes": size})
        listed.append(
            {
                "names": ["registry.test/pause@sha256:0", "registry.test/pause:3"],
                "sizeBytes": 300_000,
            }
        )
        return sorted(listed, key=lambda image: -int(image["sizeBytes"]))[:50]

    def _write(self, *, ready: bool, changed: bool = False) -> None:
        def edit(body: Body) -> None:
            if body["metadata"]["uid"] != self.machine.uid:
                return
            old = {c["type"]: c for c in body["status"].get("conditions", [])}.get("Ready", {})
            body["status"] = self._status(ready=ready)
            fresh = body["status"]["conditions"][0]
            if not changed or old.get("status") == fresh["status"]:
                fresh["lastTransitionTime"] = old.get(
                    "lastTransitionTime", fresh["lastTransitionTime"]
                )

        self._server.change(self.actor, "nodes", ("", self.machine.name), edit)
        if ready:
            node = self._server.get("nodes", self.machine.name)
            taints = (node or {}).get("spec", {}).get("taints", [])
            if any(t["key"].startswith("node.kubernetes.io/") for t in taints):
                self._server.change(
                    "node-controller",
                    "nodes",
                    ("", self.machine.name),
                    _untainted("node.kubernetes.io/"),
                )

    def _relist(self) -> None:
        if not self._dirty and self.machine.on:
            self._dirty = True
            self._spawn(self._list_images())

    async def _list_images(self) -> None:
        try:
            await asyncio.sleep(self._rng.uniform(*IMAGES_LISTED_AFTER))
        finally:
            self._dirty = False
        if self.machine.alive and self.machine.ready_at is not None:
            self._write(ready=True)

    # ---- its pods

    def sees(self, pod: Body) -> None:
        """A pod of this node was created, or has changed."""
        if not self.machine.alive or self.machine.ready_at is None:
            return
        metadata = pod["metadata"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        task = self._pods.get(key)
        if "deletionTimestamp" in metadata:
            if task is not None:
                task.cancel()
            self._spawn(self._end(pod))
        elif task is None and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            self._pods[key] = self._spawn(self._run(key, pod))

    async def _end(self, pod: Body) -> None:
        await asyncio.sleep(self._rng.uniform(0.2, 2.0))
        metadata = pod["metadata"]
        self._pods.pop(f"{metadata['namespace']}/{metadata['name']}", None)
        if self.machine.alive:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
            self._server.do(
                self.actor, "DELETE", "pods", (metadata["namespace"], metadata["name"]), options
            )

    async def _run(self, key: str, pod: Body) -> None:
        await asyncio.sleep(self._rng.uniform(0.1, 1.0))
        wanted = [volume["image"] for volume in pod["spec"].get("volumes", []) if "image" in volume]
        back_off = 10.0
        while True:
            failed = ""
            for image in wanted:
                present = image["reference"] in self.machine.images
                if present and image.get("pullPolicy") != "Always":
                    self._event(pod, image["reference"], present=True)
                    continue
                failed = await self._pull(pod, image["reference"])
                if failed:
                    break
                self._event(pod, image["reference"], present=False)
            if not failed:
                if all(image["reference"] in self.machine.images for image in wanted):
                    break
                continue  # an image was removed meanwhile: no container starts without it
            self._report(pod, "ErrImagePull", failed)
            await asyncio.sleep(self._rng.uniform(0.5, 2.0))
            self._report(pod, "ImagePullBackOff", f"Back-off pulling image: {failed}")
            await asyncio.sleep(back_off)
            back_off = min(300.0, 2 * back_off)
        await asyncio.sleep(self._rng.uniform(0.5, 2.0))
        ended = {"terminated": {"exitCode": 0, "finishedAt": timestamp(self.machine.skew)}}
        self._set(
            pod,
            {
                "phase": "Succeeded",
                "containerStatuses": [
                    {"name": "hold", "imageID": "sha256:0", "containerID": "c", "state": ended}
                ],
            },
        )
        self._pods.pop(key, None)

    async def _pull(self, pod: Body, reference: str) -> str:
        """The message of the failure; empty: the image is present. Continues without its pod."""
        task = self._spawn(self._transfer(pod["metadata"]["uid"], reference))
        return await asyncio.shield(task)

    async def _transfer(self, uid: str, reference: str) -> str:
        machine, registry = self.machine, self._registry
        async with self._serial:
            machine.pulling[reference] = uid
            try:
                await asyncio.sleep(self._rng.uniform(0.1, 1.0))
                if machine.fails:
                    return machine.fails
                if registry.down:
                    return "failed to pull: dial tcp 192.0.2.9:443: connect: connection refused"
                digest = registry.digest(reference)
                if digest is None:
                    return f"failed to resolve reference {reference!r}: not found"
                size = registry.size(reference)
                if machine.used + 3.5 * size > DISK and digest not in machine.images.values():
                    return "failed to extract layer: no space left on device"
                if digest not in machine.images.values():
                    await asyncio.sleep(size / machine.link)
                    while machine.stalled:
                        await asyncio.sleep(5.0)
                    if self._registry.down:
                        return "failed to copy: httpReadSeeker: unexpected EOF"
                    machine.used += int(3.5 * size)
                machine.images[reference] = digest
                self._relist()
                return ""
            finally:
                machine.pulling.pop(reference, None)

    def _report(self, pod: Body, reason: str, message: str) -> None:
        waiting = {"reason": reason, "message": message}
        statuses = [{"name": "hold", "image": "pause", "state": {"waiting": waiting}}]
        self._set(pod, {"phase": "Pending", "containerStatuses": statuses})

    def _set(self, pod: Body, status: Body) -> None:
        metadata = pod["metadata"]

        def edit(body: Body) -> None:
            if body["metadata"]["uid"] == metadata["uid"]:
                body["status"] = status

        if self.machine.alive:
            self._server.change(self.actor, "pods", (metadata["namespace"], metadata["name"]), edit)

    def _event(self, pod: Body, reference: str, *, present: bool) -> None:
        if not self.machine.alive or self._rng.random() < self.machine.loses_events:
            return
        metadata = pod["metadata"]
        text = (
            f'Container image "{reference}" already present on machine'
            if present
            else f'Successfully pulled image "{reference}" in 12.5s (12.5s including waiting).'
        )
        name = f"{metadata['name']}.{self._rng.getrandbits(40):010x}"
        body = {
            "metadata": {"name": name},
            "involvedObject": {"kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
            "reason": "Pulled",
            "source": {"component": "kubelet"},
            "message": text,
        }
        self._server.do(self.actor, "POST", "events", (metadata["namespace"], name), body)

    def usage(self) -> Usage:
        return Usage(capacity=DISK, used=min(self.machine.used, DISK))


class Kubelets:
    """Replaces `kube.kubelets.Kubelets`: the disk usage of each machine."""

    def __init__(self, kubelets: dict[str, Kubelet]) -> None:
        self._kubelets = kubelets
        self._turn = asyncio.Semaphore(32)

    async def usage(self, node: NodeFacts) -> Usage:
        kubelet = self._kubelets.get(node.name)
        await asyncio.sleep(0.01)
        if kubelet is None or kubelet.machine.port_dropped or not kubelet.machine.on:
            async with self._turn:
                await asyncio.sleep(2.0)
            return Usage(problem="its kubelet does not answer: ConnectionTimeoutError")
        return kubelet.usage()


def _labelled(labels: dict[str, str]) -> Any:
    return lambda body: body["metadata"].setdefault("labels", {}).update(labels)


def _untainted(prefix: str) -> Any:
    def edit(body: Body) -> None:
        taints = body["spec"].get("taints", [])
        body["spec"]["taints"] = [t for t in taints if not t["key"].startswith(prefix)]

    return edit
