"""Builds the programs that Debian lacks or has in an older version, from pinned Go modules.

The modules are the folders of `build/`. The result is stored in the cache under a key of all
inputs, so each program is built once. A build writes to a temporary folder and renames it at the
end, so that an interrupted build never counts as complete.
"""

import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import paths, toolchain
from tests.cluster.errors import ClusterError
from tests.cluster.progress import say

_KUBERNETES = (
    "etcd etcdctl kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet"
)


@dataclass(frozen=True, slots=True)
class Module:
    """One Go module of `build/`: its programs and how to build them."""

    name: str
    folder: Path  # holds go.mod and go.sum
    programs: tuple[str, ...]
    source: Path | None = None  # main.go; if None, the programs are the module's `tool`s
    tags: str = ""

    @property
    def key(self) -> str:
        files = [self.folder / "go.mod", self.folder / "go.sum", self.source]
        parts = [file.read_bytes() for file in files if file and file.exists()]
        return paths.digest([*parts, self.tags, *self.programs, _ldflags(self)])

    @property
    def bin(self) -> Path:
        return paths.cache() / "bin" / f"{self.name}-{self.key}"


def kubernetes(version: str = "v1.36") -> Module:
    """Kubernetes, etcd and kubectl of one minor version: a folder of `build/kubernetes/`."""
    root = paths.HERE / "build" / "kubernetes"
    if not (root / version / "go.mod").exists():
        known = ", ".join(sorted(path.parent.name for path in root.glob("*/go.mod")))
        raise ClusterError(f"no Kubernetes {version!r} in {root}: there is {known}")
    programs = tuple(_KUBERNETES.split())
    return Module(f"kubernetes-{version}", root / version, programs, root / "main.go")


def containerd(version: str = "") -> Module:
    """The newest, or `1.7`: a folder of `build/`."""
    name = f"containerd-{version}" if version else "containerd"
    folder = paths.HERE / "build" / name
    if not (folder / "go.mod").exists():
        raise ClusterError(f"no containerd {version!r}: there is no {folder}/go.mod")
    programs = ("containerd", "containerd-shim-runc-v2", "ctr")
    # These snapshotters need C headers. The harness uses only overlayfs.
    tags = "no_btrfs,no_zfs,no_devmapper" + (",no_aufs" if version else "")
    return Module(name, folder, programs, tags=tags)


def kwok() -> Module:
    return Module("kwok", paths.HERE / "build" / "kwok", ("kwok",))


def helm() -> Module:
    return Module("helm", paths.HERE / "build" / "helm", ("helm",))


def pause() -> Module:
    folder = paths.HERE / "build" / "pause"
    return Module("pause", folder, ("pause",), folder / "main.go")


def ensure(*modules: Module) -> None:
    """Builds the modules that the cache lacks, one after the other, because Go uses all cores."""
    missing = [module for module in modules if not module.bin.exists()]
    if not missing:
        return
    with paths.locked("build"):
        for module in missing:
            if not module.bin.exists():
                _build(module)


def path(module: Module, program: str) -> Path:
    ensure(module)
    return module.bin / program


def _ldflags(module: Module) -> str:
    """Flags that strip symbols and set the versions that a Node's `nodeInfo` reports."""
    flags = "-s -w"
    found = re.search(r"k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)", _go_mod(module))
    if found:
        prefix = "-X k8s.io/component-base/version"
        flags += f" {prefix}.gitVersion={found[1]} {prefix}.gitMajor={found[2]}"
        flags += f" {prefix}.gitMinor={found[3]} {prefix}.gitTreeState=clean"
    found = re.search(r"(github\.com/containerd/containerd(?:/v2)?) v(\S+)", _go_mod(module))
    if found:  # else nodes report `containerd://2.4.2+unknown`
        flags += f" -X {found[1]}/version.Version={found[2]}"
    return flags


def _go_mod(module: Module) -> str:
    return (module.folder / "go.mod").read_text()


def _build(module: Module) -> None:
    wanted = re.search(r"^go (\S+)$", _go_mod(module), re.MULTILINE)
    if not wanted:
        raise ClusterError(f"{module.folder}/go.mod has no `go` line")
    go = toolchain.go(tuple(map(int, wanted[1].split("."))))
    module.bin.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=module.bin.parent) as scratch:
        work, out = Path(scratch, "src"), Path(scratch, "bin")
        shutil.copytree(module.folder, work)
        if module.source:
            shutil.copy(module.source, work / "main.go")
        out.mkdir()
        single = out / module.programs[0] if module.source else None
        command = [str(go), "build", "-v", "-trimpath", f"-tags={module.tags}"]
        command += ["-ldflags", _ldflags(module), "-o", str(single or f"{out}/")]
        _run(module, [*command, "." if single else "tool"], work)
        for program in module.programs[1:] if single else ():
            (out / program).symlink_to(module.programs[0])
        out.rename(module.bin)


def _run(module: Module, command: list[str], cwd: Path) -> None:
    """Runs the build and prints every 15 s how many packages are compiled."""
    log = paths.cache() / "log" / f"build-{module.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"building {module.name} (once; some minutes, log: {log})")
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=output)
        finished = threading.Event()
        reporter = threading.Thread(target=_report, args=(module, log, finished, begin))
        reporter.start()
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            finished.set()
            reporter.join()
    if code:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise ClusterError(f"building {module.name} failed, log {log}:\n{tail}")
    say(f"built {module.name} in {time.monotonic() - begin:.0f} s")


def _report(module: Module, log: Path, finished: threading.Event, begin: float) -> None:
    while not finished.wait(15):
        lines = log.read_text().splitlines()
        fetched = sum(line.startswith("go: downloading") for line in lines)
        seconds = time.monotonic() - begin
        say(
            f"building {module.name}: {fetched} modules fetched, "
            f"{len(lines) - fetched} packages compiled, {seconds:.0f} s"
        )
