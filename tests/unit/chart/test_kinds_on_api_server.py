"""``imagesFrom`` with other kinds on a real API server: the projects' own CRDs, discovery, RBAC.

CI uses the CRDs of three projects. `make kinds` (the marker ``kinds``) uses those of all.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
import yaml
from kubernetes.aio.client import Configuration

from imagegate.api import kinds
from imagegate.domain.facts import Place
from imagegate.kube import errors, workloads
from imagegate.kube.client import Client, api_client
from imagegate.kube.workloads import Workloads
from tests.cluster import crds
from tests.unit.api import objects
from tests.unit.kinds import EXAMPLES, NAMESPACE, Example

from . import apiserver, rendering
from .apiserver import ApiServer

OPERATOR = "operator-token"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
READY_SECONDS = 30

ROLLOUTS = crds.Source(
    "github.com/argoproj/argo-rollouts", "v1.8.3", "manifests/crds/rollout-crd.yaml"
)
_RAY = ("github.com/ray-project/kuberay/ray-operator", "v1.5.0", "config/crd/bases/ray.io_")
_KSERVE = ("github.com/kserve/kserve", "v0.16.0", "config/crd/full/serving.kserve.io_")
_ARGO = ("github.com/argoproj/argo-workflows/v3", "v3.7.4", "manifests/base/crds/full/argoproj.io_")
_TRAINING = ("github.com/kubeflow/training-operator", "v1.9.3", "manifests/base/crds/kubeflow.org_")
_TRAINER = (
    "github.com/kubeflow/trainer/v2",
    "v2.0.0",
    "manifests/base/crds/trainer.kubeflow.org_",
)
_SPARK = (
    "github.com/kubeflow/spark-operator/v2",
    "v2.3.0",
    "config/crd/bases/sparkoperator.k8s.io_",
)


def _source(project: tuple[str, str, str], plural: str) -> crds.Source:
    module, version, prefix = project
    return crds.Source(module, version, f"{prefix}{plural}.yaml")


SOURCES = {
    "Rollout": ROLLOUTS,
    "WorkflowTemplate": _source(_ARGO, "workflowtemplates"),
    "CronWorkflow": _source(_ARGO, "cronworkflows"),
    "InferenceService": _source(_KSERVE, "inferenceservices"),
    "ServingRuntime": _source(_KSERVE, "servingruntimes"),
    "RayCluster": _source(_RAY, "rayclusters"),
    "RayService": _source(_RAY, "rayservices"),
    "RayJob": _source(_RAY, "rayjobs"),
    "Service": crds.Source(
        "knative.dev/serving", "v0.51.0", "config/core/300-resources/service.yaml"
    ),
    "JobSet": crds.Source(
        "sigs.k8s.io/jobset",
        "v0.10.1",
        "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",
    ),
    "LeaderWorkerSet": crds.Source(
        "sigs.k8s.io/lws",
        "v0.7.0",
        "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml",
    ),
    **{
        kind: _source(_TRAINING, f"{kind.lower()}s")
        for kind in ("JAXJob", "MPIJob", "PaddleJob", "PyTorchJob", "TFJob", "XGBoostJob")
    },
    "TrainJob": _source(_TRAINER, "trainjobs"),
    "TrainingRuntime": _source(_TRAINER, "trainingruntimes"),
    "SparkApplication": _source(_SPARK, "sparkapplications"),
    "ScheduledSparkApplication": _source(_SPARK, "scheduledsparkapplications"),
}
"""By kind. The module of Kubeflow's Notebook is not available, so it has a minimal CRD."""
ALWAYS = {"Rollout", "Service", "InferenceService", "Notebook"}


def parameters() -> list[Any]:
    return [
        pytest.param(
            example,
            id=example.id,
            marks=() if example.place.kind in ALWAYS else (pytest.mark.kinds,),
        )
        for example in EXAMPLES
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    tokens = {OPERATOR: 'operator,operator,"operators"'}
    with apiserver.running(tmp_path_factory.mktemp("api"), tokens) as started:
        for name in (NAMESPACE, "closed"):
            create(started, "/api/v1/namespaces", {"metadata": {"name": name}})
        yield started


def create(server: ApiServer, path: str, body: object) -> None:
    status, answer = server.request("POST", path, body)
    assert status in (HTTPStatus.CREATED, HTTPStatus.CONFLICT), answer


def minimal(plural: str, example: Example, scope: str = "Namespaced") -> dict[str, Any]:
    group, _, version = example.place.api_version.partition("/")
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"plural": plural, "kind": example.place.kind},
            "versions": [{**served, "schema": {"openAPIV3Schema": schema}}],
        },
    }


