"""The kinds whose images ``spec.imagesFrom`` finds without paths: where each kind names images.

An entry applies to every version of its API group, because projects keep these fields from one
version to the next. ``checked`` is the version of the project whose CRD the entry was compared with
(`tests/unit/chart/test_kinds_on_api_server.py` compares them again). Notebook alone was not
compared, because its CRD is in no Go module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from imagegate.api import paths


@dataclass(frozen=True, slots=True)
class Ended:
    """When an object of a kind has ended, so that its images are not needed any more."""

    conditions: frozenset[str] = frozenset()
    """Types of conditions of which one is True at the end."""
    state: str = ""
    """A field of the status that has one of these values at the end."""
    states: frozenset[object] = frozenset()

    def __call__(self, body: Mapping[str, Any]) -> bool:
        conditions = paths.values(body, "status.conditions[*]") if self.conditions else ()
        return any(
            isinstance(each, Mapping)
            and each.get("status") == "True"
            and each.get("type") in self.conditions
            for each in conditions
        ) or any(
            isinstance(value, str) and value in self.states
            for value in (paths.values(body, self.state) if self.state else ())
        )


_NEVER: Final = Ended()
_TRAINED: Final = Ended(frozenset({"Succeeded", "Failed"}))


@dataclass(frozen=True, slots=True)
class Kind:
    """Where the objects of one kind name images."""

    group: str
    kind: str
    checked: str
    pod_templates: tuple[str, ...] = ()
    """Paths of pod templates, or of pod specs."""
    images: tuple[str, ...] = ()
    """Paths of image references."""
    oci: tuple[str, ...] = ()
    """Paths of URIs that name an image if they begin with ``oci://``."""
    ended: Ended = _NEVER
    built_in: tuple[str, str] = ("", "")
    """Version and plural of a kind of Kubernetes itself. Others are found by discovery."""


_KUBERNETES: Final = "Kubernetes 1.36"
_RAY: Final = "KubeRay 1.5.0"
_TRAINING: Final = "Kubeflow Training Operator 1.9.3"
_KSERVE: Final = "KServe 0.16.0"
_WORKFLOWS: Final = "Argo Workflows 3.7.4"
_SPARK: Final = "Kubeflow Spark Operator 2.3.0"
_TRAINER: Final = "Kubeflow Trainer 2.0.0"

_FRAMEWORKS: Final = (
    *("model", "huggingface", "lightgbm", "onnx", "paddle", "pmml", "pytorch", "sklearn"),
    *("tensorflow", "triton", "xgboost"),
)


class _Fields(TypedDict):
    pod_templates: tuple[str, ...]
    images: tuple[str, ...]


def _ray(cluster: str, *more: str) -> _Fields:
    groups = ("headGroupSpec", "workerGroupSpecs[*]")
    return {
        "pod_templates": (*(f"{cluster}.{group}.template" for group in groups), *more),
        "images": (f"{cluster}.autoscalerOptions.image",),
    }


def _training(kind: str, replicas: str) -> Kind:
    template = (f"spec.{replicas}[*].template",)
    return Kind("kubeflow.org", kind, _TRAINING, template, ended=_TRAINED)


def _workflow(spec: str) -> tuple[str, ...]:
    """The images of Argo's templates, which contain containers without a pod template."""
    return tuple(
        f"{spec}.{template}.{container}.image"
        for template in ("templates[*]", "templateDefaults")
        for container in (
            *("container", "script", "containerSet.containers[*]"),
            *("initContainers[*]", "sidecars[*]"),
        )
    )


def _spark(spec: str) -> _Fields:
    parts = ("driver", "executor")
    return {
        "pod_templates": tuple(f"{spec}.{part}.template" for part in parts),
        "images": (
            f"{spec}.image",
            *(
                f"{spec}.{part}.{image}"
                for part in parts
                for image in ("image", "initContainers[*].image", "sidecars[*].image")
            ),
        ),
    }


_TEMPLATE: Final = ("spec.template",)
_JOB_SET: Final = "replicatedJobs[*].template.spec.template"

