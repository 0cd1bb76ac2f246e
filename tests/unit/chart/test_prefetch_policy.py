"""The administrator's limits for ImagePrefetches: a real API server rejects objects that violate
them, with the text that the operator reports for objects that existed before.
"""

import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from imagegate.api import references
from imagegate.api.v1alpha1 import images
from imagegate.cli.values import prefetch_policy
from imagegate.domain import policy
from imagegate.kube.prefetches import PATH, Reader

from . import apiserver, rendering
from .rendering import NAMESPACE, Object

pytestmark = pytest.mark.timeout(180)

DIGEST = "@sha256:" + "0" * 64
VALUES: Object = {
    "prefetchPolicy": {
        "registries": [
            "reg.test",
            "reg.test:5000/team",
            "docker.io/library",
            "docker.io/acme/web",
            "localhost",
            "[::1]:5000",
        ],
        "pullSecrets": ["ml-pull", "web-pull"],
        "maxHoldSeconds": 900,
        "maxDiskUsagePercent": 75,
        "requireNodeSelector": True,
    }
}
FINE: Object = {"images": [{"image": "reg.test/a:1"}], "nodeSelector": {"matchLabels": {"a": "b"}}}
POLICY = "imagegate-prefetch-policy"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"

serial = itertools.count()


def operators_policy(helm: rendering.Helm, values: Object) -> policy.PrefetchPolicy:
    """The policy that the operator reads from the chart's values."""
    (container,) = helm.render(values).pod()["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    return prefetch_policy(env["IMAGEGATE_PREFETCH_POLICY"])


def body(name: str, spec: Object) -> Object:
    return {
        "apiVersion": "imagegate.dev/v1alpha1",
        "kind": "ImagePrefetch",
        "metadata": {"name": name, "uid": name},
        "spec": spec,
    }


class Api:
    """An API server with the installed chart; `install` changes the values."""

    def __init__(
        self, server: apiserver.ApiServer, helm: rendering.Helm, folder: pathlib.Path
    ) -> None:
        self.server, self._helm, self._folder = server, helm, folder
        self._values: Object | None = None

    def install(self, values: Object) -> None:
        if values == self._values:
            return
        self._values = values
        path = self._folder / f"values-{next(serial)}.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        flags = ["--install", "--create-namespace", "--reset-values", "--namespace", NAMESPACE]
        flags += ["--kubeconfig", str(self.server.kubeconfig), "--values", str(path)]
        self._helm.run("upgrade", "imagegate", str(rendering.CHART), *flags)

    def create(self, spec: Object, *, dry_run: bool = True) -> tuple[int, Any]:
        query = "?dryRun=All" if dry_run else ""
        return self.server.request("POST", PATH + query, body(f"p-{next(serial)}", spec))

    def refusal(self, spec: Object) -> str:
        """The message of the policy; empty if the object is accepted."""
        code, answer = self.create(spec)
        if code == 201:
            return ""
        assert POLICY in answer["message"], answer
        text: str = answer["message"].partition("denied request: ")[2]
        return text

    def wait(self, spec: Object, *, refused: bool) -> None:
        deadline = time.monotonic() + 60
        while (self.create(spec)[0] != 201) is not refused:
            assert time.monotonic() < deadline, f"the policy is not as it should be: {spec}"
            time.sleep(0.2)


FOREIGN: Object = {**FINE, "images": [{"image": "evil.test/a:1"}]}


@pytest.fixture(scope="module")
def api(helm: rendering.Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("apiserver")
    with apiserver.running(folder, {}) as server:
        api = Api(server, helm, folder)
        api.install({})
        api.wait(FINE, refused=False)
        yield api


@pytest.fixture(scope="module")
def allowed(helm: rendering.Helm) -> policy.PrefetchPolicy:
    return operators_policy(helm, VALUES)


@pytest.fixture
def earlier(api: Api) -> Callable[[], str]:
    """Creates an object that violates every limit, before the limits are set."""

    def make() -> str:
        api.install({})
        api.wait(FOREIGN, refused=False)
        code, made = api.create(
            {
                "images": [{"image": "evil.test/a:1"}],
                "imagePullSecrets": [{"name": "root"}],
                "gate": {"policy": "FailClosed"},
                "disk": {"maxUsagePercent": 100},
            },
            dry_run=False,
        )
        assert code == 201, made
        bound(api)
        name: str = made["metadata"]["name"]
        return name

    return make


def bound(api: Api) -> None:
    api.install(VALUES)
    api.wait(FINE, refused=False)
    api.wait(FOREIGN, refused=True)
    api.wait({**FINE, "nodeSelector": {}}, refused=True)


def test_chart_without_limits_rejects_no_prefetch(api: Api) -> None:
    api.install({})
    api.wait(FOREIGN, refused=False)
    assert api.server.request("GET", f"{POLICIES}/{POLICY}")[0] == 404
    wild = {"images": [{"image": "a"}], "gate": {"policy": "FailClosed", "timeoutSeconds": 86400}}
    assert api.refusal(wild) == ""


@pytest.mark.parametrize(
    "spec",
    [
        {**FINE, "images": [{"image": "reg.test/a"}, {"image": "evil.test/a:1"}]},
        {**FINE, "imagePullSecrets": [{"name": "ml-pull"}, {"name": "root"}]},
        {
            **FINE,
            "images": [
                {"image": "reg.test/a", "imagePullSecrets": [{"name": "ml-pull"}]},
                {"image": "reg.test/b", "imagePullSecrets": [{"name": "root"}]},
            ],
        },
        {
            **FINE,
            "repositories": [
                {"repository": "reg.test/a", "policy": {"alphabetical": {}}},
                {"repository": "evil.test/a", "policy": {"alphabetical": {}}},
            ],
        },
        {
            **FINE,
            "repositories": [
                {
                    "repository": "reg.test/a",
                    "policy": {"alphabetical": {}},
                    "imagePullSecrets": [{"name": "root"}],
                }
            ],
        },
        {**FINE, "nodeSelector": {}},
        {"images": FINE["images"]},
        {**FINE, "gate": {"policy": "FailClosed", "timeoutSeconds": 86400}},
        {**FINE, "gate": {"timeoutSeconds": 901}},
        {**FINE, "disk": {"maxUsagePercent": 76}},
    ],
    ids=[
        "registry",
        "secret",
        "secret of an image",
        "registry of a repository",
        "secret of a repository",
        "empty selector",
        "no selector",
        "FailClosed",
        "longest hold",
        "disk usage",
    ],
)
def test_rejection_has_the_same_text_as_the_operator(
    api: Api, allowed: policy.PrefetchPolicy, spec: Object
) -> None:
    bound(api)
    operator = Reader([NAMESPACE], allowed).parse(body("p", spec))
    assert operator.invalid is not None
    assert operator.invalid == ("PolicyViolation", api.refusal(spec))
    assert operator.forbidden


@pytest.mark.parametrize(
    "spec",
    [
        FINE,
        {**FINE, "imagePullSecrets": [{"name": "web-pull"}]},
        {**FINE, "gate": {"timeoutSeconds": 900}},
        {**FINE, "gate": {"mode": "Never", "policy": "FailClosed", "timeoutSeconds": 86400}},
        {**FINE, "disk": {"maxUsagePercent": 75}},
        {
            "imagesFrom": [{"kind": "Deployment", "namespace": "a"}],
            "nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
        },
    ],
)
def test_prefetch_within_the_limits_is_accepted(
    api: Api, allowed: policy.PrefetchPolicy, spec: Object
) -> None:
    bound(api)
    assert api.refusal(spec) == ""
    operator = Reader([NAMESPACE], allowed).parse(body("p", spec))
    assert operator.invalid is None


def test_fail_closed_alone_can_be_forbidden(api: Api, helm: rendering.Helm) -> None:
    values = {"prefetchPolicy": {"allowFailClosed": False}}
    spec = {"images": [{"image": "a"}], "gate": {"policy": "FailClosed"}}
    api.install(values)
    api.wait({"images": [{"image": "a"}]}, refused=False)
    api.wait(spec, refused=True)
    operator = Reader([NAMESPACE], operators_policy(helm, values)).parse(body("p", spec))
    assert operator.invalid == ("PolicyViolation", api.refusal(spec))
    assert api.refusal({**spec, "gate": {"timeoutSeconds": 86400}}) == ""


REFERENCES = {
    "reg.test/a": True,
    "reg.test/a/b/c:1": True,
    "reg.test/a" + DIGEST: True,
    "reg.test/a:1" + DIGEST: True,
    "reg.test:443/a": False,
    "reg.test:5000/a": False,
    "reg.test:5000/team/a": True,
    "reg.test:5000/team": True,
    "reg.test:5000/team:1": True,
    "reg.test:5000/team" + DIGEST: True,
    "reg.test:5000/team-b/a": False,
    "reg.test:5000/teams": False,
    "reg.test.evil.test/a": False,
    "evil.reg.test/a": False,
    "REG.TEST/a": False,
    "evil.test/reg.test/a": False,
    "evil/reg.test": False,
    "reg.test": True,  # library/reg.test on Docker Hub
    "reg.test:5000": True,  # the same, with a tag
    "nginx": True,
    "nginx:1": True,
    "nginx" + DIGEST: True,
    "library/nginx": True,
    "docker.io/nginx": True,
    "docker.io/library/nginx": True,
    "index.docker.io/nginx": True,
    "index.docker.io/library/nginx:1": True,
    "index.docker.io/evil/nginx": False,
    "evil/nginx": False,
    "docker.io/evil/nginx": False,
    "docker.io/library-evil/nginx": False,
    "DOCKER.IO/library/nginx": False,
    "docker.io:443/library/nginx": False,
    "acme/web": True,
    "acme/web:1": True,
    "acme/web" + DIGEST: True,
    "acme/web/inner": True,
    "acme/website": False,
    "acme/web-private": False,
    "docker.io/docker.io/library/nginx": False,
    "localhost/a": True,
    "localhost": True,  # library/localhost on Docker Hub
    "localhost:5000/a": False,
    "Localhost/a": False,
    "[::1]:5000/a": True,
    "[::1]/a": False,
    "[::1]:50001/a": False,
    "my_reg.test/a": False,
}
"""Valid references, and whether VALUES allows their registry."""
INVALID = [
    "reg.test@evil.test/a",
    "reg.test:secret@evil.test/a",
    "reg.test:443@evil.test/a",
    "reg.test#@evil.test/a",
    "reg.test\\@evil.test/a",
    "https://reg.test/a",
    "reg.test//a",
    "reg.test/../evil",
    "reg.test/a@" + DIGEST[1:] + "/evil",
    "reg.test/%2e%2e/evil",
    "/reg.test/a",
    "reg.test/A",
    "reg.test/a\nevil.test/b",
]


def test_cel_and_operator_agree_on_every_reference(
    api: Api, allowed: policy.PrefetchPolicy
) -> None:
    bound(api)
    told = {each: api.refusal({**FINE, "images": [{"image": each}]}) for each in REFERENCES}
    assert {each: text == "" for each, text in told.items()} == REFERENCES
    assert {each: allowed.allows(each) for each in REFERENCES} == REFERENCES


@pytest.mark.parametrize("reference", INVALID)
def test_invalid_reference_is_rejected_by_parser_and_api_server(api: Api, reference: str) -> None:
    with pytest.raises(references.InvalidReference):
        references.parse(reference)
    code, _ = api.create({**FINE, "images": [{"image": reference}]})
    assert code == 422


def test_chart_normalizes_references_as_the_api_does(helm: rendering.Helm) -> None:
    spec = helm.render(VALUES).of("ValidatingAdmissionPolicy")[POLICY]["spec"]
    (outside,) = (each for each in spec["variables"] if each["name"] == "outside")
    assert images.repository("i.image") in outside["expression"]


def test_object_older_than_a_limit_can_be_kept_corrected_and_deleted(
    api: Api, earlier: Callable[[], str]
) -> None:
    path = f"{PATH}/{earlier()}"

    def patch(body: Object, suffix: str = "") -> tuple[int, Any]:
        return api.server.request("PATCH", path + suffix, body, patch="merge")

    assert patch({"metadata": {"finalizers": ["imagegate.dev/cleanup"]}})[0] == 200
    assert patch({"metadata": {"labels": {"team": "a"}}})[0] == 200
    assert patch({"status": {"observedGeneration": 1}}, "/status")[0] == 200
    # Other edits are rejected, and so is an edit that corrects only a part.
    code, answer = patch({"spec": {"dryRun": True}})
    assert (code, POLICY in answer["message"]) == (422, True)
    assert patch({"spec": {"images": [{"image": "reg.test/a"}]}})[0] == 422
    assert patch({"spec": {**FINE, "imagePullSecrets": None, "gate": None, "disk": None}})[0] == 200

    path = f"{PATH}/{earlier()}"
    assert patch({"metadata": {"finalizers": ["imagegate.dev/cleanup"]}})[0] == 200
    assert api.server.request("DELETE", path)[0] == 200
    assert api.server.request("GET", path)[0] == 200, "the finalizer delays the deletion"
    assert patch({"metadata": {"finalizers": None}})[0] == 200
    assert api.server.request("GET", path)[0] == 404


def test_largest_spec_and_longest_lists_stay_within_the_cel_budget(api: Api) -> None:
    long = [f"{'r' * 180}{number}.test/team" for number in range(64)]
    secrets = [f"{'s' * 200}{number}" for number in range(64)]
    values = {"prefetchPolicy": {"registries": long, "pullSecrets": secrets}}
    api.install(values)
    api.wait({"images": [{"image": f"{long[0]}/a"}]}, refused=False)
    api.wait(FOREIGN, refused=True)
    named = [{"name": each} for each in secrets[-16:]]
    repository = "a" * 120 + "/" + "b" * 120
    spec: Object = {
        "images": [
            {"image": f"{long[-1]}/{repository}-{number}:1", "imagePullSecrets": named}
            for number in range(64)
        ]
    }
    began = time.monotonic()
    assert api.refusal(spec) == ""
    assert time.monotonic() - began < 2
    spec["images"][-1]["image"] = f"evil.test/{'a' * 120}:{'1' * 128}"
    assert "evil.test/aaa" in api.refusal(spec)


@pytest.mark.parametrize(
    "registry",
    [
        "index.docker.io",
        "index.docker.io/library",
        "nginx",
        "reg.test/",
        "https://reg.test",
        "reg.test/A",
        "reg.test/a:1",
        "*.reg.test",
        "reg.test', 'evil.test",
        "user@reg.test",
        "",
    ],
)
def test_registry_that_can_never_match_is_rejected_by_the_chart(
    helm: rendering.Helm, registry: str
) -> None:
    with pytest.raises(rendering.RenderError, match="registries"):
        helm.render({"prefetchPolicy": {"registries": [registry]}})


def test_registries_of_images_from_are_checked_in_the_same_way(helm: rendering.Helm) -> None:
    with pytest.raises(rendering.RenderError, match="pullSecretRegistries"):
        helm.render({"imagesFrom": {"pullSecretRegistries": ["index.docker.io"]}})


def test_chart_renders_with_values_of_an_older_release(helm: rendering.Helm) -> None:
    # With --reuse-values, the values of an older chart lack these keys.
    values: Object = {"prefetchPolicy": None, "imagesFrom": {"pullSecretRegistries": None}}
    assert operators_policy(helm, values) == prefetch_policy("{}")
    assert POLICY not in helm.render(values).of("ValidatingAdmissionPolicy")
