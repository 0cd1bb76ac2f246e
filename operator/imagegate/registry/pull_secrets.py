"""Reads pull secrets, `.dockerconfigjson` and `.dockercfg`, as the kubelet reads them.

Go's decoders have rules of their own (k8s.io/kubernetes v1.36 pkg/credentialprovider/config.go with
`encoding/json` and `encoding/base64`): names match in any case, repeated names are applied in
order, null means absent, and one wrong type makes the whole secret invalid. This module follows the
same rules. Otherwise an error in a secret might show only on the nodes.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imagegate.registry.errors import InvalidSecret

CONFIG_TYPE = "kubernetes.io/dockerconfigjson"
CONFIG_KEY = ".dockerconfigjson"
LEGACY_TYPE = "kubernetes.io/dockercfg"
LEGACY_KEY = ".dockercfg"

_SURROGATE = re.compile("[\ud800-\udfff]")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and password, or a token. `source` does not count for equality.

    Undecodable bytes are kept as surrogate escapes. A repr shows only `source`.
    """

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """An OAuth2 refresh token, only for token services. The kubelet does not read it."""
    registry_token: str = field(default="", repr=False)
    """A ready bearer token for the registry. The kubelet does not read it."""
    source: str = field(default="", compare=False)
    """The origin, for messages: `secret namespace/name`, `credential provider name`."""

    @property
    def anonymous(self) -> bool:
        """Whether requests are sent without a login. containerd needs a user name to log in."""
        return not (self.username or self.identity_token or self.registry_token)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values that no text may contain."""
        return tuple(filter(None, (self.password, self.identity_token, self.registry_token)))


ANONYMOUS = Credential()


@dataclass(frozen=True, slots=True)
class PullSecret:
    """The needed part of a Secret; `data` is already decoded from base64."""

    namespace: str
    name: str
    type: str
    data: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def from_object(cls, body: Mapping[str, Any]) -> PullSecret:
        """From a Secret's JSON form, whose data is base64. Raises `InvalidSecret`."""
        metadata: Mapping[str, Any] = body.get("metadata") or {}
        namespace, name = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
        data: dict[str, bytes] = {}
        for key, value in (body.get("data") or {}).items():
            if key not in (CONFIG_KEY, LEGACY_KEY):
                continue
            decoded = _base64(value) if isinstance(value, str) else None
            if decoded is None:
                raise _invalid(f"{namespace}/{name}", f"{key} is not base64")
            data[key] = decoded
        return cls(namespace, name, str(body.get("type", "")), data)

    @property
    def coordinates(self) -> str:
        return f"{self.namespace}/{self.name}"


def entries(secret: PullSecret) -> dict[str, Credential] | None:
    """The credentials of a secret, by the registry's name as written in the secret.

    None if type and key are not one of the two kinds, because the kubelet ignores such a secret.
    Raises `InvalidSecret`.
    """
    read: Callable[[Any, str], dict[str, Credential]]
    if secret.type == CONFIG_TYPE and secret.data.get(CONFIG_KEY):
        key, read = CONFIG_KEY, _config
    elif secret.type == LEGACY_TYPE and secret.data.get(LEGACY_KEY):
        key, read = LEGACY_KEY, _registries
    else:
        return None
    try:
        return read(_json(secret.data[key]), f"secret {secret.coordinates}")
    except _Malformed as malformed:
        problem = str(malformed)
    raise _invalid(secret.coordinates, f"{key}: {problem}")


def _invalid(coordinates: str, problem: str) -> InvalidSecret:
    return InvalidSecret(
        f"pull secret {coordinates}",
        problem,
        "the kubelet pulls nothing with it: create it again, for example with"
        " `kubectl create secret docker-registry`",
    )


class _Malformed(Exception):
    """The secret is malformed. The text contains nothing of the secret."""


class _Object(list[tuple[str, Any]]):
    """A JSON object as a list of pairs, because Go applies repeated names in order."""


def _json(data: bytes) -> Any:
    problem = "it is not JSON"
    try:
        # Numbers are not used, and may be too long for an int.
        return json.loads(
            data.decode("utf-8", "replace"),
            object_pairs_hook=_Object,
            parse_constant=_refuse_constant,
            parse_int=len,
        )
    except json.JSONDecodeError as error:
        # The exception contains the whole document, so it must not become a cause or a context.
        problem = f"it is not JSON from line {error.lineno}, column {error.colno} on"
    except RecursionError:
        problem = "it is nested too deeply"
    raise _Malformed(problem)


def _refuse_constant(_: str) -> Any:
    raise _Malformed("NaN and Infinity are not JSON")


def _config(document: Any, source: str) -> dict[str, Credential]:
    """A `.dockerconfigjson`: the registries under "auths", and the other field that Go checks."""
    found: dict[str, Credential] = {}
    if document is None:
        return found
    if not isinstance(document, _Object):
        raise _Malformed('it must be an object with "auths"')
    for name, value in document:
        match name.lower():
            case "auths":
                found = {} if value is None else found | _registries(value, source)
            case "httpheaders" if value is not None:
                strings = isinstance(value, _Object) and all(
                    header is None or isinstance(header, str) for _, header in value
                )
                if not strings:
                    raise _Malformed('"HttpHeaders" must be an object of strings')
    return found


def _registries(auths: Any, source: str) -> dict[str, Credential]:
    """A `.dockercfg`, or "auths" in a `.dockerconfigjson`."""
    if auths is None:
        return {}
    if not isinstance(auths, _Object):
        raise _Malformed("the registries must be an object")
    found: dict[str, Credential] = {}
    for number, (place, entry) in enumerate(auths, start=1):
        try:
            found[_text(place)] = _credential(entry, source)
        except _Malformed as malformed:
            # Name the entry by its number, because a registry's name is secret content, too.
            raise _Malformed(f"registry {number} of {len(auths)}: {malformed}") from None
    return found


def _credential(entry: Any, source: str) -> Credential:
    if entry is None:
        return Credential(source=source)
    if not isinstance(entry, _Object):
        raise _Malformed("it must be an object")
    values: dict[str, str] = {}
    for name, value in entry:
        match name.lower():
            case "username" | "password" | "email" | "auth" as known if value is not None:
                if not isinstance(value, str):
                    raise _Malformed(f'"{known}" must be a string')
                values[known] = _text(value)
            case "identitytoken" | "registrytoken" as token if isinstance(value, str):
                values[token] = _text(value)
    username, password = values.get("username", ""), values.get("password", "")
    if values.get("auth"):
        username, password = _decode_auth(values["auth"])
    return Credential(
        username,
        password,
        values.get("identitytoken", ""),
        values.get("registrytoken", ""),
        source,
    )


def _decode_auth(auth: str) -> tuple[str, str]:
    """`base64(username:password)`, with or without padding; has priority over the plain fields."""
    decoded = _base64(auth, padded=auth.strip().endswith("="))
    if decoded is None:
        raise _Malformed('"auth" is not base64')
    username, colon, password = decoded.decode("utf-8", "surrogateescape").partition(":")
    if not colon:
        raise _Malformed('"auth" is not base64 of username:password')
    return username, password


def _base64(text: str, *, padded: bool = True) -> bytes | None:
    """Decode as Go's StdEncoding and RawStdEncoding do: only line breaks are ignored."""
    text = text.replace("\r", "").replace("\n", "")
    if not padded:
        text += "=" * (-len(text) % 4)
    if not _BASE64.fullmatch(text):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _text(text: str) -> str:
    """The text as Go decodes it: Go's JSON decoder replaces lone surrogates by U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)
