"""Reading ImagePrefetches: each spec is parsed only once."""

from __future__ import annotations

from typing import Any

import pytest

from imagegate.api import decode
from imagegate.kube import prefetches
from imagegate.kube.prefetches import Reader


def body(uid: str, image: str, **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "imagegate.dev/v1alpha1",
        "kind": "ImagePrefetch",
        "metadata": {"name": "llm", "uid": uid, "generation": 1, "resourceVersion": "7"},
        "spec": {"images": [{"image": image}]},
        "status": status,
    }


def test_spec_is_parsed_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    original = decode.parse_prefetch

    def parse(each: Any) -> Any:
        parsed.append(each["spec"]["images"][0]["image"])
        return original(each)

    monkeypatch.setattr(decode, "parse_prefetch", parse)
    reader = Reader(["imagegate-system"])
    first = reader.parse(body("a", "reg.test/a:1"))
    again = reader.parse(body("a", "reg.test/a:1", target="abc"))
    assert again.images is first.images
    assert again.status == {"target": "abc"}
    assert reader.parse(body("a", "reg.test/a:2")).images[0].reference == "reg.test/a:2"
    assert reader.parse(body("a", "not a reference!")).invalid is not None
    assert reader.parse(body("a", "not a reference!")).invalid is not None
    assert parsed == ["reg.test/a:1", "reg.test/a:2", "not a reference!"]


def test_number_of_cached_specs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetches, "CACHED", 2)
    reader = Reader(["imagegate-system"])
    for uid in ("a", "b", "a", "c"):
        reader.parse(body(uid, "reg.test/a:1"))
    assert list(reader._parsed) == ["a", "c"]
