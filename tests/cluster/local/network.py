"""Addresses, and the network of the namespaces.

The bridge is in the control plane's network namespace, and veth pairs connect the nodes to it. The
machine's own network gets no interface, route or rule. All clusters use the same addresses, because
they cannot reach each other. This machine reaches them by loopback ports (see `forward.py`).
"""

import os
import subprocess
from collections.abc import Sequence

from tests.cluster import paths
from tests.cluster.errors import ClusterError
from tests.cluster.local.processes import Group

CONTROL_PLANE = "10.90.0.1"
OPEN_REGISTRY = "10.90.0.2"
SECURE_REGISTRY = "10.90.0.3"
FAULTY_REGISTRY = "10.90.0.4"
NOBODY = "10.90.255.254"
BRIDGE_MAC = "02:90:00:00:00:01"
"""A fixed address. By default a bridge uses the lowest address of its ports, which changes when a
node joins or leaves. Then other nodes would send to the old address until their neighbour entries
expire."""
PODS = "10.91.0.0/16"
SERVICES = "10.92.0.0/16"
KUBERNETES_SERVICE = "10.92.0.1"
MAX_NODES = 250


def node_address(index: int) -> str:
    return f"10.90.1.{index}"


def pod_subnet(index: int) -> str:
    return f"10.91.{index}.0/24"


def set_up_control_plane(group: Group) -> None:
    _script(
        group,
        f"""
        ip link set lo up
        ip link add bridge0 address {BRIDGE_MAC} type bridge
        ip address add {CONTROL_PLANE}/16 dev bridge0
        ip address add {OPEN_REGISTRY}/16 dev bridge0
        ip address add {SECURE_REGISTRY}/16 dev bridge0
        ip address add {FAULTY_REGISTRY}/16 dev bridge0
        ip link set bridge0 up
        sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0
        sysctl -q -w net.ipv4.conf.bridge0.send_redirects=0
        """,
    )


def connect_node(control_plane: Group, node: Group, index: int) -> None:
    """A veth pair between bridge and node, and the route to the node's pods."""
    holder = node.find("holder")
    if holder is None:
        raise ClusterError(f"{node.folder.name} is not running")
    # Delete the interface first. A node that has just died may still have the name, because the
    # kernel removes its namespace asynchronously.
    _script(
        control_plane,
        f"""
        ip link delete node{index} 2>/dev/null || true
        ip link add node{index} type veth peer name eth0 netns /proc/{holder.pid}/ns/net
        ip link set node{index} master bridge0 up
        ip route replace {pod_subnet(index)} via {node_address(index)}
        """,
    )
    _script(
        node,
        f"""
        ip link set lo up
        ip address add {node_address(index)}/16 dev eth0
        ip link set eth0 up
        ip route add default via {CONTROL_PLANE}
        sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0
        """,
    )


def disconnect_node(control_plane: Group, index: int) -> None:
    if control_plane.find("holder"):
        _script(
            control_plane,
            f"""
            ip link delete node{index} 2>/dev/null || true
            ip route delete {pod_subnet(index)} 2>/dev/null || true
            """,
        )


def limit_bandwidth(control_plane: Group, index: int, rate: str | None) -> None:
    """Limits the node's incoming rate, as tc(8) writes it (`200mbit`); None removes the limit."""
    verb = f"replace dev node{index} root tbf rate {rate} burst 256kb latency 400ms"
    if rate is None:
        verb = f"delete dev node{index} root 2>/dev/null || true"
    _script(control_plane, f"tc qdisc {verb}")


def run(group: Group, command: Sequence[str], stdin: str | None = None) -> str:
    """Runs a short command inside the group's namespaces."""
    done = subprocess.run(
        group.enter(command),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": paths.SYSTEM},
    )
    if done.returncode:
        where = group.folder.name
        raise ClusterError(f"on {where}: {' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def _script(group: Group, text: str) -> None:
    run(group, ["sh", "-eu", "-s"], stdin=text)
