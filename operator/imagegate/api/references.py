"""Image references, read exactly as the kubelet and the container runtimes read them.

The kubelet (`pkg/util/parsers`) and containerd both parse with `ParseNormalizedNamed` of
github.com/distribution/reference v0.6.0. Imagegate compares references and looks registries up by
their domain, so it must accept what they accept, and normalise as they do.
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

Whether a first component is a domain is not decided by the grammar but by its looks: `localhost`,
anything with "." or ":", and anything with an upper-case letter is one; all else is a path on
Docker Hub.
Nothing but the standard library, so that every layer may import this module.
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
# Possessive (`*+`): a pattern that can go back remembers each component, at 130 bytes a character.
_DOMAIN: Final = re.compile(
    rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*+|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)
_PATH_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*+")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HEX: Final = re.compile(r"[a-f0-9]+")
_IDENTIFIER: Final = re.compile(r"[a-f0-9]{64}")


class InvalidReference(errors.ImagegateError, ValueError):
    """A text that is no image reference; the message quotes it and says what to write instead."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One image, by tag, by digest, or by both.

    Made by `parse`, which validates; the constructor itself does not.
    `domain` is never empty and `path` carries Docker Hub's implicit `library/`.
    `tag` and `digest` (`sha256:…`) are what the text had, None where it had none.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        """Give the reference in full, but with no tag that the text did not have."""
        return self.name + self._suffix

    @property
    def name(self) -> str:
        """The repository: domain and path, without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def normalized(self) -> str:
        """The full reference; `:latest` is added when there is neither tag nor digest.

        Two texts name the same image for certain when their normalized forms are equal.
        """
        if self.tag is None and self.digest is None:
            return f"{self.name}:{DEFAULT_TAG}"
        return str(self)

    @property
    def listed_as(self) -> str:
        """The name under which a Node lists the image: where there is a digest, it decides and the
        tag is dropped.
        """
        return f"{self.name}@{self.digest}" if self.digest is not None else self.normalized

    @property
    def familiar(self) -> str:
        """The short form that people write: no `docker.io/`, no `library/`, no implied tag.

        For messages. It need not parse back to the same: `docker.io/quay.io/a` is `quay.io/a`.
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
    """Parse an image reference and fill in what Docker Hub's short names leave out.

    Raises `InvalidReference`.
    """
    _check_whole(text)
    # "@" occurs in no name, tag or digest, ":" in no path or tag: so the splits below are the
    # grammar's own, and each part can be judged, and complained of, by itself.
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
        # A bare name is never a domain, not even `localhost`; 5000 in `example.com:5000` is a tag.
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
    """Refuse what is wrong with the text as a whole, before any splitting could hide it."""
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
        # Runtimes take 64 hex digits for an image that they already have, which cannot be pulled.
        raise _invalid(text, "64 hex digits are an image ID, not a name: write name@sha256:ID")


def _check_name(text: str, domain: str, path: str) -> None:
    counted = path
    if not _DOMAIN.fullmatch(domain):
        # A registry such as `my_host.example` is no domain of the grammar, yet passes for a path
        # component, so the Go package accepts the whole as a path without domain. Runtimes then
        # dial the first component all the same: accepted here too, with what is dialled as domain.
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
            " the registry not counted",
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
    """The text if it is a digest in form, else None."""
    algorithm, _, encoded = text.partition(":")
    sound = len(encoded) == DIGEST_LENGTHS.get(algorithm) and _HEX.fullmatch(encoded)
    return text if sound else None


def _check_digest(text: str, digest: str) -> None:
    algorithm, colon, encoded = digest.partition(":")
    if not colon:
        raise _invalid(text, "after '@' comes a digest: write sha256: and its 64 hex digits")
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
    """Quote for a message: control characters escaped, and long text cut."""
    shown = text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + "…"
    return json.dumps(shown, ensure_ascii=False)
