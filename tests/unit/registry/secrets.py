"""Builders of pull secrets for tests."""

from __future__ import annotations

import base64
import json

from imagegate.registry import pull_secrets
from imagegate.registry.keychain import Keyring
from imagegate.registry.pull_secrets import PullSecret


def secret(
    content: object, *, name: str = "pull", kind: str = pull_secrets.CONFIG_TYPE
) -> PullSecret:
    """A secret of `kind`; `content` is encoded as JSON unless it is bytes."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    key = pull_secrets.CONFIG_KEY if kind == pull_secrets.CONFIG_TYPE else pull_secrets.LEGACY_KEY
    return PullSecret("ml", name, kind, {key: data})


def keyring(*logins: tuple[str, str, str]) -> Keyring:
    """One secret for each (place, username, password), in this order."""
    return Keyring(
        secret({"auths": {place: {"auth": auth(username, password)}}}, name=f"pull-{number}")
        for number, (place, username, password) in enumerate(logins)
    )


def auth(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()
