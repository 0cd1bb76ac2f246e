"""The arguments with which the operator is installed, from its Deployment.

They are there as long as the chart is installed, also if no operator runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from imagegate.kube.client import Client

SELECTOR = "app.kubernetes.io/component=operator"


async def arguments(client: Client, namespace: str) -> Mapping[str, str]:
    """The arguments ``--name=value`` of the operator, by name; empty if the namespace has no
    operator. Raises a KubeError.
    """
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    async for body in client.list_all(path, labelSelector=SELECTOR):
        spec = (body.get("spec") or {}).get("template", {}).get("spec") or {}
        for container in spec.get("containers") or ():
            given = container.get("args") or [""]
            if given[0] == "run":
                pairs = (argument.partition("=") for argument in given[1:])
                return {name: value for name, _, value in pairs}
    return {}
