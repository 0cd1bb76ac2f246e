"""Faults of registries, proxies and object stores, which a real registry cannot show on demand."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import ssl
import traceback
from pathlib import Path

import pytest
from aiohttp import web

from imagegate.api.references import Reference, parse
from imagegate.registry import errors
from imagegate.registry.client import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.cluster import ports
from tests.unit.registry.certificates import Authority
from tests.unit.registry.conftest import Counter, MakeClient
from tests.unit.registry.distribution import digest_of
from tests.unit.registry.scripted import Scripted, talking
from tests.unit.registry.secrets import keyring

PATH = "/v2/ml/llm/manifests/v1"
BODY = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
DIGEST = digest_of(BODY)
PASSWORD = "correct-horse-battery-staple"


@pytest.fixture
def reference(scripted: Scripted) -> Reference:
    return parse(f"{scripted.domain}/ml/llm:v1")


class TestWithoutHEAD:
    @pytest.mark.parametrize("status", [403, 405, 501])
    async def test_get_is_sent_if_head_is_refused(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference, status: int
    ) -> None:
        scripted.say("HEAD", PATH, status)
        scripted.say("GET", PATH, 200, BODY, {"Content-Type": OCI_INDEX})
        assert await make_client().resolve(reference) == DIGEST
        assert scripted.requests() == [f"HEAD {PATH}", f"GET {PATH}"]

    @pytest.mark.parametrize("header", [{}, {"Docker-Content-Digest": "sha256:abc"}])
    async def test_get_is_sent_if_head_has_no_valid_digest(
        self,
        scripted: Scripted,
        make_client: MakeClient,
        reference: Reference,
        header: dict[str, str],
    ) -> None:
        scripted.say("HEAD", PATH, 200, b"", header)
        scripted.say("GET", PATH, 200, BODY, {"Content-Type": OCI_INDEX})
        assert await make_client().resolve(reference) == DIGEST

    async def test_digest_covers_the_exact_bytes(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        odd = b'{ "schemaVersion" :2,\r\n  "manifests": [] }\n\n'
        scripted.say("HEAD", PATH, 405)
        scripted.say("GET", PATH, 200, odd)
        assert await make_client().resolve(reference) == digest_of(odd)

    async def test_all_four_manifest_types_are_accepted(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        accepted: list[str] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            accepted.append(request.headers["Accept"])
            return web.Response(headers={"Docker-Content-Digest": DIGEST})

        scripted.on("HEAD", PATH, answer)
        await make_client().resolve(reference)
        assert set(accepted[0].split(", ")) == {
            OCI_INDEX,
            OCI_MANIFEST,
            DOCKER_LIST,
            DOCKER_MANIFEST,
        }


class TestWhatIsNoManifest:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"[]",
            b"{}",
            b'{"schemaVersion": "2"}',
            b"[" * 100_000,
            b"\xff\xfe",
            b"nul",
        ],
    )
    async def test_body_that_is_no_manifest_is_rejected(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference, body: bytes
    ) -> None:
        scripted.say("HEAD", PATH, 405)
        scripted.say("GET", PATH, 200, body, {"Content-Type": "text/html"})
        with pytest.raises(errors.InvalidAnswer, match='no manifest for ml/llm but "text/html"'):
            await make_client().resolve(reference)

    async def test_login_page_with_a_digest_header_is_rejected(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        headers = {"Content-Type": "text/html", "Docker-Content-Digest": DIGEST}
        scripted.say("HEAD", PATH, 200, b"", headers)
        scripted.say("GET", PATH, 200, b"<html>", {"Content-Type": "text/html"})
        with pytest.raises(errors.InvalidAnswer, match="no login page or proxy before it"):
            await make_client().resolve(reference)

    async def test_bytes_that_do_not_match_the_digest_are_rejected(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        scripted.say("GET", f"/v2/ml/llm/manifests/{DIGEST}", 200, BODY + b" ")
        scripted.say("GET", f"/v2/ml/llm/blobs/{DIGEST}", 200, BODY + b" ")
        for ask in (make_client().manifest, make_client().configuration):
            with pytest.raises(errors.InvalidAnswer, match=f"are not of {DIGEST}"):
                await ask(reference, DIGEST)

    async def test_bytes_that_do_not_match_the_digest_header_are_rejected(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        scripted.say("HEAD", PATH, 405)
        scripted.say("GET", PATH, 200, BODY, {"Docker-Content-Digest": f"sha256:{'0' * 64}"})
        with pytest.raises(errors.InvalidAnswer, match="changes or cuts answers"):
            await make_client().resolve(reference)

    async def test_body_over_4_mib_is_rejected(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        sent = 0

        async def flood(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(64):
                await response.write(b" " * 1024 * 1024)
                sent += 1
                await asyncio.sleep(0)  # a write may not notice a closed connection
            return response

        scripted.say("HEAD", PATH, 405)
        scripted.on("GET", PATH, flood)
        with pytest.raises(errors.InvalidAnswer, match="more than 4194304 bytes"):
            await make_client().resolve(reference)
        assert sent < 32

    async def test_body_over_4_mib_after_decompression_is_rejected(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        bomb = gzip.compress(b" " * 16 * 1024 * 1024, 1)
        scripted.say("HEAD", PATH, 405)
        scripted.say("GET", PATH, 200, bomb, {"Content-Encoding": "gzip"})
        with pytest.raises(errors.InvalidAnswer, match="more than 4194304 bytes"):
            await make_client().resolve(reference)


class TestFailures:
    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    async def test_5xx_is_unavailable_and_not_permanent(
        self,
        scripted: Scripted,
        make_client: MakeClient,
        reference: Reference,
        counter: Counter,
        status: int,
    ) -> None:
        scripted.say("HEAD", PATH, status)
        with pytest.raises(errors.Unavailable, match=f"it answered {status}; ") as caught:
            await make_client().resolve(reference)
        assert (caught.value.status, caught.value.permanent) == (status, False)
        assert counter.codes == [(scripted.domain, str(status))]

    @pytest.mark.parametrize("status", [204, 302, 400, 409, 418])
    async def test_unexpected_status_is_an_invalid_answer(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference, status: int
    ) -> None:
        scripted.say("HEAD", PATH, status)
        scripted.say("GET", PATH, status)
        with pytest.raises(errors.InvalidAnswer, match=f"answered {status} for ml/llm:v1"):
            await make_client().resolve(reference)

    @pytest.mark.parametrize("status", [412, 451])
    async def test_refusal_by_policy_quotes_the_registry(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference, status: int
    ) -> None:
        """Harbor answers HEAD with 412, and gives the reason only in the answer to a GET."""
        why = "current image with 3 vulnerabilities cannot be pulled due to configured policy"
        said = {"errors": [{"code": "PROJECTPOLICYVIOLATION", "message": why}]}
        scripted.say("HEAD", PATH, status)
        scripted.say("GET", PATH, status, json.dumps(said).encode())
        with pytest.raises(errors.InvalidAnswer) as caught:
            await make_client().resolve(reference)
        assert why in str(caught.value)
        assert "its policy refuses" in str(caught.value)
        assert scripted.requests() == [f"HEAD {PATH}", f"GET {PATH}"]

    async def test_403_quotes_the_registry(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        said = {"errors": [{"code": "DENIED", "message": "account\x1b[31m\nsuspended"}]}
        scripted.say("HEAD", PATH, 405)
        scripted.say("GET", PATH, 403, json.dumps(said).encode())
        with pytest.raises(errors.Unauthorized) as caught:
            await make_client().resolve(reference)
        assert "403 DENIED: account [31m suspended" in str(caught.value)

    async def test_request_has_a_deadline(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference, counter: Counter
    ) -> None:
        async def stall(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(30)
            return web.Response()

        scripted.on("HEAD", PATH, stall)
        with pytest.raises(errors.Unavailable, match=r"no answer from it within 0\.2 s"):
            await make_client(total_timeout=0.2).resolve(reference)
        assert counter.codes == [(scripted.domain, "<error>")]

    async def test_connection_has_a_deadline(self, make_client: MakeClient) -> None:
        async with talking(b"") as port:
            names = {"registry.test": port}
            client = make_client(names=names, connect_timeout=0.2)
            with pytest.raises(errors.Unavailable, match=r"no connection to it within 0\.2 s"):
                await client.resolve(parse("registry.test/ml/llm"))

    @pytest.mark.parametrize("written", [0, 10])
    async def test_aborted_connection_is_unavailable(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference, written: int
    ) -> None:
        async def reset(request: web.Request) -> web.StreamResponse:
            if written:
                response = web.StreamResponse(headers={"Content-Length": str(len(BODY))})
                await response.prepare(request)
                await response.write(BODY[:written])
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        scripted.say("HEAD", PATH, 405)
        scripted.on("GET", PATH, reset)
        with pytest.raises(errors.Unavailable, match="broke off the connection"):
            await make_client().resolve(reference)

    async def test_server_that_is_no_web_server_is_rejected(self, make_client: MakeClient) -> None:
        async with talking(b"220 mail.example ESMTP\r\n\r\n") as port:
            with pytest.raises(errors.InvalidAnswer, match="does not answer in plain HTTP"):
                await make_client().resolve(parse(f"127.0.0.1:{port}/app"))


class TestThrottling:
    async def test_429_delays_the_next_request(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        scripted.say("HEAD", PATH, 429, b"", {"Retry-After": "1"})
        client = make_client()
        with pytest.raises(errors.Throttled, match="ask again in 1 s") as caught:
            await client.resolve(reference)
        assert (caught.value.retry_after, caught.value.permanent) == (1.0, False)
        scripted.say("HEAD", PATH, 200, b"", {"Docker-Content-Digest": DIGEST})
        started = asyncio.get_running_loop().time()
        assert await client.resolve(reference) == DIGEST
        assert 0.9 < asyncio.get_running_loop().time() - started < 5

    async def test_long_pause_fails_immediately_without_a_request(
        self,
        scripted: Scripted,
        make_client: MakeClient,
        reference: Reference,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        scripted.say("HEAD", PATH, 503, b"", {"Retry-After": "60"})
        client = make_client()
        with caplog.at_level(logging.WARNING), pytest.raises(errors.Throttled):
            await client.resolve(reference)
        assert [record.message for record in caplog.records] == ["registry throttles"]
        with pytest.raises(
            errors.Throttled, match="asked for a pause; ask again in 60 s"
        ) as caught:
            await client.resolve(reference)
        assert caught.value.retry_after == pytest.approx(60, abs=1)
        assert len(scripted.seen) == 1

    async def test_pause_does_not_delay_another_registry(
        self,
        scripted: Scripted,
        elsewhere: Scripted,
        make_client: MakeClient,
        reference: Reference,
    ) -> None:
        scripted.say("HEAD", PATH, 429, b"", {"Retry-After": "60"})
        elsewhere.say("HEAD", PATH, 200, b"", {"Docker-Content-Digest": DIGEST})
        client = make_client()
        with pytest.raises(errors.Throttled):
            await client.resolve(reference)
        assert await client.resolve(parse(f"{elsewhere.domain}/ml/llm:v1")) == DIGEST

    async def test_exhausted_rate_limit_stops_gets_but_not_heads(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        used_up = {
            "Docker-Content-Digest": DIGEST,
            "ratelimit-limit": "100;w=21600",
            "ratelimit-remaining": "0;w=21600",
        }
        scripted.say("HEAD", PATH, 200, b"", used_up)
        client = make_client()
        assert await client.resolve(reference) == DIGEST
        assert await client.resolve(reference) == DIGEST
        with pytest.raises(errors.Throttled) as caught:
            await client.manifest(reference, DIGEST)
        assert caught.value.retry_after == pytest.approx(216, abs=1)
        assert scripted.requests("GET") == []

    async def test_number_of_concurrent_requests_is_limited(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference
    ) -> None:
        running = most = 0

        async def slow(_: web.Request) -> web.StreamResponse:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1
            return web.Response(headers={"Docker-Content-Digest": DIGEST})

        scripted.on("HEAD", PATH, slow)
        client = make_client(concurrency=3)
        found = await asyncio.gather(*(client.resolve(reference) for _ in range(12)))
        assert (set(found), most) == ({DIGEST}, 3)


class TestRedirects:
    async def ask(self, make_client: MakeClient, domain: str, **settings: object) -> bytes:
        keys = keyring((domain, "user", PASSWORD))
        client = make_client(**settings)
        found = await client.configuration(parse(f"{domain}/ml/llm:v1"), DIGEST, keys)
        return json.dumps(found).encode()

    @pytest.fixture
    def blob(self) -> str:
        return f"/v2/ml/llm/blobs/{DIGEST}"

    def guard(self, server: Scripted, path: str, location: str, status: int = 307) -> None:
        """Redirects a request that has credentials, and challenges the others."""

        async def answer(request: web.Request) -> web.StreamResponse:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            return web.Response(status=status, headers={"Location": location})

        server.on("GET", path, answer)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_redirect_to_another_host_gets_no_credentials(
        self,
        scripted: Scripted,
        elsewhere: Scripted,
        make_client: MakeClient,
        blob: str,
        status: int,
    ) -> None:
        self.guard(scripted, blob, f"http://{elsewhere.domain}/store?X-Signature=s", status)
        elsewhere.say("GET", "/store", 200, BODY)
        assert await self.ask(make_client, scripted.domain) == BODY
        assert scripted.seen[-1].authorization is not None
        assert [(s.query, s.authorization) for s in elsewhere.seen] == [
            ({"X-Signature": "s"}, None)
        ]

    async def test_redirect_back_to_the_registry_gets_no_credentials(
        self, scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, blob: str
    ) -> None:
        self.guard(scripted, blob, f"http://{elsewhere.domain}/store")
        back = f"http://{scripted.domain}/back"
        elsewhere.say("GET", "/store", 302, b"", {"Location": back})
        scripted.say("GET", "/back", 200, BODY)
        assert await self.ask(make_client, scripted.domain) == BODY
        assert scripted.seen[-1].path == "/back"
        assert scripted.seen[-1].authorization is None

    async def test_redirect_within_the_registry_keeps_the_credentials(
        self, scripted: Scripted, make_client: MakeClient, blob: str
    ) -> None:
        self.guard(scripted, blob, "/other")
        scripted.say("GET", "/other", 200, BODY)
        assert await self.ask(make_client, scripted.domain) == BODY
        assert scripted.seen[-1].authorization is not None

    async def test_challenge_of_another_host_is_not_answered(
        self, scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, blob: str
    ) -> None:
        self.guard(scripted, blob, f"http://{elsewhere.domain}/store?X-Signature=signed-secret")
        realm = f'Bearer realm="http://{elsewhere.domain}/thief"'
        elsewhere.say("GET", "/store", 401, b"", {"WWW-Authenticate": realm})
        with pytest.raises(errors.Unavailable, match="where it redirects to") as caught:
            await self.ask(make_client, scripted.domain)
        assert "signed-secret" not in str(caught.value)
        assert [s.authorization for s in elsewhere.seen] == [None]

    async def test_challenge_of_another_host_is_not_answered_before_a_login(
        self, scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, blob: str
    ) -> None:
        realm = f'Bearer realm="http://{elsewhere.domain}/thief"'
        scripted.say("GET", blob, 307, b"", {"Location": f"http://{elsewhere.domain}/store"})
        elsewhere.say("GET", "/store", 401, b"", {"WWW-Authenticate": realm})
        with pytest.raises(errors.Unavailable, match="where it redirects to"):
            await self.ask(make_client, scripted.domain)
        assert elsewhere.requests() == ["GET /store"]

    async def test_error_of_an_object_store_contains_no_signature(
        self, scripted: Scripted, elsewhere: Scripted, make_client: MakeClient, blob: str
    ) -> None:
        async def stall(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(5)
            return web.Response()

        async def reset(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        signed = "X-Signature=signed-secret"
        self.guard(scripted, blob, f"http://{elsewhere.domain}/store?{signed}")
        for failing in (stall, reset):
            elsewhere.on("GET", "/store", failing)
            with pytest.raises(errors.Unavailable) as caught:
                await self.ask(make_client, scripted.domain, total_timeout=0.2)
            assert "signed-secret" not in "".join(traceback.format_exception(caught.value))
        await elsewhere.stop()
        with pytest.raises(errors.Unavailable, match="no connection to 127") as caught:
            await self.ask(make_client, scripted.domain)
        assert "signed-secret" not in "".join(traceback.format_exception(caught.value))

    async def test_number_of_redirects_is_limited(
        self, scripted: Scripted, make_client: MakeClient, blob: str
    ) -> None:
        scripted.say("GET", blob, 302, b"", {"Location": blob})
        with pytest.raises(errors.InvalidAnswer, match="more than 5 redirects"):
            await self.ask(make_client, scripted.domain)
        assert len(scripted.seen) == 6

    @pytest.mark.parametrize(
        "location", ["ftp://store.test/x", "http://user:pw@store.test/x", "http://[", "data:x"]
    )
    async def test_redirect_to_an_invalid_address_is_rejected(
        self, scripted: Scripted, make_client: MakeClient, blob: str, location: str
    ) -> None:
        scripted.say("GET", blob, 302, b"", {"Location": location})
        with pytest.raises(errors.InvalidAnswer, match="redirects to an invalid address"):
            await self.ask(make_client, scripted.domain)

    async def test_redirect_from_tls_to_plain_http_is_rejected(
        self,
        make_client: MakeClient,
        authority: Authority,
        server_files: tuple[Path, Path],
        blob: str,
    ) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*server_files)
        server = await Scripted().start(tls=context)
        server.say("GET", blob, 302, b"", {"Location": "http://store.test/x"})
        with pytest.raises(errors.InvalidAnswer, match=r"from TLS to plain HTTP at store\.test"):
            await self.ask(
                make_client,
                "registry.test",
                names={"registry.test": server.port},
                ca_bundle=authority.pem,
            )
        await server.stop()


class TestProxy:
    @pytest.fixture
    def client_settings(self) -> dict[str, object]:
        return {"names": {}, "plain_http": frozenset({"registry.test"})}

    async def test_proxy_is_read_from_the_environment(
        self,
        scripted: Scripted,
        make_client: MakeClient,
        client_settings: dict[str, object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:{PASSWORD}@{scripted.domain}")
        scripted.say("HEAD", PATH, 200, b"", {"Docker-Content-Digest": DIGEST})
        client = make_client(**client_settings)
        assert await client.resolve(parse("registry.test/ml/llm:v1")) == DIGEST
        monkeypatch.setenv("NO_PROXY", "a.test,.test")
        with pytest.raises(errors.Unavailable, match="does not resolve"):
            await client.resolve(parse("registry.test/ml/llm:v1"))

    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_failed_proxy_is_named_without_its_password(
        self,
        make_client: MakeClient,
        client_settings: dict[str, object],
        monkeypatch: pytest.MonkeyPatch,
        scheme: str,
    ) -> None:
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:{PASSWORD}@127.0.0.1:{ports.one()}")
        domain = "registry.test" if scheme == "http" else "other.test"
        with pytest.raises(errors.Unavailable, match="the proxy gives no connection") as caught:
            await make_client(**client_settings).resolve(parse(f"{domain}/ml/llm:v1"))
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))

    async def test_proxy_is_not_used_for_loopback(
        self,
        scripted: Scripted,
        make_client: MakeClient,
        reference: Reference,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{ports.one()}")
        scripted.say("HEAD", PATH, 200, b"", {"Docker-Content-Digest": DIGEST})
        assert await make_client().resolve(reference) == DIGEST


class TestSecrets:
    async def test_log_contains_no_secret(
        self,
        scripted: Scripted,
        make_client: MakeClient,
        reference: Reference,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            return web.Response(status=429)

        scripted.on("HEAD", PATH, answer)
        keys = keyring((scripted.domain, "user", PASSWORD))
        with caplog.at_level(logging.DEBUG), pytest.raises(errors.Throttled):
            await make_client().resolve(reference, keys)
        (login,) = [seen.authorization for seen in scripted.seen if seen.authorization]
        logged = "".join(repr(vars(record)) for record in caplog.records)
        assert "registry throttles" in logged
        assert PASSWORD not in logged
        assert login.removeprefix("Basic ") not in logged

    @pytest.mark.parametrize("status", [400, 403, 404, 429, 500])
    async def test_secret_in_an_error_of_the_registry_is_not_quoted(
        self, scripted: Scripted, make_client: MakeClient, reference: Reference, status: int
    ) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            login = request.headers.get("Authorization")
            if login is None:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
            said = {"errors": [{"code": "DENIED", "message": f"{login} is {PASSWORD}"}]}
            return web.json_response(said, status=status)

        scripted.on("GET", f"/v2/ml/llm/manifests/{DIGEST}", answer)
        keys = keyring((scripted.domain, "user", PASSWORD))
        with pytest.raises(errors.RegistryError) as caught:
            await make_client().manifest(reference, DIGEST, keys)
        text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        login = scripted.seen[-1].authorization
        assert login is not None
        assert login.removeprefix("Basic ") not in text
        assert PASSWORD not in text
        assert str(status) in text
