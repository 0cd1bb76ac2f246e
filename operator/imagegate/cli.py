"""The command line: ``imagegate run``, ``hooks``, ``plan``, ``lint``, ``tags``, ``simulate``,
``cleanup``, ``watchdog``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic.alias_generators import to_camel

from imagegate import __version__, lint, logs, plan, receive, run, tags
from imagegate.api import references
from imagegate.domain import advice, forecast
from imagegate.domain.policy import PrefetchPolicy
from imagegate.errors import ImagegateError
from imagegate.kube.client import Client
from imagegate.kube.kubelets import Kubelets
from imagegate.kube.prefetches import Prefetches, Reader
from imagegate.kube.tokens import Tokens
from imagegate.puller.build import PullerSettings
from imagegate.puller.mode import Mode
from imagegate.registry import client as registry
from imagegate.registry import provider_config, realms
from imagegate.registry.endpoints import RegistrySettings
from imagegate.registry.keychain import EMPTY, Keyring
from imagegate.registry.platforms import Platform
from imagegate.registry.realms import TokenServices
from imagegate.runtime.cleanup import Cleanup
from imagegate.runtime.clock import Clock, ServerTime
from imagegate.runtime.installation import Installation
from imagegate.runtime.watchdog import Watchdog
from imagegate.settings import GateSource, HooksSettings, Settings
from imagegate.simulate import command as simulate

logger = logging.getLogger(__name__)

_DEFAULTS = Settings(namespace="", identity="")
_HOOKS_PORT = 8081
_DOCKER_CONFIG = "~/.docker/config.json"
FREED = 3
"""Exit status of a watchdog that has released nodes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    arguments = _parser().parse_args(argv)
    # With trust_env, aiohttp also reads a .netrc, and sends its passwords to every host that it
    # names. A library may set trust_env to use the environment's proxies.
    os.environ["NETRC"] = os.devnull
    logs.configure(
        getattr(arguments, "log_level", "warning"), getattr(arguments, "log_format", "text")
    )
    try:
        match arguments.command:
            case "run":
                asyncio.run(run.run(_settings(arguments)))
            case "hooks":
                asyncio.run(receive.run(_hooks_settings(arguments)))
            case "plan":
                return asyncio.run(_plan(arguments))
            case "lint":
                return asyncio.run(_lint(arguments))
            case "tags":
                return asyncio.run(_tags(arguments))
            case "simulate":
                return simulate.run(arguments)
            case "watchdog":
                return asyncio.run(_watchdog(arguments))
            case _:
                asyncio.run(_cleanup(arguments))
    except (ImagegateError, TimeoutError, OSError) as error:
        logger.error("stopped", extra={"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imagegate", description="Pull images onto nodes before pods are scheduled there."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--namespace",
        default=_namespace(),
        help="namespace of the operator and of its Lease",
    )
    place.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    place.add_argument("--log-format", default="json", choices=("json", "text"))

    common = argparse.ArgumentParser(add_help=False, parents=[place])
    common.add_argument("--lease-name", default=_DEFAULTS.lease_name)
    common.add_argument(
        "--puller-namespaces",
        type=_comma,
        default=_DEFAULTS.puller_namespaces,
        metavar="A,B",
        help="namespaces in which puller pods may run",
    )
    common.add_argument("--gate-taint-key", default=_DEFAULTS.gate_taint_key)

    # Defaults come from the environment, so that they also apply to a command that is executed in
    # the operator's pod.
    registries = argparse.ArgumentParser(add_help=False)
    registries.add_argument(
        "--registry-plain-http",
        type=_comma,
        default=_comma(os.environ.get("IMAGEGATE_REGISTRY_PLAIN_HTTP", "")),
        metavar="HOST[:PORT],...",
        help="registries without TLS, exactly as in image references",
    )
    registries.add_argument(
        "--registry-private-hosts",
        type=_comma,
        default=_comma(os.environ.get("IMAGEGATE_REGISTRY_PRIVATE_HOSTS", "")),
        metavar="HOST,...",
        help="hosts at private addresses that registries may name as realm or redirect to",
    )
    registries.add_argument(
        "--registry-token-services",
        type=_token_services,
        default=os.environ.get("IMAGEGATE_REGISTRY_TOKEN_SERVICES", ""),
        metavar="REGISTRY=HOST,...",
        help="token services of other domains that get the credentials of these registries",
    )
    registries.add_argument(
        "--registry-ca-file",
        default=os.environ.get("IMAGEGATE_REGISTRY_CA_FILE", ""),
        help="certificates (PEM) to trust in addition to the system's",
    )
    registries.add_argument(
        "--credential-provider-config",
        default=os.environ.get("IMAGEGATE_REGISTRY_CREDENTIAL_PROVIDER_CONFIG", ""),
        metavar="FILE",
        help="plugins that provide credentials for registries: the kubelet's"
        " CredentialProviderConfig",
    )
    registries.add_argument(
        "--credential-provider-bin-dir",
        default=os.environ.get("IMAGEGATE_REGISTRY_CREDENTIAL_PROVIDER_BIN_DIR", ""),
        metavar="DIR",
        help="directory of the plugins' executables",
    )
    outside = argparse.ArgumentParser(add_help=False, parents=[registries])
    outside.add_argument(
        "--kubelet-service-account",
        default=os.environ.get("IMAGEGATE_KUBELET_SERVICE_ACCOUNT", ""),
        metavar="NAME",
        help="service account in the operator's namespace whose tokens are sent to kubelets, to"
        " read their disk usage; it may read nodes/stats and nothing else; default: disk usage is"
        " not read",
    )
    outside.add_argument(
        "--kubelet-ca-file",
        default=os.environ.get("IMAGEGATE_KUBELET_CA_FILE", ""),
        help="CA of the kubelets' serving certificates; default: the cluster's own CA",
    )
    outside.add_argument(
        "--kubelet-insecure-tls",
        type=_boolean,
        default=_boolean(os.environ.get("IMAGEGATE_KUBELET_INSECURE_TLS", "false")),
        metavar="true|false",
    )
    outside.add_argument(
        "--prefetch-policy",
        type=_prefetch_policy,
        default=os.environ.get("IMAGEGATE_PREFETCH_POLICY", "{}"),
        metavar="JSON",
        help="limits for ImagePrefetches: the chart's prefetchPolicy; default: no limits",
    )

    operator = commands.add_parser("run", parents=[common, outside], help="run the operator")
    operator.add_argument(
        "--identity",
        default=os.environ.get("POD_NAME", ""),
        help="name of this process in the leader election; default: the pod's or host's name",
    )
    operator.add_argument(
        "--puller-image", default=_DEFAULTS.puller.image, help="a pause image: -v must exit 0"
    )
    operator.add_argument(
        "--puller-mode",
        type=Mode,
        choices=list(Mode),
        default=Mode.AUTO,
        help="how puller pods name the images; Auto: image volumes where the node has them",
    )
    operator.add_argument(
        "--puller-container-image",
        default=_DEFAULTS.puller.busybox,
        help="for puller pods without image volumes: an image with a static /bin/busybox",
    )
    operator.add_argument("--puller-priority-class", default="")
    operator.add_argument(
        "--puller-resources",
        type=_resources,
        default=_DEFAULTS.puller.resources,
        metavar="JSON",
        help="requests and limits of every container of puller pods",
    )
    operator.add_argument("--puller-label", type=_pair, action="append", default=[], metavar="K=V")
    operator.add_argument(
        "--puller-annotation", type=_pair, action="append", default=[], metavar="K=V"
    )
    operator.add_argument(
        "--puller-image-pull-secret",
        action="append",
        default=[],
        metavar="NAME",
        help="for the puller pods' own images",
    )
    operator.add_argument(
        "--gate-silence-seconds", type=int, default=_DEFAULTS.gate_silence_seconds
    )
    operator.add_argument(
        "--gate-exclude-control-plane",
        type=_boolean,
        default=not _DEFAULTS.gate_control_planes,
        metavar="true|false",
        help="with --gate-source=watch: leave nodes of the control plane alone",
    )
    operator.add_argument("--gate-suspend", type=_boolean, default=False, metavar="true|false")
    operator.add_argument(
        "--gate-source",
        type=GateSource,
        choices=list(GateSource),
        default=GateSource.POLICY,
        help="how joining nodes get the gate taint: by the admission policy, by the operator's"
        " watch, or by other means",
    )
    operator.add_argument(
        "--gate-policy", default=_DEFAULTS.gate_policy, help="name of the MutatingAdmissionPolicy"
    )
    operator.add_argument("--http-port", type=int, default=_DEFAULTS.http_port)
    operator.add_argument(
        "--pushes-configmap",
        default="",
        metavar="NAME",
        help="where `imagegate hooks` hands over pushes; without it there are none",
    )
    operator.add_argument("--resync-seconds", type=float, default=_DEFAULTS.resync_seconds)

    _add_plan(commands, outside)
    _add_lint(commands, registries)
    _add_tags(commands, registries)
    simulate.add(commands)
    _add_helpers(commands, common, place)
    return parser


def _add_plan(commands: Any, outside: argparse.ArgumentParser) -> None:
    foretell = commands.add_parser(
        "plan",
        parents=[outside],
        help="show what an ImagePrefetch would do: nodes, bytes, disk space, time; changes nothing",
    )
    foretell.add_argument("-f", "--filename", required=True, help="YAML; - for standard input")
    foretell.add_argument(
        "--puller-namespaces",
        type=_comma,
        default=_comma(os.environ.get("IMAGEGATE_PULLER_NAMESPACES", "")),
        metavar="A,B",
        help="namespaces that the operator may use, the default first; empty: any namespace",
    )
    foretell.add_argument("-o", "--output", default="table", choices=("table", "json"))
    rates = forecast.Rates()
    for name, value, text in (
        ("node", rates.node, "what one node receives"),
        ("upload", rates.upload, "what one node sends to its peers, with a mirror"),
        ("registry", rates.registry, "what the registry sends to all nodes together"),
        ("unpack", rates.unpack, "compressed bytes that one core unpacks"),
    ):
        foretell.add_argument(
            f"--{name}-rate",
            type=_rate,
            default=value,
            metavar="MB/s",
            help=f"{text}; default {value / 1e6:g}",
        )


def _add_lint(commands: Any, registries: argparse.ArgumentParser) -> None:
    examine = commands.add_parser(
        "lint",
        parents=[registries],
        help="show what makes images slow to pull, with remedies; needs no cluster",
        epilog="Exit status: 1 if an image has an error or cannot be checked, 2 if the command line"
        " is wrong, else 0.",
    )
    examine.add_argument("images", type=_reference, nargs="+", metavar="IMAGE")
    examine.add_argument(
        "--platform",
        type=_platform,
        action="append",
        default=[],
        metavar="OS/ARCHITECTURE",
        help="platform of the nodes; may be repeated; default: all platforms of the image",
    )
    examine.add_argument("-o", "--output", default="table", choices=("table", "json"))
    examine.add_argument(
        "--disk-size",
        type=_gigabytes,
        default=advice.DISK,
        metavar="GB",
        help=f"size of the nodes' disks; default {advice.DISK / 1e9:g}",
    )
    _add_docker_config(examine)


def _add_tags(commands: Any, registries: argparse.ArgumentParser) -> None:
    choose = commands.add_parser(
        "tags",
        parents=[registries],
        help="show which tags spec.repositories of an ImagePrefetch chooses; needs no cluster",
        epilog="Exit status: 1 if a repository has no such tag or cannot be read, 2 if the command"
        " line is wrong, else 0.",
    )
    choose.add_argument("-f", "--filename", required=True, help="YAML; - for standard input")
    choose.add_argument("-o", "--output", default="table", choices=("table", "json"))
    _add_docker_config(choose)


def _add_docker_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--docker-config",
        type=_keyring,
        default=_DOCKER_CONFIG,
        metavar="FILE",
        help=f"file with credentials; default {_DOCKER_CONFIG}, if it exists; '' for none",
    )


