"""The alerts of the chart: promtool's tests, the PrometheusRule, and the runbooks."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from imagegate.metrics import Metrics
from imagegate.runtime.collector import Leader, StateCollector
from imagegate.runtime.ledger import Ledger
from imagegate.runtime.queues import Queues

from .rendering import Helm, RenderError

ROOT = pathlib.Path(__file__).parents[3]
RULES = ROOT / "deploy/helm/imagegate/rules/imagegate.yaml"
TESTS = pathlib.Path(__file__).parent / "rules/imagegate_test.yaml"
SERVED = ("monitoring.coreos.com/v1/PrometheusRule",)
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
]


def test_alerts_fire_and_clear(tmp_path: pathlib.Path) -> None:
    tests = {"rule_files": [str(RULES)], **yaml.safe_load(TESTS.read_text())}
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump(tests))
    command = ["promtool", "test", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        case["alertname"]
        for test in tests["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert tested == set(ALERTS)


def test_every_alert_has_a_runbook_and_vice_versa() -> None:
    text = (ROOT / "docs/runbooks.md").read_text()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ALERTS


def test_prometheus_rule_has_the_rules_of_the_file_with_the_overrides(helm: Helm) -> None:
    rule = {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "interval": "30s",
        "severities": {"ImagegateNoLeader": "page"},
        "runbookUrl": "https://runbooks.example/imagegate",
    }
    rendered = helm.render({"metrics": {"prometheusRule": rule}}, served=SERVED)
    manifest = rendered.one("PrometheusRule")
    assert manifest["metadata"]["labels"]["release"] == "prometheus"
    wanted = yaml.safe_load(RULES.read_text())
    for group in wanted["groups"]:
        group["interval"] = "30s"
        for each in group["rules"]:
            url = f"https://runbooks.example/imagegate#{each['alert'].lower()}"
            each["annotations"]["runbook_url"] = url
    wanted["groups"][0]["rules"][0]["labels"]["severity"] = "page"
    assert manifest["spec"] == wanted


def test_prometheus_rule_is_off_by_default_and_needs_its_crd(helm: Helm) -> None:
    assert not helm.render({}, served=SERVED).of("PrometheusRule")
    with pytest.raises(RenderError, match="PrometheusRule is not served"):
        helm.render({"metrics": {"prometheusRule": {"enabled": True}}})


def test_severities_accept_exactly_the_alerts() -> None:
    schema = json.loads((RULES.parents[1] / "values.schema.json").read_text())
    values = schema["properties"]["metrics"]["properties"]["prometheusRule"]["properties"]
    assert values["severities"]["propertyNames"]["enum"] == ALERTS


def test_rules_use_only_metrics_that_the_operator_exposes() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, version="test")
    queues = Queues.create()
    collector = StateCollector(
        metrics,
        Ledger(),
        queues,
        Leader("imagegate", lambda: True, lambda: None, lambda: True, lambda: 0.0),
    )
    registry.register(collector)
    exposed = {
        line.split()[2]
        for line in generate_latest(registry).decode().splitlines()
        if line.startswith("# TYPE")
    }
    text = " ".join(
        rule["expr"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
    )
    used = set(re.findall(r"\b(?:imagegate|leader_election)_\w+", text))
    assert used
    assert used <= exposed