def definition(example: Example) -> dict[str, Any]:
    if example.place.kind not in SOURCES:
        return minimal("notebooks", example)
    text = crds.fetch(SOURCES[example.place.kind]).read_text("utf-8")
    for document in yaml.load_all(text, yaml.CSafeLoader):
        if document and document["kind"] == "CustomResourceDefinition":
            found: dict[str, Any] = document
            # No conversion webhook runs here.
            found["spec"].pop("conversion", None)
            return found
    raise AssertionError(f"no CRD of {example.id}")


def install(server: ApiServer, crd: dict[str, Any], version: str) -> str:
    """The path of the collection in the namespace of the examples."""
    create(server, CRDS, crd)
    group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
    path = f"/apis/{group}/{version}/namespaces/{NAMESPACE}/{plural}"
    discovery = f"/apis/{group}/{version}"
    wait(lambda: f'"{plural}"' in json.dumps(server.request("GET", discovery)[1]), discovery)
    wait(lambda: server.request("GET", path)[0] == HTTPStatus.OK, path)
    return path


def wait(done: Any, what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def client_of(server: ApiServer, token: str = apiserver.ADMIN) -> Client:
    configuration = Configuration(host=f"https://127.0.0.1:{server.port}")
    configuration.ssl_ca_cert = str(server.certificate)
    configuration.api_key = {"BearerToken": f"Bearer {token}"}
    return Client(api_client(configuration))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", parameters())
async def test_images_of_a_known_kind_are_found_with_the_crd_of_its_project(
    server: ApiServer, example: Example
) -> None:
    crd = definition(example)
    version = example.place.api_version.partition("/")[2]
    path = install(server, crd, version)
    create(server, path, example.object)
    client = client_of(server)
    try:
        listed, _ = await Workloads(client).list(example.place)
    finally:
        await client.close()
    (found,) = listed.values()
    assert sorted(image.reference for image in found.images) == sorted(example.images)


@pytest.mark.parametrize("example", parameters())
def test_table_has_each_field_of_the_crd_that_names_an_image(example: Example) -> None:
    """A new version of a project may have another pod template."""
    if example.place.kind not in SOURCES:
        pytest.skip("a minimal CRD has no fields")
    kind = kinds.known(example.place.api_version, example.place.kind)
    assert kind is not None
    version = example.place.api_version.partition("/")[2]
    (schema,) = [
        each["schema"]["openAPIV3Schema"]
        for each in definition(example)["spec"]["versions"]
        if each["name"] == version
    ]
    pods, images = set[str](), set[str]()
    for path, field in fields(schema["properties"]["spec"], "spec"):
        properties = field.get("properties", {})
        if properties.get("containers", {}).get("type") == "array":
            pods.add(path)
        if properties.get("image", {}).get("type") == "string":
            images.add(f"{path}.image")
    named = {template for path in kind.pod_templates for template in (path, f"{path}.spec")}
    # Argo's containerSet has containers whose images are named one by one.
    assert {
        path for path in pods - named if f"{path}.containers[*].image" not in kind.images
    } == set()
    inside = tuple(f"{path}." for path in pods)
    others = {
        path
        for path in images
        if ".volumes[*]" not in path
        and not (path.startswith(inside) and path.endswith(("ontainers[*].image",)))
    }
    assert others - set(kind.images) == set()


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from fields(field, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], f"{path}[*]")


# ---- discovery, versions, rights and hostile objects, with a minimal CRD

THING = Example({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}}, [])
PLACE = Place("Thing", NAMESPACE, "example.com/v1", ("spec.template",), ("spec.image",))


