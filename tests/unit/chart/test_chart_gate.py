"""The choice of the gate's source, and that the policy matches only the creation of nodes."""

import re

import pytest

from .rendering import POLICY_BETA, POLICY_V1, Helm, Object, RenderError

KINDS = ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")


def source(args: list[str]) -> str:
    (found,) = [
        arg.removeprefix("--gate-source=") for arg in args if arg.startswith("--gate-source=")
    ]
    return found


@pytest.mark.parametrize(
    ("wanted", "served", "version", "result"),
    [
        ("auto", (POLICY_V1, POLICY_BETA), "v1", "policy"),
        ("auto", (POLICY_V1,), "v1", "policy"),
        ("auto", (POLICY_BETA,), "v1beta1", "policy"),
        ("auto", (), None, "watch"),
        ("policy", (POLICY_V1,), "v1", "policy"),
        ("policy", (POLICY_BETA,), "v1beta1", "policy"),
        ("watch", (POLICY_V1,), None, "watch"),
        ("none", (POLICY_V1,), None, "none"),
    ],
)
def test_source_of_the_gate_follows_from_value_and_served_apis(
    helm: Helm, wanted: str, served: tuple[str, ...], version: str | None, result: str
) -> None:
    release = helm.render({"gate": {"source": wanted}}, served=served)
    args = release.container()["args"]
    assert source(args) == result
    assert ("--gate-policy=imagegate-node-gate" in args) == (result == "policy")
    for kind in KINDS:
        versions = [obj["apiVersion"] for obj in release.of(kind).values()]
        assert versions == ([f"admissionregistration.k8s.io/{version}"] if version else [])


def test_policy_without_a_served_api_is_rejected_with_the_remedy(helm: Helm) -> None:
    with pytest.raises(
        RenderError,
        match=r"serves MutatingAdmissionPolicy neither .* gate\.source=auto .* --api-versions",
    ):
        helm.render({"gate": {"source": "policy"}})


@pytest.mark.parametrize("served", [POLICY_V1, POLICY_BETA])
def test_policy_matches_the_creation_of_nodes_only(helm: Helm, served: str) -> None:
    spec = helm.render(served=(served,)).one("MutatingAdmissionPolicy")["spec"]
    # No UPDATE and no nodes/status, because NodeRestriction would then reject heartbeats.
    assert spec["matchConstraints"] == {
        "resourceRules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["nodes"],
                "scope": "Cluster",
            }
        ]
    }
    assert spec["failurePolicy"] == "Ignore"
    assert spec["reinvocationPolicy"] == "Never"
    assert spec["paramKind"] == {"apiVersion": "imagegate.dev/v1alpha1", "kind": "NodeGate"}


def test_binding_allows_nodes_without_a_parameter_and_has_the_selector(helm: Helm) -> None:
    spec = helm.render(served=(POLICY_V1,)).one("MutatingAdmissionPolicyBinding")["spec"]
    assert spec == {
        "policyName": "imagegate-node-gate",
        "paramRef": {"name": "default", "parameterNotFoundAction": "Allow"},
    }
    selector = {"matchLabels": {"pool": "gpu"}}
    spec = helm.render({"gate": {"objectSelector": selector}}, served=(POLICY_V1,)).one(KINDS[1])[
        "spec"
    ]
    assert spec["matchResources"] == {"objectSelector": selector}


def test_missing_optional_fields_get_defaults(helm: Helm) -> None:
    values = {"gate": {"taintKey": "example.com/hold", "silenceSeconds": 600}}
    spec: Object = helm.render(values, served=(POLICY_V1,)).one("MutatingAdmissionPolicy")["spec"]
    expressions = [each["expression"] for each in [*spec["matchConditions"], *spec["variables"]]]
    for expression in expressions:
        for path in re.findall(r"params\.[a-zA-Z.]*[a-zA-Z]", expression):
            assert f"has({path})" in expression
    assert any("params.spec.silenceSeconds : 600" in expression for expression in expressions)
    assert any(
        "params.spec.taintKey : 'example.com/hold'" in expression for expression in expressions
    )


def test_control_plane_nodes_can_be_gated(helm: Helm) -> None:
    def conditions(values: Object) -> list[str]:
        spec = helm.render(values, served=(POLICY_V1,)).one("MutatingAdmissionPolicy")["spec"]
        return [condition["name"] for condition in spec["matchConditions"]]

    always = ["not-suspended", "operator-alive", "not-tainted-yet"]
    assert conditions({}) == [*always, "not-control-plane"]
    assert conditions({"gate": {"excludeControlPlane": False}}) == always
