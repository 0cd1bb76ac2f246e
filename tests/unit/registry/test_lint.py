"""``imagegate lint`` on images in a real registry, and its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagegate import cli, lint
from imagegate.domain.advice import Advice
from imagegate.domain.facts import ImageFacts, ImageSize, LayerFacts
from imagegate.domain.thresholds import Severity
from tests.unit.registry.conftest import PASSWORD, USER, Counter, MakeClient
from tests.unit.registry.distribution import (
    OCI_CONFIG,
    OCI_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Registry,
    encoded,
)
from tests.unit.registry.secrets import auth

GB = 10**9
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture(autouse=True)
def _no_docker_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def push(
    registry: Registry, repository: str, name: str, *sizes: int, architecture: str = "amd64"
) -> Descriptor:
    """An image whose manifest claims these layer sizes; lint does not read the layers."""
    platform = {"os": "linux", "architecture": architecture}
    layers = [
        {**registry.blob(repository, f"{name} {n}".encode(), OCI_GZIP), "size": size}
        for n, size in enumerate(sizes)
    ]
    content = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": registry.blob(repository, encoded(platform), OCI_CONFIG),
        "layers": layers,
    }
    return {**registry.manifest(repository, name, content), "platform": platform}


class TestCommand:
    def test_large_layer_is_an_error_and_eight_small_layers_are_not(
        self, open_registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fat = push(open_registry, "ml/lint", "fat", 100, 7 * GB, 100)
        push(open_registry, "ml/lint", "eight", *[7 * GB // 8] * 8)
        name = f"{open_registry.domain}/ml/lint"
        assert cli.main(["lint", f"{name}:fat", f"{name}:eight"]) == 1
        output = capsys.readouterr().out
        assert "ERROR large-layer: layer 2 of 3 has 7.0 GB" in output
        assert "ERROR dominating-layer: layer 2 of 3 is 100 % of 7.0 GB" in output
        assert f"write @{fat['digest']} after it" in output
        assert "PULL and ON DISK are estimates" in output
        assert cli.main(["lint", f"{name}:eight", "-o", "json"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        assert [said["rule"] for said in entry["advice"]] == ["gzip", "mutable-tag"]
        (platform,) = entry["platforms"]
        assert platform["layers"] == 8
        assert platform["largestLayerBytes"] == 7 * GB // 8

    def test_all_platforms_or_the_requested_ones_are_checked(
        self, open_registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        entries = [
            push(open_registry, "ml/two", "", 7 * GB),
            push(open_registry, "ml/two", "", 1000, architecture="arm64"),
        ]
        pushed = open_registry.index("ml/two", "v1", entries)
        name = f"{open_registry.domain}/ml/two@{pushed['digest']}"
        assert cli.main(["lint", name, "-o", "json"]) == 1
        (entry,) = json.loads(capsys.readouterr().out)
        assert [each["platform"] for each in entry["platforms"]] == ["linux/amd64", "linux/arm64"]
        assert {tuple(said["platforms"]) for said in entry["advice"]} == {("linux/amd64",)}
        assert cli.main(["lint", name, "--platform=linux/arm64"]) == 0
        assert capsys.readouterr().out.endswith("nothing to improve\n")
        assert cli.main(["lint", name, "--platform=linux/arm64", "--platform=linux/s390x"]) == 1
        assert (
            "ERROR missing-platform (linux/s390x): it is not there for linux/s390x,"
            " only for linux/amd64, linux/arm64" in capsys.readouterr().out
        )
        name = name.replace(f"@{pushed['digest']}", ":v1")
        assert cli.main(["lint", name, "--platform=linux/s390x"]) == 1
        assert f"write @{pushed['digest']} after it" in capsys.readouterr().out

    def test_disk_size_option_sets_the_limit_of_the_disk_advice(
        self, open_registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        push(open_registry, "ml/disk", "v1", *[GB // 2] * 8)
        name = f"{open_registry.domain}/ml/disk:v1"
        assert cli.main(["lint", name]) == 0
        assert "disk-need" not in capsys.readouterr().out
        assert cli.main(["lint", name, "--disk-size=20"]) == 0
        assert "WARNING disk-need: it takes about 14.0 GB" in capsys.readouterr().out
        assert cli.main(["lint", name, "--disk-size=15"]) == 1

    def test_missing_image_is_an_error_and_the_others_are_checked(
        self, open_registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        push(open_registry, "ml/there", "v1", 1000)
        name = f"{open_registry.domain}/ml"
        assert cli.main(["lint", f"{name}/none:v1", f"{name}/there:v1"]) == 1
        output = capsys.readouterr().out
        assert "ml/none:v1 was not found" in output
        assert "WARNING mutable-tag" in output

    def test_credentials_of_the_docker_configuration_are_used(
        self, basic_registry: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        push(basic_registry, "ml/private", "v1", 1000)
        command = ["lint", f"{basic_registry.domain}/ml/private:v1"]
        assert cli.main(command) == 1
        assert "docker login" in capsys.readouterr().out
        login = {"auths": {basic_registry.domain: {"auth": auth(USER, PASSWORD)}}}
        # The default file, and then a file at another path.
        (tmp_path / "config.json").write_text(json.dumps(login))
        assert cli.main(command) == 0
        assert cli.main([*command, "--docker-config="]) == 1
        (tmp_path / "config.json").rename(tmp_path / "other.json")
        assert cli.main([*command, f"--docker-config={tmp_path}/other.json"]) == 0
        wrong = {"auths": {basic_registry.domain: {"auth": auth(USER, "wrong-password")}}}
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        capsys.readouterr()
        assert cli.main(command) == 1
        output = capsys.readouterr()
        assert str(tmp_path / "config.json") in output.out
        assert "wrong-password" not in output.out + output.err

    def test_missing_home_directory_means_no_credentials(
        self, open_registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """In a container, Docker's file and even the home directory may be missing."""
        push(open_registry, "ml/home", "v1", 1000)
        command = ["lint", f"{open_registry.domain}/ml/home:v1"]
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nowhere"))
        assert cli.main(command) == 0

        def homeless(_: Path) -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("DOCKER_CONFIG")
        monkeypatch.setattr(Path, "expanduser", homeless)
        assert cli.main(command) == 0

    def test_untrusted_certificate_is_an_error(
        self, tls_registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["lint", f"{tls_registry.domain}/ml/llm:v1"]) == 1
        assert "ERROR:" in capsys.readouterr().out


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "IMAGE"),
            (["reg.test/LLM:1"], "LLM"),
            (["reg.test/llm:1", "--platform=arm64"], "write os/architecture"),
            (["reg.test/llm:1", "--disk-size=0"], "is not a number of GB"),
            (["reg.test/llm:1", "--disk-size=large"], "is not a number of GB"),
            (["reg.test/llm:1", "--docker-config=/nowhere/config.json"], "No such file"),
        ],
    )
    def test_usage_error_exits_with_status_2(
        self, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["lint", *arguments]) == 2
        assert said in capsys.readouterr().err

    def test_invalid_docker_configuration_is_a_usage_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.json").write_text('{"auths": {"reg.test": {"auth": "!secret!"}}}')
        assert cli.main(["lint", "reg.test/llm:1"]) == 2
        error = capsys.readouterr().err
        assert f'{tmp_path}/config.json: registry 1 of 1: "auth" is not base64' in error
        assert "secret" not in error


