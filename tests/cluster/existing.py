"""The provider `existing`: a cluster that exists outside the harness, by KUBECONFIG.

The user must name the cluster with `--context`, because tests change it. The kubeconfig's current
context is not used.
"""

import os
from pathlib import Path

import yaml

from tests.cluster.errors import ClusterError, Unsupported
from tests.cluster.kind import program
from tests.cluster.provider import Cluster


class ExistingCluster(Cluster):
    """The cluster of one context."""

    def __init__(self, context: str | None) -> None:
        if not context:
            raise ClusterError("the provider existing changes a real cluster: name its --context")
        self.name = self._context = context
        known = yaml.safe_load(self.kubeconfig.read_text()).get("contexts") or []
        if context not in [each["name"] for each in known]:
            raise ClusterError(f"{self.kubeconfig} has no context {context!r}")

    @property
    def context(self) -> str | None:
        return self._context

    @property
    def kubeconfig(self) -> Path:
        path = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
        if not path.is_file():
            raise ClusterError(f"no kubeconfig {path}: set KUBECONFIG to one file")
        return path

    def program(self, name: str) -> Path:
        return program(name)

    def down(self) -> None:
        """Does nothing, because the cluster existed before the tests."""

    def push_layout(self, layout: Path, repository: str, *, registry: str = "open") -> str:
        raise Unsupported(f"cannot push {repository} to the {registry} registry: there is none")
