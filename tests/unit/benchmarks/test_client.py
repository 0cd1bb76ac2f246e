"""The bare client of the benchmark, against an HTTP server."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.cluster import client
from benchmarks.cluster.client import Client


async def test_watch_continues_after_the_last_object_when_the_server_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def watch(request: web.Request) -> web.Response:
        asked.append(request.query["resourceVersion"])
        changed = {"metadata": {"resourceVersion": str(7 + len(asked))}}
        text = json.dumps({"type": "ADDED", "object": changed}, separators=(",", ":"))
        return web.Response(text=f"{text}\n")

    app = web.Application()
    app.router.add_get("/pods", watch)
    monkeypatch.setattr(client, "_context", lambda *_: True)
    async with TestServer(app) as server:
        config = {
            "clusters": [{"cluster": {"server": str(server.make_url("")).rstrip("/")}}],
            "users": [{"user": {"token": "t"}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        async with (
            Client(path, "test", 1) as own,
            contextlib.aclosing(own.watch("/pods?", "7")) as lines,
        ):
            async for _ in lines:
                if len(asked) == 3:
                    break
    assert asked == ["7", "8", "9"]
