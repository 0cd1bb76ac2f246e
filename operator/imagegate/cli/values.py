"""Parsers of option values. Each raises `typer.BadParameter`, so that the message names the option.

What is slow to import is imported by the parser that needs it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from typer import BadParameter

from imagegate.api import parallel, references
from imagegate.domain.policy import PrefetchPolicy

if TYPE_CHECKING:
    from imagegate.registry.keychain import Keyring
    from imagegate.registry.realms import TokenServices
    from imagegate.settings import GateSource

T = TypeVar("T")

DOCKER_CONFIG = "~/.docker/config.json"
LARGEST = 1e9
PICTURES = (".svg", ".png")
_UNITS = {"s": 1, "m": 60, "h": 3600}


def comma(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def boolean(text: str) -> bool:
    match text.lower():
        case "true":
            return True
        case "false":
            return False
        case _:
            raise BadParameter(f"{text!r} is neither true nor false")


def pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise BadParameter(f"{text!r} is not of the form key=value")
    return key, value


def count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,6}", text):
        raise BadParameter(f"{text!r} is not a whole number from 1 to 9999999")
    return int(text)


def at_least_zero(text: str) -> float:
    return _number(text, 0.0, "a number from 0 to 1e9")


def megabytes_per_second(text: str) -> float:
    """Bytes per second, from megabytes (10^6 bytes) per second."""
    return 1e6 * _number(text, 1e-6, "a number of MB/s from 0.000001 to 1e9")


def gigabytes(text: str) -> int:
    """Bytes, from gigabytes of 10^9 bytes, the unit in which disks are sold."""
    return int(1e9 * _number(text, 1e-6, "a number of GB from 0.000001 to 1e9"))


def _number(text: str, least: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= LARGEST:
        raise BadParameter(f"{text!r} is not {what}")
    return value


def seconds(text: str) -> float:
    """Seconds, from ``90s``, ``10m``, ``1h30m``: Go's notation, as in kubectl, without parts of a
    second.
    """
    if not re.fullmatch(r"(\d{1,6}h)?(\d{1,6}m)?(\d{1,6}s)?", text) or not text:
        raise BadParameter(f"{text!r} is not a time: write 90s, 10m or 1h30m")
    return float(sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([hms])", text)))


def max_parallel(text: str) -> tuple[int, bool]:
    """The number, and whether it is a percentage; as ``rollout.maxParallel``."""
    try:
        return parallel.parse(int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text)
    except ValueError as error:
        raise BadParameter(str(error)) from None


def picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in PICTURES:
        raise BadParameter(f"{text!r} is not a picture file: end its name with .svg or .png")
    return path


def image_references(texts: list[str]) -> list[str]:
    for text in texts:
        try:
            references.parse(text)
        except references.InvalidReference as error:
            raise BadParameter(str(error)) from None
    return texts


def platform(text: str) -> str:
    from imagegate.registry.platforms import Platform

    return _valid(lambda: str(Platform.parse(text)))


def token_services(text: str) -> TokenServices:
    from imagegate.registry import realms

    return _valid(lambda: realms.parse(comma(text)))


def gate_source(text: str) -> GateSource:
    from imagegate.settings import GateSource

    try:
        return GateSource(text)
    except ValueError:
        raise BadParameter(f"{text!r} is not one of {', '.join(GateSource)}") from None


def resources(text: str) -> dict[str, Any]:
    """A container's ``resources``, as JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() <= {"requests", "limits", "claims"}:
        raise BadParameter(f"{text!r} has no JSON object of requests and limits")
    return found


def prefetch_policy(text: str) -> PrefetchPolicy:
    """The policy in the chart's JSON."""
    from imagegate.cli import policy

    try:
        return policy.parse(text)
    except ValueError as error:
        raise BadParameter(f"{text!r} is not a prefetchPolicy: {error}") from None


def keyring(option: str, text: str) -> Keyring:
    """The credentials of a docker configuration file. `DOCKER_CONFIG` means docker's own file, if
    it exists.
    """
    from imagegate import lint
    from imagegate.registry.keychain import EMPTY

    try:
        if text != DOCKER_CONFIG:
            return lint.keyring(Path(text)) if text else EMPTY
        folder = os.environ.get("DOCKER_CONFIG")
        path = Path(folder, "config.json") if folder else Path(text).expanduser()
        return lint.keyring(path) if path.is_file() else EMPTY
    except lint.InvalidDockerConfig as error:
        raise BadParameter(str(error), param_hint=option) from None
    except (OSError, RuntimeError):
        return EMPTY  # No home directory, or one without access, as in a container.


def _valid(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except ValueError as error:
        raise BadParameter(str(error)) from None
