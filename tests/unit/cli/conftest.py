"""A cluster in memory, to which the commands connect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from imagegate import cli
from imagegate.kube.client import Client
from imagegate.runtime.clock import Clock, ServerTime
from tests.unit.runtime.world import KEY, NAMESPACE, World, until

NOW = 1_800_000_000.0
"""2027-01-15T08:00:00Z, the time of every command."""
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/imagegate"
Run = Callable[..., Result]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A cluster with Imagegate and without nodes or ImagePrefetches."""
    made = World()
    made.clock = Clock(now=lambda: NOW)
    made.start_operator()
    made.api.now = made.clock.now
    arguments = ["run", f"--puller-namespaces={NAMESPACE},other", f"--gate-taint-key={KEY}"]
    made.api.put(
        DEPLOYMENT,
        {
            "metadata": {
                "name": "imagegate",
                "labels": {"app.kubernetes.io/component": "operator"},
            },
            "spec": {
                "replicas": 2,
                "template": {"spec": {"containers": [{"args": arguments}]}},
            },
        },
    )
    made.add_gate()

    async def connect(**_: Any) -> Any:
        return made.api

    monkeypatch.setattr(Client, "connect", connect)
    monkeypatch.setattr(ServerTime, "now", lambda _: NOW)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    return made


@pytest.fixture
def run() -> Run:
    """Run a command; its input is not a terminal."""
    runner = CliRunner()

    def invoke(*arguments: str, **more: Any) -> Result:
        return runner.invoke(cli.app, arguments, prog_name="imagegate", **more)

    return invoke


def operate(world: World, condition: Callable[[], Any]) -> None:
    """Let the operator work until the condition is true; then it is gone."""

    async def work() -> None:
        world.start_operator()
        async with world.operating():
            await until(condition)

    asyncio.run(work())
    world.start_operator()  # its watches need an event loop no more
