"""Each source reads its own payloads, and any other body is rejected without a crash."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.errors import ImagegateError
from imagegate.hooks.event import Delivery, Malformed, Push, Receiver, Unverified
from imagegate.hooks.sources import SOURCES
from tests.unit.hooks.test_verify import signed

PAYLOADS = Path(__file__).with_name("payloads")
GITHUB = {
    "x-github-event": "package",
    "x-github-delivery": "d-1",
    "content-type": "application/json",
}
MINE = ("distribution", "harbor", "dockerhub", "quay", "ghcr", "generic")


def payload(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


def receiver(source: str, *secrets: str) -> Receiver:
    return Receiver(name="r", source=source, path="p" * 16, secrets=secrets)


async def nothing(url: str, *, fresh: bool = False) -> bytes:
    raise AssertionError("nothing is fetched")


def parse(source: str, body: bytes, **headers: str) -> tuple[list[Push], str]:
    found = SOURCES[source].parse(
        Delivery({n.replace("_", "-"): v for n, v in headers.items()}, body), receiver(source)
    )
    assert found.answer is None
    assert not found.visit
    return list(found.pushes), found.id


@pytest.mark.parametrize(
    ("source", "name", "pushes", "id_"),
    [
        (
            "distribution",
            "distribution",
            [Push("team/app", "1", "registry.example:5000")],
            "1f815b67-4abd-43a0-a25c-930111e39343",
        ),
        ("distribution", "distribution-child", [], "2b216370-5d50-4f81-894d-df4cf402875b"),
        (
            "distribution",
            "distribution-index",
            [Push("team/multiarch", "1", "registry.example:5000")],
            "b12c1e23-4838-4ece-ae86-a9a1ddfbc6c1",
        ),
        ("harbor", "harbor", [Push("test-webhook/debian", "latest", "hub.harbor.com")], ""),
        (
            "harbor",
            "harbor-cloudevents",
            [Push("harbor/alpine", "stable", "localhost")],
            "66e18103-09c1-41f6-982f-37df223f3eeb",
        ),
        ("harbor", "harbor-child", [], "66e18103-09c1-41f6-982f-37df223f3eeb"),
        ("dockerhub", "dockerhub", [Push("svendowideit/testhook", "latest", "docker.io")], ""),
        ("quay", "quay", [Push("dgangaia/test", "latest", "quay.io")], ""),
        ("quay", "quay-2013", [Push("devtable/ubuntu", "latest", "quay.io")], ""),
        ("ghcr", "ghcr", [Push("theryangeary/www", "0e2a89b", "ghcr.io")], "d-1"),
        ("ghcr", "ghcr-registry-package", [], ""),
        ("generic", "generic", [Push("team/app", "1.2", "registry.example")], "u-1"),
    ],
)
def test_recorded_payload_is_read(source: str, name: str, pushes: list[Push], id_: str) -> None:
    headers = {n.replace("-", "_"): v for n, v in GITHUB.items()} if source == "ghcr" else {}
    assert parse(source, payload(name), **headers) == (pushes, id_)


def test_distribution_events_other_than_tag_pushes_are_skipped() -> None:
    events = [
        {"id": "1", "action": "pull", "target": {"repository": "a/b", "tag": "1"}},
        {"id": "2", "action": "push", "target": {"repository": "a/b", "digest": "sha256:00"}},
        {"id": "3", "action": "delete", "target": {"repository": "a/b", "tag": "1"}},
        {"id": "4", "action": "push", "target": {"repository": "a/b", "tag": "1"}, "request": None},
        {"id": "5", "action": "push", "target": None},
        {"id": "6", "action": "push", "target": {"repository": "a/c", "tag": "2"}},
    ]
    pushes, id_ = parse("distribution", json.dumps({"events": events}).encode())
    assert pushes == [Push("a/b", "1"), Push("a/c", "2")]
    assert id_ == "1 2 3 4 5 6"


@pytest.mark.parametrize("source", ["harbor", "quay", "ghcr"])
def test_unrelated_event_is_accepted_without_pushes(source: str) -> None:
    assert parse(source, b'{"type": "SCANNING_COMPLETED", "build_id": "1", "zen": "Keep it"}') == (
        [],
        "",
    )


def test_github_package_that_is_not_an_image_is_skipped() -> None:
    body = json.loads(payload("ghcr"))
    body["package"]["package_type"] = "npm"
    headers = {n.replace("-", "_"): v for n, v in GITHUB.items()}
    assert parse("ghcr", json.dumps(body).encode(), **headers) == ([], "")


def test_github_form_encoding_error_names_the_right_content_type() -> None:
    with pytest.raises(Malformed, match="application/json"):
        parse(
            "ghcr",
            b"payload=%7B%7D",
            x_github_event="package",
            content_type="application/x-www-form-urlencoded",
        )


def test_cloud_event_in_binary_mode_is_read() -> None:
    pushes, id_ = parse("generic", b'{"image": "a.example/b:2"}', ce_id="7", ce_specversion="1.0")
    assert (pushes, id_) == ([Push("b", "2", "a.example")], "7")


# ---- verification of the sender


async def proven(source: str, body: bytes, to: Receiver, **headers: str) -> bool:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        await SOURCES[source].verify(Delivery(names, body), to, nothing)
    except Unverified:
        return False
    return True


@pytest.mark.parametrize("source", ["distribution", "harbor", "generic"])
async def test_any_configured_secret_in_the_header_is_accepted(source: str) -> None:
    to, body = receiver(source, "old-secret", "new-secret"), payload(source)
    for secret in to.secrets:
        assert await proven(source, body, to, authorization=f"Bearer {secret}")
    assert not await proven(source, body, to, authorization="Bearer other-secret")
    assert not await proven(source, body, to)
    assert await proven(source, body, receiver(source))


@pytest.mark.parametrize(
    ("source", "header"), [("ghcr", "x_hub_signature_256"), ("generic", "x_signature")]
)
async def test_signature_with_any_configured_secret_is_accepted(source: str, header: str) -> None:
    to, body = receiver(source, "old-secret", "new-secret"), payload(source)
    for secret in to.secrets:
        assert await proven(source, body, to, **{header: f"sha256={signed(secret, body=body)}"})
    forged = body.replace(b"a", b"b", 1)
    value = f"sha256={signed('new-secret', body=body)}"
    assert not await proven(source, forged, to, **{header: value})
    assert not await proven(source, body, to, **{header: "sha256=" + signed("x", body=body)})
    assert not await proven(source, body, to)


async def test_wrong_signature_is_rejected_also_with_a_right_secret() -> None:
    to, body = receiver("generic", "new-secret"), payload("generic")
    assert not await proven(
        "generic", body, to, x_signature="sha256=00", authorization="Bearer new-secret"
    )


@pytest.mark.parametrize("source", ["dockerhub", "quay"])
async def test_source_without_proofs_accepts_every_delivery(source: str) -> None:
    assert SOURCES[source].proofs == frozenset()
    assert await proven(source, b"", receiver(source))


# ---- invalid bodies

FIELDS = (
    *("events", "action", "target", "repository", "tag", "request", "host", "id"),
    *("type", "event_data", "data", "resources", "resource_url", "repo_full_name"),
    *("push_data", "repo_name", "docker_url", "updated_tags", "image", "name"),
    *("package", "registry_package", "package_type", "package_version", "package_url"),
    *("container_metadata",),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=30,
)


def harmless(source: str, body: bytes) -> None:
    try:
        found = SOURCES[source].parse(Delivery(GITHUB, body), receiver(source))
    except Malformed:
        return
    assert all(isinstance(push, Push) for push in found.pushes)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MINE), anything)
def test_arbitrary_json_does_not_crash_a_source(source: str, document: Any) -> None:
    harmless(source, json.dumps(document).encode())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(MINE), st.binary(max_size=200))
def test_arbitrary_bytes_do_not_crash_a_source(source: str, body: bytes) -> None:
    harmless(source, body)


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in PAYLOADS.glob("*.json") if p.stem.split("-")[0] in MINE)
)
def test_damaged_payload_does_not_crash_a_source(name: str) -> None:
    """Replaces each value in turn by a value of another type, and cuts the text at random."""
    source = name.split("-", maxsplit=1)[0]
    text, chance = payload(name), random.Random(1)
    for _ in range(50):
        harmless(source, text[: chance.randrange(len(text))])

    def places(node: Any) -> list[tuple[Any, Any]]:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        found = [(node, key) for key in keys]
        for key in keys:
            if isinstance(node[key], dict | list):
                found += places(node[key])
        return found

    for number in range(len(places(json.loads(text)))):
        for wrong in (None, 7, "", "\x00 ://", [], {}, [None], {"a": None}, True):
            document = json.loads(text)
            node, key = places(document)[number]
            node[key] = wrong
            harmless(source, json.dumps(document).encode())


@pytest.mark.parametrize("source", MINE)
@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"[" * 100_000, b'"\\ud800"', b'{"a":' * 5000, b"\xff\xfe"]
)
def test_hostile_body_is_rejected(source: str, body: bytes) -> None:
    with pytest.raises(ImagegateError):
        SOURCES[source].parse(Delivery(GITHUB, body), receiver(source))
