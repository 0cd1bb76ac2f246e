"""The command line as a process: exit statuses, names, help, completion, what is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Coroutine
from pathlib import Path

import pytest

from imagegate import __version__, cli
from tests.unit.cli.conftest import Run

ROOT = Path(__file__).parents[3]
COMMANDS = (
    "status",
    "explain",
    "wait",
    "release",
    "plan",
    "lint",
    "tags",
    "simulate",
    "completion",
)
SERVICES = ("run", "hooks", "watchdog", "cleanup")
NOWHERE = "/nowhere/kubeconfig"


def process(
    *arguments: str, code: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The program without a terminal, a cluster and a home."""
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    program = ["-c", code] if code else ["-m", "imagegate"]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env={**inherited, "KUBECONFIG": NOWHERE, "HOME": "/nowhere", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--version"], 0, ""),
        (["simulate", "--nodes=6", "--image-size=1"], 0, ""),
        (["simulate", "--nodes=2"], 1, "Error: zones: 3 zones for 2 nodes"),
        (["simulate", "--nodes=x"], 2, "Invalid value for '--nodes'"),
        (["status"], 1, f"Error: there is no kubeconfig {NOWHERE}: give --kubeconfig FILE"),
        (["explain", "node", "a", "--kubeconfig=/none"], 1, "there is no kubeconfig /none"),
        (["explain", "pod", "a"], 2, "Invalid value for 'kind'"),
        (["wait", "llm"], 1, "there is no kubeconfig"),
        (["release", "a", "--yes"], 1, "there is no kubeconfig"),
        (["release"], 2, "name the nodes, or give --all"),
        (["plan"], 2, "Missing option '--filename'"),
        (["statsu"], 2, "No such command 'statsu'. Did you mean 'status'"),
        (["status", "--bogus"], 2, "No such option"),
        (["hooks"], 2, "Missing option '--pushes-configmap'"),
    ],
)
def test_exit_status_and_message(arguments: list[str], status: int, said: str) -> None:
    done = process(*arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) is bool(status), "a message where something failed, else none"


@pytest.mark.parametrize("command", ["run", "watchdog"])
def test_service_without_a_cluster_logs_json_and_fails(command: str) -> None:
    done = process(command, "--namespace=imagegate-system")
    assert done.returncode == 1, done.stderr
    line = json.loads(done.stderr.splitlines()[-1])
    assert line["msg"] == "stopped"
    assert "there is no kubeconfig" in line["error"]


@pytest.mark.parametrize("command", ["", *COMMANDS, *SERVICES])
def test_help_fits_into_80_columns_and_has_no_colour(run: Run, command: str) -> None:
    result = run(*command.split(), "--help", env={"COLUMNS": "80"}, color=True)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout
    assert not re.search(r"\w\.\.\.", result.stdout), "a sentence that is cut off"


@pytest.mark.parametrize(
    ("name", "shown"), [("kubectl-imagegate", "kubectl imagegate"), ("imagegate", "imagegate")]
)
def test_usage_has_the_name_of_the_call(name: str, shown: str) -> None:
    code = f"import sys; sys.argv[0] = '/bin/{name}'; import imagegate.cli as c; sys.exit(c.main())"
    assert process("status", "--help", code=code).stdout.startswith(f"Usage: {shown} status ")
    assert f"Try '{shown} wait --help'" in process("wait", code=code).stderr


def test_all_names_are_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {
        "imagegate": "imagegate.cli:main",
        "kubectl-imagegate": "imagegate.cli:main",
        "kubectl_complete-imagegate": "imagegate.cli:complete_for_kubectl",
    }


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"{__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_calls_the_program(shell: str) -> None:
    done = process("completion", shell)
    assert done.returncode == 0
    assert f"_IMAGEGATE_COMPLETE=complete_{shell}" in done.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("imagegate st", {"status"}),
        ("imagegate explain ", {"node"}),
        ("imagegate status --out", {"--output"}),
        ("imagegate status -o y", {"yaml"}),
    ],
)
def test_bash_completes(words: str, offered: set[str]) -> None:
    done = process(
        _IMAGEGATE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))
    )
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [(["st"], ["status"]), (["explain", ""], ["node"]), (["status", "-o", "j"], ["json"])],
)
def test_kubectl_completes(words: list[str], offered: list[str]) -> None:
    code = "from imagegate import cli; raise SystemExit(cli.complete_for_kubectl())"
    done = process(*words, code=code)
    assert (done.returncode, done.stdout.split()) == (0, [*offered, ":4"])


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="there is no bash")
def test_bash_accepts_its_script() -> None:
    script = process("completion", "bash").stdout
    done = subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=False)
    assert done.returncode == 0


HEAVY = {"aiohttp", "kopf", "kubernetes", "rich", "cryptography", "prometheus_client"}


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], set()),
        (["status", "--help"], set()),
        (["simulate", "--nodes=6", "--image-size=1"], set()),
        (["lint", "127.0.0.1:1/a:1"], {"aiohttp", "cryptography", "kubernetes"}),
        # What only `run` needs, no other service has.
        (["watchdog"], HEAVY - {"kopf", "rich", "prometheus_client"}),
        (["cleanup", "--deployment=x"], HEAVY - {"kopf", "rich", "prometheus_client"}),
        (
            ["hooks", "--pushes-configmap=p", "--hooks-file=/nowhere"],
            HEAVY - {"kopf", "rich"},
        ),
    ],
)
def test_command_imports_only_what_it_needs(arguments: list[str], allowed: set[str]) -> None:
    code = (
        "import sys; from imagegate import cli; cli.main();"
        f"print('IMPORTED', *({HEAVY!r} & set(sys.modules)))"
    )
    done = process(*arguments, code=code)
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "IMPORTED", done.stderr
    assert set(last[1:]) <= allowed


def test_operator_gets_its_settings_and_its_log_format() -> None:
    done = process("run", "--log-format=text", "--puller-label=a=b", POD_NAME="op-1")
    assert done.returncode == 1
    assert "ERROR   stopped error='NotConfigured" in done.stderr


def test_interrupt_has_the_shells_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(work: Coroutine[object, object, int]) -> int:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setattr("imagegate.cli.status.asyncio.run", interrupted)
    assert cli.main(["status"]) == 130
