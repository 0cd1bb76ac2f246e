"""The folders of the harness, all outside the checkout.

`cache()` holds files that are expensive to make and the same for every run: binaries, images, the
base image. It may be deleted at any time. `state_root()` holds a folder for each running cluster,
which is removed with the cluster.
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
"""The folders of Debian's programs. The harness runs only its own programs and those in these
folders, because PATH may have others, such as the shim of another containerd."""


def system(program: str) -> str:
    """The full path of a Debian program."""
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
    """A key for the cache. Each part is hashed with its length, so that no two lists collide."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()[:16]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds an exclusive lock against other runs and threads. The kernel releases the lock of a
    killed process.

    The file is not removed, because then two runs could hold the lock of one name.
    """
    path = cache() / "lock" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
