"""values.yaml, its schema, the README, the CRDs and the versions are consistent."""

import importlib.util
import json
import tomllib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml

from . import rendering

CHART = rendering.CHART
# Helm or an umbrella chart may set these values; the chart does not use them.
FOREIGN = {"enabled", "global"}

Path = tuple[str, ...]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CHART.parent / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def documented(generate: ModuleType) -> set[Path]:
    return {
        value.path
        for value in generate.read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    }


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def values() -> Any:
    return yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def walk(node: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    for key, below in node.get("properties", {}).items():
        yield (*path, key), below
        yield from walk(below, (*path, key))


def test_generated_files_are_current(generate: ModuleType) -> None:
    assert generate.main(["--check"]) == 0, "run: python deploy/helm/generate.py"


def test_crds_are_copies_of_the_generated_crds() -> None:
    # Not links, because Flux drops links from a GitRepository: the chart would have no CRDs.
    assert not any(
        path.is_symlink() for path in [CHART / "crds-src", *(CHART / "crds-src").iterdir()]
    )
    copies = {path.name: path.read_bytes() for path in (CHART / "crds-src").iterdir()}
    assert copies == {
        path.name: path.read_bytes() for path in (rendering.CHECKOUT / "deploy/crds").glob("*.yaml")
    }
    assert set(copies) == {"imagegate.dev_imageprefetches.yaml", "imagegate.dev_nodegates.yaml"}


def test_every_value_is_documented(values: dict[str, Any], documented: set[Path]) -> None:
    def undocumented(node: object, path: Path = ()) -> Iterator[Path]:
        if path in documented:
            return
        if isinstance(node, dict) and node:
            for key, below in node.items():
                yield from undocumented(below, (*path, key))
        else:
            yield path

    assert list(undocumented(values)) == []


def test_readme_documents_every_value(documented: set[Path]) -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert [path for path in documented if f"| `{'.'.join(path)}` |" not in readme] == []


def test_schema_has_exactly_the_documented_values(
    schema: dict[str, Any], values: dict[str, Any], documented: set[Path]
) -> None:
    described = {path for path, node in walk(schema) if "description" in node}
    assert described - {(key,) for key in FOREIGN} == documented
    assert set(schema["properties"]) - FOREIGN == set(values)


def test_schema_rejects_unknown_keys_everywhere(schema: dict[str, Any]) -> None:
    loose = [
        path
        for path, node in [((), schema), *walk(schema)]
        if "properties" in node and node.get("additionalProperties") is not False
    ]
    assert loose == []


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"replicas": 3}, "replicas"),
        ({"gate": {"sourse": "watch"}}, "sourse"),
        ({"gate": {"source": "webhook"}}, "/gate/source"),
        ({"gate": {"silenceSeconds": 29}}, "/gate/silenceSeconds"),
        ({"gate": {"taintKey": "not a key"}}, "/gate/taintKey"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"puller": {"namespaces": ["Ml_Team"]}}, "/puller/namespaces/0"),
        ({"puller": {"mode": "Volume"}}, "/puller/mode"),
        (
            {"puller": {"priorityClass": {"name": "system-node-critical"}}},
            "/puller/priorityClass/name",
        ),
        ({"metrics": {"serviceMonitor": {"enable": True}}}, "enable"),
        ({"imagePullSecrets": ["pull"]}, "/imagePullSecrets/0"),
        (
            {"podDisruptionBudget": {"maxUnavailable": "half"}},
            "/podDisruptionBudget/maxUnavailable",
        ),
    ],
)
def test_schema_rejects_an_invalid_value(
    helm: rendering.Helm, values: dict[str, Any], where: str
) -> None:
    with pytest.raises(rendering.RenderError, match=where):
        helm.render(values)


def test_schema_accepts_the_values_of_an_umbrella_chart(helm: rendering.Helm) -> None:
    helm.render({"enabled": True, "global": {"imageRegistry": "registry.example"}})


def test_helm_lint_passes(helm: rendering.Helm) -> None:
    assert "0 chart(s) failed" in helm.run("lint", "--strict", str(CHART))


def test_chart_and_project_have_the_same_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((rendering.CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_license_is_complete() -> None:
    text = (rendering.CHECKOUT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
