"""The sources for cloud registries, JFrog and Sonatype: reading payloads, verifying senders."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.api import references
from imagegate.hooks import acr, ecr, gar, jfrog, nexus
from imagegate.hooks.event import (
    Answer,
    Delivery,
    Malformed,
    Parsed,
    Push,
    Receiver,
    Source,
    TokenRule,
    Unverified,
)
from imagegate.hooks.sources import SOURCES
from tests.unit.hooks.signing import (
    CLAIMS,
    Web,
    delivery,
    jwk,
    jwks,
    message,
    recorded,
    rsa_key,
    token,
)

OURS = (ecr.SOURCE, ecr.SNS, acr.SOURCE, acr.EVENT_GRID, gar.SOURCE, jfrog.SOURCE, nexus.SOURCE)
PATH = "0123456789abcdef"


def receiver(source: Source, **more: Any) -> Receiver:
    return Receiver(name="r", source=source.name, path=PATH, **more)


def parse(source: Source, sent: object, **headers: str) -> Parsed:
    return source.parse(delivery(sent, **headers), receiver(source))


def changed(name: str, *path: str | int, to: Any) -> Any:
    """A recorded payload with another value at `path`; None removes the value."""
    whole = recorded(name)
    part = whole
    for step in path[:-1]:
        part = part[step]
    if to is None:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return whole


def test_all_sources_are_registered() -> None:
    assert {SOURCES.get(source.name) for source in OURS} == set(OURS)


class TestEcr:
    PUSH = Push("my-repository-name", "latest", "123456789012.dkr.ecr.us-west-2.amazonaws.com")
    ID = "13cde686-328b-6117-af20-0e5566167482"

    def test_recorded_payload_is_read(self) -> None:
        assert parse(ecr.SOURCE, recorded("ecr.json")) == Parsed((self.PUSH,), self.ID)

    @pytest.mark.parametrize(
        ("region", "host"),
        [
            ("eu-central-1", "123456789012.dkr.ecr.eu-central-1.amazonaws.com"),
            ("us-gov-west-1", "123456789012.dkr.ecr.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
        ],
    )
    def test_host_follows_from_account_and_region(self, region: str, host: str) -> None:
        sent = changed("ecr.json", "region", to=region)
        assert parse(ecr.SOURCE, sent).pushes == (replace(self.PUSH, registry=host),)

    @pytest.mark.parametrize(
        ("path", "to"),
        [
            (("detail", "image-tag"), None),
            (("detail", "image-tag"), ""),
            (("detail", "action-type"), "DELETE"),
            (("detail", "action-type"), None),
            (("detail", "result"), "FAILURE"),
            (("detail-type",), "ECR Image Scan"),
            (("detail-type",), "ECR Pull Through Cache Action"),
            (("source",), "aws.partner"),
        ],
    )
    def test_event_that_is_not_a_tag_push_is_skipped(
        self, path: tuple[str, ...], to: str | None
    ) -> None:
        assert parse(ecr.SOURCE, changed("ecr.json", *path, to=to)) == Parsed((), self.ID)

    @pytest.mark.parametrize(
        ("path", "to"),
        [
            (("account",), "12345678901"),
            (("account",), "evil.test/1234"),
            (("account",), None),
            (("region",), "us-west-2.evil.test/x"),
            (("region",), "us-west-2x"),
            (("region",), "US-WEST-2"),
            (("region",), None),
            (("detail", "repository-name"), "../my-repo"),
            (("detail", "repository-name"), "My-Repo"),
            (("detail", "repository-name"), None),
            (("detail", "image-tag"), "a b"),
            (("detail", "image-tag"), "x@sha256"),
            (("detail", "image-tag"), 1),
            (("detail",), []),
            (("detail",), None),
            (("source",), None),
        ],
    )
    def test_malformed_payload_is_rejected(self, path: tuple[str, ...], to: Any) -> None:
        with pytest.raises(Malformed):
            parse(ecr.SOURCE, changed("ecr.json", *path, to=to))


class TestAcr:
    PUSH = Push("hello-world", "v1", "myregistry.azurecr.io")
    ID = "cb8c3971-9adc-488b-bdd8-43cbb4974ff5"

    def test_recorded_payload_is_read(self) -> None:
        assert parse(acr.SOURCE, recorded("acr.json")) == Parsed((self.PUSH,), self.ID)

    def test_ping_is_answered_with_200(self) -> None:
        sent = {"id": "a", "timestamp": "2017-11-17T16:52:01Z", "action": "ping"}
        assert parse(acr.SOURCE, sent) == Parsed((), "a", Answer(200))
        assert parse(acr.SOURCE, {"action": "ping"}) == Parsed(answer=Answer(200))

    @pytest.mark.parametrize("to", ["delete", "quarantine", "chart_push", ""])
    def test_action_that_is_not_a_push_is_skipped(self, to: str) -> None:
        assert parse(acr.SOURCE, changed("acr.json", "action", to=to)) == Parsed((), self.ID)

    @pytest.mark.parametrize("to", [None, "", "sha256:80f0"])
    def test_push_without_a_tag_is_skipped(self, to: str | None) -> None:
        sent = changed("acr.json", "target", "tag", to=to)
        assert parse(acr.SOURCE, sent) == Parsed((), self.ID)

    def test_payload_without_a_host_gives_no_registry(self) -> None:
        sent = changed("acr.json", "request", to=None)
        assert parse(acr.SOURCE, sent).pushes == (replace(self.PUSH, registry=""),)

    @pytest.mark.parametrize(
        ("path", "to"),
        [
            (("action",), None),
            (("target", "repository"), None),
            (("target", "repository"), "a/../b"),
            (("request", "host"), "user@evil.test"),
            (("request", "host"), "evil.test/x"),
            (("request", "host"), "localname"),
            (("request",), "x"),
        ],
    )
    def test_malformed_payload_is_rejected(self, path: tuple[str, ...], to: Any) -> None:
        with pytest.raises(Malformed):
            parse(acr.SOURCE, changed("acr.json", *path, to=to))


class TestEventGrid:
    PUSH = Push("aci-helloworld", "v1", "demo.azurecr.io")
    ID = "831e1650-001e-001b-66ab-eeb76e069631"

    def test_recorded_payload_is_read(self) -> None:
        sent = recorded("acr-eventgrid.json")
        assert parse(acr.EVENT_GRID, sent) == Parsed((self.PUSH,), self.ID)
        # Event Grid delivers CloudEvents without an array around them.
        assert parse(acr.EVENT_GRID, sent[0]) == Parsed((self.PUSH,), self.ID)

    def test_event_grid_schema_is_read(self) -> None:
        event = recorded("acr-eventgrid.json")[0]
        event["eventType"], event["topic"] = event.pop("type"), event.pop("source")
        event["eventTime"] = event.pop("time")
        del event["specversion"]
        assert parse(acr.EVENT_GRID, [event]) == Parsed((self.PUSH,), self.ID)

    def test_batch_of_events_is_read(self) -> None:
        event = recorded("acr-eventgrid.json")[0]
        deleted = {**event, "type": "Microsoft.ContainerRegistry.ImageDeleted"}
        sent = [deleted, event, recorded("acr-eventgrid-validation.json")[0]]
        assert parse(acr.EVENT_GRID, sent) == Parsed((self.PUSH,))
        assert parse(acr.EVENT_GRID, []) == Parsed()
        assert parse(acr.EVENT_GRID, [deleted]) == Parsed((), self.ID)

    async def test_validation_is_answered_with_its_code(self) -> None:
        sent = recorded("acr-eventgrid-validation.json")
        said = b'{"validationResponse": "512d38b6-c7b8-40c8-89fe-f46f9e9622b6"}'
        answer = Answer(200, said, {"Content-Type": "application/json"})
        assert parse(acr.EVENT_GRID, sent) == Parsed(answer=answer)
        locked = receiver(acr.EVENT_GRID, secrets=("secret-secret",))
        await acr.EVENT_GRID.verify(delivery(sent), locked, Web({}))

    @pytest.mark.parametrize("code", [None, "", 1, "a" * 200, "<script>", "a\r\nb", ["a"]])
    def test_validation_without_a_valid_code_is_rejected(self, code: Any) -> None:
        sent = changed("acr-eventgrid-validation.json", 0, "data", "validationCode", to=code)
        with pytest.raises(Malformed):
            parse(acr.EVENT_GRID, sent)

    async def test_options_handshake_is_answered(self) -> None:
        """This is the CloudEvents handshake as Microsoft documents it."""
        asked = Delivery({"webhook-request-origin": "eventgrid.azure.net"}, b"", "OPTIONS")
        locked = receiver(acr.EVENT_GRID, secrets=("secret-secret",))
        await acr.EVENT_GRID.verify(asked, locked, Web({}))
        answer = acr.EVENT_GRID.parse(asked, locked).answer
        assert answer is not None
        assert answer.status == 200
        assert answer.headers["WebHook-Allowed-Origin"] == "eventgrid.azure.net"
        assert "WebHook-Allowed-Rate" in answer.headers

    @pytest.mark.parametrize("origin", [None, "", "a b", "a\r\nSet-Cookie: x", "*", "ä", "a" * 300])
    def test_options_without_a_valid_origin_is_rejected(self, origin: str | None) -> None:
        headers = {} if origin is None else {"webhook-request-origin": origin}
        with pytest.raises(Malformed):
            acr.EVENT_GRID.parse(Delivery(headers, b"", "OPTIONS"), receiver(acr.EVENT_GRID))

    async def test_handshake_does_not_verify_other_events(self) -> None:
        """A batch with a handshake and other events needs the secret, as every batch does."""
        validation = recorded("acr-eventgrid-validation.json")
        locked = receiver(acr.EVENT_GRID, secrets=("secret-secret",))
        both = validation + recorded("acr-eventgrid.json")
        batches: list[Any] = [validation * 2, both, [], {}]
        for sent in batches:
            with pytest.raises(Unverified):
                await acr.EVENT_GRID.verify(delivery(sent), locked, Web({}))
        named = delivery(recorded("acr-eventgrid.json"), aeg_event_type="SubscriptionValidation")
        with pytest.raises(Unverified):
            await acr.EVENT_GRID.verify(named, locked, Web({}))

    async def test_valid_token_is_accepted(self) -> None:
        """In a token of Microsoft Entra, the issuer names the tenant, the audience our API."""
        claims: dict[str, Any] = {
            "iss": "https://sts.windows.net/tenant/",
            "aud": "api://imagegate",
        }
        locked = receiver(acr.EVENT_GRID, token=TokenRule(claims["iss"], claims["aud"]))
        web = Web({acr.KEYS_URL: jwks(jwk(rsa_key(), "one"))})
        sent = recorded("acr-eventgrid.json")
        for named in ("azp", "appid"):
            more: Any = {named: acr.EVENT_GRID_APPLICATION}
            shown = f"Bearer {token(email=None, email_verified=None, **claims, **more)}"
            await acr.EVENT_GRID.verify(delivery(sent, authorization=shown), locked, web)
        for other in (f"Bearer {token()}", "Bearer x", ""):
            with pytest.raises(Unverified):
                await acr.EVENT_GRID.verify(delivery(sent, authorization=other), locked, web)

    @pytest.mark.parametrize(
        ("application", "said", "accepted"),
        [
            ("", {"appid": acr.EVENT_GRID_APPLICATION}, True),
            ("", {"azp": "another"}, False),
            ("", {"azp": "another", "appid": acr.EVENT_GRID_APPLICATION}, False),
            ("", {}, False),
            ("mine", {"azp": "mine"}, True),
            ("mine", {"azp": acr.EVENT_GRID_APPLICATION}, False),
        ],
    )
    async def test_token_of_another_application_is_rejected(
        self, application: str, said: dict[str, Any], accepted: bool
    ) -> None:
        """The application is checked, because all applications of the tenant can get a token."""
        rule = TokenRule("https://sts.windows.net/t/", "api://imagegate", application=application)
        locked = receiver(acr.EVENT_GRID, token=rule)
        shown = f"Bearer {token(iss=rule.issuer, aud=rule.audience, **said)}"
        sent = delivery(recorded("acr-eventgrid.json"), authorization=shown)
        verified = acr.EVENT_GRID.verify(
            sent, locked, Web({acr.KEYS_URL: jwks(jwk(rsa_key(), "one"))})
        )
        if accepted:
            await verified
        else:
            with pytest.raises(Unverified, match="application"):
                await verified


class TestGar:
    PUSH = Push("my-project/my-repo/hello-world", "1.1", "us-west1-docker.pkg.dev")
    ID = "2070443601311540"
    RULE = TokenRule(str(CLAIMS["iss"]), str(CLAIMS["aud"]), str(CLAIMS["email"]))

    def sent(self, **notification: Any) -> Any:
        data = base64.b64encode(json.dumps(notification).encode()).decode()
        return changed("gar.json", "message", "data", to=data)

    def test_recorded_payload_is_read(self) -> None:
        assert parse(gar.SOURCE, recorded("gar.json")) == Parsed((self.PUSH,), self.ID)

    def test_notification_of_container_registry_is_read(self) -> None:
        sent = self.sent(action="INSERT", tag="eu.gcr.io/domain.com/project/app:latest")
        push = Push("domain.com/project/app", "latest", "eu.gcr.io")
        assert parse(gar.SOURCE, sent).pushes == (push,)

    @pytest.mark.parametrize(
        "notification",
        [
            {"action": "DELETE", "tag": "us-west1-docker.pkg.dev/p/r/app:1.1"},
            {"action": "INSERT", "digest": "us-west1-docker.pkg.dev/p/r/app@sha256:6ec1"},
            {"action": "INSERT", "tag": None},
            {"action": "INSERT", "tag": ""},
            {"action": "INSERT", "tag": "us-west1-docker.pkg.dev/p/r/app"},
        ],
    )
    def test_notification_without_a_pushed_tag_is_skipped(
        self, notification: Mapping[str, Any]
    ) -> None:
        assert parse(gar.SOURCE, self.sent(**notification)) == Parsed((), self.ID)

    @pytest.mark.parametrize("data", ["", "x", "e30", "e30=", "é", "bnVsbA==", "W10=", None, 1])
    def test_malformed_payload_is_rejected(self, data: Any) -> None:
        with pytest.raises(Malformed):
            parse(gar.SOURCE, changed("gar.json", "message", "data", to=data))

    @pytest.mark.parametrize("tag", ["us-west1-docker.pkg.dev/P/r/app:1", "a b", 1, ["x"]])
    def test_invalid_image_name_is_rejected(self, tag: Any) -> None:
        with pytest.raises(Malformed):
            parse(gar.SOURCE, self.sent(action="INSERT", tag=tag))

    def test_base64_with_other_characters_is_rejected(self) -> None:
        sent = recorded("gar.json")
        sent["message"]["data"] = "!" + sent["message"]["data"]
        with pytest.raises(Malformed):
            parse(gar.SOURCE, sent)

    async def verify(self, rule: TokenRule | None, shown: str) -> None:
        web = Web({gar.KEYS_URL: jwks(jwk(rsa_key(), "one"))})
        sent = delivery(recorded("gar.json"), authorization=shown)
        await gar.SOURCE.verify(sent, receiver(gar.SOURCE, token=rule), web)

    async def test_valid_token_is_accepted(self) -> None:
        await self.verify(self.RULE, f"Bearer {token()}")

    @pytest.mark.parametrize("rule", [None, replace(RULE, email="")])
    async def test_receiver_without_an_email_rejects_every_token(
        self, rule: TokenRule | None
    ) -> None:
        """Google signs tokens for every account, so a signature alone identifies no sender."""
        with pytest.raises(Unverified, match="email"):
            await self.verify(rule, f"Bearer {token()}")

    async def test_token_of_another_account_is_rejected(self) -> None:
        with pytest.raises(Unverified):
            await self.verify(self.RULE, f"Bearer {token(email='me@evil.test')}")


class TestJfrog:
    BEHIND = Push("docker-remote-cache/library/ubuntu", "latest", "example.jfrog.io")
    OWN = Push("library/ubuntu", "latest", "example.jfrog.io")

    def test_recorded_payload_is_read(self) -> None:
        assert parse(jfrog.SOURCE, recorded("jfrog.json")) == Parsed((self.BEHIND, self.OWN))

    @pytest.mark.parametrize("path", ["team/sub/app/1.2/manifest.json", "a/1.2/1.2/manifest.json"])
    def test_repository_is_taken_from_the_path(self, path: str) -> None:
        sent = changed("jfrog.json", "data", "path", to=path)
        sent["data"] |= {"tag": "1.2", "image_name": "app"}
        name = path.removesuffix("/1.2/manifest.json")
        assert {push.repository for push in parse(jfrog.SOURCE, sent).pushes} == {
            name,
            f"docker-remote-cache/{name}",
        }

    @pytest.mark.parametrize("to", [None, "", "manifest.json", "latest/manifest.json"])
    def test_repository_is_the_image_name_without_a_path(self, to: str | None) -> None:
        sent = changed("jfrog.json", "data", "path", to=to)
        assert parse(jfrog.SOURCE, sent) == Parsed((self.BEHIND, self.OWN))

    def test_registry_is_host_and_port_of_the_origin(self) -> None:
        sent = changed("jfrog.json", "jpd_origin", to="http://art.example.com:8082/artifactory")
        hosts = {push.registry for push in parse(jfrog.SOURCE, sent).pushes}
        assert hosts == {"art.example.com:8082"}

    @pytest.mark.parametrize("to", [None, "", "art.example.com"])
    def test_payload_without_a_host_gives_no_registry(self, to: str | None) -> None:
        """The receiver's `registry` is used instead; it always takes precedence."""
        sent = changed("jfrog.json", "jpd_origin", to=to)
        assert {push.registry for push in parse(jfrog.SOURCE, sent).pushes} == {""}

    @pytest.mark.parametrize("to", ["http://artifactory", "https://[::1", "https://a@evil.test"])
    def test_invalid_origin_is_ignored_if_the_receiver_has_a_registry(self, to: str) -> None:
        sent = delivery(changed("jfrog.json", "jpd_origin", to=to))
        found = jfrog.SOURCE.parse(sent, receiver(jfrog.SOURCE, registry="art.example"))
        assert {push.registry for push in found.pushes} == {""}

    def test_repository_key_that_is_no_image_name_is_left_out(self) -> None:
        sent = changed("jfrog.json", "data", "repo_key", to="Docker-Local")
        assert parse(jfrog.SOURCE, sent) == Parsed((self.OWN,))

    @pytest.mark.parametrize(
        ("path", "to"),
        [
            (("domain",), "artifact"),
            (("event_type",), "deleted"),
            (("event_type",), "promoted"),
            (("data", "tag"), None),
            (("data", "tag"), "sha256:35c4"),
        ],
    )
    def test_event_that_is_not_a_tag_push_is_skipped(
        self, path: tuple[str, ...], to: str | None
    ) -> None:
        assert parse(jfrog.SOURCE, changed("jfrog.json", *path, to=to)) == Parsed()

    @pytest.mark.parametrize(
        ("path", "to"),
        [
            (("domain",), None),
            (("event_type",), None),
            (("data",), None),
            (("data",), []),
            (("data", "repo_key"), None),
            (("data", "path"), "../ubuntu/latest/manifest.json"),
            (("data", "tag"), "a b"),
            (("data", "tag"), 1),
            (("jpd_origin",), "https://[::1"),
            (("jpd_origin",), "http://artifactory"),
            (("jpd_origin",), "https://user:pass@evil.test"),
        ],
    )
    def test_malformed_payload_is_rejected(self, path: tuple[str, ...], to: Any) -> None:
        with pytest.raises(Malformed):
            parse(jfrog.SOURCE, changed("jfrog.json", *path, to=to))

    async def test_secret_and_hmac_signature_are_accepted(self) -> None:
        """JFrog sends the secret or a signature; both secrets are valid during a rotation."""
        locked = receiver(jfrog.SOURCE, secrets=("old-old-old", "new-new-new"))
        body = json.dumps(recorded("jfrog.json")).encode()
        for secret in locked.secrets:
            signed = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
            for shown in (secret, signed):
                sent = delivery(body, x_jfrog_event_auth=shown)
                await jfrog.SOURCE.verify(sent, locked, Web({}))
        signed = hmac.new(b"other-other", body, hashlib.sha256).hexdigest()
        for shown in ("", "other-other", signed, "new-new-ne", "new-new-new2"):
            sent = delivery(body, x_jfrog_event_auth=shown)
            with pytest.raises(Unverified):
                await jfrog.SOURCE.verify(sent, locked, Web({}))
        with pytest.raises(Unverified):
            await jfrog.SOURCE.verify(delivery(body), locked, Web({}))


