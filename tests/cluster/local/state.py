"""The state of a running cluster between two commands: one JSON file."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster import paths, ports
from tests.cluster.errors import ClusterError
from tests.cluster.provider import ClusterOptions, NodeOptions

_PORTS = ("api", "open", "secure", "faulty", "prometheus")


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """An existing node. Its number determines its addresses; its options outlive a stop."""

    index: int
    options: NodeOptions


@dataclass(slots=True)
class State:
    """The content of the file `cluster.json`. Use `changed()` to change it."""

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
    with paths.locked("ports"):
        chosen = ports.free(len(_PORTS), ports.CLUSTERS, taken=set(_recorded_ports()))
        state = State(options, dict(zip(_PORTS, chosen, strict=True)))
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
    """The state, locked against other writers, and saved at the end of the `with` block."""
    with paths.locked(f"state-{name}"):
        state = load(name)
        yield state
        state.save()


def _tuples(content: dict[str, Any], key: str) -> dict[str, Any]:
    return content | {key: {name: tuple(flags) for name, flags in content[key].items()}}


def _node_options(content: dict[str, Any]) -> NodeOptions:
    taints = tuple(content["register_with_taints"])
    return NodeOptions(**(content | {"register_with_taints": taints}))


def _recorded_ports() -> Iterator[int]:
    """The ports of all clusters, because a starting cluster does not listen on its ports yet."""
    for path in paths.state_root().glob("*/cluster.json"):
        try:
            yield from json.loads(path.read_text())["ports"].values()
        except (OSError, ValueError, KeyError):
            continue  # removed meanwhile, or damaged
