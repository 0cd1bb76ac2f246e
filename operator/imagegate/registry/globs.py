"""Where a credential is for: URLs and globs, read and compared as the kubelet does.

The kubelet (pkg/credentialprovider/keyring.go) parses both the keys of a pull secret and the image
with Go's `net/url`, and matches host labels with `path/filepath.Match`. What those accept and
refuse is what this module accepts and refuses, down to keys with user names, escapes and queries.

Texts are bytes in Go. Here they are strings of one character a byte, made by `raw`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Possessive (`*+`): a pattern that can go back remembers each character, at 128 bytes apiece.
_ESCAPED = re.compile(r"(?:[^%]|%[0-9a-fA-F]{2})*+", re.DOTALL)
_USERINFO = re.compile(r"(?:[A-Za-z0-9._:~!$&'()*+,;=@-]|%[0-9a-fA-F]{2})*+")
_HOST = re.compile(r"(?:[A-Za-z0-9!\"$&'()*+,.:;<=>\[\]_~\x80-\xff-]|%25|%[89a-fA-F][0-9a-fA-F])*+")
_PORT = re.compile(r"(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Location:
    """A registry, or a part of one: `host[:port]` with globs, and a path prefix."""

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
    """The UTF-8 bytes of a text as one character each."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def parse(text: str) -> Location | None:
    """Read what follows `https://`; None where Go's `url.Parse` gives an error."""
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
    """Whether a credential for `glob` is one for `target` (`URLsMatch`).

    Labels match one by one, so `*.example.com` is neither `example.com` nor `a.b.example.com`.
    The path is a prefix of characters, not of parts: `/team` is good for `/teams/app`, too.
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
    """`parseHost` of Go 1.26, which the kubelet 1.36 is built with."""
    opening = text.rfind("[")
    if opening > 0:
        return None
    if opening == 0:
        address, bracket, port = text[1:].rpartition("]")
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            return None
        # A zone passes here in Go, but not when the kubelet parses its own key again: no match.
        valid = bool(bracket) and "%" not in address and _PORT.fullmatch(port)
        return text if valid else None
    name, colon, port = text.partition(":")
    if not _PORT.fullmatch(colon + port) or not _HOST.fullmatch(name):
        return None
    return _unescaped(text)


def _label_matches(pattern: str, label: str) -> bool:
    """`filepath.Match` for what a host can hold: `?` and a backslash cannot occur in it.

    The one way to a character class is an IPv6 address without a port, whose brackets Go takes for
    one: so that address never matches itself, and the kubelet has no credential for it.
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
