"""All parsers of untrusted bytes. Add each new parser to `PARSERS`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from yarl import URL

from imagegate.api import fields, references
from imagegate.domain import messages, redact
from imagegate.domain.facts import TagOrder, TagPolicy
from imagegate.domain.tags import select
from imagegate.errors import ImagegateError
from imagegate.hooks import bearer, handover, sns, verify
from imagegate.hooks.event import (
    Delivery,
    Malformed,
    Push,
    Receiver,
    Source,
    TokenRule,
    Told,
    Unverified,
)
from imagegate.hooks.sources import SOURCES
from imagegate.kube import kubelets
from imagegate.kube import nodes as kube_nodes
from imagegate.puller import read as puller_read
from imagegate.registry import (
    challenges,
    client,
    documents,
    errors,
    globs,
    large,
    limits,
    plugin,
    pull_secrets,
    realms,
    tags,
    tokens,
)
from imagegate.registry.errors import InvalidAnswer, InvalidSecret, UnsupportedManifest
from imagegate.registry.provider_config import Provider
from imagegate.registry.pull_secrets import PullSecret
from imagegate.registry.tags import Pages
from imagegate.registry.transport import Answer
from tests.unit.hooks.signing import CLAIMS, KEYS_URL, TOPIC, Web, ec_key, jwk, jwks, rsa_key, token

KIB = 1024
MIB = 1024 * KIB

TESTS = Path(__file__).parents[1]
HEADER = 8190
"""The limit of aiohttp for a header in bytes, for clients and servers."""
SECRET = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Parser:
    """A parser; `parse` may raise only `raises`, and the fuzz ignores its result."""

    name: str
    parse: Callable[[bytes], object]
    raises: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    """Valid inputs."""
    most: int
    """The maximum size of an input in bytes that the caller passes on."""

    @property
    def reads_json(self) -> bool:
        return all(seed.lstrip()[:1] in (b"{", b"[") for seed in self.seeds)


def _wait(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that may use a thread."""
    return asyncio.run(work)


def _text(data: bytes) -> str:
    """A header or line as aiohttp decodes it: bytes that are not UTF-8 become surrogates."""
    return data.decode("utf-8", "surrogateescape")


# Hooks


_HEADERS = {
    "ghcr": {
        "x-github-event": "package",
        "x-github-delivery": "d-1",
        "content-type": "application/json",
    },
}


def _payloads(source: str) -> tuple[bytes, ...]:
    names = {"ecr-sns": ("sns-*",), "acr": ("acr.json",)}.get(
        source, (f"{source}.json", f"{source}-*")
    )
    folder = TESTS / "hooks" / "payloads"
    found = [
        path.read_bytes()
        for name in names
        for path in sorted(folder.glob(name))
        if path.suffix == ".json"
    ]
    if source == "ecr-sns":
        message = json.loads(found[0]) | {"Message": (folder / "ecr.json").read_text()}
        found.insert(0, json.dumps(message).encode())
    return tuple(found)


def _receiver(source: str, **more: Any) -> Receiver:
    return Receiver(name="fuzz", source=source, path="p" * 32, **more)


async def _nothing(url: str, *, fresh: bool = False) -> bytes:
    raise ImagegateError(f"{url}: nothing is fetched here")


def _hooks() -> Iterator[Parser]:
    for source in SOURCES.values():
        yield Parser(
            f"hook {source.name}",
            _parse_with(source),
            (Malformed,),
            _payloads(source.name),
            source.max_body,
        )
    for name, receiver in (
        ("acr-eventgrid", _receiver("acr-eventgrid", secrets=(SECRET,))),
        ("ecr-sns", _receiver("ecr-sns", topics=(TOPIC,))),
    ):
        # These sources parse the body before the sender is verified.
        yield Parser(
            f"hook {name}, unverified",
            _verify_with(SOURCES[name], receiver),
            (Unverified,),
            _payloads(name),
            SOURCES[name].max_body,
        )
    yield Parser(
        "hook header Authorization",
        _by_header,
        (Unverified,),
        (f"Bearer {SECRET}".encode(), b"Basic dXNlcjpwYXNzd29yZA=="),
        HEADER,
    )
    yield Parser("hook token", _bearer, (Unverified,), (f"Bearer {token()}".encode(),), HEADER)
    yield Parser("keys of an issuer", _jwks, (Unverified,), (_published(),), 256 * KIB)
    pushed = handover.Entry("1", Told(Push("team/app", "1", "registry.example"), "r", "harbor"))
    yield Parser(
        "pushes handed over",
        lambda data: handover.decode(data.decode("utf-8", "surrogatepass")),
        (handover.Unreadable, UnicodeDecodeError),
        (handover.encode([pushed]).encode(),),
        MIB,
    )
    yield Parser("SNS subscription", _confirmation, (Malformed,), (_subscribe_url(),), 4 * KIB)


