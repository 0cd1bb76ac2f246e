"""No signature and no login of a runtime's message reaches a status, an Event or a log."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from imagegate.domain import messages
from imagegate.domain.redact import redact
from imagegate.puller import read
from imagegate.registry.errors import Unavailable, quoted

SIGNED = (
    "https://store.test/blobs/ab?X-Amz-Credential=AKIA%2Feu&X-Amz-Signature=c0ffee"
    "&X-Amz-Date=20261128T070000Z"
)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f'Get "{SIGNED}": dial tcp: i/o timeout', 'Get "https://store.test/blobs/ab?…": dial tcp'),
        (f"request to {SIGNED}: 403 Forbidden", "request to https://store.test/blobs/ab?…: 403"),
        (f"({SIGNED}), then", "(https://store.test/blobs/ab?…), then"),
        ("at https://user:c0ffee@store.test/x: no", "at https://store.test/x: no"),
        ("at https://c0ffee@store.test: no", "at https://store.test: no"),
        ("store.test/x?sig=c0ffee&se=1", "store.test/x?sig=…&se=1"),
        ("X-Amz-Signature=c0ffee is wrong", "X-Amz-Signature=… is wrong"),
        ("x-amz-security-token: c0ffee", "x-amz-security-token: …"),
        ("Authorization: Bearer c0ffee", "Authorization: …"),
        ("token eyJhbGciOiJSUzI1NiJ9.eyJzdWIi.c0ffee refused", "token … refused"),
        (
            "docker://reg.test/a@sha256:abc: is this right? no",
            "docker://reg.test/a@sha256:abc: is this right? no",
        ),
    ],
)
def test_a_message_is_shown_without_signatures_and_logins(message: str, shown: str) -> None:
    assert redact(message).startswith(shown)
    assert "c0ffee" not in redact(message)
    error = Unavailable("reg.test", message, "ask again")
    assert "c0ffee" not in str(error) + error.problem


def test_a_waiting_and_a_failed_pod_are_read_without_signatures() -> None:
    body = {
        "spec": {"containers": [{"name": "image-0", "image": "reg.test/a:1"}]},
        "status": {
            "phase": "Failed",
            "reason": "Evicted",
            "message": f"failed at {SIGNED}",
            "containerStatuses": [
                {
                    "name": "image-0",
                    "state": {"waiting": {"reason": "ErrImagePull", "message": f'Get "{SIGNED}"'}},
                }
            ],
        },
    }
    pod = read.pod(body)
    assert "store.test/blobs/ab?…" in pod.message
    assert "store.test/blobs/ab?…" in pod.waiting_message
    assert "c0ffee" not in repr(pod)


def test_a_message_of_a_registry_is_shown_without_signatures() -> None:
    body = json.dumps({"errors": [{"code": "X", "message": f"no blob at {SIGNED}"}]}).encode()
    error = Unavailable("reg.test", f"it answered {quoted(503, body)}", "ask again")
    assert "c0ffee" not in str(error)


def test_redaction_does_not_change_the_class_of_a_failure() -> None:
    for path in sorted((Path(__file__).parent / "messages").glob("*.json")):
        for said in json.loads(path.read_text())["messages"]:
            for text in (said["message"], said.get("back_off", "")):
                assert messages.classify(redact(text)) == messages.classify(text)


@pytest.mark.parametrize("part", ["://", "://?", ":", "?", "a=", "eyJ", "X-Amz-", "://a@", '"'])
def test_a_long_message_costs_little_time(part: str) -> None:
    began = time.perf_counter()
    redact(part * (200_000 // len(part)))
    assert time.perf_counter() - began < 2.0
