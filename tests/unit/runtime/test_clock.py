"""The API server's time, from the Date headers of its answers."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from imagegate.runtime.clock import ServerTime

TRUTH = 1_800_000_000.25


class Clocks:
    """A node whose clock is ``ahead`` seconds fast."""

    def __init__(self, ahead: float) -> None:
        self.ahead = ahead
        self.passed = 0.0
        self.server = ServerTime(lambda: TRUTH + self.passed + self.ahead, lambda: 77 + self.passed)

    def ask(self, *, wrong: float = 0.0, takes: float = 0.05) -> None:
        sent = 77 + self.passed
        self.passed += takes
        self.server.heard(formatdate(int(TRUTH + self.passed + wrong), usegmt=True), sent)

    @property
    def error(self) -> float:
        return self.server.now() - (TRUTH + self.passed)


@pytest.mark.parametrize("ahead", [660.0, -300.0, 3.0, 86400.0])
def test_wrong_clock_is_corrected_by_the_first_answer(ahead: float) -> None:
    clocks = Clocks(ahead)
    assert clocks.error == pytest.approx(ahead), "there was no answer yet"
    clocks.ask()
    assert abs(clocks.error) < 1.0
    clocks.passed += 5000
    assert abs(clocks.error) < 1.0


@pytest.mark.parametrize("ahead", [0.0, 1.2, -1.2])
def test_correct_clock_is_not_changed(ahead: float) -> None:
    clocks = Clocks(ahead)
    for _ in range(20):
        clocks.ask()
        assert clocks.error == pytest.approx(ahead)


def test_wrong_clock_of_one_api_server_of_three_is_ignored() -> None:
    clocks = Clocks(0)
    for number in range(30):
        clocks.ask(wrong=900.0 if number % 3 == 2 else 0.0)
        assert abs(clocks.error) < 1.0


def test_change_of_the_clock_at_run_time_has_no_effect() -> None:
    clocks = Clocks(0)
    clocks.ask()
    clocks.ahead = -3600.0
    assert abs(clocks.error) < 1.0


def test_late_answers_and_invalid_dates_are_ignored() -> None:
    clocks = Clocks(50)
    clocks.ask(takes=20.0)
    clocks.server.heard(None, 77 + clocks.passed)
    clocks.server.heard("yesterday", 77 + clocks.passed)
    assert clocks.error == pytest.approx(50)
