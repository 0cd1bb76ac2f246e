"""``imagegate plan``: its input and its output."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

import pytest

from imagegate import cli, logs, plan
from imagegate.api.references import Reference
from imagegate.domain import forecast
from imagegate.domain.facts import ImageFacts, ImageSize
from imagegate.domain.forecast import Forecast
from imagegate.domain.policy import PrefetchPolicy
from imagegate.kube import errors
from imagegate.kube.kubelets import Kubelets
from imagegate.registry import client as registry
from imagegate.registry.manifests import Manifests
from tests.unit.memory_api import MemoryApi

GB = 10**9
GOOD = """
apiVersion: imagegate.dev/v1alpha1
kind: ImagePrefetch
metadata: {name: llm}
spec:
  images: [{image: reg.test/llm:1}, {image: reg.test/private:1}]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no ImagePrefetch"),
        ("---\n---\n", "there is no ImagePrefetch"),
        ("{", "not YAML"),
        ("kind: Pod", "document 1: this is not an ImagePrefetch"),
        ("[1]", "document 1: this is not an ImagePrefetch"),
        (GOOD + "---\nkind: Node", "document 2: this is not an ImagePrefetch"),
        (GOOD.replace("llm:1", "LLM:1"), "spec.images[0].image"),
    ],
)
def test_invalid_prefetch_is_rejected_with_its_field(text: str, said: str) -> None:
    with pytest.raises(plan.InvalidPlan) as caught:
        plan.read(text, "prefetch.yaml")
    assert str(caught.value).startswith("prefetch.yaml")
    assert said in str(caught.value)


def test_puller_namespace_must_be_one_of_the_installation() -> None:
    (prefetch,) = plan.read(GOOD, "f", ["ml", "web"])
    assert prefetch.namespace == "ml"
    named = GOOD.replace("spec:", "spec:\n  pullerNamespace: elsewhere")
    with pytest.raises(plan.InvalidPlan, match="'elsewhere' is not one of the operator's"):
        plan.read(named, "f", ["ml", "web"])
    (prefetch,) = plan.read(named, "f")
    assert prefetch.namespace == "elsewhere"


def test_prefetch_against_the_policy_is_rejected_with_the_rule() -> None:
    policy = PrefetchPolicy(registries=("other.test",))
    with pytest.raises(plan.InvalidPlan, match=r"prefetchPolicy\.registries"):
        plan.read(GOOD, "f", [], policy)


@pytest.mark.parametrize(
    "policy",
    ["", "[]", '{"registry": ["a.test"]}', '{"maxHoldSeconds": "9"}', '{"registries": "a.test"}'],
)
def test_invalid_policy_is_a_usage_error(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["run"], ["plan", "-f", "-"]):
        assert cli.main([*command, f"--prefetch-policy={policy}"]) == 2
        assert "is not a prefetchPolicy" in capsys.readouterr().err


def test_defaults_are_those_of_the_crd() -> None:
    (prefetch,) = plan.read(GOOD, "prefetch.yaml")
    assert (prefetch.name, prefetch.max_usage, prefetch.rollout.max_parallel) == ("llm", 75, 10)


def made() -> plan.Plan:
    (prefetch,) = plan.read(GOOD, "prefetch.yaml")
    size = ImageSize(7 * GB, 3 * GB)
    return plan.Plan(
        prefetch,
        {
            "reg.test/llm:1": ImageFacts(sizes={"linux/amd64": size}),
            "reg.test/private:1": ImageFacts(problem="reg.test: private:1 is refused (401)"),
        },
        Forecast(
            matched=25,
            cached=2,
            to_pull=1,
            no_room=tuple((f"node-{i}", "the disk is full") for i in range(21)),
            skipped={"cordoned": 1},
            bytes_all=7 * GB,
            bytes_node=7 * GB,
            unread=(("node-9", "its kubelet does not answer"),),
            seconds_direct=720,
            seconds_mirrored=80,
        ),
    )


