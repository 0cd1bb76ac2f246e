"""Dependencies of the image are locked, listed, and checked against known vulnerabilities."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
REQUIREMENTS = CHECKOUT / "requirements"
OSV = Path(__file__).with_name("osv")


def audit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REQUIREMENTS / "audit.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def pinned(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("pin", "vulnerable"),
    [
        ("example-package==2.9.9", True),
        ("example-package==2.10.0", False),
        ("example-package==2.11", False),
        ("example-package==3.1", True),
        ("example-package==3.1.1", False),
        ("Example.Package[extra]==3.0 ; python_version > '3'", True),
        ("listed==1.1", True),
        ("listed==1.2", False),
        ("elsewhere==1.0", False),
    ],
)
def test_audit_finds_a_known_vulnerable_version(tmp_path: Path, pin: str, vulnerable: bool) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(f"{pin} \\\n    --hash=sha256:{'0' * 64}\nother==1.0\n")
    done = audit("--osv", OSV, lock)
    assert done.returncode == int(vulnerable), done.stderr
    assert ("EXAMPLE-2023-1 (CVE-0000-0001)" in done.stdout) is vulnerable


def test_audit_reads_the_published_zip_file(tmp_path: Path) -> None:
    lock, archive = tmp_path / "lock.txt", tmp_path / "all.zip"
    lock.write_text("listed==1.0\n")
    with zipfile.ZipFile(archive, "w") as written:
        written.write(OSV / "EXAMPLE-2023-1.json", "EXAMPLE-2023-1.json")
    assert audit("--osv", archive, lock).returncode == 1


@pytest.mark.parametrize("source", ["nowhere", "empty"])
def test_audit_without_records_fails(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    done = audit("--osv", tmp_path / source, REQUIREMENTS / "runtime.txt")
    assert done.returncode == 2
    assert "OSV record" in done.stderr


def test_audit_reads_all_lock_files() -> None:
    locks = sorted(REQUIREMENTS.glob("*.txt"))
    assert [lock.name for lock in locks] == ["build.txt", "dev.txt", "runtime.txt"]
    done = audit("--osv", OSV, *locks)
    assert (done.returncode, done.stdout) == (0, "nothing known against these versions\n")


def test_sbom_names_every_runtime_dependency(tmp_path: Path) -> None:
    program = shutil.which("cyclonedx-py", path=Path(sys.executable).parent)
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no cyclonedx-py: it is in requirements/dev.txt")
        pytest.skip("no cyclonedx-py in this environment: `make setup`")
    written = tmp_path / "sbom.json"
    command = [program, "requirements", "--pyproject", str(CHECKOUT / "pyproject.toml")]
    command += ["--output-reproducible", "--short-PURLs", "--output-file", str(written)]
    subprocess.run([*command, str(REQUIREMENTS / "runtime.txt")], check=True, timeout=60)
    sbom = json.loads(written.read_bytes())
    components = {each["name"]: each for each in sbom["components"]}
    locked = pinned(REQUIREMENTS / "runtime.txt")
    assert {name: each["version"] for name, each in components.items()} == locked
    assert sbom["metadata"]["component"]["name"] == "imagegate"
    assert {each["purl"] for each in components.values()} == {
        f"pkg:pypi/{name}@{version}" for name, version in locked.items()
    }


def test_every_package_of_the_image_is_installed_with_a_hash() -> None:
    """Without hashes, pip would accept any file that the package index serves."""
    text = (CHECKOUT / "Dockerfile").read_text().replace("\\\n", " ")
    commands = [
        command
        for line in text.splitlines()
        if line.startswith("RUN ")
        for command in line.removeprefix("RUN ").split("&&")
        if "pip" in command and ("install" in command or " wheel " in command)
    ]
    assert len(commands) == 4
    for command in commands:
        offline = "--no-index" in command and "--no-deps" in command
        assert "--require-hashes" in command or offline, command
        assert " wheel " not in command or "--no-build-isolation" in command, command


def test_every_package_of_a_developer_is_installed_with_a_hash() -> None:
    commands = [
        line
        for line in (CHECKOUT / "Makefile").read_text().replace("\\\n", " ").splitlines()
        if "pip install" in line
    ]
    assert len(commands) == 2
    for command in commands:
        own = "--no-deps --no-build-isolation" in command
        assert "--require-hashes" in command or own, command


def test_every_pin_has_a_hash() -> None:
    for lock in REQUIREMENTS.glob("*.txt"):
        entries = re.split(r"\n(?=\S)", lock.read_text().strip())
        assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


def test_operators_image_has_nothing_of_the_extra_for_plots() -> None:
    plot = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert plot["optional-dependencies"]["plot"] == ["matplotlib>=3.10,<4"]
    assert "matplotlib" in pinned(REQUIREMENTS / "dev.txt")
    assert {"matplotlib", "numpy", "pillow"}.isdisjoint(pinned(REQUIREMENTS / "runtime.txt"))
    assert "[plot]" not in (CHECKOUT / "Dockerfile").read_text()


def test_build_lock_contains_the_required_build_system() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    (required,) = project["build-system"]["requires"]
    assert project["dependency-groups"]["build"] == [required]
    name, _, version = required.partition("==")
    locked = pinned(REQUIREMENTS / "build.txt")
    assert locked[name] == version
    assert set(locked) & set(pinned(REQUIREMENTS / "runtime.txt")) == set()


@pytest.mark.parametrize("image", ["python:3.11-slim-bookworm"])
def test_base_image_has_a_digest_that_can_be_replaced(image: str) -> None:
    """A label of the image names the base image of its build."""
    text = (CHECKOUT / "Dockerfile").read_text()
    assert text.count("FROM ${BASE_IMAGE}") == text.count("FROM ") == 2
    default = rf"^ARG BASE_IMAGE={re.escape(image)}@sha256:[0-9a-f]{{64}}$"
    assert re.search(default, text, re.MULTILINE)
    assert f"BASE_IMAGE={image}@sha256:" in text
    assert 'org.opencontainers.image.base.name="${BASE_IMAGE}"' in text
