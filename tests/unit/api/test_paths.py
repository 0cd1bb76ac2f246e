"""The grammar and the values of paths."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegate.api import kinds, paths

NAMES = st.from_regex(r"\A[A-Za-z_][-A-Za-z0-9_]{0,5}\Z")
STEPS = st.lists(st.tuples(NAMES, st.booleans()), min_size=1, max_size=6)


def written(steps: list[tuple[str, bool]]) -> str:
    return ".".join(name + ("[*]" if each else "") for name, each in steps)


@given(STEPS)
def test_path_finds_the_value_that_it_leads_to(steps: list[tuple[str, bool]]) -> None:
    path = written(steps)
    assert re.fullmatch(paths.GRAMMAR, path)
    body: Any = "value"
    for name, each in reversed(steps):
        body = {name: [body, body] if each else body, "other": "no"}
    assert paths.values(body, path) == ["value"] * 2 ** sum(each for _, each in steps)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=20,
)


@given(JSON, STEPS)
def test_path_into_an_object_of_any_shape_finds_parts_of_it(
    body: object, steps: list[tuple[str, bool]]
) -> None:
    parts: list[object] = []
    left = [body]
    while left:
        parts.append(part := left.pop())
        left += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    found = paths.values(body, written(steps))
    assert len(found) <= len(parts)
    assert all(any(value is part for part in parts) for value in found)


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "spec.", ".spec", "spec..a", "spec[0]", "spec[*][*]", "[*]", "spec[*]a", "a.*"),
        *("$.spec", "spec['a']", "spec..image", "a b", "a/b", "1a", "spec.image\n", "ä"),
    ],
)
def test_text_that_is_not_a_path_does_not_match(path: str) -> None:
    assert re.fullmatch(paths.GRAMMAR, path) is None


@pytest.mark.parametrize("ending", ["", "!", "[", "."])
def test_grammar_needs_no_backtracking(ending: str) -> None:
    text = "a-" * 100_000 + ending
    began = time.process_time()
    re.fullmatch(paths.GRAMMAR, text)
    re.fullmatch(paths.GRAMMAR, "a[*]." * 50_000 + ending)
    assert time.process_time() - began < 2


def test_values_of_a_map_are_entries() -> None:
    body = {"spec": {"replicas": {"Master": {"image": "a"}, "Worker": {"image": "b"}, "x": 5}}}
    assert paths.values(body, "spec.replicas[*].image") == ["a", "b"]
    assert paths.values(body, "spec.replicas.Master.image") == ["a"]
    assert paths.values(body, "spec.replicas.image") == []


def test_wide_and_deep_object_is_read_in_time_proportional_to_its_size() -> None:
    wide = {"a": [{"a": [{"a": [{"a": "x"}] * 20}] * 20}] * 20}
    assert len(paths.values(wide, "a[*].a[*].a[*].a")) == 8000
    deep: Any = "x"
    for _ in range(20_000):
        deep = {"a": deep}
    assert len(paths.values(deep, ".".join("a" * 128))) == 1


def test_paths_of_the_known_kinds_are_valid() -> None:
    for kind in kinds.ALL:
        for path in (*kind.pod_templates, *kind.images, *kind.oci):
            assert re.fullmatch(paths.GRAMMAR, path), path
        assert kind.pod_templates or kind.images
        assert kind.checked
