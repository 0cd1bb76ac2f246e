"""Which token services get a registry's credentials.

A registry names its token service in its challenge (the realm). containerd, docker and skopeo send
the registry's password to any host that is named there. So a registry, or an attacker who can
change one of its answers, decides which host gets the password. Here the credentials are sent to
the registry's own host, to hosts of the same registrable domain, and to hosts that an administrator
has listed for that registry. Any other token service is asked without credentials, which is enough
for public images.

The pair is listed, not the host alone: otherwise every registry could send its credentials to a
host that was meant for one of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import cache

from publicsuffixlist import PublicSuffixList

from imagegate.registry import addresses

TokenServices = frozenset[tuple[str, str]]
"""Pairs of a registry, exactly as in references, and a host without port."""

KNOWN: TokenServices = frozenset(
    (f"rg.{region}.scw.cloud", "api.scaleway.com") for region in ("fr-par", "nl-ams", "pl-waw")
)
"""Public registries whose token service has another registrable domain. Scaleway's is
`https://api.scaleway.com/registry-internal/v1/regions/fr-par/tokens`. Docker Hub, GitLab.com, GHCR,
Quay, ACR, Artifact Registry, NVIDIA and Red Hat need no entry."""

LONGEST_NAME = 253
"""Characters of a name in DNS (RFC 1035, 2.3.4)."""


def parse(entries: Iterable[str]) -> TokenServices:
    """From `registry=host`. Raises `ValueError`."""
    found = set()
    for entry in entries:
        registry, separator, host = entry.partition("=")
        if not (registry and separator and host) or set(host) & set("/@= "):
            raise ValueError(f"{entry!r} is not of the form registry=host")
        found.add((registry, _normal(host)))
    return frozenset(found)


async def may_have_credentials(registry: str, own: str, host: str, listed: TokenServices) -> bool:
    """Whether the token service at `host` gets the credentials of `registry`.

    `own` is the host at which the registry itself is asked. Hosts are without ports, and in ASCII.
    """
    own, host = _normal(own), _normal(host)
    if not host:
        return False
    if own == host or (registry, host) in listed or (registry, host) in KNOWN:
        return True
    # In a thread, because the first call reads the list of suffixes, which takes 0.1 s.
    return await asyncio.to_thread(_are_of_one_owner, own, host)


def _are_of_one_owner(own: str, host: str) -> bool:
    one, other = addresses.literal(own), addresses.literal(host)
    if one is not None or other is not None:
        return (
            one is not None and other is not None and addresses.meant(one) == addresses.meant(other)
        )
    domain = _registrable(own)
    return domain is not None and domain == _registrable(host)


def _registrable(host: str) -> str | None:
    """`example.co.uk` of `a.example.co.uk`; None for a public suffix (`co.uk`, `github.io`)."""
    if len(host) > LONGEST_NAME:
        return None
    found: str | None = _suffixes().privatesuffix(host)
    return found


@cache
def _suffixes() -> PublicSuffixList:
    """The list in the package, with its private section, because tenants of github.io must not get
    each other's credentials. For a name without a suffix in the list, the last two labels count.
    """
    return PublicSuffixList()


def _normal(host: str) -> str:
    return host.lower().removesuffix(".")
