"""JSON patches of Nodes: golden files, and patches applied to a changed Node."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegate.domain.actions import PatchNode, ReleaseReason
from imagegate.domain.facts import Listed, Node, Taint
from imagegate.kube import nodes
from tests.unit import golden
from tests.unit.domain.cases import GATE_TAINT, KEY, NOT_READY

GOLDEN = Path(__file__).parent / "golden"


def body(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "metadata": {
            "name": "n1",
            "uid": "node-uid",
            "resourceVersion": "7",
            "labels": {"a": "b"},
            "annotations": {"c": "d"},
        },
        "spec": {
            "taints": [
                {"key": NOT_READY.key, "effect": "NoSchedule"},
                {"key": KEY, "value": "pending", "effect": "NoSchedule"},
            ]
        },
        "status": {"nodeInfo": {"bootID": "boot-1"}},
    }
    made.update(changes)
    return made


RELEASE = PatchNode(
    nodes.parse(body()),
    set_labels={"cached.imagegate.dev/llm": "0123456789ab"},
    observed="node-uid/boot-1",
    remove=(GATE_TAINT,),
    release=ReleaseReason.CACHED,
)


def test_patch_that_releases_a_node_matches_the_golden_file() -> None:
    golden.check(GOLDEN / "release.json", nodes.operations(RELEASE))


def test_patch_that_holds_a_bare_node_matches_the_golden_file() -> None:
    bare = nodes.parse({"metadata": {"name": "n1", "uid": "u", "resourceVersion": "7"}})
    patch = PatchNode(
        bare, set_labels={"cached.imagegate.dev/a": "x"}, observed="u/", add=GATE_TAINT
    )
    golden.check(GOLDEN / "hold-bare.json", nodes.operations(patch))
    result = jsonpatch.apply_patch(
        {"metadata": {"name": "n1", "uid": "u", "resourceVersion": "7"}, "spec": {}},
        nodes.operations(patch),
    )
    assert result["metadata"]["labels"] == {"cached.imagegate.dev/a": "x"}


@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_patch_fails_if_first_labels_or_annotations_are_added_concurrently(field: str) -> None:
    metadata = {"name": "n1", "uid": "u", "resourceVersion": "7"}
    bare = nodes.parse({"metadata": metadata})
    patch = PatchNode(bare, set_labels={"cached.imagegate.dev/a": "x"}, observed="u/")
    live = {"metadata": {**metadata, "resourceVersion": "8", field: {"topology": "z"}}}
    with pytest.raises(jsonpatch.JsonPatchException):
        jsonpatch.apply_patch(live, nodes.operations(patch))
    only = PatchNode(bare, set_labels={"cached.imagegate.dev/a": "x"})
    if field == "labels":
        with pytest.raises(jsonpatch.JsonPatchException):
            jsonpatch.apply_patch(live, nodes.operations(only))


def test_parsed_node_contains_the_names_that_were_looked_up() -> None:
    images = [
        {"names": ["a@sha256:0", "a:1", "a:2", "a:3", "a:4"], "sizeBytes": 30},
        {"names": ["b:1"], "sizeBytes": 90},
    ]
    wanted = frozenset({"a:1", "c:1"})
    parsed = nodes.parse({**body(), "status": {"images": images}}, wanted)
    assert parsed.listed == {"a:1": Listed(30, frozenset({"sha256:0"}))}
    assert parsed.wanted == wanted
    assert (parsed.smallest_listed, parsed.cut_off) == (30, (parsed.listed["a:1"],))


@pytest.mark.parametrize(
    "meanwhile",
    [
        {"spec": {"taints": []}},
        {"spec": {"taints": [{"key": KEY, "value": "pending", "effect": "NoSchedule"}]}},
        {
            "spec": {
                "taints": [
                    {"key": NOT_READY.key, "effect": "NoSchedule"},
                    {"key": KEY, "value": "other", "effect": "NoSchedule"},
                ]
            }
        },
        {"metadata": {"name": "n1", "uid": "another-machine", "labels": {}, "annotations": {}}},
    ],
)
def test_patch_fails_if_the_node_changed_concurrently(meanwhile: dict[str, Any]) -> None:
    with pytest.raises(jsonpatch.JsonPatchException):
        jsonpatch.apply_patch(body(**meanwhile), nodes.operations(RELEASE))


TAINTS = st.lists(
    st.builds(
        Taint,
        key=st.sampled_from(["a", "b", KEY + "x"]),
        effect=st.sampled_from(["NoSchedule", "NoExecute"]),
        value=st.none() | st.just("v"),
        time_added=st.none() | st.just("2026-01-01T00:00:00Z"),
    ),
    max_size=4,
)


@given(TAINTS, TAINTS)
def test_gate_taint_is_added_and_removed_without_changing_other_taints(
    before: list[Taint], after: list[Taint]
) -> None:
    wire = [nodes._wire(t) for t in (*before, GATE_TAINT, *after)]
    seen = nodes.parse(body(spec={"taints": wire}))
    removed = jsonpatch.apply_patch(
        body(spec={"taints": wire}), nodes.operations(PatchNode(seen, remove=(GATE_TAINT,)))
    )
    foreign = [nodes._wire(t) for t in (*before, *after)]
    assert removed["spec"]["taints"] == foreign
    clean = nodes.parse(body(spec={"taints": foreign}))
    added = jsonpatch.apply_patch(
        body(spec={"taints": foreign}), nodes.operations(PatchNode(clean, add=GATE_TAINT))
    )
    assert added["spec"]["taints"] == [*foreign, nodes._wire(GATE_TAINT)]


async def test_error_of_a_node_is_raised_after_all_nodes_are_tried() -> None:
    changed: list[str] = []

    async def change(node: Node) -> bool:
        if node.name == "refused":
            raise PermissionError(node.name)
        await asyncio.sleep(0.05)
        changed.append(node.name)
        return True

    each = [nodes.parse(body(metadata={"name": name})) for name in ("refused", "slow-1", "slow-2")]
    with pytest.raises(PermissionError, match="refused"):
        await nodes.try_each(each, change)
    assert changed == ["slow-1", "slow-2"]