class TestNexus:
    ID = "7f4a6dde-5c68-4999-bcc0-a62f3fb8ae48"

    def docker(self, **more: Any) -> Any:
        """The recorded component as a Docker image; the documentation shows an npm package."""
        sent = recorded("nexus.json") | {"repositoryName": "docker-hosted"}
        image = {"format": "docker", "name": "team/app", "group": None, "version": "1.2.3"}
        sent["component"] |= image | more
        return sent

    @pytest.mark.parametrize("name", ["nexus.json", "nexus-asset.json"])
    def test_recorded_payload_is_read(self, name: str) -> None:
        assert parse(nexus.SOURCE, recorded(name), x_nexus_webhook_delivery=self.ID) == Parsed(
            (), self.ID
        )

    @pytest.mark.parametrize("action", ["CREATED", "UPDATED"])
    def test_created_or_updated_image_is_a_push(self, action: str) -> None:
        sent = self.docker() | {"action": action}
        pushes = (Push("docker-hosted/team/app", "1.2.3"), Push("team/app", "1.2.3"))
        assert parse(nexus.SOURCE, sent, x_nexus_webhook_delivery=self.ID) == Parsed(
            pushes, self.ID
        )

    def test_repository_that_is_no_image_name_is_left_out(self) -> None:
        sent = self.docker() | {"repositoryName": "Docker_Hosted"}
        assert parse(nexus.SOURCE, sent) == Parsed((Push("team/app", "1.2.3"),))

    def test_event_that_is_not_a_tag_push_is_skipped(self) -> None:
        assert parse(nexus.SOURCE, self.docker() | {"action": "DELETED"}) == Parsed()
        assert parse(nexus.SOURCE, self.docker(version=None)) == Parsed()
        assert parse(nexus.SOURCE, self.docker(version="sha256:35c4")) == Parsed()

    @pytest.mark.parametrize(
        "sent",
        [
            {"nodeId": "x", "initiator": "admin", "audit": {"domain": "security.user"}},
            {"repositoryName": "r", "action": "CREATED", "component": []},
            {"repositoryName": "r", "component": {}},
            {"repositoryName": 1, "action": "CREATED"},
        ],
    )
    def test_malformed_payload_is_rejected(self, sent: Any) -> None:
        with pytest.raises(Malformed):
            parse(nexus.SOURCE, sent)

    @pytest.mark.parametrize("more", [{"name": None}, {"name": "A"}, {"version": "a b"}])
    def test_invalid_image_name_is_rejected(self, more: Any) -> None:
        with pytest.raises(Malformed):
            parse(nexus.SOURCE, self.docker(**more))

    async def test_signature_with_any_configured_secret_is_accepted(self) -> None:
        locked = receiver(nexus.SOURCE, secrets=("old-old-old", "new-new-new"))
        body = json.dumps(self.docker()).encode()

        def signed(secret: str, algorithm: str = "sha1") -> Delivery:
            digest = hmac.new(secret.encode(), body, algorithm).hexdigest()
            return delivery(body, x_nexus_webhook_signature=digest)

        for secret in locked.secrets:
            await nexus.SOURCE.verify(signed(secret), locked, Web({}))
        other = replace(signed("old-old-old"), body=body + b" ")
        for sent in (signed("other"), signed("old-old-old", "sha256"), delivery(body), other):
            with pytest.raises(Unverified):
                await nexus.SOURCE.verify(sent, locked, Web({}))


