"""The choice between image volumes and containers for a node's puller pod."""

from __future__ import annotations

import pytest

from imagegate.kube import nodes
from imagegate.puller import build
from imagegate.puller.build import PullerSettings
from imagegate.puller.mode import Mode, choose
from tests.unit.domain.cases import node

VOLUME, CONTAINER = Mode.IMAGE_VOLUME, Mode.CONTAINER


@pytest.mark.parametrize(
    ("kubelet", "runtime", "expected"),
    [
        ("v1.36.3", "containerd://2.4.2", VOLUME),
        ("v1.35.0", "containerd://2.1.0", VOLUME),
        ("v1.34.4", "containerd://2.4.2", CONTAINER),
        ("v1.33.1", "cri-o://1.33.0", CONTAINER),
        ("v1.36.3", "containerd://2.0.7", CONTAINER),
        ("v1.36.3", "containerd://1.7.29", CONTAINER),
        ("v1.35.1", "cri-o://1.31.0", VOLUME),
        ("v1.35.1", "cri-o://1.30.9", CONTAINER),
        ("v1.35.1", "docker://29.0.0", CONTAINER),
        ("v1.35.1-eks-113cf36", "containerd://2.1.5+bottlerocket", VOLUME),
        ("v1.35.0+k3s1", "containerd://2.1.4-k3s2", VOLUME),
        ("v2.0.0", "containerd://10.0.0", VOLUME),
        ("kwok-v0.8.0", "kwok-v0.8.0", CONTAINER),
        ("", "", CONTAINER),
    ],
)
def test_mode_follows_from_the_versions_of_kubelet_and_runtime(
    kubelet: str, runtime: str, expected: Mode
) -> None:
    info = {"kubeletVersion": kubelet, "containerRuntimeVersion": runtime, "bootID": "b"}
    seen = nodes.parse({"metadata": {"name": "n1"}, "status": {"nodeInfo": info}})
    assert choose(seen, Mode.AUTO) is expected


def test_node_without_reported_versions_gets_containers() -> None:
    assert choose(nodes.parse({"metadata": {"name": "n1"}}), Mode.AUTO) is CONTAINER


@pytest.mark.parametrize("wanted", [VOLUME, CONTAINER])
@pytest.mark.parametrize("kubelet", [(1, 34), (1, 36)])
def test_configured_mode_takes_precedence(wanted: Mode, kubelet: tuple[int, int]) -> None:
    assert choose(node(kubelet=kubelet), wanted) is wanted


@pytest.mark.parametrize("mode", list(Mode))
def test_probe_has_an_image_volume_in_every_mode(mode: Mode) -> None:
    settings = PullerSettings(image="pause", busybox="busybox", mode=mode)
    assert "image" in build.probe("imagegate-system", settings)["spec"]["volumes"][0]
