"""The CRDs of other projects, from pinned versions of their Go modules, in the cache."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import paths, toolchain
from tests.cluster.errors import ClusterError
from tests.cluster.progress import step

_GO = (1, 24)
"""`go mod download` refuses modules that need a newer Go than it is."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file with CRDs in a Go module."""

    module: str
    version: str
    file: str

    @property
    def cached(self) -> Path:
        return paths.cache() / "crds" / f"{self.module}@{self.version}" / self.file


def fetch(source: Source) -> Path:
    """The file, which is downloaded once. The Go checksum database verifies the module."""
    if source.cached.exists():
        return source.cached
    with paths.locked("crds"):
        if not source.cached.exists():
            _copy(source)
    return source.cached


def _copy(source: Source) -> None:
    named = f"{source.module}@{source.version}"
    command = [str(toolchain.go(_GO)), "mod", "download", "-json", named]
    with step(f"downloading the Go module {named} for its CRD"):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
    answer = json.loads(done.stdout or "{}")
    if done.returncode or "Dir" not in answer:
        raise ClusterError(f"{' '.join(command)}: {answer.get('Error') or done.stderr}")
    source.cached.parent.mkdir(parents=True, exist_ok=True)
    unfinished = source.cached.with_suffix(".part")
    shutil.copyfile(Path(answer["Dir"]) / source.file, unfinished)
    unfinished.rename(source.cached)
