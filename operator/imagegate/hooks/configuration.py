"""The file that lists the receivers: a key of a Secret, mounted as a file.

The file is read periodically, because the kubelet replaces the files of a mounted Secret. So
secrets are rotated without a restart, and without lost deliveries while the file lists the old and
the new secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from imagegate.api import references
from imagegate.errors import ImagegateError
from imagegate.hooks.event import Receiver, Source, TokenRule

MAX_BYTES = 1 << 20
"""The largest size of a Secret."""
MIN_PATH = 16
MIN_SECRET = 8
MIN_KEY = 16
"""Shortest key of an HMAC, in characters."""
MOST_RECEIVERS = 1000

_PATH = re.compile(r"[A-Za-z0-9._~-]+")
_FORM = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class InvalidConfiguration(ImagegateError):
    """The errors in the file, by receiver and field. Never quotes a secret or a path."""


class _Token(BaseModel):
    model_config = _FORM

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    email: str = ""
    application: str = ""
    keys_url: str = Field(default="", alias="keysURL")


class _Receiver(BaseModel):
    model_config = _FORM

    name: str = Field(min_length=1)
    source: str
    path: str
    registry: str = ""
    secrets: list[str] = []
    token: _Token | None = None
    topics: list[str] = []
    path_only: bool = Field(default=False, alias="pathOnly")


_FILE = TypeAdapter(list[_Receiver])


def load(path: Path, sources: Mapping[str, Source]) -> tuple[Receiver, ...]:
    """The receivers of a file. Raises InvalidConfiguration, also if the file cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidConfiguration(f"{path}: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise InvalidConfiguration(f"{path} is larger than {MAX_BYTES} bytes")
    return parse(text, sources)


def parse(text: bytes, sources: Mapping[str, Source]) -> tuple[Receiver, ...]:
    """Raises InvalidConfiguration, which lists all errors."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise InvalidConfiguration(f"not YAML{where}") from None
    try:
        entries = _FILE.validate_python([] if document is None else document)
    except ValidationError as error:
        raise InvalidConfiguration("; ".join(_texts(error, document))) from None
    if len(entries) > MOST_RECEIVERS:
        raise InvalidConfiguration(f"there are more than {MOST_RECEIVERS} receivers")
    problems = [
        f"receiver {entry.name}: {problem}"
        for entry in entries
        for problem in _problems(entry, sources)
    ]
    for what in ("name", "path"):
        values = [getattr(entry, what) for entry in entries]
        problems += [
            f"receiver {entry.name}: its {what} is used by another receiver, too"
            for number, entry in enumerate(entries)
            if getattr(entry, what) in values[:number]
        ]
    if problems:
        raise InvalidConfiguration("; ".join(problems))
    return tuple(_receiver(entry) for entry in entries)


def _texts(error: ValidationError, document: Any) -> list[str]:
    texts = []
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        location = list(each["loc"])
        if not location:
            texts.append("a list of receivers is expected")
            continue
        number = int(location[0])
        entry = document[number]
        name = entry.get("name") if isinstance(entry, dict) else None
        who = name if isinstance(name, str) and name else f"number {number + 1}"
        field = ".".join(map(str, location[1:]))
        texts.append(f"receiver {who}: {field + ': ' if field else ''}{each['msg']}")
    return texts


def _problems(entry: _Receiver, sources: Mapping[str, Source]) -> list[str]:
    problems = []
    if len(entry.path) < MIN_PATH or not _PATH.fullmatch(entry.path):
        problems.append(
            f"path: at least {MIN_PATH} characters of A-Z a-z 0-9 . _ ~ - are needed, at random"
        )
    if any(len(secret) < MIN_SECRET or secret != secret.strip() for secret in entry.secrets):
        problems.append(
            f"secrets: each needs at least {MIN_SECRET} characters, and no space around them"
        )
    if entry.registry and not _is_registry(entry.registry):
        problems.append("registry: host, host:port or host/path is needed, as images name it")
    keys_url = entry.token.keys_url if entry.token is not None else ""
    if keys_url and not keys_url.startswith("https://"):
        problems.append("token.keysURL: must begin with https://")
    source = sources.get(entry.source)
    if source is None:
        problems.append(f"source: one of {', '.join(sorted(sources))} is needed")
        return problems
    if not (entry.registry or source.says_registry):
        problems.append(f"registry: is needed, because events of {source.name} do not say it")
    if source.signs and any(MIN_SECRET <= len(secret) < MIN_KEY for secret in entry.secrets):
        problems.append(
            f"secrets: each needs at least {MIN_KEY} characters, because {source.name} signs with"
            " them (openssl rand -hex 16)"
        )
    problems += _unproven(entry, source)
    problems += [
        f"{need}: is needed, because {source.name} proves itself by it"
        for need in source.needs
        if not _given(entry, need)
    ]
    problems += [
        f"{proof}: {source.name} cannot prove this, remove it"
        for proof in ("secrets", "token", "topics")
        if getattr(entry, proof) and proof not in source.proofs
    ]
    return problems


def _unproven(entry: _Receiver, source: Source) -> list[str]:
    """A receiver without proofs must set ``pathOnly``, if its source can send proofs."""
    proven = any(getattr(entry, proof) for proof in source.proofs)
    if entry.path_only and proven:
        return ["pathOnly: remove it, the sender has to prove more"]
    if entry.path_only or proven or source.needs or not source.proofs:
        return []
    return [
        f"{' or '.join(sorted(source.proofs))}: is needed; or pathOnly: true, if whoever knows the"
        " path is to be believed"
    ]


def _given(entry: _Receiver, field: str) -> bool:
    """Whether a field, ``topics`` or ``token.email``, has a value."""
    value: object = entry
    for name in field.split("."):
        value = getattr(value, name, None)
    return bool(value)


def _is_registry(text: str) -> bool:
    try:
        return references.parse(f"{text}/a").name == f"{text}/a"
    except references.InvalidReference:
        return False


def _receiver(entry: _Receiver) -> Receiver:
    token = None
    if entry.token is not None:
        given = entry.token
        token = TokenRule(
            given.issuer, given.audience, given.email, given.keys_url, given.application
        )
    return Receiver(
        name=entry.name,
        source=entry.source,
        path=entry.path,
        registry=entry.registry,
        secrets=tuple(entry.secrets),
        token=token,
        topics=tuple(entry.topics),
        path_only=entry.path_only,
    )
