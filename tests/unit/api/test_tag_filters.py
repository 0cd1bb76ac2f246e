"""Patterns of tags, and the text by which tags are compared."""

from __future__ import annotations

import time

import pytest

from imagegate.api.tag_filters import InvalidPattern, TagFilter, compiled, unknown_groups


@pytest.mark.parametrize(
    ("pattern", "extract", "tag", "key"),
    [
        ("", "", "main-1", "main-1"),
        ("^main-", "", "main-1", "main-1"),
        ("^main-", "", "dev-main-1", None),
        ("main", "", "dev-main-1", "dev-main-1"),
        ("^(?P<ts>[0-9]+)-(?P<sha>[a-f]+)$", "$ts", "17-ab", "17"),
        ("^(?P<ts>[0-9]+)-(?P<sha>[a-f]+)$", "${ts}.${sha}", "17-ab", "17.ab"),
        ("^(?P<ts>[0-9]+)-(?P<sha>[a-f]+)$", "$2$1$0$$", "17-ab", "ab1717-ab$"),
        # As in Go, the longest name counts, and a group that does not exist is empty.
        ("^(?P<ts>[0-9]+)$", "$ts1", "17", ""),
        ("^(?P<ts>[0-9]+)$", "$2.$01.${x}.$x", "17", "..."),
        ("^(?P<a>x)?(?P<b>y)$", "$a-$b", "y", "-y"),
        ("^(?P<ts>[0-9]+)$", "$" + "9" * 100, "17", ""),
    ],
)
def test_text_by_which_a_tag_is_compared(
    pattern: str, extract: str, tag: str, key: str | None
) -> None:
    assert TagFilter(pattern, extract).key(tag) == key


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "a{2000}", r"(a)\1", "(?=a)", "((((a{100}){100}){100}){100})", "(?P<a>"]
)
def test_what_re2_cannot_run_in_linear_time_is_rejected(
    pattern: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidPattern, match="is not a regular expression of RE2"):
        compiled(pattern)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "^(.*a){12}$", "(x+x+)+y"])
def test_no_pattern_runs_long(pattern: str) -> None:
    began = time.perf_counter()
    for tag in ("a" * 127 + "!", "x" * 128):
        TagFilter(pattern).key(tag)
    assert time.perf_counter() - began < 0.5


def test_extracted_text_is_bounded() -> None:
    key = TagFilter("^(a+)$", "$1" * 64).key("a" * 128)
    assert key is not None
    assert len(key) < 300


def test_unknown_groups_are_named() -> None:
    pattern = "^main-(?P<ts>[0-9]+)$"
    assert unknown_groups(pattern, "$ts ${ts} $1") == []
    assert unknown_groups(pattern, "${time}.$tss") == ["time", "tss"]
