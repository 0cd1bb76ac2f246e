"""Deliveries of cloud registries, from the file of receivers to the tag that is checked."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from imagegate.hooks import configuration, gar
from imagegate.hooks.directory import Directory
from imagegate.hooks.event import Answer, Delivery, Told
from imagegate.hooks.receiver import ACCEPTED, NOT_FOUND, PushReceiver
from imagegate.hooks.sources import SOURCES
from tests.unit.hooks.signing import (
    CERTIFICATE_URL,
    TOPIC,
    Web,
    certificate,
    confirmation,
    jwk,
    jwks,
    message,
    recorded,
    rsa_key,
    token,
)

FILE = f"""
- {{name: ecr, source: ecr, path: path-of-ecr-00000, secrets: [new-secret, old-secret]}}
- {{name: topic, source: ecr-sns, path: path-of-topic-000, topics: ["{TOPIC}"]}}
- name: google
  source: gar
  path: path-of-google-00
  token: {{issuer: "https://accounts.google.com", audience: imagegate, email: push@us.example}}
- {{name: grid, source: acr-eventgrid, path: path-of-grid-0000, secrets: [new-secret]}}
- {{name: acr, source: acr, path: path-of-acr-00000, secrets: [new-secret], registry: own.example}}
- name: artifactory
  source: jfrog
  path: path-of-jfrog-000
  secrets: [the-new-secret-of-jfrog]
  registry: art.example/virtual
- name: nexus
  source: nexus
  path: path-of-nexus-000
  registry: nexus.example:5000
  pathOnly: true
"""


class World:
    def __init__(self, directory: Path) -> None:
        self.web = Web(
            {
                CERTIFICATE_URL: certificate(),
                gar.KEYS_URL: jwks(jwk(rsa_key(), "one")),
                confirmation()["SubscribeURL"]: b"<ConfirmSubscriptionResponse/>",
            }
        )
        self.receivers = {r.name: r for r in configuration.parse(FILE.encode(), SOURCES)}
        self.asked: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.receiver = PushReceiver(
            Directory(directory / "receivers.yaml", SOURCES),
            SOURCES,
            hand_over=self._hand_over,
            fetch=self.web,
            observe=lambda _, outcome: self.outcomes.update([str(outcome)]),
        )

    def _hand_over(self, told: Sequence[Told]) -> bool:
        self.asked += [f"{it.push.registry}/{it.push.repository}:{it.push.tag}" for it in told]
        return True

    async def deliver(self, to: str, sent: Any, method: str = "POST", **headers: str) -> Answer:
        body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        named: Mapping[str, str] = {k.replace("_", "-"): v for k, v in headers.items()}
        return await self.receiver.receive(self.receivers[to], Delivery(named, body, method))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


ECR = "123456789012.dkr.ecr.us-west-2.amazonaws.com/my-repository-name:latest"


async def test_ecr_delivery_is_forwarded(world: World) -> None:
    for secret in ("old-secret", "Bearer new-secret"):
        assert await world.deliver("ecr", recorded("ecr.json"), authorization=secret) == ACCEPTED
    assert world.asked == [ECR]
    assert world.outcomes == {"forwarded": 1, "duplicate": 1}
    assert await world.deliver("ecr", recorded("ecr.json")) == NOT_FOUND


async def test_sns_subscription_is_confirmed_only_after_verification(world: World) -> None:
    """A forged confirmation must not cause a GET of its URL."""
    forged = {**confirmation(), "Timestamp": "2030-01-01T00:00:00.000Z"}
    assert await world.deliver("topic", forged) == NOT_FOUND
    assert world.web.asked == [CERTIFICATE_URL]
    assert await world.deliver("topic", confirmation()) == ACCEPTED
    await asyncio.gather(*world.receiver._visits)
    assert world.web.asked[-1] == confirmation()["SubscribeURL"]
    assert await world.deliver("topic", message()) == ACCEPTED
    assert await world.deliver("topic", message("1")) == ACCEPTED
    assert world.asked == [ECR]


async def test_google_delivery_needs_a_token_of_the_configured_account(world: World) -> None:
    shown = f"Bearer {token(aud='imagegate', email='push@us.example')}"
    assert await world.deliver("google", recorded("gar.json"), authorization=shown) == ACCEPTED
    assert world.asked == ["us-west1-docker.pkg.dev/my-project/my-repo/hello-world:1.1"]
    for claims in ({"aud": "other"}, {"email": "push@them.example"}, {"expires": -3600}):
        said: dict[str, Any] = {"aud": "imagegate", "email": "push@us.example", **claims}
        shown = f"Bearer {token(**said)}"
        sent = recorded("gar.json")
        assert await world.deliver("google", sent, authorization=shown) == NOT_FOUND


async def test_event_grid_delivery_needs_the_secret_after_the_handshake(world: World) -> None:
    shake = await world.deliver("grid", recorded("acr-eventgrid-validation.json"))
    assert (shake.status, b"512d38b6-c7b8-40c8-89fe-f46f9e9622b6" in shake.body) == (200, True)
    origin = {"webhook_request_origin": "eventgrid.azure.net"}
    shake = await world.deliver("grid", b"", "OPTIONS", **origin)
    assert shake.headers["WebHook-Allowed-Origin"] == "eventgrid.azure.net"
    sent = recorded("acr-eventgrid.json")
    assert await world.deliver("grid", sent) == NOT_FOUND
    assert await world.deliver("grid", sent, authorization="BEARER new-secret") == ACCEPTED
    assert world.asked == ["demo.azurecr.io/aci-helloworld:v1"]


async def test_registry_of_the_receiver_replaces_that_of_the_event(world: World) -> None:
    sent = {"action": "ping"}
    assert (await world.deliver("acr", sent, authorization="new-secret")).status == 200
    await world.deliver("acr", recorded("acr.json"), authorization="new-secret")
    assert world.asked == ["own.example/hello-world:v1"]


async def test_registry_of_the_receiver_may_name_a_virtual_repository(world: World) -> None:
    body = json.dumps(recorded("jfrog.json")).encode()
    signed = hmac.new(b"the-new-secret-of-jfrog", body, hashlib.sha256).hexdigest()
    assert await world.deliver("artifactory", body, x_jfrog_event_auth=signed) == ACCEPTED
    assert "art.example/virtual/library/ubuntu:latest" in world.asked


async def test_nexus_delivery_is_forwarded_with_both_possible_names(world: World) -> None:
    sent = recorded("nexus.json") | {"repositoryName": "docker-hosted"}
    sent["component"] |= {"format": "docker", "name": "team/app", "version": "1.2.3"}
    assert await world.deliver("nexus", sent) == ACCEPTED
    assert "nexus.example:5000/team/app:1.2.3" in world.asked
    assert "nexus.example:5000/docker-hosted/team/app:1.2.3" in world.asked


@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
@pytest.mark.parametrize("body", [b"", b"[]", b"[" * 100_000, b"\xff\x00", b'{"a":1}'])
async def test_invalid_body_causes_no_check_and_no_fetch(
    world: World, body: bytes, method: str
) -> None:
    """The answer is 202 or 404, with a valid proof and without."""
    shown = {"authorization": "new-secret", "x_jfrog_event_auth": "new-secret"}
    for name in world.receivers:
        answer = await world.deliver(name, body, method, **shown)
        assert answer in ((ACCEPTED, NOT_FOUND) if method == "POST" else (NOT_FOUND,))
    assert world.asked == world.web.asked == []
