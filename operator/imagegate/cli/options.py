"""Groups of options that several commands have."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from imagegate import __version__
from imagegate.cli import values
from imagegate.domain.forecast import ORDINARY
from imagegate.domain.policy import ANYTHING, PrefetchPolicy

if TYPE_CHECKING:
    from imagegate.kube.client import Client
    from imagegate.registry.endpoints import RegistrySettings
    from imagegate.runtime.clock import Clock
    from imagegate.survey import Installed

SERVICES = "For the pods of the chart"
"""Heading, in the help, of the commands that the chart runs."""
GATE_TAINT_KEY = "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


class TableOrJson(StrEnum):
    TABLE = "table"
    JSON = "json"


def true_or_false(help_: str, **more: Any) -> Any:
    return Option(parser=values.boolean, metavar="true|false", help=help_, **more)


def names(metavar: str, help_: str, **more: Any) -> Any:
    return Option(parser=values.comma, metavar=metavar, help=help_, **more)


def rate(help_: str, usual: float | None = None) -> Any:
    """An option in MB/s, whose value is in bytes per second; ``usual``: its default."""
    return Option(
        parser=values.megabytes_per_second,
        metavar="MB/s",
        help=help_ if usual is None else f"{help_}; default {usual / 1e6:g}.",
        show_default=False,
    )


@dataclass(frozen=True, kw_only=True)
class Bandwidths:
    node_rate: Annotated[float, rate("What one node receives", ORDINARY.node)] = ORDINARY.node
    registry_rate: Annotated[
        float, rate("What the registry sends to all nodes together", ORDINARY.registry)
    ] = ORDINARY.registry
    unpack_rate: Annotated[
        float, rate("Compressed bytes that one core unpacks", ORDINARY.unpack)
    ] = ORDINARY.unpack


@dataclass(frozen=True, kw_only=True)
class Place:
    """Of a command that runs in the cluster: where, and how it logs."""

    namespace: Annotated[
        str, Option(envvar="POD_NAMESPACE", help="Namespace of the operator and of its Lease.")
    ] = "imagegate-system"
    log_level: Annotated[LogLevel, Option()] = LogLevel.INFO
    log_format: Annotated[LogFormat, Option()] = LogFormat.JSON


@dataclass(frozen=True, kw_only=True)
class Names(Place):
    """The names under which the operator is installed."""

    lease_name: Annotated[str, Option()] = "imagegate"
    puller_namespaces: Annotated[
        tuple[str, ...], names("A,B", "Namespaces in which puller pods may run.")
    ] = ("imagegate-system",)
    gate_taint_key: Annotated[str, Option()] = GATE_TAINT_KEY


@dataclass(frozen=True, kw_only=True)
class Registries:
    """How registries are reached. The environment of the operator's pod has these settings, so that
    they apply to a command that is executed there, too.
    """

    registry_plain_http: Annotated[
        tuple[str, ...],
        names(
            "HOST[:PORT],...",
            "Registries without TLS, exactly as in image references.",
            envvar="IMAGEGATE_REGISTRY_PLAIN_HTTP",
        ),
    ] = ()
    registry_private_hosts: Annotated[
        tuple[str, ...],
        names(
            "HOST,...",
            "Hosts at private addresses that registries may name as realm or redirect to.",
            envvar="IMAGEGATE_REGISTRY_PRIVATE_HOSTS",
        ),
    ] = ()
    registry_token_services: Annotated[
        frozenset[tuple[str, str]],
        Option(
            parser=values.token_services,
            metavar="REGISTRY=HOST,...",
            help="Token services of other domains that get the credentials of these registries.",
            envvar="IMAGEGATE_REGISTRY_TOKEN_SERVICES",
        ),
    ] = frozenset()
    registry_ca_file: Annotated[
        str,
        Option(
            metavar="FILE",
            help="Certificates (PEM) to trust in addition to the system's.",
            envvar="IMAGEGATE_REGISTRY_CA_FILE",
        ),
    ] = ""
    credential_provider_config: Annotated[
        str,
        Option(
            metavar="FILE",
            help="Plugins that provide credentials for registries: the kubelet's"
            " CredentialProviderConfig.",
            envvar="IMAGEGATE_REGISTRY_CREDENTIAL_PROVIDER_CONFIG",
        ),
    ] = ""
    credential_provider_bin_dir: Annotated[
        str,
        Option(
            metavar="DIR",
            help="Directory of the plugins' executables.",
            envvar="IMAGEGATE_REGISTRY_CREDENTIAL_PROVIDER_BIN_DIR",
        ),
    ] = ""

    def registry(self) -> RegistrySettings:
        """Raises InvalidSettings for a wrong file of plugins, and OSError."""
        from imagegate.registry import provider_config
        from imagegate.registry.endpoints import RegistrySettings

        file = self.registry_ca_file
        return RegistrySettings(
            plain_http=frozenset(self.registry_plain_http),
            private_hosts=frozenset(self.registry_private_hosts),
            token_services=self.registry_token_services,
            ca_bundle=Path(file).read_text() if file else "",
            user_agent=f"imagegate/{__version__}",
            credential_providers=provider_config.read(
                self.credential_provider_config, self.credential_provider_bin_dir
            ),
        )


@dataclass(frozen=True, kw_only=True)
class DockerConfig:
    docker_config: Annotated[
        str,
        Option(
            metavar="FILE",
            help="File with credentials; '' for none. Default:"
            f" {values.DOCKER_CONFIG}, if it exists.",
            show_default=False,
        ),
    ] = values.DOCKER_CONFIG


@dataclass(frozen=True, kw_only=True)
class Outside(Registries):
    """How registries and kubelets are reached, and which ImagePrefetches are allowed."""

    kubelet_service_account: Annotated[
        str,
        Option(
            metavar="NAME",
            help="Service account in the operator's namespace whose tokens are sent to kubelets, to"
            " read their disk usage; it may read nodes/stats and nothing else. Default: disk usage"
            " is not read.",
            envvar="IMAGEGATE_KUBELET_SERVICE_ACCOUNT",
        ),
    ] = ""
    kubelet_ca_file: Annotated[
        str,
        Option(
            metavar="FILE",
            help="CA of the kubelets' serving certificates. Default: the cluster's own CA.",
            envvar="IMAGEGATE_KUBELET_CA_FILE",
        ),
    ] = ""
    kubelet_insecure_tls: Annotated[
        bool,
        true_or_false(
            "Whether kubelets' certificates are not verified.",
            envvar="IMAGEGATE_KUBELET_INSECURE_TLS",
        ),
    ] = False
    prefetch_policy: Annotated[
        PrefetchPolicy,
        Option(
            parser=values.prefetch_policy,
            metavar="JSON",
            help="Limits for ImagePrefetches: the chart's prefetchPolicy. Default: no limits.",
            envvar="IMAGEGATE_PREFETCH_POLICY",
            show_default=False,
        ),
    ] = ANYTHING


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which cluster a person means, in kubectl's words. Without these options: the service account
    in a pod, else $KUBECONFIG and its current context.
    """

    kubeconfig: Annotated[
        str, Option(metavar="FILE", help="Default: $KUBECONFIG, else ~/.kube/config.")
    ] = ""
    context: Annotated[
        str, Option(metavar="NAME", help="Context of the kubeconfig. Default: the current one.")
    ] = ""

    @asynccontextmanager
    async def connected(self, command: str) -> AsyncIterator[tuple[Client, Clock]]:
        """A connection for a command, and the clock of its API server. Raises a KubeError."""
        from imagegate.kube.client import Client
        from imagegate.runtime.clock import Clock, ServerTime

        time = ServerTime()
        client = await Client.connect(
            user_agent=f"imagegate-{command}/{__version__}",
            time_observer=time,
            kubeconfig=self.kubeconfig,
            context=self.context,
        )
        try:
            yield client, Clock(now=time.now)
        finally:
            await client.close()


@dataclass(frozen=True, kw_only=True)
class Installation(Cluster):
    """A cluster with Imagegate in it."""

    namespace: Annotated[
        str,
        Option("--namespace", "-n", envvar="POD_NAMESPACE", help="Namespace of the operator."),
    ] = "imagegate-system"
    puller_namespaces: Annotated[
        tuple[str, ...],
        names(
            "A,B",
            "Namespaces of the puller pods. Default: as the operator's Deployment says.",
            envvar="IMAGEGATE_PULLER_NAMESPACES",
        ),
    ] = ()

    async def find(self, client: Client) -> Installed:
        """How Imagegate is installed. Raises a KubeError."""
        from imagegate.survey import Installed

        return await Installed.find(client, self.namespace, self.puller_namespaces)


def own_namespace() -> str:
    """The namespace of the operator, in its pod."""
    return os.environ.get("POD_NAMESPACE", "imagegate-system")