def _parse_with(source: Source) -> Callable[[bytes], object]:
    receiver = _receiver(source.name, registry="registry.example")
    headers = _HEADERS.get(source.name, {})
    return lambda data: source.parse(Delivery(headers, data), receiver)


def _verify_with(source: Source, receiver: Receiver) -> Callable[[bytes], object]:
    return lambda data: _finish(source.verify(Delivery({}, data), receiver, _nothing))


def _finish(work: Any) -> object:
    """The result of a coroutine that must not wait."""
    assert isinstance(work, Coroutine)
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for something")


def _by_header(data: bytes) -> object:
    delivery = Delivery({"authorization": _text(data)}, b"")
    verify.by_header(delivery, _receiver("acr", secrets=(SECRET,)), "authorization")
    return None


@cache
def _published() -> bytes:
    return jwks(jwk(rsa_key(), "one"), jwk(ec_key(), "two"))


def _bearer(data: bytes) -> object:
    rule = TokenRule(str(CLAIMS["iss"]), str(CLAIMS["aud"]), str(CLAIMS["email"]))
    delivery = Delivery({"authorization": _text(data)}, b"")
    return _finish(bearer.verify(delivery, rule, KEYS_URL, Web({KEYS_URL: _published()})))


def _jwks(data: bytes) -> object:
    rule = TokenRule(str(CLAIMS["iss"]), str(CLAIMS["aud"]), str(CLAIMS["email"]))
    delivery = Delivery({"authorization": f"Bearer {_signed()}"}, b"")
    return _finish(bearer.verify(delivery, rule, KEYS_URL, Web({KEYS_URL: data})))


@cache
def _signed() -> str:
    return token()


def _subscribe_url() -> bytes:
    return (
        "https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription"
        f"&TopicArn={TOPIC}&Token=2336412f37"
    ).encode()


def _confirmation(data: bytes) -> object:
    given: Any = {"topic": TOPIC, "subscribe_url": _text(data)}
    return sns.confirmation(sns.Message.model_construct(**given))


# Registries

_DIGEST = f"sha256:{'a' * 64}"
_REGISTRY = "registry.example"
_TAGS = URL(f"https://{_REGISTRY}/v2/team/app/tags/list?n=1000")
_SEMVER = TagPolicy(TagOrder.SEMVER, versions=">=1.4.0-0 <2 || ^3.x")
_ACCESS = tokens.Access(_REGISTRY, "team/app", pull_secrets.ANONYMOUS)
_OCI = "application/vnd.oci.image"


def _manifest_json() -> bytes:
    blob = {"mediaType": f"{_OCI}.layer.v1.tar+gzip", "digest": _DIGEST, "size": 1000}
    config = {"mediaType": f"{_OCI}.config.v1+json", "digest": _DIGEST, "size": 100}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": config,
        "layers": [blob, blob],
        "annotations": {"org.opencontainers.image.created": "2026-11-28T00:00:00Z"},
    }
    return json.dumps(manifest).encode()


