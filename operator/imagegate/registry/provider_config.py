"""Reads the kubelet's `CredentialProviderConfig`, so that the operator can use the nodes' file.

It is as strict as the kubelet 1.36 (pkg/credentialprovider/plugin/config.go): an unknown name is an
error, because it is probably misspelt. `tokenAttributes` is not supported, because it needs the
service account of the pod that pulls, and the operator's requests belong to no pod.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from imagegate.registry import globs
from imagegate.registry.errors import InvalidSettings
from imagegate.registry.globs import Location

_KIND = "CredentialProviderConfig"
_CONFIG_GROUP = "kubelet.config.k8s.io"
API_GROUP = "credentialprovider.kubelet.k8s.io"
_VERSIONS = ("v1", "v1beta1", "v1alpha1")
"""Versions of both the file and the protocol. They do not differ in the fields that are used."""

_KNOWN = frozenset(
    {"name", "matchImages", "defaultCacheDuration", "apiVersion", "args", "env", "tokenAttributes"}
)
_DURATION = re.compile(r"([+-]?)((?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}
_UNITS |= {"m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Provider:
    """One plugin: its images, and how it is run."""

    name: str
    path: str
    """The executable."""
    match_images: tuple[Location, ...]
    api_version: str
    """The full version of the protocol; the answer must have the same."""
    cache_seconds: float
    """How long answers without a `cacheDuration` are cached; 0: not at all."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    def matches(self, image: str) -> bool:
        """Whether the plugin is responsible for a repository (`domain/path`, no tag or digest)."""
        target = globs.parse(globs.raw(image))
        return target is not None and any(globs.matches(m, target) for m in self.match_images)


def read(config: str, directory: str) -> tuple[Provider, ...]:
    """The providers in a file, with their executables in the directory; empty without a file.

    Raises `InvalidSettings`, also for a missing executable, as the kubelet does at its start.
    """
    if not config and not directory:
        return ()
    if not config or not directory:
        raise InvalidSettings(
            "credential providers",
            "a configuration file and a directory of executables go together",
            "give both or neither",
        )
    problem = ""
    try:
        document = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        # The exception's text is not used, because it quotes the file, and `env` may be secret.
        problem = "it is not YAML"
    if not problem:
        try:
            return _providers(document, directory)
        except _InvalidConfigError as error:
            problem = str(error)
    raise InvalidSettings(
        f"credential providers of {config}", problem, "give the file that the kubelet takes"
    )


class _InvalidConfigError(Exception):
    """The file is invalid."""


def duration(text: Any) -> float | None:
    """Seconds of a Go duration such as `1h30m` or `0`; None for any other text."""
    if not isinstance(text, str):
        return None
    if text in ("0", "+0", "-0"):
        return 0.0
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(found[2]))
    return -seconds if found[1] == "-" else seconds


def _providers(document: Any, directory: str) -> tuple[Provider, ...]:
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise _InvalidConfigError(f"it is not a {_KIND}")
    if document.get("apiVersion") not in [f"{_CONFIG_GROUP}/{version}" for version in _VERSIONS]:
        raise _InvalidConfigError(f"its apiVersion is not {_CONFIG_GROUP}/v1")
    _only(document, {"kind", "apiVersion", "providers"}, "it")
    entries = document.get("providers")
    if not isinstance(entries, list) or not entries:
        raise _InvalidConfigError("providers: at least one is needed")
    found: dict[str, Provider] = {}
    for number, entry in enumerate(entries):
        provider = _provider(entry, f"providers[{number}]", directory)
        if provider.name in found:
            raise _InvalidConfigError(f"providers[{number}].name: {provider.name} is there twice")
        found[provider.name] = provider
    return tuple(found.values())


def _provider(entry: Any, where: str, directory: str) -> Provider:
    if not isinstance(entry, dict):
        raise _InvalidConfigError(f"{where}: it must be an object")
    _only(entry, _KNOWN, where)
    if entry.get("tokenAttributes") is not None:
        raise _InvalidConfigError(
            f"{where}.tokenAttributes: service account tokens of the pods that pull are not"
            " supported here: leave it out, and give the operator's own service account the right"
        )
    name = entry.get("name")
    # The name becomes part of a path, and must not lead out of the directory.
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/ \0]", name):
        raise _InvalidConfigError(
            f"{where}.name: it must be the name of a file, without / or space"
        )
    api_version = entry.get("apiVersion")
    if api_version not in [f"{API_GROUP}/{version}" for version in _VERSIONS]:
        raise _InvalidConfigError(f"{where}.apiVersion: it must be {API_GROUP}/v1")
    cache_seconds = duration(entry.get("defaultCacheDuration"))
    if cache_seconds is None or cache_seconds < 0:
        raise _InvalidConfigError(
            f"{where}.defaultCacheDuration: it must be a duration as 12h or 0s"
        )
    patterns = _strings(entry.get("matchImages"), f"{where}.matchImages")
    if not patterns:
        raise _InvalidConfigError(f"{where}.matchImages: at least one is needed")
    path = Path(directory, name)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise _InvalidConfigError(f"{where}.name: there is no executable {path}")
    return Provider(
        name,
        str(path),
        tuple(_location(p, f"{where}.matchImages[{n}]") for n, p in enumerate(patterns)),
        str(api_version),
        cache_seconds,
        tuple(_strings(entry.get("args"), f"{where}.args")),
        _env(entry.get("env"), f"{where}.env"),
    )


def _only(entry: Mapping[Any, Any], known: frozenset[str] | set[str], where: str) -> None:
    unknown = sorted(str(key) for key in entry if key not in known)
    if unknown:
        raise _InvalidConfigError(f"{where} has unknown fields: {', '.join(unknown)[:100]}")


def _strings(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, str) and "\0" not in v for v in value):
        raise _InvalidConfigError(f"{where}: it must be a list of strings")
    return value


def _location(pattern: str, where: str) -> Location:
    location = globs.parse(globs.raw(pattern))
    if location is None:
        raise _InvalidConfigError(f"{where}: {pattern[:100]} is not a host with a path")
    return location


def _env(value: Any, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    if value is not None and not isinstance(value, list):
        raise _InvalidConfigError(f"{where}: it must be a list of name and value")
    for entry in value or []:
        if not isinstance(entry, dict) or set(entry) - {"name", "value"}:
            raise _InvalidConfigError(f"{where}: it must be a list of name and value")
        name, text = _strings([entry.get("name"), entry.get("value", "")], where)
        if not name or "=" in name:
            raise _InvalidConfigError(f"{where}: a variable needs a name, without =")
        found[name] = text
    return found
