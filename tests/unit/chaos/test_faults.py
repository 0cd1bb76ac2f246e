"""The short version has every fault. Drawn faults are repeatable and break different parts."""

from __future__ import annotations

import random

from tests.chaos.faults import FAULTS, ONCE, draw, named


def test_short_version_has_each_fault_once() -> None:
    names = [name for round_ in ONCE for name in round_]
    assert sorted(names) == sorted(fault.name for fault in FAULTS)
    assert all(len({f.breaks for f in named(*round_)}) == len(round_) for round_ in ONCE)


def test_seed_repeats_its_faults_and_no_two_faults_break_the_same_part() -> None:
    for seed in range(200):
        faults = draw(random.Random(seed))
        assert [f.name for f in faults] == [f.name for f in draw(random.Random(seed))]
        assert 1 <= len({f.breaks for f in faults}) == len(faults) <= 3
    drawn = {f.name for seed in range(200) for f in draw(random.Random(seed))}
    assert drawn == {f.name for f in FAULTS}
