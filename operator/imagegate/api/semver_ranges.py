"""Ranges of semantic versions, as Flux reads them in an ImagePolicy.

Flux uses github.com/Masterminds/semver. Its ranges differ from npm's: `>=1.0.0-0` accepts every
prerelease from 1.0.0 on, and npm's does so only for those of 1.0.0 itself. No package for Python
reads these ranges, so this module follows the rules of its constraints.go (v3.4); the package
`semver` parses and compares the versions. A test compares the results with those of the Go package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import semver

from imagegate.errors import ImagegateError

MAX_RANGE: Final = 128
"""Longest range in characters."""

_IDENTIFIERS: Final = "[0-9A-Za-z-]+([.][0-9A-Za-z-]+)*"
_NUMBER: Final = "(0|[1-9][0-9]{0,15})"
_PART: Final = f"({_NUMBER}|[xX*])"
_VERSION: Final = f"v?{_PART}([.]{_PART}([.]{_PART})?)?(-{_IDENTIFIERS})?([+]{_IDENTIFIERS})?"
_OPERATOR: Final = "(=|!=|>|<|>=|=>|<=|=<|~|~>|\\^)?"
_COMPARISON: Final = f"{_OPERATOR} *{_VERSION}"
_HYPHEN: Final = f"{_VERSION} +- +{_VERSION}"
_TERM: Final = f"({_HYPHEN}|{_COMPARISON})"
_GROUP: Final = f"{_TERM}(( *, *| +){_TERM})*"
GRAMMAR: Final = f"^ *{_GROUP}( *[|][|] *{_GROUP})* *$"
"""There is one way to match each text, so that Python's `re` needs no time that grows
exponentially."""
COMPLAINT: Final = (
    "is not a range of versions: write comparisons such as >=1.4 <2, ^1.4, ~1.4.2, 1.x or"
    " 1.4 - 1.9, with || between alternatives"
)

_FIND: Final = re.compile(
    "(?P<op>=>|=<|>=|<=|!=|~>|[=<>~^])? *v?(?P<major>[0-9]+|[xX*])(?:[.](?P<minor>[0-9]+|[xX*]))?"
    f"(?:[.](?P<patch>[0-9]+|[xX*]))?(?:-(?P<pre>{_IDENTIFIERS}))?(?:[+]{_IDENTIFIERS})?"
)
_FIND_HYPHEN: Final = re.compile(f"(?P<low>{_VERSION}) +- +(?P<high>{_VERSION})")


class InvalidRange(ImagegateError):
    """The text is not a range of versions."""


def version(tag: str) -> semver.Version | None:
    """The version that a tag names, with or without a leading `v`; None: it names no version.

    All three numbers must be there, as in Flux (`version.ParseVersion` of fluxcd/pkg).
    """
    try:
        return semver.Version.parse(tag.removeprefix("v"))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One comparison. `wild` says from which number on the version was left open."""

    operator: str
    bound: semver.Version
    wild: str = ""
    """`major`, `minor`, `patch`, or empty: the version has all numbers."""

    def accepts(self, other: semver.Version) -> bool:
        match self.operator:
            case "!=":
                return not self._same(other)
            case ">":
                return self._above(other)
            case ">=" | "=>":
                return other >= self.bound
            case "<":
                return other < self.bound
            case "<=" | "=<":
                return self._at_most(other)
            case "^":
                return self._caret(other)
            case "~" | "~>":
                return self._tilde(other)
            case _:
                return self._tilde(other) if self.wild else other.compare(self.bound) == 0

    def _same(self, other: semver.Version) -> bool:
        """Whether `!=` refuses the version."""
        if self.wild == "minor":
            return other.major == self.bound.major
        if self.wild == "patch":
            return (other.major, other.minor) == (self.bound.major, self.bound.minor) and (
                other.prerelease or ""
            ) == (self.bound.prerelease or "")
        return other.compare(self.bound) == 0

    def _above(self, other: semver.Version) -> bool:
        """`>11` does not accept 11.1.0, and `>11.1` does not accept 11.1.1."""
        if self.wild == "minor":
            return other.major > self.bound.major
        if self.wild == "patch":
            return (other.major, other.minor) > (self.bound.major, self.bound.minor)
        return other > self.bound

    def _at_most(self, other: semver.Version) -> bool:
        """`<=11` accepts 11.1.0."""
        if not self.wild:
            return other <= self.bound
        if other.major > self.bound.major:
            return False
        same = other.major == self.bound.major
        return not (same and other.minor > self.bound.minor and self.wild != "minor")

    def _tilde(self, other: semver.Version) -> bool:
        if other < self.bound:
            return False
        zero = (self.bound.major, self.bound.minor, self.bound.patch) == (0, 0, 0)
        if zero and self.wild not in ("minor", "patch"):
            return True
        if other.major != self.bound.major:
            return False
        return self.wild == "minor" or other.minor == self.bound.minor

    def _caret(self, other: semver.Version) -> bool:
        if other < self.bound:
            return False
        if self.bound.major > 0 or self.wild == "minor":
            return other.major == self.bound.major
        if other.major > 0:
            return False
        if self.bound.minor > 0 or self.wild == "patch":
            return other.minor == self.bound.minor
        return other.minor == 0 and other.patch == self.bound.patch


@dataclass(frozen=True, slots=True)
class Range:
    """Alternatives; each is a list of comparisons that must all be true."""

    alternatives: tuple[tuple[_Comparison, ...], ...]

    def accepts(self, other: semver.Version) -> bool:
        """A prerelease is accepted only by an alternative that itself names a prerelease."""
        return any(
            (not other.prerelease or any(each.bound.prerelease for each in group))
            and all(each.accepts(other) for each in group)
            for group in self.alternatives
        )


@lru_cache(maxsize=512)
def parse(text: str) -> Range:
    """Raises InvalidRange."""
    if len(text) > MAX_RANGE or not re.fullmatch(GRAMMAR, text):
        raise InvalidRange(f'"{text[:MAX_RANGE]}" {COMPLAINT}')
    text = _FIND_HYPHEN.sub(r">=\g<low>, <=\g<high>", text)
    try:
        return Range(
            tuple(
                tuple(_comparison(found) for found in _FIND.finditer(group))
                for group in text.split("||")
            )
        )
    except ValueError:  # a prerelease with a leading zero, such as 1.0.0-01
        raise InvalidRange(f'"{text}" {COMPLAINT}') from None


def _comparison(found: re.Match[str]) -> _Comparison:
    numbers = [found[part] for part in ("major", "minor", "patch")]
    wild = next(
        (
            part
            for part, number in zip(("major", "minor", "patch"), numbers, strict=True)
            if number is None or number in "xX*"
        ),
        "",
    )
    known = ("major", "minor", "patch").index(wild) if wild else 3
    shown = [number if index < known else "0" for index, number in enumerate(numbers)]
    prerelease = f"-{found['pre']}" if found["pre"] else ""
    return _Comparison(found["op"] or "", semver.Version.parse(".".join(shown) + prerelease), wild)
