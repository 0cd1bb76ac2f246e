"""`python -m tests.cluster`: commands for clusters."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from tests.cluster import binaries, images, operator_image
from tests.cluster.errors import ClusterError
from tests.cluster.existing import ExistingCluster
from tests.cluster.kind import KindCluster
from tests.cluster.local import cluster as local
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.provider import Cluster, ClusterOptions, NodeOptions

Command = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. A failure prints a sentence and no traceback."""
    # SIGTERM acts as Ctrl-C, so that a half-started cluster is removed.
    signal.signal(signal.SIGTERM, _interrupt)
    options = _parser().parse_args(arguments)
    run: Command = options.run
    try:
        return run(options)
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description="A real Kubernetes for the tests."
    )
    parser.add_argument("--name", default="imagegate", help="of the cluster (imagegate)")
    parser.add_argument("--provider", choices=("local", "kind", "existing"), default="local")
    parser.add_argument("--context", help="of the kubeconfig, for --provider existing")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        return added

    up = command("up", _up, "start a cluster; a running cluster of this name is replaced")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--kubernetes", default="v1.36", help="a folder of build/kubernetes (v1.36)")
    build = command("build", _build, "build everything that a cluster runs into the cache, once")
    build.add_argument("--kubernetes", default="v1.36", help="a folder of build/kubernetes (v1.36)")
    command("down", _down, "end the cluster and remove all of it")
    command("status", _status, "what runs, with pids, ports and logs")
    command("check-clean", _check_clean, "fail and list what `down` should have removed")
    command("env", _env, "print KUBECONFIG and PATH for a shell: eval $(… env)")
    command("images", _images, "list the test images")
    for program in ("kubectl", "helm"):
        passed = command(program, _pass_through, f"run {program} against the cluster")
        passed.set_defaults(program=program)
        passed.add_argument("arguments", nargs=argparse.REMAINDER)
    for name in ("add", "remove", "stop", "start", "reboot"):
        verb = command(f"{name}-node", _node, f"{name} a node")
        verb.set_defaults(verb=name)
        verb.add_argument("node")
    _add_label_option(commands.choices["add-node"])
    push = command("push", _push, "make a test image and push it")
    push.add_argument("image", choices=tuple(images.SPECS))
    push.add_argument("repository", help="such as team/app:1")
    push.add_argument("--registry", choices=("open", "secure", "faulty"), default="open")
    push.add_argument("--seed", type=int, default=0, help="another seed gives another content")
    kwok = command("kwok", _kwok, "add nodes that kwok simulates")
    kwok.add_argument("count", type=int)
    _add_label_option(kwok)
    operator = command("operator-image", _operator_image, "build and push the operator's image")
    operator.add_argument("--tag", default="dev")
    return parser


def _add_label_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")


def _labels(options: argparse.Namespace) -> dict[str, str]:
    return dict(text.split("=", 1) for text in options.label)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _cluster(options: argparse.Namespace) -> Cluster:
    match options.provider:
        case "kind":
            return KindCluster(options.name)
        case "existing":
            return ExistingCluster(options.context)
        case _:
            return _local(options)


def _local(options: argparse.Namespace) -> LocalCluster:
    if options.provider != "local":
        raise ClusterError(f"provider {options.provider} cannot do this, only `local` can")
    return LocalCluster.open(options.name)


def _up(options: argparse.Namespace) -> int:
    wanted = ClusterOptions(options.name, options.nodes, kubernetes=options.kubernetes)
    match options.provider:
        case "local":
            cluster: Cluster = LocalCluster.start(wanted)
        case "kind":
            cluster = KindCluster.start(wanted)
        case _:
            raise ClusterError("an existing cluster is there already: nothing to start")
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _build(options: argparse.Namespace) -> int:
    binaries.ensure(
        binaries.kubernetes(options.kubernetes),
        binaries.containerd(),
        binaries.kwok(),
        binaries.helm(),
        binaries.pause(),
    )
    return 0


def _down(options: argparse.Namespace) -> int:
    if options.provider == "local":
        local.remove(options.name)  # works without readable state
    else:
        _cluster(options).down()
    return 0


def _status(options: argparse.Namespace) -> int:
    print(_local(options).status_text())
    return 0


def _check_clean(options: argparse.Namespace) -> int:
    found = local.leftovers(options.name)
    print("\n".join(found) if found else "clean", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


def _env(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    folders = {str(cluster.program(name).parent) for name in ("kubectl", "helm")}
    search = ":".join([*sorted(folders), os.environ["PATH"]])
    print(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))} PATH={shlex.quote(search)}")
    return 0


def _images(_: argparse.Namespace) -> int:
    for name, spec in images.SPECS.items():
        print(f"{name:10} {spec.about}")
    print(f"cached: {images.cache_size() >> 20} MiB")
    return 0


def _pass_through(options: argparse.Namespace) -> int:
    command = _cluster(options).command(options.program, *options.arguments)
    os.execv(command[0], command)


def _node(options: argparse.Namespace) -> int:
    cluster = _local(options)
    match options.verb:
        case "add":
            cluster.add_node(options.node, NodeOptions(labels=_labels(options)))
        case "remove":
            cluster.remove_node(options.node)
        case "stop":
            cluster.node(options.node).stop()
        case "start":
            cluster.node(options.node).start()
            cluster.wait(cluster.node(options.node).ready, f"{options.node} Ready")
        case _:
            cluster.node(options.node).reboot()
            cluster.wait(cluster.node(options.node).ready, f"{options.node} Ready")
    return 0


def _push(options: argparse.Namespace) -> int:
    cluster, registry = _cluster(options), options.registry
    print(cluster.push(options.image, options.repository, registry=registry, seed=options.seed))
    return 0


def _kwok(options: argparse.Namespace) -> int:
    names = _local(options).kwok(options.count, labels=_labels(options))
    print(f"{names[0]} … {names[-1]} are Ready")
    return 0


def _operator_image(options: argparse.Namespace) -> int:
    layout: Path = operator_image.build()
    print(_cluster(options).push_layout(layout, f"imagegate/imagegate:{options.tag}"))
    return 0
