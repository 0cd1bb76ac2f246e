"""The command line: ``imagegate run`` and ``imagegate cleanup``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from imagegate import __version__, app, logs
from imagegate.errors import ImagegateError
from imagegate.kube.client import Client
from imagegate.kube.prefetches import Prefetches, Reader
from imagegate.puller.build import PullerSettings
from imagegate.runtime.cleanup import Cleanup
from imagegate.settings import GateSource, Settings

logger = logging.getLogger(__name__)

_DEFAULTS = Settings(namespace="", identity="")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = _parser().parse_args(argv)
    logs.configure(arguments.log_level, arguments.log_format)
    try:
        match arguments.command:
            case "run":
                asyncio.run(app.run(_settings(arguments)))
            case _:
                asyncio.run(_cleanup(arguments))
    except (ImagegateError, TimeoutError, OSError) as error:
        logger.error("stopped", extra={"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imagegate", description="Pull images onto nodes before pods land there."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--namespace",
        default=os.environ.get("POD_NAMESPACE", "imagegate-system"),
        help="namespace of the operator's Lease",
    )
    common.add_argument("--lease-name", default=_DEFAULTS.lease_name)
    common.add_argument(
        "--puller-namespaces",
        type=_comma,
        default=_DEFAULTS.puller_namespaces,
        metavar="A,B",
        help="namespaces in which puller pods may run",
    )
    common.add_argument("--gate-taint-key", default=_DEFAULTS.gate_taint_key)
    common.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error")
    )
    common.add_argument("--log-format", default="json", choices=("json", "text"))

    run = commands.add_parser("run", parents=[common], help="run the operator")
    run.add_argument(
        "--identity",
        default=os.environ.get("POD_NAME", ""),
        help="who this is in the election; default: the pod's or host's name",
    )
    run.add_argument(
        "--puller-image", default=_DEFAULTS.puller.image, help="a pause image: -v must exit 0"
    )
    run.add_argument("--puller-priority-class", default="")
    run.add_argument("--puller-label", type=_pair, action="append", default=[], metavar="K=V")
    run.add_argument("--puller-annotation", type=_pair, action="append", default=[], metavar="K=V")
    run.add_argument(
        "--puller-image-pull-secret",
        action="append",
        default=[],
        metavar="NAME",
        help="for the pause image",
    )
    run.add_argument("--gate-silence-seconds", type=int, default=_DEFAULTS.gate_silence_seconds)
    run.add_argument("--gate-suspend", type=_boolean, default=False, metavar="true|false")
    run.add_argument(
        "--gate-source",
        type=GateSource,
        choices=list(GateSource),
        default=GateSource.POLICY,
        help="who taints joining nodes",
    )
    run.add_argument(
        "--gate-policy", default=_DEFAULTS.gate_policy, help="name of the MutatingAdmissionPolicy"
    )
    run.add_argument("--http-port", type=int, default=_DEFAULTS.http_port)
    run.add_argument("--resync-seconds", type=float, default=_DEFAULTS.resync_seconds)

    cleanup = commands.add_parser(
        "cleanup", parents=[common], help="remove everything of Imagegate from the cluster's nodes"
    )
    cleanup.add_argument("--deployment", required=True, help="the operator's, to be stopped first")
    return parser


def _comma(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


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


def _settings(arguments: argparse.Namespace) -> Settings:
    return Settings(
        namespace=arguments.namespace,
        identity=arguments.identity or os.uname().nodename,
        lease_name=arguments.lease_name,
        puller_namespaces=arguments.puller_namespaces,
        puller=PullerSettings(
            image=arguments.puller_image,
            priority_class=arguments.puller_priority_class,
            labels=dict(arguments.puller_label),
            annotations=dict(arguments.puller_annotation),
            image_pull_secrets=tuple(arguments.puller_image_pull_secret),
        ),
        gate_taint_key=arguments.gate_taint_key,
        gate_silence_seconds=arguments.gate_silence_seconds,
        gate_suspend=arguments.gate_suspend,
        gate_source=arguments.gate_source,
        gate_policy=arguments.gate_policy,
        http_port=arguments.http_port,
        resync_seconds=arguments.resync_seconds,
    )


async def _cleanup(arguments: argparse.Namespace) -> None:
    client = await Client.connect(user_agent=f"imagegate-cleanup/{__version__}")
    try:
        reader = Reader(frozenset(arguments.puller_namespaces))
        await Cleanup(
            client,
            Prefetches(client, reader),
            namespace=arguments.namespace,
            deployment=arguments.deployment,
            lease=arguments.lease_name,
            puller_namespaces=arguments.puller_namespaces,
            taint_key=arguments.gate_taint_key,
        ).run()
    finally:
        await client.close()


if __name__ == "__main__":
    sys.exit(main())
