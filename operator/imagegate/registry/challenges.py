"""`WWW-Authenticate`: the login methods that a registry offers (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

MOST_CHALLENGES = 16
"""Largest number of login methods that are read. Registries offer one or two."""
LONGEST = 16 * 1024
"""Largest number of characters that are read from all headers together, because an answer may have
1 MB of headers."""

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_GAP = re.compile(r"[\s,]*")
# By the RFC, unquoted values are tokens. Some registries send URLs and scopes unquoted, too.
_PARAMETER = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))(?=\s*(?:,|$))')
_SCHEME = re.compile(rf"({_WORD})(?=[\s,]|$)")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One login method. Scheme and names are in lower case. Of a repeated name, the first value
    counts.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """The first challenges of all `WWW-Authenticate` headers; a header may contain several.

    A syntax error ends the header; the challenges before it are kept. Never raises.
    """
    return tuple(islice(_all(headers), MOST_CHALLENGES))


def _all(headers: Iterable[str]) -> Iterator[Challenge]:
    left = LONGEST
    for header in headers:
        if left <= 0:
            return
        yield from _parse(header[:left])
        left -= len(header)


def _parse(header: str) -> Iterator[Challenge]:
    scheme, parameters = "", dict[str, str]()
    at = _GAP.match(header).end()  # type: ignore[union-attr]  # matches the empty string
    while at < len(header):
        # Try a parameter first, because otherwise `service` in `Bearer realm="…", service="…"`
        # would be read as a scheme.
        if scheme and (found := _PARAMETER.match(header, at)):
            name, in_quotes, bare = found.groups()
            value = bare if in_quotes is None else re.sub(r"\\(.)", r"\1", in_quotes)
            parameters.setdefault(name.lower(), value)
        elif found := _SCHEME.match(header, at):
            if scheme:
                yield Challenge(scheme, parameters)
            scheme, parameters = found[1].lower(), {}
            space = _GAP.match(header, found.end())
            # `Negotiate YWJj=`: one opaque word instead of parameters. Skip it.
            opaque = _TOKEN68.match(header, space.end()) if space else None
            if opaque and not _SCHEME.fullmatch(opaque[0]):
                found = opaque
        else:
            break
        at = _GAP.match(header, found.end()).end()  # type: ignore[union-attr]
    if scheme:
        yield Challenge(scheme, parameters)
