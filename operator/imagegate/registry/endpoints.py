"""How to connect to a registry: address, TLS, plain HTTP, proxy."""

from __future__ import annotations

import ipaddress
import ssl
import urllib.request
from dataclasses import dataclass
from functools import lru_cache

from yarl import URL

from imagegate.api.references import DEFAULT_DOMAIN
from imagegate.registry import addresses
from imagegate.registry.errors import Invalid, InvalidSettings
from imagegate.registry.provider_config import Provider
from imagegate.registry.realms import TokenServices

DOCKER_HUB = "registry-1.docker.io"
"""The host of the images of `docker.io`: the host docker.io itself is a web site."""


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    plain_http: frozenset[str] = frozenset()
    """Registries without TLS, exactly as in references: `host` or `host:port`, no globs."""
    private_hosts: frozenset[str] = frozenset()
    """Hosts at private addresses, without ports, to which any registry may send the operator: for
    tokens (a realm) or by a redirect."""
    token_services: TokenServices = frozenset()
    """Token services of other domains that get a registry's credentials: (registry, host)."""
    ca_bundle: str = ""
    """Certificates in PEM that are trusted in addition to the system's."""
    user_agent: str = "imagegate"
    credential_providers: tuple[Provider, ...] = ()
    """Plugins that provide credentials after the pull secrets have failed."""
    total_timeout: float = 30.0
    """Seconds for one request and its answer."""
    connect_timeout: float = 5.0
    """Seconds for DNS, the connection and the TLS handshake."""
    concurrency: int = 8
    """Largest number of requests in flight to one registry."""
    longest_wait: float = 30.0
    """Longest pause, in seconds, that a request waits for; a longer one raises `Throttled`."""


def base(domain: str, settings: RegistrySettings) -> URL:
    """The URL of a reference's domain, to which `/v2/…` is added.

    Connections to loopback addresses have no TLS, as in containerd (docker.MatchLocalhost), except
    for port 443. Raises `Invalid` if the domain is not a valid host, for instance with port 70000.
    """
    host = DOCKER_HUB if domain == DEFAULT_DOMAIN else domain
    try:
        url = URL(f"https://{host}")
        name = url.host
        if name and ":" in name:
            ipaddress.IPv6Address(name)
    except ValueError:
        name = None
    if not name:
        raise Invalid(domain, "this is not an address of a registry", "correct the image reference")
    plain = domain in settings.plain_http or (is_loopback(name) and not domain.endswith(":443"))
    # Not with_scheme(), because it would drop port 443.
    return URL(f"http://{host}") if plain else url


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    address = addresses.literal(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


@lru_cache(maxsize=4)
def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """A context that trusts the system's certificates (also SSL_CERT_FILE) and the bundle.

    Cached, because its creation takes 30 ms of CPU time. Raises `InvalidSettings`.
    """
    context = ssl.create_default_context()
    if ca_bundle:
        try:
            context.load_verify_locations(cadata=ca_bundle)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidSettings(
                "CA bundle", f"it cannot be read: {error}", "give certificates in PEM"
            ) from None
    return context


def proxy(url: URL) -> URL | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name, or None.

    aiohttp's `trust_env` is not used, because it would also send passwords from a `.netrc`.
    """
    host = url.host or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    found = urllib.request.getproxies().get(url.scheme)
    return URL(found) if found else None
