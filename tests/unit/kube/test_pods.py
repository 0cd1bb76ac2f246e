"""A probe at start shows whether the API server keeps image volumes; it decides for all nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from imagegate.app import App, Outside
from imagegate.kube.kubelets import Kubelets
from imagegate.puller.mode import Mode
from imagegate.registry import client as registry
from imagegate.registry.manifests import Manifests
from imagegate.runtime.clock import Clock
from imagegate.runtime.process import Process
from imagegate.settings import Settings
from tests.unit.memory_api import MemoryApi

SETTINGS = Settings(namespace="imagegate-system", identity="test")


class Older(MemoryApi):
    """An API server that drops image volumes, because its feature gate ImageVolume is off."""

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> dict[str, Any]:
        made = await super().create(path, body, **query)
        for volume in (made.get("spec") or {}).get("volumes", ()):
            if volume.pop("image", None):
                volume["emptyDir"] = {}
        return made


async def mode(api: MemoryApi, wanted: Mode) -> Mode:
    client: Any = api
    puller = dataclasses.replace(SETTINGS.puller, mode=wanted)
    settings = dataclasses.replace(SETTINGS, puller=puller)
    process = Process.create(Clock(), version="test")
    async with registry.Client() as registries, Kubelets() as kubelets:
        outside = Outside(client, client, Manifests(registries), kubelets)
        app = App(settings, process, outside)
        await app._known.image_volumes.probe()
    assert api.objects == {}, "the probe creates no object"
    return app._known.image_volumes.puller.mode


@pytest.mark.parametrize("wanted", list(Mode))
async def test_container_mode_is_used_if_image_volumes_are_dropped(wanted: Mode) -> None:
    assert await mode(Older(), wanted) is Mode.CONTAINER


@pytest.mark.parametrize("wanted", list(Mode))
async def test_requested_mode_is_kept_if_image_volumes_are_kept(wanted: Mode) -> None:
    assert await mode(MemoryApi(), wanted) is wanted
