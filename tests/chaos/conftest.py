"""One cluster, one installation and one witness for the whole session; options and the report."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.chaos.world import World
from tests.e2e.installation import Installation, push_operator

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster

RESYNC = 30
"""Seconds: the least that the chart allows, instead of 300. The next resync finds the changes that
a broken watch has missed."""
_WORLD = pytest.StashKey[World]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos", "faults on the real cluster (docs/reliability.md)")
    group.addoption("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    group.addoption(
        "--rounds",
        type=int,
        default=0,
        help="number of rounds of random faults that overlap; 0: each fault once",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos: {_repeat(config)}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select either each fault once, or the random rounds."""
    random_ = bool(config.getoption("--rounds"))
    dropped = [item for item in items if ("random" in item.name) is not random_]
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=dropped)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    world = config.stash.get(_WORLD, None)
    if world is not None:
        terminalreporter.section(f"chaos, {_repeat(config)}")
        terminalreporter.write_line(world.table())
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"to repeat: {_repeat(config)}")


def _repeat(config: pytest.Config) -> str:
    rounds = config.getoption("--rounds")
    return f"make chaos SEED={config.getoption('--seed')}" + (f" ROUNDS={rounds}" if rounds else "")


@pytest.fixture(scope="session")
def world(
    cluster: LocalCluster, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    pause = cluster.push("pause", "test/pause:3.10")
    busybox = cluster.push("busybox", "test/busybox:1.37.0-musl")
    imagegate = Installation(cluster, push_operator(cluster), pause, busybox)
    imagegate.settle()
    imagegate.ensure(resyncSeconds=str(RESYNC))
    made = World(cluster, imagegate, tmp_path_factory.mktemp("containerd"))
    request.config.stash[_WORLD] = made
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--seed"))


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--rounds"))
