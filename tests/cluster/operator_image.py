"""The operator's image, from the project's own Dockerfile, without Docker and without a registry.

buildah builds it on the base of debootstrap (`base_image.py`). buildah runs in its own mount
namespace, so that all of its mounts end with it.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import base_image, paths
from tests.cluster.errors import ClusterError
from tests.cluster.progress import step

# The files that the Dockerfile copies. They determine the image.
_INPUTS = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE")
_FOLDERS = ("requirements", "operator")
_KEPT = 3


def build() -> Path:
    """The OCI layout of the operator's image. It is built only if its sources have changed."""
    base = base_image.build()
    layout = paths.cache() / "operator" / _key(base)
    with paths.locked("operator"):
        if not layout.exists():
            layout.parent.mkdir(parents=True, exist_ok=True)
            with step("building the operator's image"):
                _build(base, layout)
            _forget_old(layout.parent)
    os.utime(layout)
    return layout


def _key(base: Path) -> str:
    parts: list[bytes | str] = [base.name]
    for path in _sources():
        parts += [str(path.relative_to(paths.CHECKOUT)), path.read_bytes()]
    return paths.digest(parts)


def _sources() -> Iterator[Path]:
    for name in _INPUTS:
        if (paths.CHECKOUT / name).is_file():
            yield paths.CHECKOUT / name
    for folder in _FOLDERS:
        for path in sorted((paths.CHECKOUT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _build(base: Path, layout: Path) -> None:
    if not (paths.CHECKOUT / "Dockerfile").is_file():
        raise ClusterError(f"no {paths.CHECKOUT / 'Dockerfile'}: there is no operator to build")
    if not shutil.which("buildah"):
        raise ClusterError(f"no buildah: run {paths.HERE / 'install-debian.sh'}")
    log = paths.cache() / "log" / "operator-image.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=layout.parent) as scratch:
        policy, made = Path(scratch, "policy.json"), Path(scratch, "layout")
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        base_name, tag = f"localhost/imagegate-base:{base.name}", "localhost/imagegate:built"
        # Use a name, because buildah accepts no `oci:` path that contains a dot.
        store = f"containers-storage:[overlay@{_store()}/root+{_store()}/run]{base_name}"
        _run(log, "skopeo", f"--policy={policy}", "copy", f"oci:{base}", store)
        options = ["--isolation=chroot", "--layers", "--format=oci", "--pull=false"]
        options += [f"--signature-policy={policy}", f"--build-arg=BASE_IMAGE={base_name}"]
        options += [f"--tag={tag}", f"--file={paths.CHECKOUT / 'Dockerfile'}"]
        _buildah(log, "bud", *options, str(paths.CHECKOUT))
        _buildah(log, "push", f"--signature-policy={policy}", tag, f"oci:{made}")
        made.rename(layout)


def _buildah(log: Path, command: str, *args: str) -> None:
    storage = [f"--root={_store()}/root", f"--runroot={_store()}/run", "--storage-driver=overlay"]
    _run(log, "buildah", *storage, command, *args)


def _store() -> Path:
    return paths.cache() / "buildah"


def _run(log: Path, *command: str) -> None:
    # Remove pip's environment settings, because they may name files that only this machine has. The
    # base image has the other settings of pip.
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    env["PATH"] = paths.SYSTEM
    private = [paths.system("unshare"), "--mount", "--propagation=private"]
    with log.open("ab") as output:
        done = subprocess.run(
            [*private, *command], stdout=output, stderr=output, env=env, check=False
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise ClusterError(f"{command[0]} failed, log {log}:\n{tail}")


def _forget_old(folder: Path) -> None:
    layouts = [path for path in folder.iterdir() if not path.name.startswith(".")]
    layouts.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for layout in layouts[_KEPT:]:
        shutil.rmtree(layout)
