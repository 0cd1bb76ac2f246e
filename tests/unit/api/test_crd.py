"""The CRDs are current, have descriptions, and match the models."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from imagegate.api import crd

CRDS = Path(__file__).parents[3] / "deploy" / "crds"


def definition(plural: str) -> dict[str, Any]:
    parsed = yaml.safe_load((CRDS / f"imagegate.dev_{plural}.yaml").read_text(encoding="utf-8"))
    assert isinstance(parsed, dict)
    return parsed


def version(plural: str) -> Any:
    return definition(plural)["spec"]["versions"][0]


def test_committed_crds_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    code = crd.main(["--check", "--output", str(CRDS)])

    assert code == 0, capsys.readouterr().out


def test_crds_are_written_to_a_new_folder(tmp_path: Path) -> None:
    output = tmp_path / "new" / "crds"

    assert crd.main(["--output", str(output)]) == 0
    assert crd.main(["--check", "--output", str(output)]) == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        path.name: path.read_bytes() for path in CRDS.iterdir()
    }


def test_check_shows_the_difference_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crd.main(["--output", str(tmp_path)])
    path = tmp_path / "imagegate.dev_nodegates.yaml"
    old = path.read_text(encoding="utf-8").replace("maximum: 86400", "maximum: 1")
    path.write_text(old, encoding="utf-8")

    assert crd.main(["--check", "--output", str(tmp_path)]) == 1
    diff = capsys.readouterr().out
    assert "-                maximum: 1\n+                maximum: 86400\n" in diff
    assert path.read_text(encoding="utf-8") == old


def test_check_fails_in_an_empty_folder(tmp_path: Path) -> None:
    assert crd.main(["--check", "--output", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("plural", "kind", "short_name"),
    [("imageprefetches", "ImagePrefetch", "ipf"), ("nodegates", "NodeGate", "ngate")],
)
def test_crd_names_are_as_documented(plural: str, kind: str, short_name: str) -> None:
    crd_object = definition(plural)

    assert crd_object["metadata"]["name"] == f"{plural}.imagegate.dev"
    assert crd_object["spec"]["scope"] == "Cluster"
    assert crd_object["spec"]["names"] == {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": [short_name],
        "categories": ["imagegate"],
    }
    assert version(plural)["subresources"] == {"status": {}}


@pytest.mark.parametrize(
    ("plural", "narrow", "wide"),
    [
        (
            "imageprefetches",
            "Desired Cached Pulling Failed Gated Ready Age",
            "Target Message",
        ),
        ("nodegates", "Armed Held Heartbeat Age", ""),
    ],
)
def test_printer_columns_are_as_documented(plural: str, narrow: str, wide: str) -> None:
    columns = version(plural)["additionalPrinterColumns"]

    assert [c["name"] for c in columns if not c.get("priority")] == narrow.split()
    assert [c["name"] for c in columns if c.get("priority")] == wide.split()


def test_status_has_no_defaults() -> None:
    def defaults(node: Any) -> bool:
        match node:
            case dict():
                return "default" in node or any(map(defaults, node.values()))
            case _:
                return False

    for plural in ("imageprefetches", "nodegates"):
        properties = version(plural)["schema"]["openAPIV3Schema"]["properties"]
        assert not defaults(properties["status"])
        assert defaults(properties["spec"])


def test_every_field_has_a_description() -> None:
    def unexplained(node: dict[str, Any], path: str) -> list[str]:
        found = [] if path == ".metadata" or "description" in node else [path]
        for name, child in node.get("properties", {}).items():
            found += unexplained(child, f"{path}.{name}")
        if "properties" in node.get("items", {}):
            found += unexplained(node["items"], f"{path}[]")
        return found

    for plural in ("imageprefetches", "nodegates"):
        assert unexplained(version(plural)["schema"]["openAPIV3Schema"], "") == []
