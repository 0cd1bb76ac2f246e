"""Finds scrape targets in Kubernetes: Debian's Prometheus is built without `kubernetes_sd_configs`.

A separate program: `discovery.py KUBECONFIG FOLDER` writes `pod.json` and `endpoints.json` every
second, for `file_sd_configs`. It sets the labels of kubernetes_sd that scrape configurations
commonly use.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.api import Api, Json
from tests.cluster.errors import ClusterError

_META = "__meta_kubernetes_"
ROLES = ("pod", "endpoints")


def pod_targets(pods: list[Json]) -> Iterator[Json]:
    """One target for each declared port of each container, as for role `pod`."""
    for pod in pods:
        address = pod.get("status", {}).get("podIP")
        for container in pod["spec"]["containers"] if address else ():
            for port in container.get("ports", ()):
                labels = _pod_labels(pod) | {
                    f"{_META}pod_container_name": container["name"],
                    f"{_META}pod_container_port_name": port.get("name", ""),
                    f"{_META}pod_container_port_number": str(port["containerPort"]),
                }
                yield {"targets": [f"{address}:{port['containerPort']}"], "labels": labels}


def endpoint_targets(slices: list[Json], services: list[Json], pods: list[Json]) -> Iterator[Json]:
    """One target for each address and port of each service, as for role `endpoints`."""
    by_name = {_key(service): service for service in services}
    by_pod = {_key(pod): pod for pod in pods}
    for each in slices:
        namespace, labels = each["metadata"]["namespace"], each["metadata"].get("labels", {})
        service = by_name.get((namespace, labels.get("kubernetes.io/service-name", "")))
        for endpoint in (each.get("endpoints") or ()) if service else ():
            target = endpoint.get("targetRef", {}).get("name", "")
            pod = by_pod.get((namespace, target))
            for port in each.get("ports") or ():
                found = _service_labels(service or {}) | (_pod_labels(pod) if pod else {})
                found[f"{_META}endpoint_port_name"] = port.get("name") or ""
                ready = endpoint.get("conditions", {}).get("ready", True)
                found[f"{_META}endpoint_ready"] = str(ready).lower()
                addresses = [f"{address}:{port['port']}" for address in endpoint["addresses"]]
                yield {"targets": addresses, "labels": found}


def _pod_labels(pod: Json) -> dict[str, str]:
    conditions = pod["status"].get("conditions", [])
    ready = next((each["status"] for each in conditions if each["type"] == "Ready"), "unknown")
    metadata = pod["metadata"]
    return {
        f"{_META}namespace": metadata["namespace"],
        f"{_META}pod_name": metadata["name"],
        f"{_META}pod_uid": metadata["uid"],
        f"{_META}pod_ip": pod["status"].get("podIP", ""),
        f"{_META}pod_phase": pod["status"].get("phase", ""),
        f"{_META}pod_ready": ready.lower(),
        f"{_META}pod_node_name": pod["spec"].get("nodeName", ""),
        **_mapped("pod_label", metadata.get("labels", {})),
        **_mapped("pod_annotation", metadata.get("annotations", {})),
    }


def _service_labels(service: Json) -> dict[str, str]:
    metadata = service["metadata"]
    return {
        f"{_META}namespace": metadata["namespace"],
        f"{_META}service_name": metadata["name"],
        **_mapped("service_label", metadata.get("labels", {})),
        **_mapped("service_annotation", metadata.get("annotations", {})),
    }


def _mapped(kind: str, values: dict[str, str]) -> dict[str, str]:
    return {f"{_META}{kind}_{re.sub(r'[^A-Za-z0-9_]', '_', k)}": v for k, v in values.items()}


def _key(item: Json) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def write(api: Api, folder: Path) -> None:
    """Replaces each file atomically, because Prometheus reads a file when it changes."""
    pods = api.get("/api/v1/pods?fieldSelector=status.phase=Running")["items"]
    services = api.get("/api/v1/services")["items"]
    slices = api.get("/apis/discovery.k8s.io/v1/endpointslices")["items"]
    found = {
        "pod": list(pod_targets(pods)),
        "endpoints": list(endpoint_targets(slices, services, pods)),
    }
    for role, targets in found.items():
        file, content = folder / f"{role}.json", json.dumps(targets, indent=1)
        if not file.exists() or file.read_text() != content:
            scratch = folder / f".{role}"
            scratch.write_text(content)
            scratch.replace(file)


def main(kubeconfig: str, folder: str) -> None:
    api = Api(Path(kubeconfig))
    while True:
        try:
            write(api, Path(folder))
        except (ClusterError, OSError) as error:
            print(error, flush=True)  # the API server is down: keep the last targets
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
