"""The chart as Helm renders it."""

import dataclasses
import json
import pathlib
import subprocess
from typing import Any

import yaml

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
CHART = CHECKOUT / "deploy" / "helm" / "imagegate"
NAMESPACE = "imagegate-system"
PULLERS = "imagegate-pullers"
POLICY_V1 = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"
POLICY_BETA = "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy"

Object = dict[str, Any]


class RenderError(Exception):
    """Helm failed; the message is the text that Helm printed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """The objects of a rendered release."""

    objects: list[Object]

    def of(self, kind: str) -> dict[str, Object]:
        """The objects of a kind, by name, or by namespace/name outside the release's namespace."""
        found = {}
        for obj in self.objects:
            if obj["kind"] == kind:
                namespace = obj["metadata"].get("namespace", NAMESPACE)
                prefix = "" if namespace == NAMESPACE else f"{namespace}/"
                assert prefix + obj["metadata"]["name"] not in found, (
                    f"two of {kind} {obj['metadata']['name']}"
                )
                found[prefix + obj["metadata"]["name"]] = obj
        return found

    def one(self, kind: str) -> Object:
        (found,) = self.of(kind).values()
        return found

    def pod(self, kind: str = "Deployment") -> Object:
        spec: Object = self.one(kind)["spec"]["template"]["spec"]
        return spec

    def container(self, kind: str = "Deployment") -> Object:
        (container,) = self.pod(kind)["containers"]
        result: Object = container
        return result


@dataclasses.dataclass(frozen=True, slots=True)
class Helm:
    program: pathlib.Path
    chart: pathlib.Path = CHART

    def run(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [self.program, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise RenderError(done.stdout + done.stderr)
        return done.stdout

    def render(
        self,
        values: Object | None = None,
        *,
        served: tuple[str, ...] = (),
        release: str = "imagegate",
    ) -> Release:
        """Render as `helm install` does if the API server also serves the APIs `served`."""
        arguments = ["template", release, str(self.chart), "--namespace", NAMESPACE, "--values=-"]
        arguments += [f"--api-versions={version}" for version in served]
        output = self.run(*arguments, stdin=json.dumps(values or {}))
        return Release([obj for obj in yaml.safe_load_all(output) if obj])
