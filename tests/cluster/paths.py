"""Where the harness keeps things: all of it outside the checkout.

`cache()` holds what is expensive to make and the same for every run (binaries, images, the base
image); it may be deleted at any time. `state(name)` holds one running cluster and goes with it.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.errors import ClusterError

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent


SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Where Debian has its programs. Whatever a person has on PATH (another containerd's shim, say) is
not what is tested: everything that the harness runs is its own, or found here."""


def system(program: str) -> str:
    """The full path of a program of Debian's."""
    found = shutil.which(program, path=SYSTEM)
    if found is None:
        raise ClusterError(f"no {program}: run {HERE / 'install-debian.sh'}")
    return found


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("IMAGEGATE_CACHE") or Path(base) / "imagegate").absolute()


def state_root() -> Path:
    return Path(os.environ.get("IMAGEGATE_STATE") or "/var/tmp/imagegate-cluster").absolute()


def digest(parts: Iterable[bytes | str]) -> str:
    """A key for the cache: each part counts with its length, so no two lists collide."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()[:16]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds an exclusive lock, against other runs and other threads; a killed holder releases it.

    The file stays: removing it would let two runs hold the lock of one name.
    """
    path = cache() / "lock" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