async def test_crd_that_comes_and_goes_is_noticed(server: ApiServer) -> None:
    client = client_of(server)
    reader = Workloads(client)
    try:
        with pytest.raises(workloads.NotServed, match=r"does not serve Thing of example\.com/v1:"):
            await reader.list(PLACE)
        path = install(server, minimal("things", THING), "v1")
        create(server, path, {**THING.object, "spec": {"image": "a:1"}})
        listed, version = await reader.list(PLACE)
        assert [image.reference for image in listed["t"].images] == ["a:1"]
        changes = reader.watch(PLACE, version)
        server.request("PATCH", f"{path}/t", {"spec": {"image": "a:2"}}, patch="merge")
        change = await anext(changes)
        assert change.workload is not None
        assert [image.reference for image in change.workload.images] == ["a:2"]
        await changes.aclose()

        other = PLACE._replace(api_version="example.com/v2")
        with pytest.raises(workloads.NotServed, match=r"of example\.com/v2, only v1: install"):
            await reader.list(other)
        # The same kind with another plural.
        server.request("DELETE", f"{CRDS}/things.example.com")
        wait(lambda: server.request("GET", path)[0] == HTTPStatus.NOT_FOUND, "no Things")
        with pytest.raises(workloads.NotServed):
            await reader.list(PLACE)
        second = install(server, minimal("thingies", THING), "v1")
        create(server, second, {**THING.object, "spec": {"image": "a:3"}})
        listed, _ = await reader.list(PLACE)
        assert [image.reference for image in listed["t"].images] == ["a:3"]
    finally:
        await client.close()
        server.request("DELETE", f"{CRDS}/thingies.example.com")


async def test_kind_without_a_namespace_is_explained(server: ApiServer) -> None:
    example = Example(
        {"apiVersion": "cluster.example.com/v1", "kind": "Wide", "metadata": {"name": "w"}}, []
    )
    create(server, CRDS, minimal("wides", example, "Cluster"))
    discovery = "/apis/cluster.example.com/v1"
    wait(lambda: '"wides"' in json.dumps(server.request("GET", discovery)[1]), discovery)
    client = client_of(server)
    try:
        with pytest.raises(workloads.NotServed, match=r"has no namespace: name its images in spec"):
            await Workloads(client).list(Place("Wide", "a", "cluster.example.com/v1"))
    finally:
        await client.close()


async def test_roles_of_the_chart_let_the_operator_read_in_their_namespace_alone(
    server: ApiServer, helm: rendering.Helm
) -> None:
    example = EXAMPLES[0]
    install(server, definition(example), "v1alpha1")
    values = {"resources": [{"name": "rollouts.argoproj.io", "namespaces": [NAMESPACE]}]}
    release = helm.render({"imagesFrom": values})
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}"
    name = f"{NAMESPACE}/imagegate-images-from-resources"
    create(server, f"{roles}/roles", release.of("Role")[name])
    binding = release.of("RoleBinding")[name]
    user = {"kind": "User", "name": "operator", "apiGroup": "rbac.authorization.k8s.io"}
    create(server, f"{roles}/rolebindings", {**binding, "subjects": [user]})
    client = client_of(server, OPERATOR)
    reader = Workloads(client)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                await reader.list(example.place)
                break
            except errors.Forbidden:  # until the authorizer has seen the Role
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        closed = example.place._replace(namespace="closed")
        with pytest.raises(errors.Forbidden) as caught:
            await reader.list(closed)
        assert reader.problem(closed, caught.value) == (
            "the operator may not list rollouts.argoproj.io in namespace closed:"
            " add both to the chart's imagesFrom.resources"
        )
    finally:
        await client.close()


async def test_object_with_400_levels_is_read(server: ApiServer) -> None:
    deep = Example({"apiVersion": "deep.example.com/v1", "kind": "Deep", "metadata": {}}, [])
    path = install(server, minimal("deeps", deep), "v1")
    nested: Any = "x"
    for _ in range(400):
        nested = {"a": nested}
    create(server, path, {**deep.object, "metadata": {"name": "d"}, "spec": nested})
    place = Place("Deep", NAMESPACE, "deep.example.com/v1", (), ("spec.image",))
    client = client_of(server)
    try:
        listed, _ = await Workloads(client).list(place)
    finally:
        await client.close()
    assert listed["d"].images == ()


def test_rules_for_sources_are_those_of_the_operator(server: ApiServer) -> None:
    crd = yaml.safe_load(
        (rendering.CHECKOUT / "deploy/crds/imagegate.dev_imageprefetches.yaml").read_text("utf-8")
    )
    create(server, CRDS, crd)
    path = "/apis/imagegate.dev/v1alpha1/imageprefetches"
    wait(lambda: server.request("GET", path)[0] == HTTPStatus.OK, "the CRD")
    for row in (*objects.ACCEPTED, *objects.REFUSED):
        if not row.id.startswith("images-from"):
            continue
        status, answer = server.request("POST", f"{path}?dryRun=All", row.body)
        if row.refused is None:
            assert status == HTTPStatus.CREATED, (row.id, answer)
        else:
            assert status == HTTPStatus.UNPROCESSABLE_ENTITY, (row.id, answer)
            assert row.refused in answer["message"], row.id
