"""``python -m tests.simulation``: runs one seed, a story of `focus`, or random runs for minutes."""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from unittest import mock

from imagegate.runtime.reconcile import node_views
from tests.simulation import focus, loop
from tests.simulation.judge import Broken, between
from tests.simulation.lives import lives
from tests.simulation.world import World

HOURS = 6.0
"""Virtual time of one random run."""


@dataclass(frozen=True, slots=True)
class Result:
    seed: int
    story: str
    seconds: float
    """Virtual time of the run."""
    requests: int
    writes: int
    broken: tuple[Broken, ...]
    digest: str
    trace: tuple[str, ...]


def run(seed: int, story: str = "", hours: float = HOURS, nodes: int = 20) -> Result:
    """Run one cluster until a promise is broken, the story ends, or the time is over."""
    found: list[World] = []

    async def main() -> None:
        world = World(seed)
        found.append(world)
        if story:
            await world.run(focus.STORIES[story], 24 * 3600)
        else:
            await world.run(lambda w: lives(w, nodes), hours * 3600)
        ends.append(loop.elapsed())

    ends: list[float] = []
    # Every node's last decision is kept, and reused (`domain.share.outcome`). By default that is so
    # only for nodes with many prefetches, which no life has.
    with mock.patch.object(node_views, "MANY", 1):
        loop.run(main, seed)
    world = found[0]
    broken = tuple(world.judge.broken)
    trace: tuple[str, ...] = ()
    if broken:
        trace = tuple(between(iter(world.judge.recent), broken[0].subject)[-40:])
    return Result(
        seed,
        story or "lives",
        ends[0],
        world.requests,
        world.events,
        broken,
        world.digest.hexdigest(),
        trace,
    )


def timed(seed: int, story: str, hours: float, nodes: int) -> tuple[Result, float]:
    """A run, and its duration in seconds of real time."""
    began = time.monotonic()
    return run(seed, story, hours, nodes), time.monotonic() - began


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The operator iterates over sets of strings, whose order is random by default.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="default: a random seed")
    parser.add_argument("--story", choices=[*focus.STORIES, "all"], default="")
    parser.add_argument("--hours", type=float, default=HOURS, help="virtual time of one random run")
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=0.0, help="real time: seed after seed")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, without --minutes")
    parser.add_argument("--parallel", type=int, default=1, help="processes, without --minutes")
    parser.add_argument("--log", default="CRITICAL", help="the operator's own log, to stderr")
    arguments = parser.parse_args()
    logging.basicConfig(level=arguments.log.upper(), stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    every = [name for name in focus.STORIES if name not in focus.SLOW]
    stories = every if arguments.story == "all" else [arguments.story]
    began, number, failed = time.monotonic(), 0, 0
    days = requests = writes = 0.0
    lives_of = partial(timed, hours=arguments.hours, nodes=arguments.nodes)
    with ProcessPoolExecutor(arguments.parallel) as pool:
        while True:
            # Without --minutes there is one round. The output is in the order of the seeds.
            round_ = 1 if arguments.minutes else arguments.seeds
            seeds = [seed + number + each for each in range(round_) for _ in stories]
            for result, seconds in pool.map(lives_of, seeds, stories * round_):
                days += result.seconds / 86400
                requests += result.requests
                writes += result.writes
                failed += bool(result.broken)
                _report(result, seconds)
            number += round_
            if time.monotonic() - began > arguments.minutes * 60:
                break
    print(
        f"{days:.2f} simulated days, {requests:.0f} requests, {writes:.0f} changes"
        f" in {time.monotonic() - began:.0f} s, seeds {seed} to {seed + number - 1}:"
        f" {failed} broke a promise",
        flush=True,
    )
    return 1 if failed else 0


def _report(result: Result, seconds: float) -> None:
    what = "ok" if not result.broken else str(result.broken[0])
    print(
        f"{result.story} seed {result.seed}: {result.seconds / 3600:.2f} h in {seconds:.1f} s,"
        f" {result.requests} requests: {what}",
        flush=True,
    )
    for line in result.trace:
        print(f"    {line}")
    if result.broken:
        story = "" if result.story == "lives" else f" --story {result.story}"
        print(f"    again: python -m tests.simulation --seed {result.seed}{story}")


if __name__ == "__main__":
    sys.exit(main())
