"""Malicious inputs: known attacks on parsers, and random changes of valid inputs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from tests.unit.fuzz.parsers import MIB, Parser

MARK = "\ue000imagegate\ue000"
"""A placeholder in a document for JSON text that `json.dumps` cannot write."""

Steps = tuple[str | int, ...]

# Beginning, repeated part and end of JSON documents of any size.
_REPEATED_JSON: dict[str, tuple[str, str, str]] = {
    "scalars": ("[", "0,", "0]"),
    "texts": ("[", '"ab",', '""]'),
    "objects": ("[", "{},", "{}]"),
    "lists": ("[", "[],", "[]]"),
    "nulls": ("[", "null,", "null]"),
    "brackets": ("", "[", "]"),
    "braces": ("", '{"a":', "0}"),
    "closed brackets": ("", "[[[[[[[[]]]]]]]],", ""),
    "the same name": ("{", '"a":0,', '"a":0}'),
    "spaces": ("", " ", ""),
    "digits": ("", "9", ""),
    "one text": ('"', "a", '"'),
    "escapes": ('"', "\\u0000", '"'),
    "surrogates": ('"', "\\ud800", '"'),
}
_REPEATED_TEXT = (
    *("a", "A", "0", "/", ".", "-", "_", ":", "@", ",", ";", "=", '"', "\\", " ", "\t", "\r\n"),
    *(
        "\0",
        "[",
        "]",
        "*",
        "%",
        "a=",
        "a ",
        "a,",
        'a="',
        '="",',
        "a.",
        "a-",
        "a/",
        "[:",
        "1h",
        "1.",
    ),
    *("aA0", "\\u", "é", "\u00b2", "\ud800", "error: ", 'image "', "eyJ."),
)
_NASTY_JSON = (
    *("null", "true", "-1", "0.5", "1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "-0", "[]"),
    *("{}", '""', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"\u00b2"', "[null]", "[[]]", "0"),
    *('{"a":0,"a":1}', '"a\\r\\nb"', '"' + "a" * 3000 + '"', "1" + "0" * 400, '"1e9"', "2e308"),
    *('"' + "../" * 50 + '"', '"https://[::1"', '"//"', '"::"', '"http://a:99999999/"'),
)
_NASTY_BYTES = (b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\r\n", b'"', b"\\")


def repeated(name: str, size: int) -> bytes:
    """The document `name` of `_REPEATED_JSON`, of `size` bytes or a little less."""
    begin, again, end = _REPEATED_JSON[name]
    times = (size - len(begin) - len(end)) // len(again)
    return (begin + again * max(times, 1) + end).encode()


def attacks(parser: Parser, most: int) -> Iterator[tuple[str, bytes]]:
    """Documents of up to `most` bytes, each with a name."""
    yield "nothing", b""
    if not parser.reads_json:
        for text in _REPEATED_TEXT:
            again = text.encode("utf-8", "surrogatepass")
            yield f"{text!r} repeated", again * (most // len(again))
            seed = parser.seeds[0]
            yield (
                f"{text!r} repeated after a seed",
                seed + again * ((most - len(seed)) // len(again)),
            )
        for seed in parser.seeds:
            yield f"{seed[:40]!r} repeated", seed * (most // len(seed))
        return
    for name in _REPEATED_JSON:
        yield name, repeated(name, most)
    yield "names", _names(most)
    yield "UTF-16", repeated("scalars", most // 2).decode().encode("utf-16")[:most]
    yield "compressed", gzip.compress(b"\0" * MIB)
    document = json.loads(parser.seeds[0])
    size = most - len(parser.seeds[0])
    for steps in _places(document):
        yield f"scalars at {steps}", _with(document, {steps: repeated("scalars", size).decode()})


def _names(most: int) -> bytes:
    """An object with many different keys."""
    return ("{" + ",".join(f'"{number:x}":0' for number in range(most // 11)) + "}").encode()


def _places(document: Any, steps: Steps = ()) -> Iterator[Steps]:
    """The path of every value in a document."""
    inside: Iterator[tuple[str | int, Any]]
    if isinstance(document, dict):
        inside = iter(document.items())
    elif isinstance(document, list):
        inside = iter(enumerate(document))
    else:
        return
    for key, value in inside:
        yield (*steps, key)
        yield from _places(value, (*steps, key))


def _with(document: Any, put: dict[Steps, str]) -> bytes:
    """The document, with the JSON texts of `put` at their paths."""

    def replaced(value: Any, steps: Steps) -> Any:
        if steps in put:
            return f"{MARK}{list(put).index(steps)}{MARK}"
        if isinstance(value, dict):
            return {key: replaced(each, (*steps, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [replaced(each, (*steps, at)) for at, each in enumerate(value)]
        return value

    text = json.dumps(replaced(document, ()), ensure_ascii=False)
    for number, json_text in enumerate(put.values()):
        text = text.replace(f'"{MARK}{number}{MARK}"', json_text)
    return text.encode("utf-8", "surrogatepass")


def mutations(parser: Parser) -> st.SearchStrategy[bytes]:
    """The seeds with a few random changes each."""
    seeds = st.sampled_from(parser.seeds)
    if parser.reads_json:
        seeds = st.one_of(seeds, st.sampled_from(parser.seeds).flatmap(_changed))
    changes = st.lists(_CHANGES, max_size=3)
    return st.builds(_applied, seeds, changes).map(lambda data: data[: parser.most])


def _changed(seed: bytes) -> st.SearchStrategy[bytes]:
    document = json.loads(seed)
    places = list(_places(document))
    if not places:
        return st.sampled_from(_NASTY_JSON).map(str.encode)
    nasty = st.one_of(
        st.sampled_from(_NASTY_JSON),
        st.sampled_from(sorted(_REPEATED_JSON)).map(lambda name: repeated(name, 2000).decode()),
    )
    put = st.dictionaries(st.sampled_from(places), nasty, min_size=1, max_size=3)
    return put.map(lambda found: _with(document, found))


Change = Callable[[bytes], bytes]


def _cut(at: float) -> Change:
    return lambda data: data[: int(len(data) * at)]


def _insert(at: float, what: bytes) -> Change:
    return lambda data: data[: int(len(data) * at)] + what + data[int(len(data) * at) :]


def _overwrite(at: float, what: bytes) -> Change:
    def change(data: bytes) -> bytes:
        begin = int(len(data) * at)
        return data[:begin] + what + data[begin + len(what) :]

    return change


def _again(at: float, length: int, times: int) -> Change:
    def change(data: bytes) -> bytes:
        begin = int(len(data) * at)
        return data[:begin] + data[begin : begin + length] * times + data[begin + length :]

    return change


_AT = st.floats(0, 1)
_CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(_cut, _AT),
    st.builds(_insert, _AT, st.sampled_from(_NASTY_BYTES)),
    st.builds(_insert, _AT, st.binary(min_size=1, max_size=8)),
    st.builds(_overwrite, _AT, st.binary(min_size=1, max_size=4)),
    st.builds(_again, _AT, st.integers(1, 60), st.integers(0, 40)),
    st.just(lambda data: b"[" * 500 + data),
    st.just(gzip.compress),
)


def _applied(seed: bytes, changes: list[Change]) -> bytes:
    for change in changes:
        seed = change(seed)
    return seed
