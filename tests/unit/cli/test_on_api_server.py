"""The commands as processes against a real API server, which no operator works on."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.paths import CHECKOUT
from tests.unit.chart import apiserver
from tests.unit.runtime.world import KEY

FOREIGN = {"key": "example.com/foreign", "effect": "NoSchedule", "value": "x"}
GROUP = "/apis/imagegate.dev/v1alpha1"
READER = "reader-token"
"""A token of a user without any rights."""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apiserver.ApiServer]:
    folder = tmp_path_factory.mktemp("apiserver")
    with apiserver.running(folder, {READER: "reader,reader"}) as server:
        yield server


@pytest.fixture(scope="module")
def run(api: apiserver.ApiServer) -> Run:
    """Run the program without a terminal, at 80 columns."""

    def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "imagegate", *arguments, f"--kubeconfig={api.kubeconfig}"],
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "80"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return invoke


def post(api: apiserver.ApiServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    code, answer = api.request("POST", path, body)
    assert code == 201, answer
    made: dict[str, Any] = answer
    return made


@pytest.fixture(scope="module")
def installed(api: apiserver.ApiServer, run: Run) -> apiserver.ApiServer:
    """The CRDs, the operator's Deployment, a NodeGate with a heartbeat, a prefetch, and nodes."""
    before = run("status")
    assert before.returncode == 1
    assert "install Imagegate's chart" in before.stderr
    for file in sorted((CHECKOUT / "deploy" / "crds").glob("*.yaml")):
        post(
            api,
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            yaml.safe_load(file.read_text()),
        )
    end = time.monotonic() + 30
    while api.request("GET", f"{GROUP}/nodegates")[0] != 200 or (
        api.request("GET", f"{GROUP}/imageprefetches")[0] != 200
    ):
        assert time.monotonic() < end
        time.sleep(0.2)
    post(api, "/api/v1/namespaces", {"metadata": {"name": "imagegate-system"}})
    labels = {"app.kubernetes.io/component": "operator"}
    container = {
        "name": "imagegate",
        "image": "imagegate",
        "args": ["run", "--puller-namespaces=pullers", f"--gate-taint-key={KEY}"],
    }
    post(
        api,
        "/apis/apps/v1/namespaces/imagegate-system/deployments",
        {
            "metadata": {"name": "imagegate", "labels": labels},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        },
    )
    post(api, f"{GROUP}/nodegates", {**kind("NodeGate", "default"), "spec": {"taintKey": KEY}})
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    beat = {"status": {"heartbeat": now}}
    path = f"{GROUP}/nodegates/default/status"
    assert api.request("PATCH", path, beat, patch="merge")[0] == 200
    spec = {"images": [{"image": "reg.test/llm:1"}], "gate": {"policy": "FailClosed"}}
    post(api, f"{GROUP}/imageprefetches", {**kind("ImagePrefetch", "llm"), "spec": spec})
    held = {"key": KEY, "effect": "NoSchedule", "value": "pending"}
    for name in ("a", "b"):
        post(
            api, "/api/v1/nodes", {"metadata": {"name": name}, "spec": {"taints": [FOREIGN, held]}}
        )
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
        body = {"status": {"conditions": [ready]}}
        assert api.request("PATCH", f"/api/v1/nodes/{name}/status", body, patch="merge")[0] == 200
    return api


def kind(name: str, object_: str) -> dict[str, Any]:
    return {
        "apiVersion": "imagegate.dev/v1alpha1",
        "kind": name,
        "metadata": {"name": object_},
    }


def taints(api: apiserver.ApiServer, node: str) -> list[str]:
    """The keys, without the taint that the API server itself adds."""
    code, body = api.request("GET", f"/api/v1/nodes/{node}")
    assert code == 200
    found = (taint["key"] for taint in body["spec"].get("taints") or ())
    return [key for key in found if key != "node.kubernetes.io/not-ready"]


def test_status_and_explain_read_what_is_there(installed: apiserver.ApiServer, run: Run) -> None:
    shown = json.loads(run("status", "--nodes", "-o", "json").stdout)
    assert [each["ready"] for each in shown["prefetches"]] == ["Unknown"]
    assert {(each["node"], each["state"]) for each in shown["nodes"]} == {
        ("a", "pulling"),
        ("b", "pulling"),
    }
    explained = json.loads(run("explain", "node", "a", "-o", "json").stdout)
    assert explained["why"] == "waiting for llm (FailClosed)"
    assert explained["prefetches"][0]["why"] == "its puller pod is created next"
    assert explained["operator"].startswith("at work")
    text = run("explain", "node", "a").stdout
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    waited = run("wait", "llm", "--timeout=0s")
    assert waited.returncode == 4
    assert "has not reported about this spec yet" in waited.stderr


def test_release_removes_the_gates_taint_alone(installed: apiserver.ApiServer, run: Run) -> None:
    assert run("release", "a").returncode == 2
    assert KEY in taints(installed, "a")
    done = run("release", "a", "--yes")
    assert done.returncode == 0, done.stderr
    assert taints(installed, "a") == [FOREIGN["key"]]
    assert KEY in taints(installed, "b")
    assert run("release", "--all", "--yes").returncode == 0
    assert taints(installed, "b") == [FOREIGN["key"]]
    assert run("release", "--all", "--yes").stdout == "No node is held.\n"


def test_user_without_rights_gets_the_servers_message(
    installed: apiserver.ApiServer, run: Run
) -> None:
    config = yaml.safe_load(installed.kubeconfig.read_text())
    config["users"].append({"name": "reader", "user": {"token": READER}})
    cluster = config["contexts"][0]["context"]["cluster"]
    context = {"cluster": cluster, "user": "reader"}
    config["contexts"].append({"name": "other", "context": context})
    installed.kubeconfig.write_text(yaml.safe_dump(config))
    done = run("status", "--context=other")
    assert done.returncode == 1
    assert 'User "reader" cannot list resource "imageprefetches"' in done.stderr
    assert run("status", "--context=none").returncode == 1
