"""Matches credentials with images: URLs and globs, parsed and compared as in the kubelet.

The kubelet (pkg/credentialprovider/keyring.go) parses both the keys of a pull secret and the image
with Go's `net/url`, and matches host labels with `path/filepath.Match`. This module accepts and
refuses the same texts, also keys with user names, escapes and queries.

Texts are bytes in Go. Here they are strings with one character per byte, made by `raw`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Possessive (`*+`), because a pattern that can backtrack stores 128 bytes for each character.
_ESCAPED = re.compile(r"(?:[^%]|%[0-9a-fA-F]{2})*+", re.DOTALL)
_USERINFO = re.compile(r"(?:[A-Za-z0-9._:~!$&'()*+,;=@-]|%[0-9a-fA-F]{2})*+")
_HOST = re.compile(r"(?:[A-Za-z0-9!\"$&'()*+,.:;<=>\[\]_~\x80-\xff-]|%25|%[89a-fA-F][0-9a-fA-F])*+")
_PORT = re.compile(r"(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Location:
    """A registry or a part of it: `host[:port]` with globs, and a path prefix."""

    host: str
    path: str

    @property
    def labels(self) -> tuple[list[str], str]:
        """The host's parts between dots, and the port or an empty string (`SplitURL`).

        An IPv6 address without a port keeps its brackets, as in Go.
        """
        host, colon, port = self.host.rpartition(":")
        if not colon or self.host.endswith("]"):
            return self.host.split("."), ""
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if "[" in host or "]" in host:
            return self.host.split("."), ""
        return host.split("."), port


def raw(text: str) -> str:
    """The UTF-8 bytes of a text, with one character per byte."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def parse(text: str) -> Location | None:
    """Parse the part of a URL after `https://`; None if Go's `url.Parse` returns an error."""
    rest, _, fragment = text.partition("#")
    if _CONTROL.search(rest) or not _ESCAPED.fullmatch(fragment):
        return None
    authority, slash, path = rest.partition("?")[0].partition("/")
    userinfo, _, name = authority.rpartition("@")
    host = _host(name)
    if host is None or not _USERINFO.fullmatch(userinfo) or not _ESCAPED.fullmatch(path):
        return None
    return Location(host, _unescaped(slash + path))


def matches(glob: Location, target: Location) -> bool:
    """Whether a credential for `glob` is valid for `target` (`URLsMatch`).

    Labels match one by one, so `*.example.com` matches neither `example.com` nor
    `a.b.example.com`. The path is a prefix of characters, so `/team` matches `/teams/app`, too.
    """
    glob_labels, glob_port = glob.labels
    target_labels, target_port = target.labels
    return (
        glob_port == target_port
        and len(glob_labels) == len(target_labels)
        and target.path.startswith(glob.path)
        and all(map(_label_matches, glob_labels, target_labels))
    )


def _host(text: str) -> str | None:
    """Equivalent of `parseHost` in Go 1.26, with which the kubelet 1.36 is built."""
    opening = text.rfind("[")
    if opening > 0:
        return None
    if opening == 0:
        address, bracket, port = text[1:].rpartition("]")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            return None
        # Go accepts a zone here, but refuses it when the kubelet parses its own key again. So an
        # address with a zone never matches.
        valid = bool(bracket) and "%" not in address and _PORT.fullmatch(port)
        return text if valid else None
    name, colon, port = text.partition(":")
    if not _PORT.fullmatch(colon + port) or not _HOST.fullmatch(name):
        return None
    return _unescaped(text)


def _label_matches(pattern: str, label: str) -> bool:
    """Equivalent of `filepath.Match` for hosts, which contain neither `?` nor a backslash.

    Go reads the brackets of an IPv6 address without a port as a character class. So such an address
    never matches itself, and the kubelet has no credential for it.
    """
    if pattern.startswith("["):
        return False
    first, *pieces = pattern.split("*")
    if not pieces:
        return pattern == label
    last = pieces.pop()
    at, end = len(first), len(label) - len(last)
    if at > end or not label.startswith(first) or not label.endswith(last):
        return False
    for piece in pieces:
        found = label.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("latin-1")
