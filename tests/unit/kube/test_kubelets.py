"""A kubelet's figures, over real TLS: what is read, and what is said when it cannot be."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from imagegate.domain.facts import Node
from imagegate.kube.kubelets import Kubelets, parse
from tests.unit.registry.certificates import Authority

SUMMARY = {
    "node": {
        "fs": {"capacityBytes": 1, "availableBytes": 1, "usedBytes": 0},
        "runtime": {
            "imageFs": {"capacityBytes": 1000, "availableBytes": 400, "usedBytes": 250},
        },
    }
}


def test_used_is_what_is_not_available() -> None:
    usage = parse(json.dumps(SUMMARY).encode())
    assert (usage.capacity, usage.used, usage.problem) == (1000, 600, "")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"node": {"runtime": {"imageFs": {"capacityBytes": 0}}}}', b"\xff"],
)
def test_anything_else_is_no_figure(body: bytes) -> None:
    assert "no figures" in parse(body).problem


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[tuple[Node, Path]]:
    """A node whose kubelet listens on loopback, and a service account that it believes."""
    authority = Authority(tmp_path)
    (tmp_path / "ca.crt").write_text(authority.pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("kubelet", "127.0.0.1"))
    (tmp_path / "token").write_text("sesame")

    async def summary(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer sesame":
            return web.Response(status=403)
        return web.json_response(SUMMARY)

    application = web.Application()
    application.router.add_get("/stats/summary", summary)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    server: Any = site._server
    port = server.sockets[0].getsockname()[1]
    yield Node("n1", "u", 1, address="127.0.0.1", kubelet_port=port), tmp_path
    await runner.cleanup()


async def test_a_kubelet_of_the_clusters_own_ca_is_believed(kubelet: tuple[Node, Path]) -> None:
    node, account = kubelet
    async with Kubelets(service_account=account) as kubelets:
        assert (await kubelets.usage(node)).used == 600
        (account / "token").write_text("renewed")
        assert "403" in (await kubelets.usage(node)).problem, "the token is read each time"


async def test_a_kubelet_that_signed_its_own_certificate_is_not(
    kubelet: tuple[Node, Path], tmp_path: Path
) -> None:
    node, account = kubelet
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").path
    async with Kubelets(service_account=account, ca_file=str(other)) as kubelets:
        assert "kubelet.insecureTLS" in (await kubelets.usage(node)).problem
    async with Kubelets(service_account=account, insecure_tls=True) as kubelets:
        assert (await kubelets.usage(node)).used == 600


async def test_what_is_wrong_is_said_and_never_raised(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sesame")
    gone = Node("n1", "u", 1, address="127.0.0.1", kubelet_port=1)
    async with Kubelets(service_account=tmp_path) as kubelets:
        assert "InternalIP" in (await kubelets.usage(Node("n1", "u", 1))).problem
        assert "ca.crt is not there" in (await kubelets.usage(gone)).problem
        (tmp_path / "ca.crt").write_text("nonsense")
        assert "CA of the kubelets" in (await kubelets.usage(gone)).problem
        (tmp_path / "ca.crt").write_text(Authority(tmp_path).pem)
        assert "does not answer" in (await kubelets.usage(gone)).problem
    async with Kubelets(service_account=tmp_path / "nowhere") as kubelets:
        assert "is not there" in (await kubelets.usage(gone)).problem
