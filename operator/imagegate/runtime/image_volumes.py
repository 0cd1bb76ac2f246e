"""Whether the API server keeps image volumes, and so how puller pods name their images."""

from __future__ import annotations

import dataclasses
import logging

from imagegate.kube.pods import Pods
from imagegate.puller import build
from imagegate.puller.build import PullerSettings
from imagegate.puller.mode import Mode

logger = logging.getLogger(__name__)


class ImageVolumes:
    def __init__(self, pods: Pods, puller: PullerSettings, namespace: str) -> None:
        """``puller``: as it was asked for; ``namespace``: one in which puller pods may run."""
        self._pods = pods
        self._asked_for = puller
        self._namespace = namespace
        self._puller = puller
        self._probed = False

    @property
    def puller(self) -> PullerSettings:
        """How puller pods are made, as far as is known."""
        return self._puller

    @property
    def probed(self) -> bool:
        """Whether it is known what the API server keeps."""
        return self._probed

    async def probe(self) -> None:
        """Where the API server drops image volumes no kubelet gets any, whatever the flags say.

        A webhook that fails is no reason not to lead: then it stays unknown, and is probed again.
        """
        puller = self._asked_for
        if puller.mode is Mode.CONTAINER:
            self._probed = True
            return
        kept = await self._pods.keeps_image_volumes(build.probe(self._namespace, puller))
        if kept is False:
            logger.info("the API server drops image volumes: images are pulled as containers")
            self._puller = dataclasses.replace(puller, mode=Mode.CONTAINER)
        self._probed = kept is not None