@pytest.mark.parametrize("source", [ecr.SOURCE, acr.SOURCE, acr.EVENT_GRID], ids=lambda s: s.name)
async def test_authorization_accepts_secret_bearer_token_and_password(source: Source) -> None:
    """The sender's configuration decides whether the secret has a scheme or is a password."""
    locked = receiver(source, secrets=("old-old-old", "new-new-new"))
    basic = base64.b64encode(b"imagegate:pass-word").decode()
    password = receiver(source, secrets=("imagegate:pass-word",))
    for shown in ("old-old-old", "Bearer new-new-new", "BEARER old-old-old"):
        await source.verify(delivery({}, authorization=shown), locked, Web({}))
    await source.verify(delivery({}, authorization=f"Basic {basic}"), password, Web({}))
    for shown in ("", "Bearer", "Bearer old", "other", f"Basic {basic}"):
        with pytest.raises(Unverified):
            await source.verify(delivery({}, authorization=shown), locked, Web({}))
    with pytest.raises(Unverified):
        await source.verify(delivery({}), locked, Web({}))


def test_each_source_names_its_proofs() -> None:
    """The configuration accepts exactly these proofs for each source."""
    assert {source.name: source.proofs for source in OURS} == {
        "ecr": {"secrets"},
        "ecr-sns": {"topics"},
        "acr": {"secrets"},
        "acr-eventgrid": {"secrets", "token"},
        "gar": {"token"},
        "jfrog": {"secrets"},
        "nexus": {"secrets"},
    }
    assert [source.name for source in OURS if not source.says_registry] == ["nexus"]


