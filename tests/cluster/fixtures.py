"""pytest plugin: the fixture `cluster`, and a dump of the cluster after a failed test that used it.

Loaded by `pytest_plugins = ["tests.cluster.fixtures"]` in the root conftest.
"""

import os
import re
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from tests.cluster import Cluster, ClusterOptions, Unsupported, create_cluster, open_cluster, paths
from tests.cluster.errors import ClusterError
from tests.cluster.local.cluster import TOOLS
from tests.cluster.progress import say

OWN = (
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "etcd",
    "helm",
    "kube-apiserver",
    "kube-proxy",
    "kubectl",
    "kubelet",
    "kwok",
    "mount",
    "umount",
    "unshare",
)
ARTIFACTS = paths.CHECKOUT / ".artifacts"
_CLUSTER = pytest.StashKey[Cluster]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cluster", "a real Kubernetes (tests/cluster/README.md)")
    group.addoption("--provider", choices=("local", "kind", "existing"), default="local")
    group.addoption("--context", help="of the kubeconfig, for --provider=existing")
    group.addoption("--cluster-name", default="imagegate-e2e")
    group.addoption("--cluster-nodes", type=int, default=2)
    group.addoption("--cluster-kubernetes", default=ClusterOptions().kubernetes, metavar="v1.N")
    group.addoption(
        "--cluster-apiserver-flag",
        action="append",
        default=[],
        metavar="--FLAG=VALUE",
        help="for the API server, such as --cluster-apiserver-flag=--feature-gates=X=true",
    )
    group.addoption(
        "--cluster-cpu-weight",
        type=int,
        default=ClusterOptions().cpu_weight,
        help="against other clusters on this machine, where the cores are busy (100)",
    )
    group.addoption(
        "--cluster-keep",
        action="store_true",
        help="leave the cluster running, and use the one that an earlier run left",
    )


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster for the whole session. It is removed at the end, also after Ctrl-C and SIGTERM."""
    with _terminate_as_interrupt(), _wrong_programs():
        running = _start(request.config)
        request.config.stash[_CLUSTER] = running
        try:
            yield running
        finally:
            if request.config.getoption("--cluster-keep"):
                say(f"cluster {running.name} is left running")
            else:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the session ends already
                running.down()


def _start(config: pytest.Config) -> Cluster:
    name, provider = config.getoption("--cluster-name"), config.getoption("--provider")
    if config.getoption("--cluster-keep") and provider == "local":
        try:
            kept = open_cluster(name)
            kept.control_plane.wait_for_api(5)
        except ClusterError:
            say(f"no cluster {name} to use again")
        else:
            return kept
    flags = tuple(config.getoption("--cluster-apiserver-flag"))
    options = ClusterOptions(
        name=name,
        nodes=config.getoption("--cluster-nodes"),
        kubernetes=config.getoption("--cluster-kubernetes"),
        extra_args={"kube-apiserver": flags} if flags else {},
        cpu_weight=config.getoption("--cluster-cpu-weight"),
    )
    return create_cluster(options, provider, config.getoption("--context"))


@contextmanager
def _wrong_programs() -> Iterator[None]:
    """Puts failing programs first on PATH, to show that the harness uses only its own programs. A
    user's machine may have other versions of them (Docker's containerd, a kubectl)."""
    before = os.environ["PATH"]
    with tempfile.TemporaryDirectory() as folder:
        for program in (*TOOLS, *OWN):
            file = Path(folder, program)
            file.write_text('#!/bin/sh\necho "the wrong $0" >&2\nexit 97\n')
            file.chmod(0o755)
        os.environ["PATH"] = f"{folder}:{before}"
        try:
            yield
        finally:
            os.environ["PATH"] = before


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Turns SIGTERM into an interrupt. CI systems end a job with SIGTERM, and pytest tears down its
    fixtures only after an interrupt."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would stop the teardown
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _skip_what_is_unsupported() -> Generator[None, None, None]:
    """Skips the test with a reason if the cluster does not support it."""
    try:
        return (yield)
    except Unsupported as error:
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    return (yield from _skip_what_is_unsupported())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    return (yield from _skip_what_is_unsupported())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Dumps the cluster before any teardown, while it is in the state of the failed test."""
    report = yield
    running = item.config.stash.get(_CLUSTER, None)
    if report.failed and report.when != "teardown" and running and "cluster" in _fixtures(item):
        folder = ARTIFACTS / re.sub(r"[^\w.-]+", "_", item.nodeid)
        running.dump(folder)
        report.sections.append(("cluster", f"diagnostics: {folder}"))
    return report


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", []))
