"""A real Kubernetes for the tests; see README.md in this folder."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster.errors import ClusterError, Unsupported
from tests.cluster.existing import ExistingCluster
from tests.cluster.kind import KindCluster
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.provider import Capability, Cluster, ClusterOptions, NodeOptions

__all__ = [
    "Capability",
    "Cluster",
    "ClusterError",
    "ClusterOptions",
    "LocalCluster",
    "NodeOptions",
    "Unsupported",
    "create_cluster",
    "open_cluster",
    "start_cluster",
]


def create_cluster(
    options: ClusterOptions, provider: str = "local", context: str | None = None
) -> Cluster:
    """Starts a cluster (or attaches to an existing one); the caller calls `down()`."""
    if provider == "local":
        return LocalCluster.start(options)
    if provider == "kind":
        return KindCluster.start(options)
    if provider == "existing":
        return ExistingCluster(context)
    raise ClusterError(f"no provider {provider!r}: there is local, kind, existing")


@contextmanager
def start_cluster(options: ClusterOptions | None = None) -> Iterator[LocalCluster]:
    """A local cluster for the length of a `with` block."""
    cluster = LocalCluster.start(options or ClusterOptions())
    try:
        yield cluster
    finally:
        cluster.down()


def open_cluster(name: str = "imagegate") -> LocalCluster:
    """The running local cluster of that name, started by `up` or `start_cluster`."""
    return LocalCluster.open(name)