RECORDINGS = [
    (source, json.dumps(content))
    for source, content in (
        (ecr.SOURCE, recorded("ecr.json")),
        (ecr.SNS, message()),
        (acr.SOURCE, recorded("acr.json")),
        (acr.EVENT_GRID, recorded("acr-eventgrid.json")),
        (acr.EVENT_GRID, recorded("acr-eventgrid-validation.json")),
        (gar.SOURCE, recorded("gar.json")),
        (jfrog.SOURCE, recorded("jfrog.json")),
        (nexus.SOURCE, TestNexus().docker()),
    )
]


@st.composite
def twisted(draw: st.DrawFn) -> tuple[Source, Any]:
    """A recorded payload in which one value is replaced."""
    source, text = draw(st.sampled_from(RECORDINGS))
    part = whole = json.loads(text)
    while isinstance(part, dict | list) and part:
        keys: Any = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = draw(st.sampled_from(keys))
        if not isinstance(part[key], dict | list) or draw(st.booleans()):
            part[key] = draw(JSON)
            break
        part = part[key]
    return source, whole


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


async def harmless(source: Source, sent: Delivery) -> None:
    """Raises Malformed or Unverified, or gives valid image references; no other result."""
    locks = {"secrets": ("secret-secret",), "topics": ("arn:aws:sns:x",)}
    locked = receiver(source, **{k: v for k, v in locks.items() if k in source.proofs})
    with contextlib.suppress(Unverified):
        await source.verify(sent, locked, Web({}))
    try:
        parsed = source.parse(sent, locked)
    except Malformed:
        return
    for push in parsed.pushes:
        text = f"{push.registry or 'registry.invalid'}/{push.repository}:{push.tag}"
        read = references.parse(text)
        assert (read.path, read.tag, read.digest) == (push.repository, push.tag, None)


