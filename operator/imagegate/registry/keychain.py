"""The credentials that the kubelet would use for an image.

A port of k8s.io/kubernetes v1.36 pkg/credentialprovider (keyring.go, secrets/secrets.go). With
other rules, the operator could read images that the nodes cannot pull, or fail to read images that
the nodes can pull. The kubelet tries the credentials of the pull secrets first, then those of files
on the node, which no operator can read, then those of its plugins
(pkg/kubelet/images/image_manager.go, secrets/secrets.go in v1.36). `Client` does the same with the
operator's plugins, which `providers` runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

from imagegate.api.references import Reference
from imagegate.registry import globs, pull_secrets
from imagegate.registry.pull_secrets import Credential, PullSecret

_DOCKER_HUB = "index.docker.io"


class Keyring:
    """The credentials of pull secrets, in the order of the pod's `imagePullSecrets`.

    Raises `InvalidSecret` for the first malformed secret, because the kubelet then pulls nothing
    for the pod. The kubelet ignores secrets of other types: `ignored` lists them, for a message.
    """

    def __init__(self, secrets: Iterable[PullSecret] = ()) -> None:
        self.ignored: tuple[str, ...] = ()
        """`namespace/name` of the secrets that the kubelet ignores because of their type."""
        self._credentials: dict[str, list[Credential]] = {}
        for secret in secrets:
            entries = pull_secrets.entries(secret)
            if entries is None:
                self.ignored += (secret.coordinates,)
            else:
                self._add(entries)

    @classmethod
    def of_entries(cls, entries: Iterable[Mapping[str, Credential]]) -> Self:
        """Make a keyring from mappings of registries to credentials. For the same registry, the
        credential of an earlier mapping comes first.
        """
        keyring = cls()
        for each in entries:
            keyring._add(each)
        return keyring

    def lookup(self, reference: Reference) -> tuple[Credential, ...]:
        """All matching credentials in the order of their use; empty: ask anonymously.

        If all of them fail, the kubelet does not fall back to an anonymous pull.
        """
        return self.lookup_name(reference.name)

    def lookup_name(self, image: str) -> tuple[Credential, ...]:
        """The same for a repository's name, `domain/path` without tag and digest."""
        target = globs.parse(globs.raw(image))
        found: list[Credential] = []
        # Reverse order puts `host/team` before `host`, so that the most specific key comes first.
        for key in sorted(self._credentials, reverse=True):
            glob = globs.parse(key)
            if target is not None and glob is not None and globs.matches(glob, target):
                found += self._credentials[key]
        if not found and is_docker_hub(image):
            found = self._credentials.get(_DOCKER_HUB, [])
        return tuple(found)

    def _add(self, entries: Mapping[str, Credential]) -> None:
        for place, credential in entries.items():
            key = _key(place)
            if key is not None:
                self._credentials.setdefault(key, []).append(credential)


EMPTY = Keyring()
"""No secrets: all requests are anonymous."""


def is_docker_hub(image: str) -> bool:
    """Whether a key for `index.docker.io` is valid for the image (`isDefaultRegistryMatch`)."""
    first, slash, _ = image.partition("/")
    if not first:
        return False
    if not slash or first in ("docker.io", _DOCKER_HUB):
        return True
    return not ("." in first or ":" in first)


def _key(place: str) -> str | None:
    """The index key for an entry's name; None if Go cannot parse the name and skips the entry."""
    text = globs.raw(place)
    for scheme in ("https://", "http://"):
        if text.startswith(scheme):
            text = text.removeprefix(scheme)
            break
    location = globs.parse(text)
    if location is None:
        return None
    path = location.path
    # As in the docker client, `/v1/` and `/v2/` mean the host (docker/registry/auth.go).
    if path.startswith(("/v1/", "/v2/")):
        path = path[3:]
    return location.host if path == "/" else location.host + path