DEPLOYMENTS = "/apis/apps/v1/namespaces/serving/deployments"
# Port 1 has no server, so no registry gets a request.
FROM = """
apiVersion: imagegate.dev/v1alpha1
kind: ImagePrefetch
metadata: {name: llm}
spec:
  images: [{image: 127.0.0.1:1/llm:1}]
  imagesFrom: [{kind: Deployment, namespace: serving}]
  disk: {maxUsagePercent: 100}
"""


async def planned(api: MemoryApi, text: str = FROM) -> plan.Plan:
    client: Any = api
    async with registry.Client() as registries, Kubelets() as kubelets:
        (made,) = await plan.make(
            plan.read(text, "f"), client, registries, kubelets, forecast.Rates()
        )
    return made


async def test_images_of_workloads_are_included() -> None:
    api = MemoryApi()
    container = {"name": "c", "image": "127.0.0.1:1/web:1"}
    spec = {"template": {"spec": {"containers": [container]}}}
    api.put(f"{DEPLOYMENTS}/web", {"metadata": {"name": "web"}, "spec": spec})
    made = await planned(api)
    assert [image.reference for image in made.prefetch.images] == [
        "127.0.0.1:1/llm:1",
        "127.0.0.1:1/web:1",
    ]
    assert "imagesFrom: 1 images of 1 workloads besides spec.images" in plan.table([made])
    (entry,) = json.loads(plan.as_json([made]))
    assert [image["from"] for image in entry["images"]] == [None, "Deployment serving/web"]


REPOSITORIES = """
apiVersion: imagegate.dev/v1alpha1
kind: ImagePrefetch
metadata: {name: llm}
spec:
  repositories:
  - repository: 127.0.0.1:1/llm
    filterTags: {pattern: '^main-(?P<ts>[0-9]+)$', extract: '$ts'}
    policy: {numerical: {}}
  disk: {maxUsagePercent: 100}
"""


