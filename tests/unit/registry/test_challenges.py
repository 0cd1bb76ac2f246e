"""Parsing of valid and invalid `WWW-Authenticate` headers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegate.registry import challenges
from imagegate.registry.challenges import Challenge

HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:ml/llm:pull"'
)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], []),
        ([""], []),
        (
            [HUB],
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:ml/llm:pull",
                    },
                )
            ],
        ),
        (
            ['Basic realm="a realm, with = and \\"quotes\\""'],
            [("basic", {"realm": 'a realm, with = and "quotes"'})],
        ),
        (["BASIC Realm=simple"], [("basic", {"realm": "simple"})]),
        (['Bearer realm = "r" , service = "s"'], [("bearer", {"realm": "r", "service": "s"})]),
        (
            ['Bearer realm="r",scope="a:b:pull,push"'],
            [("bearer", {"realm": "r", "scope": "a:b:pull,push"})],
        ),
        (['Bearer realm="r", realm="second"'], [("bearer", {"realm": "r"})]),
        (['Bearer realm=""'], [("bearer", {"realm": ""})]),
        (
            ['Basic realm="b", Bearer realm="r",service="s"'],
            [("basic", {"realm": "b"}), ("bearer", {"realm": "r", "service": "s"})],
        ),
        (["Basic", 'Bearer realm="r"'], [("basic", {}), ("bearer", {"realm": "r"})]),
        (["Basic, Bearer"], [("basic", {}), ("bearer", {})]),
        (["Negotiate YWJj==, Basic realm=r"], [("negotiate", {}), ("basic", {"realm": "r"})]),
        (
            ["Bearer realm=https://auth.test/token,service=a:b/c"],
            [("bearer", {"realm": "https://auth.test/token", "service": "a:b/c"})],
        ),
        ([', ,Basic realm="b",,'], [("basic", {"realm": "b"})]),
        (['Bearer realm="never closed'], [("bearer", {})]),
        (['Bearer realm="r" nonsense="', "Basic"], [("bearer", {}), ("basic", {})]),
        (['="x"'], []),
    ],
)
def test_challenges_are_parsed(
    headers: list[str], expected: list[tuple[str, dict[str, str]]]
) -> None:
    assert list(challenges.parse(headers)) == [Challenge(*each) for each in expected]


@settings(deadline=None)
@given(st.lists(st.text(alphabet='Bbearic =,"\\\t:/é', max_size=60), max_size=3))
def test_arbitrary_header_does_not_fail(headers: list[str]) -> None:
    for challenge in challenges.parse(headers):
        assert challenge.scheme == challenge.scheme.lower() != ""


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.text(st.characters(min_codepoint=32, max_codepoint=126)),
        max_size=5,
    )
)
def test_quoted_value_is_read_unchanged(parameters: dict[str, str]) -> None:
    quoted = [
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))
        for name, value in parameters.items()
    ]
    (found,) = challenges.parse([f"Bearer {', '.join(quoted)}"])
    assert found == Challenge("bearer", parameters)
