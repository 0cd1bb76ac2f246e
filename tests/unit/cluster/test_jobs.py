"""`make test`: which jobs run in parallel, what the summary reports, and how an interrupt ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import jobs
from tests.cluster import ports
from tests.cluster.local import state
from tests.cluster.paths import CHECKOUT
from tests.cluster.provider import ClusterOptions
from tests.e2e.conftest import LANES

MAKEFILE = """
passes:
	@sleep 1; echo fine
fails:
	@sleep 1; echo "FAILED tests/e2e/test_x.py::test_that - assert 1 < 0"; exit 1
sleeps:
	@sleep 60
shown:
	@sleep 1; cat /proc/self/autogroup; chrt --pid $$$$
breaks:
	@echo "mypy: something is wrong"; exit 2
interrupted:
	@touch {folder}/started; {python} -c "$$PROGRAM"
"""
TAKES_DOWN = """
import os, pathlib, signal, sys, time
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, interrupt)
folder = pathlib.Path(sys.argv[1])
try:
    (folder / "up").touch()
    time.sleep(60)
finally:
    time.sleep(1)
    (folder / "down").touch()
"""
RUNNER = """
import sys
from pathlib import Path
from tests import jobs
folder = sys.argv[1]
jobs.ARTIFACTS = Path(folder)
job = lambda name: jobs.Job(name, ("-f", f"{folder}/Makefile", name))
jobs.CHECKS = [job("passes")]
jobs.CLUSTERS = [job("interrupted")]
jobs.SIMULATION = job("passes")
jobs.take_down = lambda: None
sys.argv = sys.argv[:1]
sys.exit(jobs.main())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "program.py"
    program.write_text(TAKES_DOWN)
    run = f"{sys.executable} {program} {tmp_path}"
    text = MAKEFILE.replace('{python} -c "$$PROGRAM"', run).replace("{folder}", str(tmp_path))
    (tmp_path / "Makefile").write_text(text)
    monkeypatch.setattr(jobs, "ARTIFACTS", tmp_path)
    return tmp_path


def job(folder: Path, name: str, target: str) -> jobs.Job:
    return jobs.Job(name, ("-f", f"{folder}/Makefile", target))


def test_every_e2e_test_has_a_lane_and_every_lane_has_a_job() -> None:
    modules = {path.stem for path in (CHECKOUT / "tests" / "e2e").glob("test_*.py")}
    named = {key.partition("::")[0].removesuffix("_begin").removesuffix("_end") for key in LANES}
    assert named == modules
    for key in LANES:
        module, _, test = key.partition("::")
        if test:
            assert f"def {test}(" in (CHECKOUT / "tests" / "e2e" / f"{module}.py").read_text()
    run = {each.name.removeprefix("e2e-") for each in jobs.CLUSTERS if "LANE=" in each.target[-1]}
    assert run == set(LANES.values())
    clusters = [each.cluster for each in jobs.CLUSTERS]
    assert len(set(clusters)) == len(clusters), "two jobs would remove each other's cluster"


def test_jobs_run_in_parallel_and_summary_names_the_failed_test(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    clusters = [
        job(folder, f"c{number}", "fails" if number == 1 else "passes") for number in (0, 1)
    ]
    results = jobs.run_all([job(folder, "lint", "passes")], clusters, [job(folder, "s", "passes")])
    assert time.monotonic() - began < 3.5, "four jobs of one second, all but the first in parallel"
    assert [result.status for result in results] == [0, 0, 2, 0]
    for dump, modified in (("tests_e2e_test_x.py_test_that", 2000), ("of_another_run", 1000)):
        (folder / dump).mkdir()
        os.utime(folder / dump, (modified, modified))
    text = jobs.summary(results, since=1500)
    assert "c1             FAILED (2)" in text
    assert "test_x.py::test_that - assert 1 < 0" in text
    assert str(folder / "c1.log") in text
    assert str(folder / "tests_e2e_test_x.py_test_that") in text
    assert "of_another_run" not in text
    assert "c0             fine\n" in capsys.readouterr().out


def test_no_cluster_starts_when_a_check_fails(folder: Path) -> None:
    checks = [job(folder, "lint", "breaks"), job(folder, "unit", "passes")]
    beside = [job(folder, "s", "sleeps")]
    began = time.monotonic()
    results = jobs.run_all(checks, [job(folder, "c", "interrupted")], beside)
    assert time.monotonic() - began < 10, "the run does not wait for the simulation"
    assert [result.status for result in results] == [2, 0]
    assert not (folder / "started").exists()
    assert "mypy: something is wrong" in jobs.summary(results, since=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_waits_until_every_job_has_removed_its_cluster(
    folder: Path, number: signal.Signals
) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(folder)],
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 20
        while not (folder / "up").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        for _ in range(3):
            runner.send_signal(number)
            time.sleep(0.1)
        assert runner.wait(20) == 128 + number
    finally:
        runner.kill()
        runner.wait()
    assert (folder / "down").exists(), "the job was killed before it had removed its cluster"


def test_two_clusters_that_start_together_get_different_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clusters do not listen yet, so only the records show their ports. No port is
    ephemeral."""
    monkeypatch.setenv("IMAGEGATE_STATE", str(tmp_path))
    monkeypatch.setattr(ports, "CLUSTERS", range(20000, 20000 + 2 * len(state._PORTS) + 200))
    made = [state.create(ClusterOptions(name=f"c{number}")) for number in range(2)]
    chosen = [port for each in made for port in each.ports.values()]
    assert len(set(chosen)) == len(chosen)
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(chosen) < max(low, 30000)


def test_an_idle_job_yields_the_cores_to_other_sessions(folder: Path) -> None:
    """SCHED_IDLE alone has no effect on other sessions if the kernel groups tasks by session."""
    autogroup = Path("/proc/self/autogroup")
    if not autogroup.exists():
        pytest.skip("no autogroups in this kernel")
    (idle,) = jobs.run_all(
        [jobs.Job("shown", ("-f", f"{folder}/Makefile", "shown"), idle=True, nice=19)], [], []
    )
    assert idle.status == 0
    assert "nice 19" in (folder / "shown.log").read_text()
    assert "SCHED_IDLE" in (folder / "shown.log").read_text()