async def test_newest_tags_of_repositories_are_included(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tags(_: Manifests, reference: Reference, __: object = None) -> tuple[str, ...]:
        assert reference.name == "127.0.0.1:1/llm"
        return ("main-1", "main-3", "main-2", "latest")

    monkeypatch.setattr(Manifests, "tags", tags)
    made = await planned(MemoryApi(), REPOSITORIES)
    assert [image.reference for image in made.prefetch.images] == [
        "127.0.0.1:1/llm:main-3",
        "127.0.0.1:1/llm:main-2",
    ]
    line = "repositories: 2 of 3 matching tags, of 4 in all, of 127.0.0.1:1/llm"
    assert line in plan.table([made]).splitlines()
    (entry,) = json.loads(plan.as_json([made]))
    assert entry["repositories"] == [
        {"repository": "127.0.0.1:1/llm", "tags": ["main-3", "main-2"], "matching": 3, "listed": 4}
    ]


async def test_plan_says_why_tags_are_not_listed() -> None:
    made = await planned(MemoryApi(), REPOSITORIES)
    assert made.prefetch.images == ()
    assert "repositories: 127.0.0.1:1/llm: 127.0.0.1:1: " in plan.table([made])


async def test_followed_tag_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker Hub limits the number of requests, and the tag may change between two of them."""
    asked: list[str] = []

    async def resolve(_: Manifests, reference: Reference, __: object = None) -> str:
        if reference.digest is not None:
            return reference.digest
        asked.append(str(reference))
        return f"sha256:{'a' * 64}"

    monkeypatch.setattr(Manifests, "resolve", resolve)
    text = FROM.replace(
        "  imagesFrom: [{kind: Deployment, namespace: serving}]", "  refresh: {mode: Digest}"
    )
    client: Any = MemoryApi()
    async with registry.Client() as registries, Kubelets() as kubelets:
        prefetches = plan.read(text, "f")
        await plan.make(prefetches, client, registries, kubelets, forecast.Rates())
    assert asked == ["127.0.0.1:1/llm:1"]


async def test_plan_fails_without_the_right_to_list_workloads() -> None:
    api = MemoryApi()

    def refuse(method: str, path: str) -> None:
        if path == DEPLOYMENTS:
            raise errors.Forbidden(f"{method} {path}", 403, "deployments.apps is forbidden")

    api.before = refuse
    with pytest.raises(errors.Forbidden, match="serving/deployments: 403"):
        await planned(api)


ROLLOUT = "{apiVersion: argoproj.io/v1alpha1, kind: Rollout, namespace: serving}"


async def test_images_of_another_kind_are_included() -> None:
    api = MemoryApi()
    api.put(
        "/apis/argoproj.io/v1alpha1",
        {
            "metadata": {},
            "resources": [{"name": "rollouts", "kind": "Rollout", "namespaced": True}],
        },
    )
    container = {"name": "c", "image": "127.0.0.1:1/web:1"}
    spec = {"template": {"spec": {"containers": [container]}}}
    path = "/apis/argoproj.io/v1alpha1/namespaces/serving/rollouts"
    api.put(f"{path}/web", {"metadata": {"name": "web"}, "spec": spec})
    made = await planned(api, FROM.replace("{kind: Deployment, namespace: serving}", ROLLOUT))
    assert made.prefetch.images[1].source == "Rollout.argoproj.io serving/web"


async def test_plan_fails_if_a_kind_is_not_served() -> None:
    text = FROM.replace("{kind: Deployment, namespace: serving}", ROLLOUT)
    with pytest.raises(errors.NotFound, match=r"does not serve Rollout of argoproj\.io/v1alpha1"):
        await planned(MemoryApi(), text)


@pytest.mark.parametrize(("to_pull", "hopeless"), [(0, True), (1, False)])
def test_plan_without_disk_space_on_any_node_is_hopeless(to_pull: int, hopeless: bool) -> None:
    given = made()
    forecast_ = dataclasses.replace(given.forecast, to_pull=to_pull)
    assert dataclasses.replace(given, forecast=forecast_).hopeless is hopeless


def test_table_shows_images_nodes_and_time() -> None:
    assert plan.table([made()]).splitlines() == [
        "ImagePrefetch llm",
        "",
        "IMAGE               COMPRESSED  LARGEST LAYER  ON DISK",
        "reg.test/llm:1      7.0 GB      3.0 GB         24.5 GB",
        "reg.test/private:1  unknown                    reg.test: private:1 is refused (401)",
        "",
        "NODES            COUNT",
        "matched          25",
        "hold the images  2",
        "to pull          1      7.0 GB in all, 7.0 GB a node",
        "without room     21     beyond 75 % of the disk",
        "skipped          1      1 cordoned",
        "disk not read    1      node-9: its kubelet does not answer",
        "",
        "TIME (estimate)",
        "every node from the registry  12 min",
        "with a mirror between nodes   80 s",
        "",
        "WITHOUT ROOM  WHY",
        *(f"node-{i}".ljust(12) + "  the disk is full" for i in range(20)),
        "... and 1 more",
    ]


def test_json_shows_images_nodes_and_time() -> None:
    (entry,) = json.loads(plan.as_json([made()]))
    assert entry["toPull"] == 1
    assert entry["bytesPerNode"] == 7 * GB
    assert entry["secondsWithMirror"] == 80
    assert entry["images"][0] == {
        "image": "reg.test/llm:1",
        "from": None,
        "compressedBytes": 7 * GB,
        "problem": None,
    }
    assert entry["noRoom"][0] == {"node": "node-0", "why": "the disk is full"}


@pytest.mark.parametrize("rate", ["0", "-1", "fast", "inf", "nan"])
def test_rate_that_is_not_a_positive_number_is_rejected(
    rate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", "-f", "-", f"--node-rate={rate}"]) == 2
    assert "MB/s" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_missing_file_is_an_error_with_the_remedy(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "-f", "/nowhere/prefetch.yaml"]) == 1
    assert capsys.readouterr().err == (
        "Error: /nowhere/prefetch.yaml: it cannot be read: No such file or directory: give the path"
        " of a file, or - for standard input\n"
    )


def test_log_lines_go_to_stderr_and_not_to_the_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.configure("warning", "text")
        logging.getLogger("imagegate.plan").warning("disk usage not known")
    finally:
        root.handlers[:], root.level = before
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "disk usage not known" in printed.err
