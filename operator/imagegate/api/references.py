"""Image references, parsed exactly as the kubelet and the container runtimes parse them.

The kubelet (`pkg/util/parsers`) and containerd both parse with `ParseNormalizedNamed` of
github.com/distribution/reference v0.6.0. Imagegate must accept and normalise references in the same
way, because it compares references and finds registries by their domain.
The grammar, as that package publishes it:

    reference        := name [ ":" tag ] [ "@" digest ]
    name             := [ domain "/" ] path
    domain           := host [ ":" port ]
    host             := domain-component *( "." domain-component ) | "[" IPv6 address "]"
    domain-component := alphanumeric, with "-" allowed inside; upper case allowed
    path             := path-component *( "/" path-component )
    path-component   := [a-z0-9]+, joined by "." or "_" or "__" or any number of "-"
    tag              := [A-Za-z0-9_], then up to 127 of [A-Za-z0-9_.-]
    digest           := algorithm ":" lower-case hex, of the algorithm's own length

The grammar does not decide whether the first component is a domain. It is a domain if it is
`localhost` or contains ".", ":" or an upper-case letter. Otherwise the whole name is a path
on Docker Hub.
This module uses only the standard library, so that every layer may import it.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from imagegate import errors

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
MAX_PATH: Final = 255
"""Longest path in characters: the repository's name without its domain, `library/` included."""
MAX_TAG: Final = 128
"""Longest tag in characters."""
DIGEST_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
"""The digest algorithms that the kubelet and the runtimes know, and their numbers of hex digits."""

_LEGACY_DEFAULT_DOMAIN: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_LONGEST_QUOTE: Final = 120

_DOMAIN_COMPONENT: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
# Possessive (`*+`), because a pattern that can backtrack stores each component: 130 bytes of memory
# for each character.
_DOMAIN: Final = re.compile(
    rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*+|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)
_PATH_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*+")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HEX: Final = re.compile(r"[a-f0-9]+")
_IDENTIFIER: Final = re.compile(r"[a-f0-9]{64}")


class InvalidReference(errors.ImagegateError, ValueError):
    """The text is not an image reference. The message quotes it and says what to write instead."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One image, by tag, by digest, or by both.

    Use `parse` to make it: `parse` validates, the constructor does not.
    `domain` is never empty, and `path` includes Docker Hub's implied `library/`.
    `tag` and `digest` (`sha256:…`) are those of the text; None if the text has none.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        """Return the full reference, without a tag if the text had none."""
        return self.name + self._suffix

    @property
    def name(self) -> str:
        """The repository: domain and path, without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def normalized(self) -> str:
        """The full reference; `:latest` is added when there is neither tag nor digest.

        If their normalized forms are equal, two texts certainly name the same image.
        """
        if self.tag is None and self.digest is None:
            return f"{self.name}:{DEFAULT_TAG}"
        return str(self)

    @property
    def listed_as(self) -> str:
        """The name under which a Node lists the image: without the tag if there is a digest."""
        return f"{self.name}@{self.digest}" if self.digest is not None else self.normalized

    @property
    def familiar(self) -> str:
        """The short form that people write: no `docker.io/`, no `library/`, no implied tag.

        Only for messages, because it may parse to another image: `docker.io/quay.io/a` becomes
        `quay.io/a`.
        """
        if self.domain != DEFAULT_DOMAIN:
            return str(self)
        official = self.path.removeprefix(_OFFICIAL)
        return (self.path if "/" in official else official) + self._suffix

    @property
    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return tag + digest


def parse(text: str) -> Reference:
    """Parse an image reference, and complete the short names of Docker Hub.

    Raises `InvalidReference`.
    """
    _check_whole(text)
    # No name, tag or digest contains "@", and no path or tag contains ":". So the splits below
    # follow the grammar, and each part can have its own error message.
    named, at, digest = text.partition("@")
    domain, remainder = _split_domain(named)
    path, colon, tag = remainder.partition(":")
    _check_name(text, domain, path)
    if colon:
        _check_tag(text, tag)
    if at:
        _check_digest(text, digest)
    return Reference(domain, path, tag if colon else None, digest if at else None)


def _split_domain(named: str) -> tuple[str, str]:
    """Split a reference without digest into its domain and the rest, both normalised."""
    first, slash, rest = named.partition("/")
    if not slash:
        # A name without "/" is never a domain, not even `localhost`; 5000 in `example.com:5000` is
        # a tag.
        return DEFAULT_DOMAIN, _OFFICIAL + named
    if first == _LEGACY_DEFAULT_DOMAIN:
        first = DEFAULT_DOMAIN
    elif not _looks_like_domain(first):
        return DEFAULT_DOMAIN, named
    if first == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return first, rest


