"""``imagegate simulate``: its output, its pictures, and its errors."""

from __future__ import annotations

import json
import struct
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import pytest

from imagegate import cli
from tests.unit import golden

SMALL = ["simulate", "--nodes=30", "--image-size=1", "--layers=4", "--failure-rate=0.1"]
GOLDEN = Path(__file__).with_name("golden")
PREFETCH = """
apiVersion: imagegate.dev/v1alpha1
kind: ImagePrefetch
metadata: {name: llm}
spec:
  images: [{image: reg.test/llm:1}]
  rollout: {maxParallel: 5, seeds: 2}
"""


def test_table_is_as_the_golden_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    golden.check(GOLDEN / "table.json", lines)
    assert max(map(len, lines)) <= 80


def test_json_is_as_the_golden_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "--mirror-rate=500", "-o", "json"]) == 0
    golden.check(GOLDEN / "json.json", json.loads(capsys.readouterr().out))


def test_file_gives_the_rollout_and_options_replace_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "llm.yaml"
    file.write_text(PREFETCH)
    for options, most, exposed in ((["-f", str(file)], 5, 5), (["--max-parallel=20%"], 6, 3)):
        assert cli.main([*SMALL, "--failure-rate=0", "-o", "json", *options]) == 0
        slow = json.loads(capsys.readouterr().out)["strategies"][2]
        assert (slow["mostPulls"], slow["begunBeforeTheFirstEnded"]) == (most, exposed)
    assert cli.main([*SMALL, "-f", str(file), "--seeds=1", "--max-parallel=9", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["strategies"][2]["mostPulls"] == 9


def test_plots_are_an_svg_and_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.svg", "b.svg", "c.png"):
        assert cli.main([*SMALL, f"--plot={tmp_path / name}"]) == 0
    text = (tmp_path / "a.svg").read_text()
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    for words in ("all at once", "fixed waves", "slow start", "Gbit/s"):
        assert words in text, "matplotlib writes each text as a comment"
    assert (tmp_path / "b.svg").read_text() == text, "the same input gives the same file"
    chunks = png((tmp_path / "c.png").read_bytes())
    assert [chunks[0], chunks[-1]] == ["IHDR", "IEND"]
    assert "IDAT" in chunks


def png(data: bytes) -> list[str]:
    """The kinds of the chunks of a PNG file, whose checksums are correct."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    kinds, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(body),)
        kinds.append(body[:4].decode())
        at += 12 + length
    return kinds


def test_plot_without_matplotlib_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert cli.main([*SMALL, "--plot=a.svg"]) == 1
    captured = capsys.readouterr()
    assert "pip install 'imagegate[plot]'" in captured.err
    assert captured.out == "", "the simulation does not run first"


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--nodes=0", "not a whole number from 1"),
        ("--nodes=1e3", "not a whole number from 1"),
        ("--image-size=-1", "not a number of GB from 0.000001"),
        ("--image-size=0", "not a number of GB from 0.000001"),
        ("--node-rate=nan", "not a number of MB/s from 0.000001"),
        ("--registry-rate=inf", "not a number of MB/s from 0.000001"),
        ("--spread=-1", "not a number from 0"),
        ("--max-parallel=0%", "from 1% to 100%"),
        ("--max-parallel=101%", "from 1% to 100%"),
        ("--plot=a.pdf", "end its name with .svg or .png"),
    ],
)
def test_bad_option_is_a_usage_error(
    option: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["simulate", option]) == 2
    text = capsys.readouterr().err
    assert problem in text
    assert option.partition("=")[0] in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--nodes=2"], "zones: 3 zones for 2 nodes"),
        (["--largest-layer=8"], "largest layer: 8 GB is not possible in 8 layers of 7 GB"),
        (["--failure-rate=0.95"], "failure rate: 0.95 is not from 0 to 0.9"),
        (["-f", "two.yaml"], "2 ImagePrefetches: give one of them"),
        (["-f", "none.yaml"], "No such file"),
    ],
)
def test_impossible_simulation_says_what_to_change(
    options: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text(f"{PREFETCH}---{PREFETCH}")
    assert cli.main(["simulate", *options]) == 1
    assert problem in capsys.readouterr().err
