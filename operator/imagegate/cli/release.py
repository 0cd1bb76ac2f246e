"""``imagegate release``: frees held nodes at once, without the operator (break glass)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from imagegate.cli import exits
from imagegate.cli.options import Installation
from imagegate.errors import ImagegateError

if TYPE_CHECKING:
    from imagegate.domain.facts import Node
    from imagegate.kube.nodes import Nodes

SHOWN = 10
"""Names of nodes in the question."""


@dataclass(frozen=True, kw_only=True)
class Request:
    nodes: Annotated[list[str] | None, Argument(metavar="NODE", help="Nodes to free.")] = None
    all_: Annotated[bool, Option("--all", help="Free every held node.")] = False
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False


def release(installation: Installation, request: Request) -> int:
    """Free held nodes at once, without their images.

    Works without the operator. Removes the gate's taints, and nothing else. Exit status: 1 if a
    node could not be freed.
    """
    if bool(request.nodes) is request.all_:
        raise typer.BadParameter("name the nodes, or give --all", param_hint="NODE")
    return asyncio.run(_release(installation, request))


async def _release(installation: Installation, request: Request) -> int:
    from imagegate.kube.gates import Gates
    from imagegate.kube.leases import Leases
    from imagegate.kube.nodes import Nodes, try_each
    from imagegate.runtime.taint_keys import every_key

    async with installation.connected("release") as (client, _):
        installed = await installation.find(client)
        gates = Gates(client)
        leases = Leases(client, installed.namespace, installed.lease_name)
        keys = await every_key(gates, leases, installed.taint_key)
        gate, nodes = await gates.get(), Nodes(client)
        held, failed = await _held(nodes, request, keys)
        if not held:
            typer.echo("No node is held." if request.all_ else "None of these nodes is held.")
            return exits.FAILED if failed else exits.OK
        _ask(held, request)
        failed += len(held) - await try_each(held, lambda node: _free(nodes, node, keys))
    if gate is not None and not gate.suspend and not gate.deleting:
        typer.echo(
            "The gate is armed: joining nodes are held as before, and a node that reboots\n"
            "under gate.onReboot Hold is held again. To hold no node at all:\n"
            '  kubectl patch nodegate default --type=merge -p \'{"spec":{"suspend":true}}\'',
        )
    return exits.FAILED if failed else exits.OK


async def _held(nodes: Nodes, request: Request, keys: frozenset[str]) -> tuple[list[Node], int]:
    """The held nodes that are asked for, and how many of the named nodes do not exist."""
    from imagegate.kube.errors import NotFound

    if request.all_:
        return [node for node in await nodes.list() if node.taints_of(keys)], 0
    held: list[Node] = []
    failed = 0
    for name in dict.fromkeys(request.nodes or ()):
        try:
            node = await nodes.get(name)
        except NotFound:
            typer.echo(f"Error: there is no Node {name!r}: see kubectl get nodes", err=True)
            failed += 1
            continue
        if node.taints_of(keys):
            held.append(node)
        else:
            typer.echo(f"node/{name} is not held")
    return held, failed


def asks() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty()


def _ask(held: Sequence[Node], request: Request) -> None:
    """Raises Abort if a person says no, and BadParameter where no person can be asked."""
    if request.yes:
        return
    if not asks():
        raise typer.BadParameter(
            f"{_nodes(held)} would be freed, and there is no terminal to ask: give --yes",
            param_hint="--yes",
        )
    names = ", ".join(node.name for node in held[:SHOWN])
    more = f" and {len(held) - SHOWN} more" if len(held) > SHOWN else ""
    typer.confirm(
        f"Free {_nodes(held)} ({names}{more})? Pods start there without the images.", abort=True
    )


def _nodes(held: Sequence[Node]) -> str:
    return f"{len(held)} node{'s' if len(held) != 1 else ''}"


async def _free(nodes: Nodes, node: Node, keys: frozenset[str]) -> bool:
    """Free one node; False if that failed. The others are freed all the same."""
    from imagegate.domain.actions import PatchNode
    from imagegate.kube.errors import NotFound

    removed: set[str] = set()

    def wanted(current: Node) -> PatchNode:
        taints = current.taints_of(keys)
        removed.clear()
        removed.update(f"{t.key}:{t.effect}" for t in taints)
        return PatchNode(current, remove=taints)

    try:
        freed = await nodes.insist(node, wanted)
    except NotFound:
        freed = False  # deleted, after another client had changed it
    except ImagegateError as error:
        typer.echo(f"Error: node/{node.name} is still held: {error}", err=True)
        return False
    done = f"freed: removed {', '.join(sorted(removed))}" if freed else "is not held any more"
    typer.echo(f"node/{node.name} {done}")
    return True