def _looks_like_domain(component: str) -> bool:
    return (
        component == "localhost"
        or "." in component
        or ":" in component
        or component != component.lower()
    )


def _check_whole(text: str) -> None:
    """Check the text as a whole, before a split could hide the cause of an error."""
    if not text:
        raise InvalidReference(
            "an image reference must not be empty: write one such as registry.example/team/app:1.0"
        )
    for character in text:
        if not character.isascii() or character.isspace() or not character.isprintable():
            code = f"U+{ord(character):04X}"
            raise _invalid(text, f"{_quote(character)} ({code}) is not allowed: remove it")
    scheme, separator, _ = text.partition("://")
    if separator:
        raise _invalid(text, f"a reference has no URL scheme: remove {json.dumps(scheme + '://')}")
    if _IDENTIFIER.fullmatch(text):
        # Runtimes read 64 hex digits as the ID of a local image, which cannot be pulled.
        raise _invalid(text, "64 hex digits are an image ID, not a name: write name@sha256:ID")


def _check_name(text: str, domain: str, path: str) -> None:
    counted = path
    if not _DOMAIN.fullmatch(domain):
        # A registry such as `my_host.example` is not a domain of the grammar, but it is a valid
        # path component. So the Go package accepts the whole as a path without a domain, and the
        # runtimes still connect to the first component. It is accepted here as the domain.
        counted = f"{domain}/{path}"
        if not _PATH_COMPONENT.fullmatch(domain):
            raise _invalid(
                text,
                f"{_quote(domain)} is not a registry: write host, host:port or [IPv6 address]:port",
            )
    for component in path.split("/"):
        if component != component.lower():
            raise _invalid(
                text,
                f"the repository name must be lowercase: write {_quote(component.lower())}"
                f" for {_quote(component)}",
            )
        if not component:
            raise _invalid(
                text, "the repository name has an empty part: check for a stray '/' or ':'"
            )
        if not _PATH_COMPONENT.fullmatch(component):
            raise _invalid(
                text,
                f"{_quote(component)} cannot be part of a repository name: use lowercase letters"
                " and digits, joined by '.', '_', '__' or '-'",
            )
    if len(counted) > MAX_PATH:
        raise _invalid(
            text,
            f"the repository name has {len(counted)} characters: at most {MAX_PATH} are allowed,"
            " without the registry",
        )


def _check_tag(text: str, tag: str) -> None:
    if not tag:
        raise _invalid(text, "there is no tag after ':': write the tag, or remove the ':'")
    if not _TAG.fullmatch(tag):
        raise _invalid(
            text,
            f"{_quote(tag)} is not a tag: use letters, digits, '_', '.' and '-',"
            " but not '.' or '-' as the first",
        )
    if len(tag) > MAX_TAG:
        raise _invalid(text, f"the tag has {len(tag)} characters: at most {MAX_TAG} are allowed")


def valid_digest(text: str) -> str | None:
    """The text if it has the form of a digest, else None."""
    algorithm, _, encoded = text.partition(":")
    sound = len(encoded) == DIGEST_LENGTHS.get(algorithm) and _HEX.fullmatch(encoded)
    return text if sound else None


def _check_digest(text: str, digest: str) -> None:
    algorithm, colon, encoded = digest.partition(":")
    if not colon:
        raise _invalid(text, "a digest must follow '@': write sha256: and its 64 hex digits")
    length = DIGEST_LENGTHS.get(algorithm)
    if length is None:
        raise _invalid(
            text,
            f"{_quote(algorithm)} is not a supported digest algorithm:"
            f" use one of {', '.join(DIGEST_LENGTHS)}",
        )
    if len(encoded) != length:
        raise _invalid(
            text,
            f"the {algorithm} digest has {len(encoded)} characters, not {length}:"
            " copy it in full from the registry",
        )
    if not _HEX.fullmatch(encoded):
        raise _invalid(
            text, f"the {algorithm} digest must be lowercase hex: digits and a to f only"
        )


def _invalid(text: str, problem: str) -> InvalidReference:
    return InvalidReference(f"{_quote(text)} is not an image reference: {problem}")


def _quote(text: str) -> str:
    """Quote a text for a message: escape control characters, and cut long text."""
    shown = text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + "…"
    return json.dumps(shown, ensure_ascii=False)
