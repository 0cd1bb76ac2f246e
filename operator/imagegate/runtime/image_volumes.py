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
        """``puller``: as configured; ``namespace``: a namespace in which puller pods may run."""
        self._pods = pods
        self._configured = puller
        self._namespace = namespace
        self._puller = puller
        self._probed = False

    @property
    def puller(self) -> PullerSettings:
        """How puller pods are made, as far as is known."""
        return self._puller

    @property
    def probed(self) -> bool:
        """Whether it is known if the API server keeps image volumes."""
        return self._probed

    async def probe(self) -> None:
        """Check whether the API server keeps image volumes. If it drops them, no kubelet gets any,
        and puller pods use containers instead.

        A failing webhook does not end the leader: the probe is repeated later.
        """
        puller = self._configured
        if puller.mode is Mode.CONTAINER:
            self._probed = True
            return
        kept = await self._pods.keeps_image_volumes(build.probe(self._namespace, puller))
        if kept is False:
            logger.info("the API server drops image volumes: images are pulled as containers")
            self._puller = dataclasses.replace(puller, mode=Mode.CONTAINER)
        self._probed = kept is not None
