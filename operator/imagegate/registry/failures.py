"""Maps exceptions of connections to errors of this package.

aiohttp's own texts are never used, because they contain whole URLs, and the URL of a redirect may
be signed.
"""

from __future__ import annotations

import ssl

import aiohttp
from yarl import URL

from imagegate.registry import endpoints
from imagegate.registry.addresses import AddressRefused
from imagegate.registry.endpoints import RegistrySettings
from imagegate.registry.errors import InvalidAnswer, RegistryError, TLSFailed, Unavailable

_LATER = "it is asked again later"


def who(registry: str, url: URL) -> str:
    """The subject of a message: "it" for the registry itself, else the name of the other host."""
    shown = url.host or ""
    if url.explicit_port is not None:
        shown = f"[{shown}]" if ":" in shown else shown
        shown = f"{shown}:{url.explicit_port}"
    return "it" if shown == registry.lower() else shown


def of(registry: str, url: URL, error: Exception, settings: RegistrySettings) -> RegistryError:
    """The error for an exception of aiohttp or of the operating system."""
    host = who(registry, url)
    refused = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(refused, AddressRefused):
        remedy = "correct the image reference"
        if url.host != endpoints.base(registry, settings).host:
            remedy = "if it is right, list the host in registry.privateHosts"
        return InvalidAnswer(registry, f"no request is sent there: {refused}", remedy)
    match error:
        case aiohttp.ServerTimeoutError():
            return Unavailable(
                registry, f"no connection to {host} within {settings.connect_timeout:g} s", _LATER
            )
        case TimeoutError():
            return Unavailable(
                registry, f"no answer from {host} within {settings.total_timeout:g} s", _LATER
            )
        case aiohttp.ClientProxyConnectionError() | aiohttp.ClientHttpProxyError():
            return Unavailable(
                registry,
                f"the proxy gives no connection to {host}",
                "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY",
            )
        case aiohttp.ClientConnectorDNSError():
            return Unavailable(
                registry,
                f"the name of {host} does not resolve",
                "check the image reference, or DNS",
            )
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return _tls(registry, host, error)
        case aiohttp.ClientConnectorError():
            return Unavailable(
                registry, f"no connection to {host}: {error.os_error.strerror}", _LATER
            )
        case aiohttp.ClientResponseError() if url.scheme == "http":
            return InvalidAnswer(
                registry, f"{host} does not answer in plain HTTP", no_plain(registry)
            )
        case aiohttp.ClientResponseError():
            return InvalidAnswer(
                registry, f"{host} does not answer in HTTP", "check that this is a registry"
            )
        case aiohttp.ClientError() | OSError():
            return Unavailable(registry, f"{host} broke off the connection", _LATER)
        case _:
            return InvalidAnswer(
                registry, f"{host} is not an address to connect to", "correct the image reference"
            )


def _tls(registry: str, host: str, error: Exception) -> TLSFailed:
    cause: object = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TLSFailed(
            registry,
            f"the certificate of {host} is not trusted: {cause.verify_message}",
            "give the operator its CA bundle",
        )
    reason = getattr(cause, "reason", None) or "handshake failed"
    return TLSFailed(
        registry,
        f"no TLS with {host}: {reason}",
        "if it speaks plain HTTP only, list it as a plain-HTTP registry",
    )


def no_plain(registry: str) -> str:
    """The remedy for a registry that does not understand plain HTTP."""
    loopback = endpoints.is_loopback(registry.rpartition(":")[0] or registry)
    return (
        "connections to loopback registries have no TLS"
        if loopback
        else "if it speaks TLS, remove it from the plain-HTTP registries"
    )
