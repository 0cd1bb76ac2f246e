"""Finds the programs that these tests run: Helm, the API server and etcd."""

import os
import pathlib
import re
import shutil

import pytest


def find(name: str, variable: str, version: str = "") -> pathlib.Path:
    """The program that `variable` names, else that on PATH, else the newest of tests/cluster.

    With a `version`, as "v1.34", it is the program of tests/cluster for that Kubernetes. If no
    program is found, the test is skipped; in CI (`CI` is set) it fails instead.
    """
    if not version and (given := os.environ.get(variable)):
        return pathlib.Path(given)
    if not version and (found := shutil.which(name)):
        return pathlib.Path(found)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(os.environ.get("IMAGEGATE_CACHE") or pathlib.Path(base, "imagegate"))
    if built := list(cache.glob(f"bin/*{version and f'-{version}-'}*/{name}")):
        return max(built, key=newest)
    message = f"no {name}: set {variable}, put it on PATH, or let tests/cluster build it in {cache}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def newest(program: pathlib.Path) -> tuple[list[int], float]:
    """Orders by the Kubernetes version in the folder's name (kubernetes-v1.36-…), then by age."""
    version = re.search(r"-v(\d+)\.(\d+)-", program.parent.name)
    return [int(part) for part in version.groups()] if version else [], program.stat().st_mtime
