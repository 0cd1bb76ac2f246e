"""Platforms, checked against github.com/containerd/platforms v1.0.0-rc.5."""

from __future__ import annotations

import pytest

from imagegate.registry.platforms import Platform, acceptable, choose


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/i386", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("Linux/AMD64", "linux/amd64"),
        ("macos/arm64", "darwin/arm64"),
        ("windows/amd64", "windows/amd64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_platform_is_normalized(written: str, meant: str) -> None:
    assert str(Platform.parse(written)) == meant


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux//v8"])
def test_invalid_platform_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="write os/architecture"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("node", "pulls"),
    [
        ("linux/amd64", "linux/amd64 linux/386"),
        ("linux/amd64/v3", "linux/amd64/v3 linux/amd64/v2 linux/amd64 linux/386"),
        ("linux/arm/v6", "linux/arm/v6 linux/arm/v5"),
        (
            "linux/arm64",
            "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
        ),
        (
            "linux/arm64/v9",
            "linux/arm64/v9 linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
        ),
        ("linux/s390x", "linux/s390x"),
        ("windows/amd64", "windows/amd64 windows/386"),
    ],
)
def test_acceptable_platforms_are_ordered_by_preference(node: str, pulls: str) -> None:
    assert " ".join(map(str, acceptable(Platform.parse(node)))) == pulls


@pytest.mark.parametrize(
    ("node", "offered", "place"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386"], 0),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/arm/v7", ["linux/arm/v6", "linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/arm64", ["linux/arm64/v8", "linux/arm64"], 0),
        ("linux/amd64", [None, "linux/amd64"], 1),
        ("linux/amd64", ["linux/arm64", None], 1),
        ("linux/amd64", [], None),
    ],
)
def test_most_preferred_platform_is_chosen(
    node: str, offered: list[str | None], place: int | None
) -> None:
    platforms = [Platform.parse(each) if each else None for each in offered]
    assert choose(Platform.parse(node), platforms) == place