ALL: Final = (
    Kind("apps", "Deployment", _KUBERNETES, _TEMPLATE, built_in=("v1", "deployments")),
    Kind("apps", "StatefulSet", _KUBERNETES, _TEMPLATE, built_in=("v1", "statefulsets")),
    Kind("apps", "DaemonSet", _KUBERNETES, _TEMPLATE, built_in=("v1", "daemonsets")),
    Kind(
        "batch",
        "Job",
        _KUBERNETES,
        _TEMPLATE,
        ended=Ended(frozenset({"Complete", "Failed"})),
        built_in=("v1", "jobs"),
    ),
    Kind(
        "batch",
        "CronJob",
        _KUBERNETES,
        ("spec.jobTemplate.spec.template",),
        built_in=("v1", "cronjobs"),
    ),
    Kind("argoproj.io", "Rollout", "Argo Rollouts 1.8.3", _TEMPLATE),
    Kind("argoproj.io", "WorkflowTemplate", _WORKFLOWS, images=_workflow("spec")),
    Kind("argoproj.io", "CronWorkflow", _WORKFLOWS, images=_workflow("spec.workflowSpec")),
    Kind(
        "serving.kserve.io",
        "InferenceService",
        _KSERVE,
        ("spec.predictor", "spec.predictor.workerSpec", "spec.transformer", "spec.explainer"),
        (*(f"spec.predictor.{each}.image" for each in _FRAMEWORKS), "spec.explainer.art.image"),
        oci=tuple(f"spec.predictor.{each}.storageUri" for each in _FRAMEWORKS),
    ),
    Kind("serving.kserve.io", "ServingRuntime", _KSERVE, ("spec", "spec.workerSpec")),
    Kind("ray.io", "RayCluster", _RAY, **_ray("spec")),
    Kind("ray.io", "RayService", _RAY, **_ray("spec.rayClusterConfig")),
    Kind(
        "ray.io",
        "RayJob",
        _RAY,
        **_ray("spec.rayClusterSpec", "spec.submitterPodTemplate"),
        ended=Ended(
            state="status.jobDeploymentStatus",
            states=frozenset({"Complete", "Failed"}),
        ),
    ),
    Kind("serving.knative.dev", "Service", "Knative Serving 0.51.0", _TEMPLATE),
    Kind(
        "jobset.x-k8s.io",
        "JobSet",
        "JobSet 0.10.1",
        (f"spec.{_JOB_SET}",),
        ended=Ended(frozenset({"Completed", "Failed"})),
    ),
    Kind(
        "leaderworkerset.x-k8s.io",
        "LeaderWorkerSet",
        "LeaderWorkerSet 0.7.0",
        ("spec.leaderWorkerTemplate.leaderTemplate", "spec.leaderWorkerTemplate.workerTemplate"),
    ),
    _training("JAXJob", "jaxReplicaSpecs"),
    _training("MPIJob", "mpiReplicaSpecs"),
    _training("PaddleJob", "paddleReplicaSpecs"),
    _training("PyTorchJob", "pytorchReplicaSpecs"),
    _training("TFJob", "tfReplicaSpecs"),
    _training("XGBoostJob", "xgbReplicaSpecs"),
    Kind(
        "trainer.kubeflow.org",
        "TrainJob",
        _TRAINER,
        ("spec.podSpecOverrides[*]",),
        ("spec.trainer.image",),
        ended=Ended(frozenset({"Complete", "Failed"})),
    ),
    Kind("trainer.kubeflow.org", "TrainingRuntime", _TRAINER, (f"spec.template.spec.{_JOB_SET}",)),
    Kind("kubeflow.org", "Notebook", "Kubeflow Notebooks 1.10", _TEMPLATE),
    Kind(
        "sparkoperator.k8s.io",
        "SparkApplication",
        _SPARK,
        **_spark("spec"),
        ended=Ended(
            state="status.applicationState.state",
            states=frozenset({"COMPLETED", "FAILED"}),
        ),
    ),
    Kind("sparkoperator.k8s.io", "ScheduledSparkApplication", _SPARK, **_spark("spec.template")),
)

BUILT_IN: Final = {each.kind: each for each in ALL if each.built_in[0]}
"""The kinds that need no ``apiVersion``, by name."""
_KNOWN: Final = {(each.group, each.kind): each for each in ALL}


def known(api_version: str, kind: str) -> Kind | None:
    """The entry of a kind; None if the kind is not in the table. Without an ``apiVersion``, a
    built-in kind is meant.
    """
    if not api_version:
        return BUILT_IN.get(kind)
    return _KNOWN.get((group(api_version), kind))


def group(api_version: str) -> str:
    return api_version.partition("/")[0]


def default(api_version: str, kind: str) -> bool:
    """Whether this ``apiVersion`` is the one that a built-in kind has anyway."""
    entry = BUILT_IN.get(kind)
    return entry is not None and api_version == f"{entry.group}/{entry.built_in[0]}"
