"""The memory and event-loop time that a delivery costs, measured in a separate process.

The bounds are generous, because the machine is busy; the figures of the first implementation were
10 to 30 times as high.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imagegate.hooks import body
from imagegate.hooks.directory import Directory
from imagegate.hooks.event import Delivery, Receiver, Told
from imagegate.hooks.receiver import PushReceiver
from imagegate.hooks.sources import SOURCES

MIB = 1 << 20
SECRET = "a-secret-of-thirty-two-characters"
AUTHORIZATION = {"authorization": f"Bearer {SECRET}"}
NUMBERS = b"[" + b"0," * ((MIB - 4) // 2) + b"0]"
"""Half a million elements of the wrong type in 1 MiB."""


def within(field: str) -> bytes:
    """An object with NUMBERS in `field`."""
    return b'{"' + field.encode() + b'":' + NUMBERS[: MIB - 64].rstrip(b",") + b"]}"


async def deliver(source: str, bodies: list[bytes], headers: dict[str, str]) -> None:
    async def fetch(url: str, *, fresh: bool = False) -> bytes:
        raise AssertionError(url)

    def hand_over(_: Sequence[Told]) -> bool:
        return True

    def observe(_: str, __: str) -> None:
        return None

    directory = Directory(Path("/nonexistent"), SOURCES)
    taken = PushReceiver(directory, SOURCES, hand_over=hand_over, fetch=fetch, observe=observe)
    secrets = (SECRET,) if "secrets" in SOURCES[source].proofs else ()
    receiver = Receiver("r", source, "p" * 16, secrets=secrets, topics=("t",))
    for each in bodies:
        await taken.receive(receiver, Delivery(headers, each))


def ids() -> list[bytes]:
    """Valid deliveries with a different id of almost 1 MiB each."""
    event = {"action": "push", "target": {"repository": "a/b", "tag": "1"}}
    name = "x" * (MIB - 512)
    return [json.dumps({"events": [{**event, "id": f"{n}{name}"}]}).encode() for n in range(120)]


def many() -> list[bytes]:
    """One delivery with as many pushes as fit into 1 MiB."""
    event = {"action": "push", "target": {"repository": "a/b", "tag": "1"}}
    text = json.dumps(event)
    return [('{"events":[' + ",".join([text] * ((MIB - 64) // (len(text) + 1))) + "]}").encode()]


ATTACKS: dict[str, tuple[str, Callable[[], list[bytes]], dict[str, str]]] = {
    "acr-eventgrid, without the secret": ("acr-eventgrid", lambda: [NUMBERS], {}),
    "acr-eventgrid": ("acr-eventgrid", lambda: [NUMBERS], AUTHORIZATION),
    "quay, with the path alone": ("quay", lambda: [within("updated_tags")], {}),
    "distribution": ("distribution", lambda: [within("events")], AUTHORIZATION),
    "harbor": (
        "harbor",
        lambda: [b'{"type":"PUSH_ARTIFACT","event_data":' + within("resources") + b"}"],
        AUTHORIZATION,
    ),
    "ecr-sns, without a signature": ("ecr-sns", lambda: [within("Message")], {}),
    "names that are remembered": ("distribution", ids, AUTHORIZATION),
    "many pushes": ("distribution", many, AUTHORIZATION),
}


def measure(attack: str) -> tuple[float, float]:
    """The growth of this process in MiB, and the CPU seconds per delivery."""
    source, make, headers = ATTACKS[attack]
    asyncio.run(deliver(source, [b"{}"], headers))
    bodies = make()
    before, started = peak(), time.process_time()
    asyncio.run(deliver(source, bodies, headers))
    seconds = time.process_time() - started
    return peak() - before, seconds / len(bodies)


def parts(of: type[body.Part] = body.Part) -> list[type[body.Part]]:
    return [each for found in of.__subclasses__() for each in (found, *parts(found))]


def unbounded(schema: object, where: str) -> list[str]:
    """The strings and lists of a JSON schema without a length limit."""
    match schema:
        case {"type": "string", **rest} if not {"maxLength", "enum", "const"} & rest.keys():
            return [where]
        case {"type": "array", **rest} if "maxItems" not in rest:
            return [where]
        case dict():
            return [
                it for key, value in schema.items() for it in unbounded(value, f"{where}.{key}")
            ]
        case list():
            return [it for value in schema for it in unbounded(value, where)]
        case _:
            return []


@pytest.mark.parametrize("part", parts(), ids=lambda part: f"{part.__module__}.{part.__name__}")
def test_every_string_and_list_of_a_body_is_bounded(part: type[body.Part]) -> None:
    assert not unbounded(part.model_json_schema(), part.__name__)


def peak() -> float:
    """Peak memory of this process in MiB. Not ru_maxrss, which a process inherits by fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (each for each in status.splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("attack", ATTACKS)
def test_delivery_of_1_mib_costs_little_memory_and_time(attack: str) -> None:
    root = Path(__file__).parents[3]
    script = f"from tests.unit.hooks import test_costs; print(*test_costs.measure({attack!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={"PYTHONPATH": f"{root / 'operator'}:{root}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    mib, seconds = map(float, done.stdout.split())
    print(f"{attack}: {mib:.0f} MiB, {seconds * 1000:.0f} ms")
    assert mib < 32, f"{attack}: the process grew by {mib:.0f} MiB"
    assert seconds < 0.25, f"{attack}: {seconds:.2f} s of the event loop for one delivery"
