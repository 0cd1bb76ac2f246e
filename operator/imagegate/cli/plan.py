"""``imagegate plan``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Option

from imagegate.cli import exits, values
from imagegate.cli.options import Bandwidths, Cluster, Outside, TableOrJson, own_namespace, rate
from imagegate.domain.forecast import ORDINARY, Rates


@dataclass(frozen=True, kw_only=True)
class Request(Bandwidths):
    filename: Annotated[
        str, Option("--filename", "-f", metavar="FILE", help="YAML; - for standard input.")
    ]
    puller_namespaces: Annotated[
        tuple[str, ...],
        Option(
            parser=values.comma,
            metavar="A,B",
            help="Namespaces that the operator may use, the default first. Default: any namespace.",
            envvar="IMAGEGATE_PULLER_NAMESPACES",
        ),
    ] = ()
    output: Annotated[TableOrJson, Option("--output", "-o")] = TableOrJson.TABLE
    upload_rate: Annotated[
        float, rate("What one node sends to its peers, with a mirror", ORDINARY.upload)
    ] = ORDINARY.upload


def plan(cluster: Cluster, outside: Outside, request: Request) -> int:
    """Show what an ImagePrefetch would do, and change nothing.

    Nodes, bytes, disk space and time. Exit status: 1 if no node that lacks the images has space
    for them.
    """
    return asyncio.run(_plan(cluster, outside, request))


async def _plan(cluster: Cluster, outside: Outside, request: Request) -> int:
    from imagegate import plan
    from imagegate.kube.kubelets import Kubelets
    from imagegate.kube.tokens import Tokens
    from imagegate.registry import client as registry

    policy, account = outside.prefetch_policy, outside.kubelet_service_account
    prefetches = plan.load(request.filename, request.puller_namespaces, policy)
    rates = Rates(
        request.node_rate, request.upload_rate, request.registry_rate, request.unpack_rate
    )
    async with (
        cluster.connected("plan") as (client, _),
        registry.Client(outside.registry()) as registries,
        Kubelets(
            # Never this process's own token, because it may be the token of any user.
            Tokens(client, own_namespace(), account) if account else None,
            ca_file=outside.kubelet_ca_file,
            insecure_tls=outside.kubelet_insecure_tls,
        ) as kubelets,
    ):
        plans = await plan.make(prefetches, client, registries, kubelets, rates, policy)
    typer.echo((plan.as_json if request.output == "json" else plan.table)(plans))
    return exits.FAILED if any(each.hopeless for each in plans) else exits.OK
