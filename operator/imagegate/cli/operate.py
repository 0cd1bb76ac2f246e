"""The commands that the chart runs: the operator, the push hooks, the watchdog, the clean-up."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from imagegate import __version__, logs
from imagegate.cli import exits, values
from imagegate.cli.options import Names, Outside, Place, true_or_false
from imagegate.errors import ImagegateError
from imagegate.puller.mode import Mode

if TYPE_CHECKING:
    from imagegate.runtime import installation
    from imagegate.settings import HooksSettings, Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An option with the default None has the default of `settings.Settings`."""

    identity: Annotated[
        str,
        Option(
            envvar="POD_NAME",
            help="Name of this process in the leader election. Default: the pod's or host's name.",
        ),
    ] = ""
    puller_image: Annotated[str | None, Option(help="A pause image: -v must exit 0.")] = None
    puller_mode: Annotated[
        Mode,
        Option(
            help="How puller pods name the images. Auto: image volumes where the node has them."
        ),
    ] = Mode.AUTO
    puller_container_image: Annotated[
        str | None,
        Option(help="For puller pods without image volumes: an image with a static /bin/busybox."),
    ] = None
    puller_priority_class: Annotated[str, Option()] = ""
    puller_resources: Annotated[
        dict[str, Any] | None,
        Option(
            parser=values.resources,
            metavar="JSON",
            help="Requests and limits of every container of puller pods.",
        ),
    ] = None
    puller_label: Annotated[
        list[tuple[str, str]] | None, Option(parser=values.pair, metavar="K=V")
    ] = None
    puller_annotation: Annotated[
        list[tuple[str, str]] | None, Option(parser=values.pair, metavar="K=V")
    ] = None
    puller_image_pull_secret: Annotated[
        list[str] | None, Option(metavar="NAME", help="For the puller pods' own images.")
    ] = None
    gate_silence_seconds: Annotated[int | None, Option()] = None
    gate_exclude_control_plane: Annotated[
        bool,
        true_or_false("With --gate-source=watch: leave nodes of the control plane alone."),
    ] = True
    gate_suspend: Annotated[bool, true_or_false("The kill switch, at the first start.")] = False
    gate_source: Annotated[
        str | None,
        Option(
            parser=values.gate_source,
            metavar="policy|watch|none",
            help="How joining nodes get the gate taint: by the admission policy, by the operator's"
            " watch, or by other means.",
        ),
    ] = None
    gate_policy: Annotated[str | None, Option(help="Name of the MutatingAdmissionPolicy.")] = None
    http_port: Annotated[int | None, Option()] = None
    pushes_configmap: Annotated[
        str,
        Option(
            metavar="NAME",
            help="Where `imagegate hooks` hands over pushes; without it there are none.",
        ),
    ] = ""
    resync_seconds: Annotated[float | None, Option()] = None

    def settings(self, installed: Names, outside: Outside) -> Settings:
        """Raises InvalidSettings and OSError."""
        from imagegate.puller.build import PullerSettings
        from imagegate.settings import Settings

        default = Settings(namespace="", identity="")
        puller = PullerSettings(
            mode=self.puller_mode,
            priority_class=self.puller_priority_class,
            labels=dict(self.puller_label or ()),
            annotations=dict(self.puller_annotation or ()),
            image_pull_secrets=tuple(self.puller_image_pull_secret or ()),
            **_given(
                default.puller,
                image=self.puller_image,
                busybox=self.puller_container_image,
                resources=self.puller_resources,
            ),
        )
        return Settings(
            namespace=installed.namespace,
            identity=self.identity or os.uname().nodename,
            lease_name=installed.lease_name,
            puller_namespaces=installed.puller_namespaces,
            puller=puller,
            gate_taint_key=installed.gate_taint_key,
            gate_suspend=self.gate_suspend,
            gate_control_planes=not self.gate_exclude_control_plane,
            prefetch_policy=outside.prefetch_policy,
            registry=outside.registry(),
            kubelet_account=outside.kubelet_service_account,
            kubelet_ca_file=outside.kubelet_ca_file,
            kubelet_insecure_tls=outside.kubelet_insecure_tls,
            pushes_configmap=self.pushes_configmap,
            log_level=str(installed.log_level),
            log_format=str(installed.log_format),
            **_given(
                default,
                gate_silence_seconds=self.gate_silence_seconds,
                gate_source=self.gate_source,
                gate_policy=self.gate_policy,
                http_port=self.http_port,
                resync_seconds=self.resync_seconds,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Receiver:
    pushes_configmap: Annotated[str, Option(metavar="NAME", help="Where pushes are handed over.")]
    hooks_file: Annotated[Path, Option(metavar="FILE", help="Receivers of push hooks (YAML).")]
    hooks_port: Annotated[int, Option()] = 8081
    http_port: Annotated[int, Option(help="For health checks and metrics.")] = 8080

    def settings(self, place: Place) -> HooksSettings:
        from imagegate.settings import HooksSettings

        return HooksSettings(
            namespace=place.namespace,
            pushes_configmap=self.pushes_configmap,
            file=self.hooks_file,
            port=self.hooks_port,
            http_port=self.http_port,
        )


@dataclass(frozen=True, kw_only=True)
class Silence:
    after_seconds: Annotated[float, Option(help="Time without a heartbeat.")] = 900.0


@dataclass(frozen=True, kw_only=True)
class Uninstall:
    deployment: Annotated[str, Option(help="The operator's Deployment, which is stopped first.")]


def run(installed: Names, outside: Outside, operator: Operator) -> int:
    """Run the operator."""
    from imagegate.run import run as operate

    async def work() -> int:
        await operate(operator.settings(installed, outside))
        return exits.OK

    return _serve(installed, work())


def hooks(place: Place, receiver: Receiver) -> int:
    """Receive push hooks and hand them over to the operator."""
    from imagegate import receive

    async def work() -> int:
        await receive.run(receiver.settings(place))
        return exits.OK

    return _serve(place, work())


def watchdog(installed: Names, silence: Silence) -> int:
    """Release all held nodes if the operator is dead.

    Exit status: 3 if nodes were released, so that an alert can fire; 1 on an error.
    """
    from imagegate.kube.client import Client
    from imagegate.runtime.clock import Clock, ServerTime
    from imagegate.runtime.watchdog import Watchdog

    async def work() -> int:
        time = ServerTime()
        client = await Client.connect(
            user_agent=f"imagegate-watchdog/{__version__}", time_observer=time
        )
        try:
            freed = await Watchdog(
                client,
                _installation(installed),
                after=silence.after_seconds,
                clock=Clock(now=time.now),
            ).run()
        finally:
            await client.close()
        return exits.RELEASED if freed else exits.OK

    return _serve(installed, work())


def cleanup(installed: Names, uninstall: Uninstall) -> int:
    """Remove everything of Imagegate from the cluster."""
    from imagegate.kube.client import Client
    from imagegate.kube.prefetches import Prefetches, Reader
    from imagegate.runtime.cleanup import Cleanup

    async def work() -> int:
        client = await Client.connect(user_agent=f"imagegate-cleanup/{__version__}")
        try:
            await Cleanup(
                client,
                Prefetches(client, Reader(installed.puller_namespaces)),
                _installation(installed),
                deployment=uninstall.deployment,
                puller_namespaces=installed.puller_namespaces,
            ).run()
        finally:
            await client.close()
        return exits.OK

    return _serve(installed, work())


def _installation(installed: Names) -> installation.Installation:
    from imagegate.runtime.installation import Installation

    return Installation(installed.namespace, installed.lease_name, installed.gate_taint_key)


def _configure(place: Place) -> None:
    logs.configure(place.log_level, place.log_format)


def _serve(place: Place, work: Coroutine[Any, Any, int]) -> int:
    _configure(place)
    try:
        return asyncio.run(work)
    except (ImagegateError, TimeoutError, OSError) as error:
        return _stopped(error)


def _stopped(error: Exception) -> int:
    logger.error("stopped", extra={"error": f"{type(error).__name__}: {error}"})
    return exits.FAILED


def _given(default: object, **options: object) -> dict[str, Any]:
    """These options, with the defaults of the settings where they are not given."""
    return {
        name: getattr(default, name) if value is None else value for name, value in options.items()
    }
