"""Parsers of untrusted bytes: expected errors, limited time and limited memory for any input.

``make fuzz MINUTES=30`` runs the same checks for longer.
"""

from __future__ import annotations

import ctypes
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagegate.errors import ImagegateError
from imagegate.hooks.event import Unverified
from tests.unit.fuzz import bounds, inputs
from tests.unit.fuzz.parsers import MIB, PARSERS, Parser

EXAMPLES = 40
SHORT = 64 * 1024
"""The size of an attack in bytes here; the long run uses each parser's maximum."""
LARGEST = ("scalars", "objects", "brackets")

every_parser = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)


@every_parser
def test_valid_input_is_read(parser: Parser) -> None:
    """A rejected first seed would leave the rest of the parser untested."""
    if Unverified not in parser.raises:
        parser.parse(parser.seeds[0])
    for seed in parser.seeds:
        bounds.check(parser, seed)


@every_parser
def test_known_attacks_stay_within_the_limits(parser: Parser) -> None:
    found = []
    known = list(inputs.attacks(parser, min(parser.most, SHORT)))
    if parser.reads_json:
        largest = min(parser.most, MIB)
        known += [(name, inputs.repeated(name, largest)) for name in LARGEST]
    for name, data in known:
        try:
            bounds.check(parser, data)
        except AssertionError as error:
            found.append(f"{name}: {error}")
    assert not found, "\n".join(found)


@every_parser
def test_changed_input_stays_within_the_limits(parser: Parser) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs.mutations(parser))
    def check(data: bytes) -> None:
        bounds.check(parser, data)

    check()


def reading(parse: object, most: int = MIB) -> Parser:
    assert callable(parse)
    return Parser("a parser", parse, (ImagegateError,), (b"{}",), most)


class TestTheFuzzItself:
    def test_unexpected_error_is_detected(self) -> None:
        with pytest.raises(AssertionError, match="raised RecursionError"):
            bounds.check(reading(json.loads), inputs.repeated("brackets", 100_000))

    def test_excess_of_python_memory_is_detected(self) -> None:
        with pytest.raises(AssertionError, match=r"took .* bytes"):
            bounds.check(
                reading(lambda data: [{"at": at} for at in range(len(data))]), b" " * 10_000
            )

    def test_excess_of_c_memory_is_detected(self) -> None:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p

        def take(data: bytes) -> None:
            size = 128 * len(data)
            block = libc.malloc(ctypes.c_size_t(size))
            ctypes.memset(block, 1, size)
            libc.free(ctypes.c_void_p(block))

        with pytest.raises(AssertionError, match="resident"):
            bounds.check(reading(take), b" " * MIB)

    def test_excess_of_time_is_detected(self) -> None:
        # Few bytes, so that the limit does not follow a slow `json.loads`.
        with pytest.raises(AssertionError, match=r"took .* s for"):
            bounds.check(reading(lambda _: sum(range(10_000_000))), b" " * 100)

    def test_too_long_error_is_detected(self) -> None:
        def quote(data: bytes) -> None:
            raise ImagegateError(data.decode())

        with pytest.raises(AssertionError, match="characters"):
            bounds.check(reading(quote), b" " * 5000)

    @pytest.mark.parametrize("parser", [p for p in PARSERS if p.reads_json][:1])
    def test_attacks_have_the_maximum_size(self, parser: Parser) -> None:
        sizes = {name: len(data) for name, data in inputs.attacks(parser, 10_000)}
        assert max(sizes.values()) <= 10_000
        assert sizes["scalars"] > 9_990

    @given(st.data())
    @settings(max_examples=10, deadline=None, derandomize=True)
    def test_mutations_are_generated(self, data: st.DataObject) -> None:
        parser = next(p for p in PARSERS if p.reads_json)
        assert isinstance(data.draw(inputs.mutations(parser)), bytes)
