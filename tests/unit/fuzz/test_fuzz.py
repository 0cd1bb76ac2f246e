"""Parsers of foreign bytes: one class of error, bounded time and bounded memory, whatever comes.

The long run of the same: ``make fuzz MINUTES=30``.
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
"""Bytes of an attack here; the long run has them as large as they may be."""
LARGEST = ("scalars", "objects", "brackets")

every_parser = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)


@every_parser
def test_usual_input_is_read(parser: Parser) -> None:
    """A first seed that is refused would test nothing behind that."""
    if Unverified not in parser.raises:
        parser.parse(parser.seeds[0])
    for seed in parser.seeds:
        bounds.check(parser, seed)


@every_parser
def test_known_attacks_cost_little(parser: Parser) -> None:
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
def test_changed_input_costs_little(parser: Parser) -> None:
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
    def test_sees_other_errors(self) -> None:
        with pytest.raises(AssertionError, match="raised RecursionError"):
            bounds.check(reading(json.loads), inputs.repeated("brackets", 100_000))

    def test_sees_memory(self) -> None:
        with pytest.raises(AssertionError, match=r"took .* bytes"):
            bounds.check(
                reading(lambda data: [{"at": at} for at in range(len(data))]), b" " * 10_000
            )

    def test_sees_memory_that_is_not_of_python(self) -> None:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p

        def take(data: bytes) -> None:
            size = 128 * len(data)
            block = libc.malloc(ctypes.c_size_t(size))
            ctypes.memset(block, 1, size)
            libc.free(ctypes.c_void_p(block))

        with pytest.raises(AssertionError, match="resident"):
            bounds.check(reading(take), b" " * MIB)

    def test_sees_time(self) -> None:
        with pytest.raises(AssertionError, match=r"took .* s for"):
            bounds.check(reading(lambda data: sum(range(len(data) * 100))), b" " * 100_000)

    def test_sees_long_errors(self) -> None:
        def quote(data: bytes) -> None:
            raise ImagegateError(data.decode())

        with pytest.raises(AssertionError, match="characters"):
            bounds.check(reading(quote), b" " * 5000)

    @pytest.mark.parametrize("parser", [p for p in PARSERS if p.reads_json][:1])
    def test_attacks_are_as_large_as_they_may_be(self, parser: Parser) -> None:
        sizes = {name: len(data) for name, data in inputs.attacks(parser, 10_000)}
        assert max(sizes.values()) <= 10_000
        assert sizes["scalars"] > 9_990

    @given(st.data())
    @settings(max_examples=10, deadline=None, derandomize=True)
    def test_changes_reach_every_part(self, data: st.DataObject) -> None:
        parser = next(p for p in PARSERS if p.reads_json)
        assert isinstance(data.draw(inputs.mutations(parser)), bytes)
