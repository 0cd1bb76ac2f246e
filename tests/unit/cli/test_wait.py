"""``imagegate wait`` and ``status --watch``, and how fast a rollout is."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from imagegate import progress
from imagegate.cli import exits
from imagegate.cli.bars import bars
from imagegate.kube import errors
from imagegate.progress import Pace, Progress
from tests.unit.cli.conftest import Run
from tests.unit.runtime.world import World

PATH = "/apis/imagegate.dev/v1alpha1/imageprefetches/llm"
GB = 10**9


def report(world: World, *, ready: bool, generation: int = 1, cached: int = 1) -> None:
    """The operator writes a status."""
    condition = {"type": "Ready", "status": str(ready), "reason": "Why", "message": "of this"}
    status = {
        "observedGeneration": generation,
        "nodes": {"desired": 4, "cached": cached},
        "images": [{"image": "reg.test/llm:1", "compressedBytes": 7 * GB}],
        "conditions": [condition],
    }
    world.api.change(PATH, lambda body: body.update(status=status))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagegate.cli.status.PERIOD", 0.01)


@pytest.fixture
def llm(world: World) -> World:
    world.add_prefetch("llm", "reg.test/llm:1")
    return world


def becomes_ready(world: World, looks: int = 2) -> None:
    """It is ready at this look of the command."""
    seen: list[str] = []

    def before(method: str, path: str) -> None:
        if method in ("GET", "LIST") and "imageprefetches" in path:
            seen.append(path)
            if len(seen) == looks:
                report(world, ready=True, cached=4)

    world.api.before = before


def test_wait_ends_when_it_is_ready(llm: World, run: Run) -> None:
    report(llm, ready=False)
    becomes_ready(llm, looks=3)
    result = run("wait", "llm", "--for=ready", "--timeout=10s")
    assert (result.exit_code, result.stdout) == (0, "imageprefetch.imagegate.dev/llm is ready\n")


def test_timeout_has_its_own_status_and_says_why(llm: World, run: Run) -> None:
    report(llm, ready=False)
    result = run("wait", "llm", "--timeout=0s")
    assert result.exit_code == exits.TIMEOUT == 4
    assert "is not ready after 0 s: Why: of this. Wait longer by --timeout" in result.stderr


def test_status_of_an_earlier_spec_is_not_ready(llm: World, run: Run) -> None:
    report(llm, ready=True, generation=0)
    result = run("wait", "llm", "--timeout=0s")
    assert result.exit_code == 4
    assert "has not reported about this spec yet" in result.stderr


def test_deletion_ends_the_wait(llm: World, run: Run) -> None:
    report(llm, ready=False)
    seen: list[str] = []

    def before(method: str, path: str) -> None:
        if path == PATH and method == "GET":
            seen.append(path)
            if len(seen) == 2:
                llm.api.remove(PATH)

    llm.api.before = before
    assert "there is no ImagePrefetch 'llm'" in str(run("wait", "llm").exception)


@pytest.mark.parametrize("timeout", ["", "10", "m", "1.5h", "-1s", "1s1m"])
def test_invalid_timeout(llm: World, run: Run, timeout: str) -> None:
    result = run("wait", "llm", f"--timeout={timeout}")
    assert result.exit_code == 2
    assert "is not a time: write 90s, 10m or 1h30m" in result.stderr


def test_watch_without_a_terminal_writes_a_line_for_each_change(llm: World, run: Run) -> None:
    report(llm, ready=False)
    becomes_ready(llm, looks=4)
    result = run("status", "--watch")
    assert result.exit_code == 0
    first, last = result.stdout.splitlines()
    assert first == "llm: 1/4 nodes, 7.0 GB of 28.0 GB"
    assert last == "llm: 4/4 nodes, 28.0 GB of 28.0 GB, ready"
    assert "\x1b" not in result.stdout


def test_watch_of_nothing_ends(world: World, run: Run) -> None:
    result = run("status", "--watch")
    assert (result.exit_code, result.stdout) == (0, "There is no ImagePrefetch.\n")


def test_outage_of_the_api_server_does_not_end_the_wait(llm: World, run: Run) -> None:
    report(llm, ready=False)
    seen: list[str] = []

    def before(method: str, path: str) -> None:
        if path == PATH and method == "GET":
            seen.append(path)
            if len(seen) == 4:
                report(llm, ready=True)
            elif len(seen) > 1:
                raise errors.Unavailable(f"{method} {path}", 0, "connection refused")

    llm.api.before = before
    assert run("wait", "llm").exit_code == 0
    assert len(seen) == 4


def test_api_server_that_never_answers_ends_the_wait(llm: World, run: Run) -> None:
    def before(method: str, path: str) -> None:
        raise errors.Unavailable(f"{method} {path}", 0, "connection refused")

    llm.api.before = before
    assert "connection refused" in str(run("wait", "llm").exception)


def made(cached: int, size: int = 7 * GB, **more: Any) -> Progress:
    nodes = {**dict.fromkeys(progress.STATES, 0), "desired": 10, "cached": cached}
    return Progress("llm", 0.0, nodes, more.pop("ready", "False"), "Why", "of this", "", size)


class TestPace:
    def test_rate_and_time_left_are_of_all_seen_nodes(self) -> None:
        pace = Pace()
        pace.see(100.0, 2)
        assert progress.line(made(2), pace, 100.0) == "2/10 nodes, 14.0 GB of 70.0 GB"
        pace.see(130.0, 3)
        pace.see(140.0, 6)
        text = progress.line(made(6), pace, 140.0)
        assert text == "6/10 nodes, 42.0 GB of 70.0 GB, 700.0 MB/s, 40 s left"

    def test_rate_falls_while_nothing_happens(self) -> None:
        pace = Pace()
        for at, cached in ((0.0, 0), (10.0, 5)):
            pace.see(at, cached)
        assert "10 s left" in progress.line(made(5), pace, 10.0)
        assert "100 s left" not in progress.line(made(5), pace, 50.0)
        assert "50 s left" in progress.line(made(5), pace, 50.0)

    def test_images_of_unknown_size_have_a_rate_of_nodes(self) -> None:
        pace = Pace()
        pace.see(0.0, 0)
        pace.see(60.0, 2)
        assert progress.line(made(2, size=0), pace, 60.0) == "2/10 nodes, 2.0 nodes/min, 4 min left"

    def test_new_target_begins_again(self) -> None:
        pace = Pace()
        for at, cached in ((0.0, 0), (10.0, 10), (20.0, 1)):
            pace.see(at, cached)
        assert progress.line(made(1), pace, 20.0) == "1/10 nodes, 7.0 GB of 70.0 GB"


@pytest.mark.parametrize("colours", [True, False])
def test_bars_fit_into_80_columns(monkeypatch: pytest.MonkeyPatch, *, colours: bool) -> None:
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, color_system="standard")
    with bars(console) as show:
        show([(made(6), "6/10 nodes, 42.0 GB of 70.0 GB, 700.0 MB/s, 40 s left")])
    text = output.getvalue()
    assert "llm" in text
    assert "40 s left" in text
    assert bool(re.search(r"\x1b\[[39]\dm", text)) is colours


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172800, "2d")]
)
def test_age_is_as_kubectl_writes_it(seconds: float, text: str) -> None:
    assert progress.age(seconds) == text
