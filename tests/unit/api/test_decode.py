"""Decoding accepts the objects that the API server accepts, and explains each rejection."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pytest

from imagegate.api import decode, v1alpha1
from tests.unit.api import objects


def read(body: Mapping[str, Any]) -> v1alpha1.ImagePrefetch | v1alpha1.NodeGate:
    parse = decode.parse_prefetch if body["kind"] == "ImagePrefetch" else decode.parse_node_gate
    return parse(body)


def spec_of(**spec: Any) -> v1alpha1.ImagePrefetchSpec:
    return decode.parse_prefetch(objects.prefetch(**spec)).spec


@pytest.mark.parametrize("row", objects.ACCEPTED, ids=lambda row: row.id)
def test_object_that_the_api_server_accepts_is_decoded(row: objects.Row) -> None:
    read(row.body)


@pytest.mark.parametrize("row", objects.REFUSED, ids=lambda row: row.id)
def test_object_that_the_api_server_rejects_is_rejected(row: objects.Row) -> None:
    if row.only_api_server:
        read(row.body)
        return
    with pytest.raises(decode.InvalidObject) as caught:
        read(row.body)

    assert (row.read or row.refused or "") in str(caught.value)


@pytest.mark.parametrize(
    "row", [row for row in objects.ACCEPTED if row.filled], ids=lambda row: row.id
)
def test_models_have_the_defaults_of_the_api_server(row: objects.Row) -> None:
    def assert_contains(have: Any, want: Any) -> None:
        match want:
            case dict():
                for key, value in want.items():
                    assert_contains(have[key], value)
            case list():
                for have_item, want_item in zip(have, want, strict=True):
                    assert_contains(have_item, want_item)
            case _:
                assert have == want

    assert_contains(read(row.body).model_dump(mode="json", by_alias=True), row.filled)


def test_complete_prefetch_is_decoded() -> None:
    prefetch = decode.parse_prefetch(
        {
            **objects.prefetch("redis:7", nodeSelector={"matchLabels": {"pool": "gpu"}}),
            "metadata": {
                "name": "example",
                "uid": "u-1",
                "generation": 3,
                "resourceVersion": "77",
                "creationTimestamp": "2026-11-22T09:00:00Z",
                "finalizers": ["imagegate.dev/cleanup"],
                "managedFields": [{"manager": "kubectl"}],
            },
            "status": {"observedGeneration": 2, "nodes": {"desired": 4}, "addedLater": 1},
        }
    )

    assert prefetch.metadata.creation_timestamp == datetime(2026, 11, 22, 9, tzinfo=UTC)
    assert prefetch.metadata.generation == 3
    assert prefetch.spec.images[0].reference.normalized == "docker.io/library/redis:7"
    assert prefetch.spec.node_selector.match_labels == {"pool": "gpu"}
    assert prefetch.status is not None
    assert prefetch.status.nodes == v1alpha1.NodeCounts(desired=4)


def test_empty_pull_secrets_differ_from_unset_pull_secrets() -> None:
    inherited, none = decode.parse_prefetch(
        {
            **objects.prefetch(),
            "spec": {"images": [{"image": "a"}, {"image": "b", "imagePullSecrets": []}]},
        }
    ).spec.images

    assert inherited.image_pull_secrets is None
    assert none.image_pull_secrets == ()


def test_read_only_mappings_are_decoded() -> None:
    body = MappingProxyType(
        {
            key: MappingProxyType(v) if isinstance(v, dict) else v
            for key, v in objects.gate().items()
        }
    )

    assert decode.parse_node_gate(body).spec.silence_seconds == 300


@pytest.mark.parametrize("status", [{"nodes": {"desired": "many"}}, {"target": 5}, [], "garbage"])
def test_unreadable_status_does_not_make_the_object_invalid(status: object) -> None:
    assert decode.parse_prefetch({**objects.prefetch(), "status": status}).status is None


def test_error_names_the_first_problem_and_counts_the_others() -> None:
    with pytest.raises(decode.InvalidObject) as caught:
        decode.parse_prefetch(
            objects.prefetch("Nginx", gate={"timeoutSeconds": 0}, rollout={"maxParallel": 0})
        )

    assert caught.value.field == "spec.images[0].image"
    assert caught.value.problem.endswith("(and 2 more)")


@pytest.mark.parametrize("value", [True, None, ["10%"]])
def test_error_in_a_union_names_the_field(value: object) -> None:
    with pytest.raises(decode.InvalidObject) as caught:
        decode.parse_prefetch(objects.prefetch(rollout={"maxParallel": value}))

    assert caught.value.field == "spec.rollout.maxParallel"


def test_long_value_is_truncated_in_the_error() -> None:
    with pytest.raises(decode.InvalidObject) as caught:
        decode.parse_prefetch(objects.prefetch(gate={"mode": "x" * 5000}))

    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("body", [{}, {"metadata": {"name": "a"}}, {"spec": None}])
def test_incomplete_mapping_is_rejected(body: Mapping[str, Any]) -> None:
    with pytest.raises(decode.InvalidObject):
        decode.parse_prefetch(body)


def test_models_are_frozen() -> None:
    spec = spec_of()

    with pytest.raises(ValueError, match="frozen"):
        spec.dry_run = True  # type: ignore[misc]


def test_models_accept_attribute_names() -> None:
    assert v1alpha1.Rollout(max_parallel=5) == v1alpha1.Rollout.model_validate({"maxParallel": 5})