async def test_image_is_requested_once_for_all_platforms(
    open_registry: Registry, make_client: MakeClient, counter: Counter
) -> None:
    entries = [
        push(open_registry, "ml/once", "", 1000 + n, architecture=architecture)
        for n, architecture in enumerate(("amd64", "arm64", "s390x"))
    ]
    open_registry.index("ml/once", "v1", entries)
    image = f"{open_registry.domain}/ml/once:v1"
    (linted,) = await lint.lint([image], [], make_client(), lint.keyring(Path("/dev/null")))
    assert len(linted.facts.sizes) == 3
    assert len(counter.codes) == 5, "a HEAD, the index and a manifest for each platform"


def made() -> list[lint.Linted]:
    fat = ImageSize(7 * GB, 6 * GB, (LayerFacts(GB, "gzip"), LayerFacts(6 * GB, "gzip")))
    small = ImageSize(100_000_000, 100_000_000, (LayerFacts(100_000_000, "zstd"),))
    large = Advice("large-layer", Severity.ERROR, "layer 2 of 2 has 6.0 GB", "split it")
    tag = Advice("mutable-tag", Severity.WARNING, "it may change", f"write @{DIGEST} after it")
    both = ("linux/amd64", "linux/arm64")
    sizes = {"linux/amd64": fat, "linux/arm64": small}
    return [
        lint.Linted(
            "reg.test/llm:1",
            ImageFacts(digest=DIGEST, sizes=sizes),
            both,
            {large: both[:1], tag: both},
        ),
        lint.Linted(
            f"reg.test/well@{DIGEST}", ImageFacts(sizes={"linux/arm64": small}), both[1:], {}
        ),
        lint.Linted(
            "reg.test/gone:1", ImageFacts(problem="reg.test: \x1b[31mgone; push it"), (), {}
        ),
    ]


def test_table_shows_sizes_and_advice() -> None:
    well = f"reg.test/well@{DIGEST}"
    assert lint.table(made()).splitlines() == [
        "IMAGE".ljust(len(well)) + "  PLATFORM     COMPRESSED  LAYERS  LARGEST   PULL  ON DISK",
        "reg.test/llm:1".ljust(len(well))
        + "  linux/amd64  7.0 GB      2       6.0 GB    73 s  24.5 GB",
        "reg.test/llm:1".ljust(len(well))
        + "  linux/arm64  100.0 MB    1       100.0 MB  1 s   350.0 MB",
        well + "  linux/arm64  100.0 MB    1       100.0 MB  1 s   350.0 MB",
        "PULL and ON DISK are estimates: an idle node that receives 300 MB/s and unpacks"
        " 120 MB/s of gzip.",
        "",
        "reg.test/llm:1",
        "  ERROR large-layer (linux/amd64): layer 2 of 2 has 6.0 GB",
        "    split it",
        "  WARNING mutable-tag: it may change",
        f"    write @{DIGEST} after it",
        "",
        well,
        "  nothing to improve",
        "",
        "reg.test/gone:1",
        "  ERROR: reg.test: ?[31mgone; push it",
    ]


def test_json_shows_sizes_and_advice() -> None:
    entries: list[dict[str, Any]] = json.loads(lint.as_json(made()))
    assert entries[0]["platforms"][1] == {
        "platform": "linux/arm64",
        "compressedBytes": 100_000_000,
        "layers": 1,
        "largestLayerBytes": 100_000_000,
        "estimatedPullSeconds": 0.6,
        "estimatedDiskBytes": 350_000_000,
    }
    assert entries[0]["advice"][0] == {
        "rule": "large-layer",
        "severity": "error",
        "platforms": ["linux/amd64"],
        "why": "layer 2 of 2 has 6.0 GB",
        "remedy": "split it",
    }
    assert entries[1]["digest"] is None
    assert entries[2]["problem"].endswith("gone; push it")
    assert [each.failed for each in made()] == [True, False, True]
