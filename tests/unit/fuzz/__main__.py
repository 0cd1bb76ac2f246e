"""The long run: random changes for some minutes, and the known attacks in their maximum size.

    python -m tests.unit.fuzz --minutes 30 --seed 7 --only manifest

Each violation is printed with the path of its input, which is kept in ``.artifacts/fuzz``.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from tests.unit.fuzz import bounds, inputs
from tests.unit.fuzz.parsers import PARSERS, Parser

KEPT = Path(".artifacts", "fuzz")
EXAMPLES = 200


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments.add_argument("--only", default="", help="parsers whose name has this text")
    given_ = arguments.parse_args()
    parsers = [parser for parser in PARSERS if given_.only in parser.name]
    until = time.monotonic() + given_.minutes * 60
    print(f"{len(parsers)} parsers for {given_.minutes} minutes, seed {given_.seed}", flush=True)
    failed: dict[str, str] = {}
    inputs_tried = 0
    round_ = 0
    while parsers and time.monotonic() < until:
        for parser in [p for p in parsers if p.name not in failed]:
            if time.monotonic() >= until:
                break
            tried = _attacks(parser, failed) if round_ == 0 else 0
            inputs_tried += tried + _changes(parser, failed, given_.seed + round_)
        round_ += 1
        if len(failed) == len(parsers):
            break
    for problem in failed.values():
        print(problem)
    print(f"{inputs_tried} inputs in {round_} rounds; {len(failed)} parsers failed")
    return bool(failed)


def _attacks(parser: Parser, failed: dict[str, str]) -> int:
    tried = 0
    for name, data in inputs.attacks(parser, parser.most):
        tried += 1
        try:
            bounds.check(parser, data)
        except AssertionError as error:
            failed[parser.name] = f"{error} ({name}): {_keep(data)}"
            break
    return tried


def _changes(parser: Parser, failed: dict[str, str], number: int) -> int:
    tried = 0
    last = b""

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs.mutations(parser))
    def check(data: bytes) -> None:
        nonlocal tried, last
        tried, last = tried + 1, data
        bounds.check(parser, data)

    try:
        check()
    except Exception as error:  # noqa: BLE001  # also Hypothesis' error for a flaky failure
        failed[parser.name] = f"{parser.name}: {error} (seed {number}): {_keep(last)}"
    return tried


def _keep(data: bytes) -> Path:
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
