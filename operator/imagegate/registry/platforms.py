"""Platforms of images and nodes, compared as containerd compares them.

A port of the needed parts of github.com/containerd/platforms (database.go, compare.go). Windows'
`os.version` is left out, because no result here depends on the build of a Windows image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

_ALIASES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_SAME_VARIANT = {
    ("amd64", "v1"): "",
    ("arm64", "8"): "",
    ("arm64", "v8"): "",
    ("arm64", "v8.0"): "",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
}
_ARM = ("v8", "v7", "v6", "v5")
_AMD64 = ("v4", "v3", "v2", "")


@dataclass(frozen=True, slots=True)
class Platform:
    """`linux/arm64`, `linux/arm/v6`: as in an image index, or in a node's status (no variant).

    Use `of` to make it: `of` normalises the names, so that the same platforms compare as equal.
    """

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @classmethod
    def of(cls, os: str, architecture: str, variant: str = "") -> Self:
        """Make a platform, with aliases and variants in the usual form of an image index."""
        os, architecture, variant = os.lower(), architecture.lower(), variant.lower()
        architecture, implied = _ALIASES.get(architecture, (architecture, None))
        variant = variant if implied is None else implied
        variant = _SAME_VARIANT.get((architecture, variant), variant)
        return cls("darwin" if os == "macos" else os, architecture, variant)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `os/architecture` or `os/architecture/variant`. Raises `ValueError`."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise ValueError(f"{text!r} is not a platform: write os/architecture[/variant]")
        return cls.of(*parts)


def choose(wanted: Platform, offered: Sequence[Platform | None]) -> int | None:
    """The index in `offered` of the platform that a node of platform `wanted` pulls, or None.

    The node's own platform comes first, then the best other platform that it can run, the first of
    equal ones, then the first entry without a platform. The configuration of that image must then
    name the platform (images.Manifest in containerd).
    """
    for platform in acceptable(wanted):
        if platform in offered:
            return offered.index(platform)
    return offered.index(None) if None in offered else None


def acceptable(wanted: Platform) -> Iterator[Platform]:
    """The platforms that a node can run, best first: amd64 also 386, arm64 also 32-bit arm."""
    os, variant = wanted.os, wanted.variant
    yield wanted
    match wanted.architecture:
        case "amd64":
            older = _AMD64[_AMD64.index(variant) + 1 :] if variant in _AMD64 else ()
            yield from (Platform(os, "amd64", each) for each in older)
            yield Platform(os, "386")
        case "arm":
            older = _ARM[_ARM.index(variant) + 1 :] if variant in _ARM else ()
            yield from (Platform(os, "arm", each) for each in older)
        case "arm64":
            if variant:
                yield Platform(os, "arm64")
            yield from (Platform(os, "arm", each) for each in _ARM)
        case _:
            pass
