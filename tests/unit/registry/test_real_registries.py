"""The client against Debian's docker-registry: no login, Basic, TLS, and Docker Hub's tokens."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from imagegate.api.references import Reference, parse
from imagegate.registry import endpoints, errors
from imagegate.registry.client import MAX_CONFIG
from imagegate.registry.endpoints import RegistrySettings
from imagegate.registry.keychain import Keyring
from tests.cluster import ports
from tests.unit.registry.certificates import Authority
from tests.unit.registry.conftest import HUB_SERVICE, PASSWORD, USER, Counter, MakeClient
from tests.unit.registry.distribution import OCI_CONFIG, Registry, basic
from tests.unit.registry.scripted import Scripted
from tests.unit.registry.secrets import keyring, secret


class TestOpen:
    @pytest.mark.parametrize("docker", [False, True])
    async def test_tag_resolves_to_the_digest_of_its_manifest(
        self, open_registry: Registry, make_client: MakeClient, counter: Counter, docker: bool
    ) -> None:
        pushed = open_registry.image("ml/llm", f"tag-{docker}", docker=docker)
        reference = parse(f"{open_registry.domain}/ml/llm:tag-{docker}")
        assert await make_client().resolve(reference) == pushed["digest"]
        assert counter.codes == [(open_registry.domain, "200")]

    @pytest.mark.parametrize("docker", [False, True])
    async def test_tag_resolves_to_the_index_and_not_to_an_image_in_it(
        self, open_registry: Registry, make_client: MakeClient, docker: bool
    ) -> None:
        entry = open_registry.image("ml/many", "", docker=docker)
        entry["platform"] = {"os": "linux", "architecture": "amd64"}
        pushed = open_registry.index("ml/many", f"tag-{docker}", [entry], docker=docker)
        reference = parse(f"{open_registry.domain}/ml/many:tag-{docker}")
        assert await make_client().resolve(reference) == pushed["digest"]

    async def test_missing_tag_means_latest(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        pushed = open_registry.image("ml/llm", "latest")
        digest = await make_client().resolve(parse(f"{open_registry.domain}/ml/llm"))
        assert digest == pushed["digest"]

    async def test_digest_resolves_without_a_request(
        self, make_client: MakeClient, counter: Counter
    ) -> None:
        digest = f"sha256:{'0' * 64}"
        client = make_client()
        assert await client.resolve(parse(f"nowhere.test/app:tag@{digest}")) == digest
        assert counter.codes == []

    @pytest.mark.parametrize("name", ["ml/llm:no-such-tag", "no/such/repository"])
    async def test_missing_image_is_not_found(
        self, open_registry: Registry, make_client: MakeClient, counter: Counter, name: str
    ) -> None:
        with pytest.raises(errors.NotFound, match="was not found") as caught:
            await make_client().resolve(parse(f"{open_registry.domain}/{name}"))
        assert name in str(caught.value)
        assert "check the name and the tag" in str(caught.value)
        assert caught.value.permanent
        assert counter.codes == [(open_registry.domain, "404")]

    async def test_missing_digest_is_reported_with_the_code_of_the_registry(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        digest = f"sha256:{'0' * 64}"
        reference = parse(f"{open_registry.domain}/ml/llm@{digest}")
        with pytest.raises(errors.NotFound, match="404 MANIFEST_UNKNOWN: manifest unknown"):
            await make_client().manifest(reference, digest)

    async def test_manifest_and_configuration_are_read_and_verified(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        pushed = open_registry.image("ml/llm", "v1", layers=(b"one", b"two"))
        reference = parse(f"{open_registry.domain}/ml/llm:v1")
        client = make_client()
        document = await client.manifest(reference, pushed["digest"])
        assert document.media_type == pushed["mediaType"]
        config = await client.configuration(reference, document.content["config"]["digest"])
        assert config == {"os": "linux", "architecture": "amd64"}
        layers = document.content["layers"]
        assert await client.configuration(reference, layers[1]["digest"]) is None, "not JSON"
        large = open_registry.blob("ml/llm", b" " * (MAX_CONFIG + 1), OCI_CONFIG)
        with pytest.raises(errors.InvalidAnswer, match=f"more than {MAX_CONFIG} bytes"):
            await client.configuration(reference, large["digest"])

    async def test_refused_connection_is_unavailable(
        self, make_client: MakeClient, counter: Counter
    ) -> None:
        domain = f"127.0.0.1:{ports.one()}"
        with pytest.raises(errors.Unavailable, match="no connection to it: ") as caught:
            await make_client().resolve(parse(f"{domain}/app"))
        assert not caught.value.permanent
        assert counter.codes == [(domain, "<error>")]

    async def test_unknown_host_name_is_unavailable(self, make_client: MakeClient) -> None:
        with pytest.raises(errors.Unavailable, match="name of it does not resolve"):
            await make_client(names={}).resolve(parse("nowhere.test/app"))

    @pytest.mark.parametrize("domain", ["a.test:70000", "[:::]:1"])
    async def test_invalid_address_is_an_error(self, make_client: MakeClient, domain: str) -> None:
        with pytest.raises(errors.RegistryError, match=r"address|resolve"):
            await make_client(names={}).resolve(Reference(domain, "app"))


class TestPlainHTTP:
    @pytest.mark.parametrize(
        ("domain", "expected"),
        [
            ("docker.io", "https://registry-1.docker.io"),
            ("registry.test", "https://registry.test"),
            ("registry.test:5000", "https://registry.test:5000"),
            ("plain.test:5000", "http://plain.test:5000"),
            ("plain.test", "https://plain.test"),
            ("a.plain.test:5000", "https://a.plain.test:5000"),
            ("localhost", "http://localhost"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.2:5000", "http://127.0.0.2:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("localhost:443", "https://localhost"),
            ("localhost.test", "https://localhost.test"),
            ("my_host.test", "https://my_host.test"),
        ],
    )
    def test_plain_http_is_used_for_loopback_and_listed_registries(
        self, domain: str, expected: str
    ) -> None:
        settings = RegistrySettings(plain_http=frozenset({"plain.test:5000"}))
        assert str(endpoints.base(domain, settings)) == expected

    async def test_plain_http_needs_the_exact_name_of_the_registry(
        self, open_registry: Registry, make_client: MakeClient
    ) -> None:
        pushed = open_registry.image("ml/llm", "latest")
        names = {"registry.test": open_registry.port}
        client = make_client(names=names, plain_http=frozenset({"registry.test"}))
        assert await client.resolve(parse("registry.test/ml/llm")) == pushed["digest"]
        with pytest.raises(errors.TLSFailed, match="list it as a plain-HTTP registry"):
            await client.resolve(parse("registry.test:5000/ml/llm"))

    async def test_plain_http_to_a_tls_registry_is_explained(
        self, tls_registry: Registry, make_client: MakeClient
    ) -> None:
        client = make_client(
            names={"registry.test": tls_registry.port}, plain_http=frozenset({"registry.test"})
        )
        with pytest.raises(errors.InvalidAnswer, match="remove it from the plain-HTTP registries"):
            await client.resolve(parse("registry.test/ml/llm"))


class TestTLS:
    async def test_certificate_of_the_ca_bundle_is_trusted(
        self, tls_registry: Registry, make_client: MakeClient, authority: Authority
    ) -> None:
        pushed = tls_registry.image("ml/llm", "v1")
        client = make_client(names={"registry.test": tls_registry.port}, ca_bundle=authority.pem)
        assert await client.resolve(parse("registry.test/ml/llm:v1")) == pushed["digest"]

    async def test_certificate_is_not_trusted_without_the_ca_bundle(
        self, tls_registry: Registry, make_client: MakeClient
    ) -> None:
        client = make_client(names={"registry.test": tls_registry.port})
        with pytest.raises(errors.TLSFailed, match="is not trusted: unable to get") as caught:
            await client.resolve(parse("registry.test/ml/llm:v1"))
        assert "give the operator its CA bundle" in str(caught.value)
        assert caught.value.permanent

    async def test_certificate_for_another_name_is_rejected(
        self, tls_registry: Registry, make_client: MakeClient, authority: Authority
    ) -> None:
        client = make_client(names={"other.test": tls_registry.port}, ca_bundle=authority.pem)
        with pytest.raises(errors.TLSFailed, match="Hostname mismatch"):
            await client.resolve(parse("other.test/ml/llm:v1"))

    async def test_invalid_ca_bundle_is_rejected(self, make_client: MakeClient) -> None:
        with pytest.raises(errors.InvalidSettings, match="give certificates in PEM"):
            make_client(ca_bundle="-----BEGIN CERTIFICATE-----\nnonsense\n")


class TestBasic:
    async def test_later_requests_send_the_credentials_without_a_challenge(
        self, basic_registry: Registry, make_client: MakeClient, counter: Counter
    ) -> None:
        pushed = basic_registry.image("ml/llm", "v1")
        reference = parse(f"{basic_registry.domain}/ml/llm:v1")
        keys = keyring((basic_registry.domain, USER, PASSWORD))
        client = make_client()
        assert await client.resolve(reference, keys) == pushed["digest"]
        assert await client.resolve(reference, keys) == pushed["digest"]
        assert [code for _, code in counter.codes] == ["401", "200", "200"]

    async def test_credentials_are_tried_in_order_until_accepted(
        self, basic_registry: Registry, make_client: MakeClient, counter: Counter
    ) -> None:
        pushed = basic_registry.image("ml/llm", "v1")
        reference = parse(f"{basic_registry.domain}/ml/llm:v1")
        keys = keyring(
            (basic_registry.domain, USER, "rotated away"),
            (basic_registry.domain, USER, "rotated away"),
            (basic_registry.domain, USER, PASSWORD),
        )
        assert await make_client().resolve(reference, keys) == pushed["digest"]
        assert [code for _, code in counter.codes] == ["401", "401", "401", "200"]

    async def test_wrong_password_is_unauthorized_and_not_in_the_error(
        self, basic_registry: Registry, make_client: MakeClient, counter: Counter
    ) -> None:
        reference = parse(f"{basic_registry.domain}/ml/llm:v1")
        keys = keyring((basic_registry.domain, USER, "wrong-password"))
        with pytest.raises(errors.Unauthorized, match="the secret ml/pull-0") as caught:
            await make_client().resolve(reference, keys)
        assert "wrong-password" not in repr(caught.value)
        assert [code for _, code in counter.codes] == ["401", "401"]

    async def test_login_that_is_refused_later_is_not_repeated(
        self, scripted: Scripted, make_client: MakeClient
    ) -> None:
        """Two failed logins for each request would lock the account in half the time."""
        path, wanted = "/v2/ml/llm/manifests/v1", basic(USER, PASSWORD)

        async def answer(request: web.Request) -> web.StreamResponse:
            if request.headers.get("Authorization") == wanted:
                return web.Response(headers={"Docker-Content-Digest": f"sha256:{'a' * 64}"})
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})

        scripted.on("HEAD", path, answer)
        reference = parse(f"{scripted.domain}/ml/llm:v1")
        keys = keyring((scripted.domain, USER, PASSWORD))
        client = make_client()
        await client.resolve(reference, keys)
        wanted, before = "changed", len(scripted.seen)
        with pytest.raises(errors.Unauthorized):
            await client.resolve(reference, keys)
        assert len(scripted.seen) - before == 1

    async def test_missing_credentials_are_unauthorized(
        self, basic_registry: Registry, make_client: MakeClient
    ) -> None:
        with pytest.raises(errors.Unauthorized, match="imagePullSecrets"):
            await make_client().resolve(parse(f"{basic_registry.domain}/ml/llm:v1"))

    async def test_not_found_for_an_accepted_login_is_the_result(
        self, basic_registry: Registry, make_client: MakeClient
    ) -> None:
        keys = keyring(
            (basic_registry.domain, USER, PASSWORD), (basic_registry.domain, USER, "wrong")
        )
        with pytest.raises(errors.NotFound):
            await make_client().resolve(parse(f"{basic_registry.domain}/ml/none:v1"), keys)


class TestDockerHub:
    """`docker.io` resolves to `registry-1.docker.io`; the tokens are real, signed JWTs."""

    @pytest.fixture
    async def tokens(
        self, authority: Authority, server_files: tuple[Path, Path]
    ) -> AsyncIterator[Scripted]:
        async def grant(request: web.Request) -> web.StreamResponse:
            login = request.headers.get("Authorization")
            if login is not None and login != basic(USER, PASSWORD):
                return web.json_response({"details": "incorrect username or password"}, status=401)
            kind, name, actions = request.query["scope"].split(":")
            assert (kind, request.query["service"]) == ("repository", HUB_SERVICE)
            granted = actions.split(",") if login else []
            token = authority.token(HUB_SERVICE, name, granted)
            return web.json_response({"token": token, "expires_in": 300})

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*server_files)
        server = await Scripted().start(tls=context)
        server.on("GET", "/token", grant)
        yield server
        await server.stop()

    @pytest.fixture
    def hub(
        self,
        hub_registry: Registry,
        tokens: Scripted,
        make_client: MakeClient,
        authority: Authority,
    ) -> MakeClient:
        names = {"registry-1.docker.io": hub_registry.port, "auth.docker.io": tokens.port}
        return lambda **settings: make_client(names=names, ca_bundle=authority.pem, **settings)

    @pytest.fixture
    def keys(self) -> Keyring:
        return keyring(("https://index.docker.io/v1/", USER, PASSWORD))

    async def test_token_is_kept_for_later_requests(
        self,
        hub: MakeClient,
        hub_registry: Registry,
        tokens: Scripted,
        keys: Keyring,
        counter: Counter,
    ) -> None:
        pushed = hub_registry.image("ml/llm", "v1")
        client = hub()
        assert await client.resolve(parse("ml/llm:v1"), keys) == pushed["digest"]
        assert [code for _, code in counter.codes] == ["401", "200", "200"]
        document = await client.manifest(parse("ml/llm:v1"), pushed["digest"], keys)
        await client.configuration(parse("ml/llm:v1"), document.content["config"]["digest"], keys)
        assert [code for _, code in counter.codes][3:] == ["200", "200"]
        assert {registry for registry, _ in counter.codes} == {"docker.io"}
        (request,) = tokens.seen
        assert request.query == {"service": HUB_SERVICE, "scope": "repository:ml/llm:pull"}
        assert request.authorization == basic(USER, PASSWORD)

    async def test_private_image_without_credentials_is_unauthorized(
        self, hub: MakeClient, tokens: Scripted
    ) -> None:
        with pytest.raises(errors.Unauthorized, match="imagePullSecrets"):
            await hub().resolve(parse("ml/llm:v1"))
        (request,) = tokens.seen
        assert request.authorization is None

    async def test_wrong_password_is_refused_by_the_token_service(
        self, hub: MakeClient, hub_registry: Registry
    ) -> None:
        keys = keyring(("https://index.docker.io/v1/", USER, "wrong-password"))
        with pytest.raises(errors.Unauthorized, match=r"token service auth\.docker\.io") as caught:
            await hub().resolve(parse("ml/llm:v1"), keys)
        assert "wrong-password" not in str(caught.value)

    async def test_registry_token_in_the_secret_is_sent_directly(
        self,
        hub: MakeClient,
        hub_registry: Registry,
        tokens: Scripted,
        authority: Authority,
    ) -> None:
        pushed = hub_registry.image("ml/llm", "v1")
        token = authority.token(HUB_SERVICE, "ml/llm", ["pull"])
        keys = Keyring([secret({"auths": {"docker.io": {"registrytoken": token}}})])
        assert await hub().resolve(parse("ml/llm:v1"), keys) == pushed["digest"]
        assert tokens.seen == []
