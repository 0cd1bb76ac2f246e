"""Debian's Prometheus, on demand, in the control plane's network, from which it reaches pods."""

import json
import sys
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import paths
from tests.cluster.api import Json
from tests.cluster.errors import ClusterError
from tests.cluster.local import discovery
from tests.cluster.local.controlplane import ControlPlane
from tests.cluster.local.processes import wait_until


@dataclass(frozen=True, slots=True)
class Prometheus:
    """One server. A start with other jobs replaces the running server."""

    control_plane: ControlPlane
    port: int  # of loopback

    def start(self, jobs: list[Json], interval: str = "2s") -> None:
        """`jobs` are scrape_configs. `kubernetes_sd_configs` may have the roles pod and
        endpoints (see `discovery.py`). Use relabelling to select a namespace."""
        group = self.control_plane.group
        group.stop("prometheus", grace=0)
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval},
            "scrape_configs": [self._discovered(job) for job in jobs],
        }
        self._start_discovery()
        path = group.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        flags = [
            f"--config.file={path}",
            f"--storage.tsdb.path={group.folder / 'prometheus'}",
            "--web.listen-address=127.0.0.1:9090",
        ]
        process = group.start("prometheus", ["prometheus", *flags])
        wait_until(lambda: self._get("/-/ready") != "", "Prometheus", 30, [process])

    @property
    def _targets(self) -> Path:
        return self.control_plane.folder / "targets"

    def _discovered(self, job: Json) -> Json:
        """The job with `kubernetes_sd_configs` replaced by the files of `discovery.py`."""
        result = {key: value for key, value in job.items() if key != "kubernetes_sd_configs"}
        for each in job.get("kubernetes_sd_configs", ()):
            if set(each) != {"role"} or each["role"] not in discovery.ROLES:
                raise ClusterError(f"kubernetes_sd_configs: only a role of {discovery.ROLES}")
            file = str(self._targets / f"{each['role']}.json")
            result.setdefault("file_sd_configs", []).append({"files": [file]})
        return result

    def _start_discovery(self) -> None:
        group = self.control_plane.group
        if not group.find("discovery"):
            self._targets.mkdir(exist_ok=True)
            kubeconfig = str(group.folder / "prometheus.kubeconfig")
            python = ["env", f"PYTHONPATH={paths.CHECKOUT}", sys.executable, "-m"]
            command = [*python, discovery.__name__, kubeconfig, str(self._targets)]
            group.start("discovery", command)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query: a list of {"metric", "value": [time, text]}."""
        parameters = urllib.parse.urlencode({"query": expression})
        result = json.loads(self._get(f"/api/v1/query?{parameters}"))["data"]["result"]
        return list(result)

    def _get(self, path: str) -> str:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{self.port}{path}", timeout=10
        ) as response:
            content: bytes = response.read()
            return content.decode()