def _add_hooks(commands: Any, place: argparse.ArgumentParser) -> None:
    hooks = commands.add_parser(
        "hooks",
        parents=[place],
        help="receive push hooks and hand them over to the operator",
    )
    hooks.add_argument("--pushes-configmap", required=True, metavar="NAME")
    hooks.add_argument(
        "--hooks-file",
        type=Path,
        required=True,
        metavar="FILE",
        help="receivers of push hooks (YAML)",
    )
    hooks.add_argument("--hooks-port", type=int, default=_HOOKS_PORT)
    hooks.add_argument("--http-port", type=int, default=_DEFAULTS.http_port)


def _add_helpers(
    commands: Any, common: argparse.ArgumentParser, place: argparse.ArgumentParser
) -> None:
    """Add the commands that the chart runs in addition to the operator."""
    _add_hooks(commands, place)
    cleanup = commands.add_parser(
        "cleanup", parents=[common], help="remove everything of Imagegate from the cluster's nodes"
    )
    cleanup.add_argument(
        "--deployment", required=True, help="the operator's Deployment, which is stopped first"
    )

    watchdog = commands.add_parser(
        "watchdog",
        parents=[common],
        help="release all held nodes, if the operator has sent no heartbeat for long",
        epilog="Exit status: 3 if nodes were released, so that an alert can fire; 1 on an error.",
    )
    watchdog.add_argument(
        "--after-seconds", type=float, default=900.0, help="time without a heartbeat; default 900"
    )


