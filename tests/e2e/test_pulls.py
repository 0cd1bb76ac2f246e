"""A joining node has its images as fast as containerd itself can pull them."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from imagegate.domain import retry
from tests.cluster import NodeOptions
from tests.e2e.installation import Installation
from tests.e2e.watching import NodeWatch, is_ready, released

if TYPE_CHECKING:
    from tests.cluster.local.cluster import LocalCluster
    from tests.cluster.local.node import Node

LINK = "200mbit"
FACTOR, MORE = 1.15, 2.0
"""The budget: 1.15 times the seconds of `ctr`, and 2 s."""
BURST, QPS = 10, 5
"""The kubelet's default limits of its own pulls, which `ctr` does not have: this many at once, and
this many in a second. Beyond them a pull fails, and its pod is made again after 3 s."""


@pytest.mark.parametrize(
    ("kind", "images", "nodes"),
    [("big", 1, 1), ("part", 8, 1), ("tiny", 20, 1), ("big", 1, 4)],
    ids=["300-mib", "8-of-40-mib", "20-small", "300-mib-on-4-nodes"],
)
def test_images_arrive_as_fast_as_ctr_pulls_them(
    cluster: LocalCluster, imagegate: Installation, kind: str, images: int, nodes: int
) -> None:
    """From Ready to the release of joining nodes, against `ctr images pull` of the same images on
    the same nodes. `ctr` runs second, so the registry has read the images before. Both pull one
    image after the other, as the kubelet does by default.
    """
    name = f"pulls-{kind}-{nodes}"
    references = [
        cluster.push(kind, f"pulls/{name}-{number}:1", seed=23 + number) for number in range(images)
    ]
    joined: list[Node] = []
    try:
        with imagegate.prefetching(name, *references, nodeSelector={"matchLabels": {"pool": name}}):
            with NodeWatch(cluster) as watch:
                for number in range(nodes):
                    options = NodeOptions(labels={"pool": name})
                    joined.append(cluster.add_node(f"{name}-{number}", options, wait=False))
                    joined[-1].limit_bandwidth(LINK)
                ready = [watch.first(node.name, is_ready).at for node in joined]
                free = [watch.first(node.name, released, timeout=180).at for node in joined]
            assert all(node.has_image(each) for node in joined for each in references)
        cluster.wait(lambda: not imagegate.pullers(name), "the puller pods gone", 60)
        ours = [end - begin for begin, end in zip(ready, free, strict=True)]
        theirs = pull(joined, references)
    finally:
        for node in joined:
            cluster.remove_node(node.name)
    print(f"\n{images} x {kind}: Ready to released {seconds(ours)}, ctr {seconds(theirs)}", end=" ")
    print(f"({max(ours) / max(theirs):.2f} times)")
    allowed = FACTOR * max(theirs) + MORE
    if images > BURST:
        allowed += FACTOR * (images - BURST) / QPS + retry.PULL_TOKENS
    assert max(ours) <= allowed


def pull(nodes: Sequence[Node], references: Sequence[str]) -> list[float]:
    """Remove the images from the nodes, and pull them with `ctr` on all nodes at the same time.
    Returns the seconds of each node."""
    for node in nodes:
        remove(node, references)
    began = time.monotonic()
    running = [
        subprocess.Popen(["sh", "-ec", script(node, references)], stdout=subprocess.DEVNULL)
        for node in nodes
    ]
    ended = []
    for process in running:
        assert process.wait(180) == 0
        ended.append(time.monotonic() - began)
    for node in nodes:
        assert all(node.has_image(each) for each in references)
    return ended


def script(node: Node, references: Sequence[str]) -> str:
    """Pulls by containerd itself, with the registries' configuration that the kubelet's have."""
    options = ("images", "pull", "--hosts-dir", str(node.etc / "certs.d"))
    return "\n".join(shlex.join(node.ctr_command(*options, each)) for each in references)


def remove(node: Node, references: Sequence[str]) -> None:
    """Remove images with their snapshots. The containers of the deleted puller pods may still
    exist for a moment."""
    digests = node.remove_image(*references)
    until = time.monotonic() + 60
    while any(digest in node.ctr("content", "ls", "-q").split() for digest in digests):
        assert time.monotonic() < until, f"content of {digests} is still on {node.name}"
        time.sleep(1)
        node.ctr("images", "prune")


def seconds(each: Sequence[float]) -> str:
    return ", ".join(f"{one:.1f}" for one in each) + " s"
