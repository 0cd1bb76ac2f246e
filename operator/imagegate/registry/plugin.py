"""Runs a credential provider plugin, with the kubelet's exec protocol.

The plugin reads a `CredentialProviderRequest` from standard input, and writes a
`CredentialProviderResponse` to standard output (k8s.io/kubelet v0.36
pkg/apis/credentialprovider/v1/types.go). No shell is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from imagegate.registry.provider_config import API_GROUP, Provider, duration
from imagegate.registry.pull_secrets import Credential

TIMEOUT = 60.0
"""Longest run in seconds: the kubelet's limit (pkg/credentialprovider/plugin/plugin.go)."""
MAX_ANSWER = 256 * 1024
"""Largest answer in bytes; a cloud's token has about 4 KB."""
LONGEST_COMPLAINT = 300
"""Characters of a plugin's standard error that a message quotes: the last ones."""
_KEPT_COMPLAINT = 4096
_DYING = 5.0
"""Seconds to wait for the end of a killed plugin."""

_PASSED_ON = frozenset({"PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"})
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})
# Variables that EKS, AKS and GKE set in a pod for workload identity, and that their SDKs read.
_PASSED_ON_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "GCE_", "CLOUDSDK_")

_WORD = re.compile(r"[A-Za-z0-9+/_=.-]{20,}")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")


class CacheKeyType(StrEnum):
    """The images for which an answer is valid."""

    IMAGE = "Image"
    REGISTRY = "Registry"
    GLOBAL = "Global"


@dataclass(frozen=True, slots=True)
class Response:
    key_type: CacheKeyType
    seconds: float | None
    """How long the answer may be cached; None: the configuration decides."""
    entries: Mapping[str, Credential] = field(repr=False)
    """By registry, as in a pull secret."""


class PluginFailed(Exception):
    """The plugin failed. The text contains nothing of its answer."""


def environment(provider: Provider, outside: Mapping[str, str]) -> dict[str, str]:
    """The plugin's environment: the operator's variables that a cloud's SDK needs, and the
    variables of the configuration.

    The kubelet passes on its whole environment. The operator does not, because its environment may
    contain values that a plugin must not see (`extraEnv`).
    """
    inherited = {
        name: value
        for name, value in outside.items()
        if name in _PASSED_ON or name.upper() in _PROXIES or name.startswith(_PASSED_ON_PREFIXES)
    }
    return inherited | dict(provider.env)


async def run(provider: Provider, image: str, *, timeout: float = TIMEOUT) -> Response:
    """Ask the plugin for a repository's credentials. Raises `PluginFailed`.

    A plugin that exceeds a limit of time or size, or is cancelled, is killed with its children.
    """
    request = {
        "apiVersion": provider.api_version,
        "kind": "CredentialProviderRequest",
        "image": image,
    }
    loop = asyncio.get_running_loop()
    try:
        # A process group of its own, so that all processes can be killed: a plugin may be a script
        # that runs other programs.
        transport, dialogue = await loop.subprocess_exec(
            _Dialogue,
            provider.path,
            *provider.args,
            env=environment(provider, os.environ),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise PluginFailed(f"it cannot be run: {getattr(error, 'strerror', '')}") from None
    try:
        dialogue.say(transport, json.dumps(request).encode())
        async with asyncio.timeout(timeout):
            await dialogue.over.wait()
    except TimeoutError:
        raise _failed(f"no answer within {timeout:g} s", dialogue.complaint, provider) from None
    finally:
        await _end(transport, dialogue)
    if len(dialogue.answer) > MAX_ANSWER:
        raise PluginFailed(f"it answered with more than {MAX_ANSWER} bytes")
    status = transport.get_returncode()
    if status != 0:
        ending = f"ended by signal {-status}" if status and status < 0 else f"exit status {status}"
        raise _failed(ending, dialogue.complaint, provider)
    return _response(provider, bytes(dialogue.answer))


class _Dialogue(asyncio.SubprocessProtocol):
    """The input and output of the process. asyncio's streams are not used, because they offer no
    way to close the process.
    """

    def __init__(self) -> None:
        self.answer = bytearray()
        self.complaint = bytearray()
        self.over = asyncio.Event()
        """The answer is complete, or too large."""
        self.closed = asyncio.Event()
        """The process has ended, and all pipes are closed."""

    def say(self, transport: asyncio.SubprocessTransport, request: bytes) -> None:
        """Write the request. It is not an error if the plugin does not read it."""
        pipe = transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        pipe.write(request)
        pipe.write_eof()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1 and len(self.answer) <= MAX_ANSWER:
            self.answer += data
        if len(self.answer) > MAX_ANSWER:
            self.over.set()
        if fd == 2:
            self.complaint += data
            del self.complaint[:-_KEPT_COMPLAINT]

    def connection_lost(self, _: Exception | None) -> None:
        self.over.set()
        self.closed.set()


async def _end(transport: asyncio.SubprocessTransport, dialogue: _Dialogue) -> None:
    """End the process group, and close the pipes."""
    if not dialogue.closed.is_set():
        # Kill the group only while it has members, because afterwards its id may belong to others.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
    transport.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DYING):
            await dialogue.closed.wait()


def _failed(problem: str, complaint: bytes | bytearray, provider: Provider) -> PluginFailed:
    said = censored(complaint.decode("utf-8", "replace"), provider.env.values())
    return PluginFailed(f"{problem}: {said}" if said else problem)


def censored(text: str, secrets: Iterable[str]) -> str:
    """The end of a text in one line, without the given secrets and without possible tokens."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    text = _WORD.sub(lambda found: "***" if _looks_secret(found[0]) else found[0], text)
    text = _HEX.sub("***", text)
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= LONGEST_COMPLAINT else f"…{words[-LONGEST_COMPLAINT:]}"


def _looks_secret(word: str) -> bool:
    """Whether the word mixes upper case, lower case and digits. Paths, hosts, images and UUIDs of
    requests usually do not.
    """
    return (
        any(map(str.isupper, word)) and any(map(str.islower, word)) and any(map(str.isdigit, word))
    )


def _response(provider: Provider, answer: bytes) -> Response:
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        # The answer is not quoted, because it may be a password.
        raise PluginFailed("its answer is not a JSON object")
    version = document.get("apiVersion")
    if version != provider.api_version:
        known = isinstance(version, str) and version.startswith(f"{API_GROUP}/")
        shown = str(version)[:60] if known else "something else"
        raise PluginFailed(f"it answered in {shown}, not in {provider.api_version}")
    if document.get("kind") != "CredentialProviderResponse":
        raise PluginFailed("its answer is not a CredentialProviderResponse")
    try:
        key_type = CacheKeyType(str(document.get("cacheKeyType")))
    except ValueError:
        raise PluginFailed("its cacheKeyType is none of Image, Registry, Global") from None
    seconds = duration(document.get("cacheDuration"))
    if seconds is None and document.get("cacheDuration") is not None:
        raise PluginFailed("its cacheDuration is not a duration")
    source = f"credential provider {provider.name}"
    auth = document.get("auth")
    if auth is None:
        auth = {}
    if not isinstance(auth, dict):
        raise PluginFailed("its auth is not an object")
    return Response(key_type, seconds, {k: _credential(v, source) for k, v in auth.items()})


def _credential(entry: Any, source: str) -> Credential:
    values = entry if isinstance(entry, dict) else {"username": None}
    username, password = values.get("username", ""), values.get("password", "")
    if not isinstance(username, str) or not isinstance(password, str):
        raise PluginFailed("an entry of its auth is not a username and password")
    return Credential(username, password, source=source)