@settings(deadline=None)
@given(st.sampled_from(OURS), st.binary(), st.sampled_from(["POST", "OPTIONS"]))
async def test_arbitrary_bytes_do_not_crash_a_source(
    source: Source, data: bytes, method: str
) -> None:
    await harmless(source, Delivery({}, data, method))


@settings(deadline=None)
@given(st.sampled_from(OURS), JSON)
async def test_arbitrary_json_does_not_crash_a_source(source: Source, content: Any) -> None:
    await harmless(source, delivery(content))


@settings(deadline=None)
@given(twisted())
async def test_payload_with_one_replaced_value_does_not_crash_a_source(
    pair: tuple[Source, Any],
) -> None:
    await harmless(pair[0], delivery(pair[1]))


@pytest.mark.parametrize("source", OURS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"1",
        b'"x"',
        b"\xff",
        b'{"a": "\\ud800"}',
        b"[" * 500_000,
        b'{"detail":' * 100_000,
        b'{"message":' * 100_000,
        b"[" * 500 + b"]" * 500,
    ],
    ids=lambda data: data[:12].decode("latin-1"),
)
def test_malformed_payload_is_rejected(source: Source, data: bytes) -> None:
    if source is acr.EVENT_GRID and data == b"[]":
        return  # An array without events.
    with pytest.raises(Malformed):
        source.parse(Delivery({}, data), receiver(source))