def _index_json() -> bytes:
    entry = {"mediaType": f"{_OCI}.manifest.v1+json", "digest": _DIGEST, "size": 500}
    index = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.index.v1+json",
        "manifests": [
            {**entry, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {**entry, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        ],
    }
    return json.dumps(index).encode()


def _answer(body: bytes, **headers: str) -> Answer:
    return Answer(200, headers, body, URL(f"https://{_REGISTRY}/v2/"))


def _manifest(data: bytes) -> object:
    """Reads as `Client.manifest` and `Manifests` do; the digest always matches the content."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    document = _wait(client._document(_ACCESS, digest, _answer(data)))
    return documents.parse(document, registry=_REGISTRY, name="team/app")


def _tags(data: bytes) -> object:
    """Reads a page as `Client.tags` does, and selects as the operator does."""
    pages = Pages(_REGISTRY, "team/app")
    pages.add(_wait(large.parse(data)), None, _TAGS)
    builds = TagPolicy(TagOrder.NUMERICAL, pattern="(?P<ts>[0-9]+)$", extract="$ts")
    return [select(policy, pages.tags) for policy in (builds, _SEMVER)]


def _configuration(data: bytes) -> object:
    return documents.platform_of(_wait(large.parse(data)))


def _realms(data: bytes) -> object:
    """Parses the challenges of a header, and the realm of each challenge."""
    found = challenges.parse([_text(data)])
    for challenge in found:
        if "realm" in challenge.parameters:
            realm = tokens._realm(_ACCESS, challenge.parameters["realm"])
            realms._are_of_one_owner("registry.example", realm.raw_host or "")
    return found


def _pauses(data: bytes) -> object:
    text = _text(data)
    limits.retry_after({"Retry-After": text}, 1e9)
    limits.retry_after({"Retry-After": "Sat, 28 Nov 2026 07:00:00 GMT", "Date": text}, 1e9)
    for name in ("ratelimit-remaining", "ratelimit-reset", "ratelimit-limit"):
        told = {"ratelimit-remaining": "0;w=21600", "ratelimit-limit": "100;w=21600"}
        limits.allowance_pause(told | {name: text})
    return None


def _registries() -> Iterator[Parser]:
    realms._suffixes()  # Reads the list, once.
    yield Parser(
        "manifest",
        _manifest,
        (InvalidAnswer, UnsupportedManifest),
        (_manifest_json(), _index_json()),
        client.MAX_MANIFEST,
    )
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [_DIGEST]}}
    yield Parser(
        "image configuration", _configuration, (), (json.dumps(config).encode(),), client.MAX_CONFIG
    )
    yield Parser(
        "challenge",
        _realms,
        (InvalidAnswer,),
        (
            b'Bearer realm="https://auth.example/token",service="r",scope="repository:a/b:pull"',
            b'Negotiate YWJj==, Basic realm="a \\" b", Bearer realm=https://auth.example/t',
        ),
        HEADER,
    )
    yield Parser(
        "list of tags",
        _tags,
        (InvalidAnswer,),
        (
            b'{"name": "team/app", "tags": ["main-3f2c1a-1764240000", "1.4.2"]}',
            b'{"tags": null}',
        ),
        tags.MAX_PAGE,
    )
    yield Parser(
        "link to the next page",
        lambda data: Pages(_REGISTRY, "team/app").add({"tags": []}, _text(data), _TAGS),
        (InvalidAnswer,),
        (b'</v2/team/app/tags/list?last=1.4.2&n=1000>; rel="next"',),
        HEADER,
    )
    yield Parser(
        "token",
        lambda data: tokens._token(_ACCESS, _answer(data)),
        (InvalidAnswer,),
        (b'{"token": "abc", "access_token": "abc", "expires_in": 300}',),
        tokens.MAX_TOKEN,
    )
    yield Parser(
        "registry error",
        lambda data: errors.quoted(403, data, ("password",)),
        (),
        (b'{"errors": [{"code": "DENIED", "message": "access is denied", "detail": []}]}',),
        64 * KIB,
    )
    yield Parser(
        "registry pause",
        _pauses,
        (),
        (b"120", b"Sat, 28 Nov 2026 07:01:00 GMT", b"0;w=21600", b"100;w=21600"),
        HEADER,
    )
    yield Parser(
        "image reference",
        lambda data: references.parse(data.decode("utf-8", "surrogatepass")),
        (references.InvalidReference, UnicodeDecodeError),
        (
            f"registry.example:5000/team/app:1.2@{_DIGEST}".encode(),
            b"[fe80::1]:5000/a__b/c--d.e_f",
            b"ubuntu",
        ),
        64 * KIB,
    )
    yield Parser("place of a credential", _glob, (), (b"https://*.example.com:5000/a/*",), 64 * KIB)


def _glob(data: bytes) -> object:
    place = globs.parse(data.decode("latin-1"))  # one character for each byte, as in `raw`
    target = globs.parse(globs.raw("registry.example/team/app"))
    assert target is not None
    return place is not None and globs.matches(place, target)


# Secrets, and executables that provide credentials


def _docker_configs() -> tuple[bytes, ...]:
    """The docker configs for which the answers of the kubelet's own code are recorded."""
    recorded = json.loads((TESTS / "registry" / "golden" / "kubelet-keyring.json").read_bytes())
    configs = [
        base64.b64decode(secret["data"])
        for case in recorded[:40]
        for secret in case["secrets"]
        if secret["type"] == pull_secrets.CONFIG_TYPE
    ]
    usual = (
        b'{"auths": {"https://r.example/v1/": {"username": "u", "password": "p", "auth": "dTpw"}}}'
    )
    return (usual, *(config for config in configs[:12] if config.startswith(b"{")))


def _secret(kind: str, key: str) -> Callable[[bytes], object]:
    return lambda data: pull_secrets.entries(PullSecret("ns", "pull", kind, {key: data}))


def _plugin_answer() -> bytes:
    answer = {
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "cacheDuration": "1h30m0.5s",
        "auth": {"*.example.com": {"username": "u", "password": "p"}},
    }
    return json.dumps(answer).encode()


def _secrets() -> Iterator[Parser]:
    modern = _secret(pull_secrets.CONFIG_TYPE, pull_secrets.CONFIG_KEY)
    legacy = _secret(pull_secrets.LEGACY_TYPE, pull_secrets.LEGACY_KEY)
    configs = _docker_configs()
    yield Parser("docker config", modern, (InvalidSecret,), configs, MIB)
    yield Parser(
        "docker config, legacy",
        legacy,
        (InvalidSecret,),
        (b'{"https://r.example": {"username": "u", "password": "p", "email": "e", "auth": ""}}',),
        MIB,
    )
    provider = Provider("p", "/bin/true", (), "credentialprovider.kubelet.k8s.io/v1", 0.0)
    yield Parser(
        "credential provider",
        lambda data: plugin._response(provider, data),
        (plugin.PluginFailed,),
        (_plugin_answer(),),
        plugin.MAX_ANSWER,
    )
    yield Parser(
        "complaint of a credential provider",
        lambda data: plugin.censored(data.decode(errors="replace"), ("secret-of-us",)),
        (),
        (b"error: token eyJhbGciOiJSUzI1NiJ9.0123456789abcdefABCDEF secret-of-us",),
        4 * KIB,
    )


# Kubelets


def _nodes() -> Iterator[Parser]:
    summary = {
        "node": {
            "nodeName": "a",
            "fs": {"capacityBytes": 1, "availableBytes": 1},
            "runtime": {"imageFs": {"capacityBytes": 1000, "availableBytes": 400}},
        },
        "pods": [{"podRef": {"name": "p"}, "volume": [{"usedBytes": 1}]}],
    }
    usual = json.dumps(summary).encode()
    yield Parser("kubelet figures", kubelets.parse, (), (usual,), kubelets.PREFIX)
    yield Parser(
        "Node field",
        _node_field,
        (),
        (b"100Gi", b"v1.34.4-eks-1a2b3c4", b"2026-11-28T07:00:00Z"),
        64 * KIB,
    )
    recorded = json.loads((TESTS / "domain" / "messages" / "containerd-2.4.json").read_bytes())
    yield Parser(
        "pull message",
        lambda data: messages.classify(data.decode(errors="replace")),
        (),
        tuple(each["message"].encode() for each in recorded["messages"]),
        64 * KIB,
    )
    yield Parser(
        "message without secrets",
        lambda data: redact.redact(data.decode(errors="replace")),
        (),
        (
            b"GET https://user:password@s3.example/blob?X-Amz-Signature=abc&e=1: 403",
            b"Authorization: Bearer eyJhbGciOiJSUzI1NiJ9.e30.abc",
        ),
        64 * KIB,
    )
    yield Parser(
        "pull event",
        _pull_event,
        (),
        (
            b'Successfully pulled image "r.example/a:1" in 1m2.345s (1m2.345s including waiting).'
            b" Image size: 12345 bytes.",
        ),
        64 * KIB,
    )


def _node_field(data: bytes) -> object:
    text = data.decode(errors="replace")
    return (
        fields.quantity(text),
        fields.seconds(text),
        fields.version({"resourceVersion": text}),
        kube_nodes._version(text),
    )


def _pull_event(data: bytes) -> object:
    return puller_read.pulled(
        {
            "reason": "Pulled",
            "message": data.decode(errors="replace"),
            "involvedObject": {"kind": "Pod", "uid": "u", "name": "p"},
            "source": {"component": "kubelet"},
        }
    )


PARSERS: tuple[Parser, ...] = (*_hooks(), *_registries(), *_secrets(), *_nodes())
