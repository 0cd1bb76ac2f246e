"""The base of the operator's image: a minimal Debian with Python, made by debootstrap.

It contains the CA bundle and pip's settings of this machine, because a build needs them to reach
the package index (a proxy may inspect TLS). So the Dockerfile does not need them.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.cluster import images, paths
from tests.cluster.errors import ClusterError
from tests.cluster.progress import say, step

_FORMAT = "2"  # part of the cache's key
_PACKAGES = "python3,python3-venv,ca-certificates"
_CA = "etc/ssl/certs/ca-certificates.crt"
_DROPPED = (
    "dev",
    "tmp",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
_LOCAL_SETTINGS = ("cert", "find-links", "cache-dir", "log")  # of pip: they name local files


def build() -> Path:
    """The OCI layout of the base, from the cache or made now (about a minute)."""
    ca, settings = _ca_bundle(), _pip_settings()
    codename, mirror = _release()
    key = paths.digest([_FORMAT, codename, _PACKAGES, ca, settings])
    layout = paths.cache() / "base" / key
    with paths.locked("base"):
        if not layout.exists():
            layout.parent.mkdir(parents=True, exist_ok=True)
            with (
                step(f"making a base image of Debian {codename} (once; about a minute)"),
                tempfile.TemporaryDirectory(prefix=".making-", dir=layout.parent) as scratch,
            ):
                root = Path(scratch, "root")
                _debootstrap(root, codename, mirror)
                (root / _CA).write_bytes(ca)
                (root / "etc/pip.conf").write_text(settings)
                made = Path(scratch, "layout")
                images.write_single_layer(made, lambda tar: _add_tree(tar, root), _config())
                made.rename(layout)
            for old in set(layout.parent.iterdir()) - {layout}:
                shutil.rmtree(old)
    return layout


def _debootstrap(root: Path, codename: str, mirror: str) -> None:
    """Runs debootstrap in its own mount namespace, because an interrupted debootstrap leaves /proc
    mounted."""
    if not shutil.which("debootstrap"):
        raise ClusterError(f"no debootstrap: run {paths.HERE / 'install-debian.sh'}")
    log = paths.cache() / "log" / "debootstrap.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [paths.system("unshare"), "--mount", "--propagation=private", "debootstrap"]
    command += ["--variant=minbase", f"--include={_PACKAGES}", "--components=main,universe"]
    env = {**os.environ, "PATH": paths.SYSTEM}
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, codename, str(root), mirror],
            stdout=output,
            stderr=output,
            env=env,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise ClusterError(f"debootstrap failed, log {log}:\n{tail}")


def _release() -> tuple[str, str]:
    """The codename of this machine's release, and the mirror that apt uses for it."""
    found = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    if not found:
        raise ClusterError("/etc/os-release names no VERSION_CODENAME: Debian or Ubuntu is needed")
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(SITE) $(RELEASE)",
         "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in targets.stdout.splitlines():
        codename, component, site, release = line.split()[:4]
        if (codename, component, release) == (found[1], "main", found[1]):
            return found[1], site
    raise ClusterError(f"apt has no source for {found[1]} main; is `apt-get update` due?")


def _ca_bundle() -> bytes:
    for path in (os.environ.get("SSL_CERT_FILE"), f"/{_CA}"):
        if path and Path(path).is_file():
            return Path(path).read_bytes()
    raise ClusterError("no CA bundle: install ca-certificates or set SSL_CERT_FILE")


def _pip_settings() -> str:
    """pip's settings on this machine (mainly the index), from files and environment, as a
    pip.conf."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    settings = {"cert": f"/{_CA}"}
    for line in listed.stdout.splitlines():
        found = re.match(r"[^.]+\.([\w-]+)='(.*)'$", line)
        if found and found[1] not in _LOCAL_SETTINGS:
            settings[found[1]] = found[2]
    lines = [f"{key} = {value}" for key, value in sorted(settings.items())]
    return "\n".join(["[global]", *lines]) + "\n"


def _config() -> dict[str, object]:
    certificates = [f"{name}=/{_CA}" for name in ("SSL_CERT_FILE", "PIP_CERT")]
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"Env": [path, "LANG=C.UTF-8", *certificates], "Cmd": ["/bin/sh"]}


def _add_tree(tar: tarfile.TarFile, root: Path) -> None:
    def keep(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        inside = any(entry.name.startswith(f"{dropped}/") for dropped in _DROPPED)
        return None if inside or "__pycache__" in entry.name else entry

    for child in sorted(root.iterdir()):
        tar.add(child, child.name, filter=keep)
    say("the base image is complete")
