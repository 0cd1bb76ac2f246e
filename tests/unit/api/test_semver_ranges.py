"""Ranges of versions accept what the Go package accepts that Flux uses.

golden/semver_ranges.json has the answers of github.com/Masterminds/semver v3.4.0
(``NewConstraint(range).Check(StrictNewVersion(version))``).
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from imagegate.api import semver_ranges

GOLDEN = json.loads((Path(__file__).parent / "golden" / "semver_ranges.json").read_text())


@pytest.mark.parametrize("text", GOLDEN["accepted"])
def test_range_accepts_the_same_versions_as_in_flux(text: str) -> None:
    parsed = semver_ranges.parse(text)
    accepted = [
        each
        for each in GOLDEN["versions"]
        if (version := semver_ranges.version(each)) is not None and parsed.accepts(version)
    ]
    assert accepted == GOLDEN["accepted"][text].split()


@pytest.mark.parametrize(
    "text",
    ["", "latest", "1.2.3.4", ">= <", "1..2", "||", "1.0.0 ||", ">>1", "1,", "01.2.3", "1.0.0-01"],
)
def test_other_texts_are_rejected(text: str) -> None:
    with pytest.raises(semver_ranges.InvalidRange, match="is not a range of versions"):
        semver_ranges.parse(text)


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("1.4.2", "1.4.2"),
        ("v1.4.2-rc.1", "1.4.2-rc.1"),
        ("1.4", None),
        ("v1", None),
        ("01.4.2", None),
        ("vv1.4.2", None),
        ("1.4.2_1", None),
        ("latest", None),
        ("9" * 100 + ".0.0", "9" * 100 + ".0.0"),
    ],
)
def test_version_of_a_tag(tag: str, version: str | None) -> None:
    found = semver_ranges.version(tag)
    assert (None if found is None else str(found)) == version


@pytest.mark.parametrize(
    "text", [">=1  " * 25 + "!", "1-" * 63 + "!", " " * 127 + "!", "1 - " * 31 + "1", "1.x," * 31]
)
def test_no_range_takes_long_to_reject(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(semver_ranges.InvalidRange):
        semver_ranges.parse(text)
    assert time.perf_counter() - began < 0.1
