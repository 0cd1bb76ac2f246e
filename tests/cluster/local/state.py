"""What a running cluster has to remember between two commands: one JSON file."""

import dataclasses
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster import paths
from tests.cluster.errors import ClusterError
from tests.cluster.provider import ClusterOptions, NodeOptions

_PORTS = ("api", "open", "secure", "faulty", "prometheus")


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node that exists: its number decides its addresses, its options outlive a stop."""

    index: int
    options: NodeOptions


@dataclass(slots=True)
class State:
    """The file `cluster.json`; it is changed by `changed()`."""

    options: ClusterOptions
    ports: dict[str, int]
    nodes: dict[str, NodeRecord] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return folder(self.options.name)

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / ".cluster.json"
        scratch.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        scratch.replace(self.folder / "cluster.json")


def folder(name: str) -> Path:
    return paths.state_root() / name


def create(options: ClusterOptions) -> State:
    state = State(options, _free_ports())
    state.save()
    return state


def load(name: str) -> State:
    path = folder(name) / "cluster.json"
    try:
        content = json.loads(path.read_text())
        options = ClusterOptions(**_tuples(content["options"], "extra_args"))
        options = dataclasses.replace(options, node=_node_options(content["options"]["node"]))
        nodes = {
            key: NodeRecord(value["index"], _node_options(value["options"]))
            for key, value in content["nodes"].items()
        }
        return State(options, {name: content["ports"][name] for name in _PORTS}, nodes)
    except FileNotFoundError:
        raise ClusterError(
            f"no cluster {name!r} under {paths.state_root()}: start it with "
            f"`python -m tests.cluster --name {name} up`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{path} is damaged ({error!r}): run `down`, then `up`") from error


@contextmanager
def changed(name: str) -> Iterator[State]:
    """The state to change: nobody else does meanwhile, and it is saved at the end."""
    with paths.locked(f"state-{name}"):
        state = load(name)
        yield state
        state.save()


def _tuples(content: dict[str, Any], key: str) -> dict[str, Any]:
    return content | {key: {name: tuple(flags) for name, flags in content[key].items()}}


def _node_options(content: dict[str, Any]) -> NodeOptions:
    taints = tuple(content["register_with_taints"])
    return NodeOptions(**(content | {"register_with_taints": taints}))


def _free_ports() -> dict[str, int]:
    """Loopback ports that are free now; all are held at once, so no two are the same."""
    sockets = [socket.socket() for _ in _PORTS]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(_PORTS, sockets, strict=True)}
    finally:
        for each in sockets:
            each.close()
