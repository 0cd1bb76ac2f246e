"""To which addresses a registry may send the operator.

A user may name a registry at any private address. A registry may not send the operator to private
addresses: with its realm and its redirects it could otherwise make the operator send requests to
services that only the operator can reach, with a registry's password, and get their answers.
Addresses are checked where names are resolved for a connection, so that a name cannot change its
address between the check and the connection.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.request
from collections.abc import Iterable

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure's host
        "192.0.0.192",  # Oracle Cloud, old address
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
        "fd00:42::42",  # Scaleway
    )
)
"""Metadata services that are not link-local. They give the node's credentials to every client."""
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))


class AddressRefused(OSError):
    """Its text says which address was refused, and why."""


def literal(host: str) -> Address | None:
    """The address that a host is, also as `127.1` or `0x7f000001`, which `inet_aton` accepts."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if any(address in network for network in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    within = address.ipv4_mapped or address.sixtofour
    if within is None and int(address) >> 32 == 0 and int(address) > 1:
        within = ipaddress.IPv4Address(int(address))  # `::127.0.0.1`, deprecated
    return within or address


def is_forbidden(address: Address) -> bool:
    """Whether the operator never connects to the address, even if a user names it."""
    address = meant(address)
    return (
        address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in _METADATA
        or (isinstance(address, ipaddress.IPv4Address) and int(address) >> 24 == 0)
    )


def is_public(address: Address) -> bool:
    return meant(address).is_global


class Guard(AbstractResolver):
    """Resolves names for the connections on behalf of one registry.

    `own` is the host that the user named; `allowed` are further hosts that may be at private
    addresses. Raises `AddressRefused`. `inner` is not closed: it is shared.
    """

    def __init__(self, inner: AbstractResolver, own: str, allowed: Iterable[str]) -> None:
        self._inner = inner
        self._own = own
        self._allowed = frozenset(host.lower() for host in allowed)

    async def check(self, host: str) -> None:
        """Check a host that is an address, because aiohttp does not call `resolve` for it."""
        address = literal(host)
        if address is not None and not await self._permits(host, address):
            raise _refused(host, [address])

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        addresses = [literal(each["host"]) for each in found]
        good = [
            each
            for each, address in zip(found, addresses, strict=True)
            if address is not None and await self._permits(host, address)
        ]
        if found and not good:
            raise _refused(host, [address for address in addresses if address is not None])
        return good

    async def close(self) -> None:
        """There is nothing to close."""

    async def _permits(self, host: str, address: Address) -> bool:
        if is_forbidden(address):
            return False
        if is_public(address) or host == self._own or host.lower() in self._allowed:
            return True
        return host in _proxies() or meant(address) in await self._own_addresses()

    async def _own_addresses(self) -> set[Address]:
        """The addresses of the registry itself. Its token service may have another name there."""
        own = literal(self._own)
        if own is not None:
            return {meant(own)}
        try:
            found = await self._inner.resolve(self._own, 0, socket.AF_UNSPEC)
        except OSError:
            return set()
        addresses = (literal(each["host"]) for each in found)
        return {meant(address) for address in addresses if address is not None}


def _proxies() -> set[str]:
    """Hosts of the environment's proxies. A proxy resolves the names of its targets itself."""
    hosts = set()
    for text in urllib.request.getproxies().values():
        try:
            hosts.add(URL(text).host or "")
        except ValueError:
            continue
    return hosts


def _refused(host: str, addresses: list[Address]) -> AddressRefused:
    forbidden = [address for address in addresses if is_forbidden(address)]
    if forbidden:
        return AddressRefused(
            f"{host} is at {forbidden[0]}, a link-local, metadata or reserved address"
        )
    return AddressRefused(f"{host} is at the private address {addresses[0]}")