def _namespace() -> str:
    """The operator's namespace."""
    return os.environ.get("POD_NAMESPACE", "imagegate-system")


def _comma(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _token_services(text: str) -> TokenServices:
    try:
        return realms.parse(_comma(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> float:
    """Bytes per second, from megabytes per second."""
    try:
        rate = float(text) * 1e6
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of MB/s")
    return rate


def _gigabytes(text: str) -> int:
    """Bytes, from gigabytes of 10^9 bytes, the unit in which disks are sold."""
    try:
        size = float(text) * 1e9
    except ValueError:
        size = 0.0
    if not 1 <= size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of GB")
    return int(size)


def _reference(text: str) -> str:
    try:
        references.parse(text)
    except references.InvalidReference as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _platform(text: str) -> str:
    try:
        return str(Platform.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _keyring(text: str) -> Keyring:
    """The credentials of a docker configuration file. `_DOCKER_CONFIG` means docker's own file, if
    it exists.
    """
    try:
        if text != _DOCKER_CONFIG:
            return lint.keyring(Path(text)) if text else EMPTY
        folder = os.environ.get("DOCKER_CONFIG")
        path = Path(folder, "config.json") if folder else Path(text).expanduser()
        return lint.keyring(path) if path.is_file() else EMPTY
    except lint.InvalidDockerConfig as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except (OSError, RuntimeError):
        return EMPTY  # No home directory, or one without access, as in a container.


def _resources(text: str) -> dict[str, Any]:
    """A container's ``resources``, as JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() <= {"requests", "limits", "claims"}:
        raise argparse.ArgumentTypeError(f"{text!r} has no JSON object of requests and limits")
    return found


@with_config(ConfigDict(alias_generator=to_camel, extra="forbid", strict=True))
@dataclass(frozen=True, slots=True)
class _PrefetchPolicy(PrefetchPolicy):
    """The policy in the chart's JSON. Unknown fields are an error, because a limit that this
    version does not know must not be ignored.
    """


def _prefetch_policy(text: str) -> PrefetchPolicy:
    try:
        return TypeAdapter(_PrefetchPolicy).validate_json(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a prefetchPolicy: {error}") from None


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, value


def _boolean(text: str) -> bool:
    match text.lower():
        case "true":
            return True
        case "false":
            return False
        case _:
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _read(path: str) -> str:
    return Path(path).read_text() if path else ""


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        namespace=arguments.namespace,
        identity=arguments.identity or os.uname().nodename,
        lease_name=arguments.lease_name,
        puller_namespaces=arguments.puller_namespaces,
        puller=PullerSettings(
            image=arguments.puller_image,
            busybox=arguments.puller_container_image,
            mode=arguments.puller_mode,
            priority_class=arguments.puller_priority_class,
            labels=dict(arguments.puller_label),
            annotations=dict(arguments.puller_annotation),
            resources=arguments.puller_resources,
            image_pull_secrets=tuple(arguments.puller_image_pull_secret),
        ),
        gate_taint_key=arguments.gate_taint_key,
        gate_silence_seconds=arguments.gate_silence_seconds,
        gate_suspend=arguments.gate_suspend,
        gate_source=arguments.gate_source,
        gate_control_planes=not arguments.gate_exclude_control_plane,
        gate_policy=arguments.gate_policy,
        prefetch_policy=arguments.prefetch_policy,
        registry=_registry(arguments),
        kubelet_account=arguments.kubelet_service_account,
        kubelet_ca_file=arguments.kubelet_ca_file,
        kubelet_insecure_tls=arguments.kubelet_insecure_tls,
        http_port=arguments.http_port,
        pushes_configmap=arguments.pushes_configmap,
        resync_seconds=arguments.resync_seconds,
    )


def _hooks_settings(arguments: argparse.Namespace) -> HooksSettings:
    return HooksSettings(
        namespace=arguments.namespace,
        pushes_configmap=arguments.pushes_configmap,
        file=arguments.hooks_file,
        port=arguments.hooks_port,
        http_port=arguments.http_port,
    )


def _registry(arguments: argparse.Namespace) -> RegistrySettings:
    return RegistrySettings(
        plain_http=frozenset(arguments.registry_plain_http),
        private_hosts=frozenset(arguments.registry_private_hosts),
        token_services=arguments.registry_token_services,
        ca_bundle=_read(arguments.registry_ca_file),
        user_agent=f"imagegate/{__version__}",
        credential_providers=provider_config.read(
            arguments.credential_provider_config, arguments.credential_provider_bin_dir
        ),
    )


async def _plan(arguments: argparse.Namespace) -> int:
    """Returns 1 if no node that lacks the images of an ImagePrefetch has space for them."""
    policy = arguments.prefetch_policy
    text, source = _input(arguments.filename)
    prefetches = plan.read(text, source, arguments.puller_namespaces, policy)
    rates = forecast.Rates(
        arguments.node_rate, arguments.upload_rate, arguments.registry_rate, arguments.unpack_rate
    )
    account = arguments.kubelet_service_account
    client = await Client.connect(user_agent=f"imagegate-plan/{__version__}")
    try:
        async with (
            registry.Client(_registry(arguments)) as registries,
            Kubelets(
                # Never this process's own token, because it may be the token of any user.
                Tokens(client, _namespace(), account) if account else None,
                ca_file=arguments.kubelet_ca_file,
                insecure_tls=arguments.kubelet_insecure_tls,
            ) as kubelets,
        ):
            plans = await plan.make(prefetches, client, registries, kubelets, rates, policy)
    finally:
        await client.close()
    sys.stdout.write((plan.as_json if arguments.output == "json" else plan.table)(plans) + "\n")
    return 1 if any(each.hopeless for each in plans) else 0


async def _lint(arguments: argparse.Namespace) -> int:
    async with registry.Client(_registry(arguments)) as registries:
        linted = await lint.lint(
            arguments.images,
            tuple(dict.fromkeys(arguments.platform)),
            registries,
            arguments.docker_config,
            disk_size=arguments.disk_size,
        )
    sys.stdout.write((lint.as_json if arguments.output == "json" else lint.table)(linted) + "\n")
    return 1 if any(each.failed for each in linted) else 0


async def _tags(arguments: argparse.Namespace) -> int:
    prefetches = plan.read(*_input(arguments.filename))
    async with registry.Client(_registry(arguments)) as registries:
        choices = await tags.choose(prefetches, registries, arguments.docker_config)
    sys.stdout.write((tags.as_json if arguments.output == "json" else tags.table)(choices) + "\n")
    return 1 if any(each.failed for each in choices) else 0


def _input(filename: str) -> tuple[str, str]:
    """The text of a file or of the standard input (``-``), and its name for messages."""
    if filename == "-":
        return sys.stdin.read(), "standard input"
    return _read(filename), filename


async def _watchdog(arguments: argparse.Namespace) -> int:
    time = ServerTime()
    client = await Client.connect(
        user_agent=f"imagegate-watchdog/{__version__}", time_observer=time
    )
    try:
        freed = await Watchdog(
            client,
            _installation(arguments),
            after=arguments.after_seconds,
            clock=Clock(now=time.now),
        ).run()
    finally:
        await client.close()
    return FREED if freed else 0


def _installation(arguments: argparse.Namespace) -> Installation:
    return Installation(arguments.namespace, arguments.lease_name, arguments.gate_taint_key)


async def _cleanup(arguments: argparse.Namespace) -> None:
    client = await Client.connect(user_agent=f"imagegate-cleanup/{__version__}")
    try:
        reader = Reader(arguments.puller_namespaces)
        await Cleanup(
            client,
            Prefetches(client, reader),
            _installation(arguments),
            deployment=arguments.deployment,
            puller_namespaces=arguments.puller_namespaces,
        ).run()
    finally:
        await client.close()


if __name__ == "__main__":
    sys.exit(main())
