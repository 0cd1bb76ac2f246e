"""The exact rights of the operator, its cleanup and its watchdog."""

from collections.abc import Iterator

import pytest

from .rendering import NAMESPACE, POLICY_V1, PULLERS, Helm, Object, Release, RenderError

READ = {"get", "list", "watch"}

Grant = tuple[str, str, frozenset[str], tuple[str, ...]]


@pytest.fixture(scope="module")
def release(helm: Helm) -> Release:
    return helm.render({"puller": {"namespaces": ["ml", "web"]}}, served=(POLICY_V1,))


def grants(role: Object) -> Iterator[Grant]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                yield (
                    group,
                    resource,
                    frozenset(rule["verbs"]),
                    tuple(rule.get("resourceNames", ())),
                )


def roles(release: Release) -> list[Object]:
    return [*release.of("ClusterRole").values(), *release.of("Role").values()]


def test_operator_has_exactly_the_needed_cluster_rights(release: Release) -> None:
    assert set(grants(release.of("ClusterRole")["imagegate"])) == {
        ("", "nodes", frozenset(READ | {"patch"}), ()),
        ("imagegate.dev", "imageprefetches", frozenset(READ | {"patch"}), ()),
        ("imagegate.dev", "imageprefetches/status", frozenset({"patch"}), ()),
        ("imagegate.dev", "nodegates", frozenset(READ | {"create"}), ()),
        ("imagegate.dev", "nodegates/status", frozenset({"patch"}), ("default",)),
        (
            "admissionregistration.k8s.io",
            "mutatingadmissionpolicies",
            frozenset({"get"}),
            ("imagegate-node-gate",),
        ),
    }


def test_right_to_read_the_policy_exists_only_with_a_policy(helm: Helm) -> None:
    assert "admissionregistration.k8s.io" not in {
        group for role in roles(helm.render()) for group, *_ in grants(role)
    }


def test_roles_in_namespaces_have_exactly_the_needed_rights(release: Release) -> None:
    assert {name: set(grants(role)) for name, role in release.of("Role").items()} == {
        "imagegate": {
            ("coordination.k8s.io", "leases", frozenset({"create"}), ()),
            ("coordination.k8s.io", "leases", frozenset({"get", "update"}), ("imagegate",)),
        },
        "imagegate-kubelets": {
            ("", "serviceaccounts/token", frozenset({"create"}), ("imagegate-kubelets",)),
        },
        **{
            f"{namespace}/imagegate-puller": {
                ("", "pods", frozenset(READ | {"create", "delete"}), ()),
                ("", "events", frozenset(READ), ()),
                ("", "secrets", frozenset({"get"}), ()),
            }
            for namespace in ("ml", "web")
        },
        "default/imagegate-events": {("", "events", frozenset({"create"}), ())},
        "default/imagegate-watchdog-events": {("", "events", frozenset({"create"}), ())},
        "imagegate-watchdog": {
            ("coordination.k8s.io", "leases", frozenset({"get"}), ("imagegate",)),
        },
        "imagegate-cleanup": {
            ("apps", "deployments", frozenset({"get"}), ("imagegate",)),
            ("apps", "deployments/scale", frozenset({"patch"}), ("imagegate",)),
            ("", "pods", frozenset({"list"}), ()),
            ("coordination.k8s.io", "leases", frozenset({"get", "delete"}), ("imagegate",)),
        },
        **{
            f"{namespace}/imagegate-cleanup-puller": {
                ("", "pods", frozenset({"list", "delete"}), ())
            }
            for namespace in ("ml", "web")
        },
    }


def test_start_after_namespaces_get_rights_to_read_daemonsets(helm: Helm) -> None:
    values = {"startAfter": {"namespaces": ["kube-system", "mirrors"]}}
    named = helm.render(values)
    added = set(named.of("Role")) - set(helm.render().of("Role"))
    assert added == {f"{ns}/imagegate-start-after" for ns in ("kube-system", "mirrors")}
    for name in added:
        assert set(grants(named.of("Role")[name])) == {
            ("", "pods", frozenset({"list"}), ()),
            ("apps", "daemonsets", frozenset({"get"}), ()),
        }
        binding = named.of("RoleBinding")[name]
        assert binding["roleRef"]["name"] == "imagegate-start-after"
        (subject,) = binding["subjects"]
        assert subject == {
            "kind": "ServiceAccount",
            "name": "imagegate",
            "namespace": NAMESPACE,
        }


READ_WORKLOADS = {
    (group, resource, frozenset({"list", "watch"}), ())
    for group, resources in (
        ("apps", ("deployments", "statefulsets", "daemonsets")),
        ("batch", ("jobs", "cronjobs")),
    )
    for resource in resources
}


def test_images_from_namespaces_get_rights_to_read_workloads(helm: Helm) -> None:
    named = helm.render({"imagesFrom": {"namespaces": ["serving", "batch"]}})
    added = set(named.of("Role")) - set(helm.render().of("Role"))
    assert added == {f"{ns}/imagegate-images-from" for ns in ("serving", "batch")}
    for name in added:
        assert set(grants(named.of("Role")[name])) == READ_WORKLOADS
    assert "imagegate-images-from" not in named.of("ClusterRole")
    test_every_binding_names_a_role_and_an_account_of_the_chart(named)


def test_right_to_read_all_workloads_is_a_cluster_role(helm: Helm) -> None:
    values = {"imagesFrom": {"allNamespaces": True, "namespaces": ["serving"]}}
    everywhere = helm.render(values)
    assert set(grants(everywhere.of("ClusterRole")["imagegate-images-from"])) == READ_WORKLOADS
    assert set(everywhere.of("Role")) == set(helm.render().of("Role"))
    test_every_binding_names_a_role_and_an_account_of_the_chart(everywhere)


RESOURCES: list[Object] = [
    {"name": "rollouts.argoproj.io", "namespaces": ["serving", "web"]},
    {"name": "services.serving.knative.dev", "namespaces": ["serving"]},
    {"name": "rollouts.argoproj.io", "namespaces": ["serving"]},
    {"name": "rayclusters.ray.io", "allNamespaces": True},
]


def test_named_resources_can_be_read_in_their_namespaces(helm: Helm) -> None:
    read = frozenset({"list", "watch"})
    rollouts = ("argoproj.io", "rollouts", read, ())
    services = ("serving.knative.dev", "services", read, ())
    named = helm.render({"imagesFrom": {"resources": RESOURCES}})
    added = set(named.of("Role")) - set(helm.render().of("Role"))
    assert {name: list(grants(named.of("Role")[name])) for name in added} == {
        "serving/imagegate-images-from-resources": [rollouts, services],
        "web/imagegate-images-from-resources": [rollouts],
    }
    everywhere = named.of("ClusterRole")["imagegate-images-from-resources"]
    assert list(grants(everywhere)) == [("ray.io", "rayclusters", read, ())]
    test_every_binding_names_a_role_and_an_account_of_the_chart(named)


@pytest.mark.parametrize(
    "resource",
    [
        {"name": "secrets", "namespaces": ["serving"]},
        {"name": "*.argoproj.io", "namespaces": ["serving"]},
        {"name": "rollouts.*", "namespaces": ["serving"]},
        {"name": "Rollout.argoproj.io", "namespaces": ["serving"]},
        {"name": "rollouts.argoproj.io"},
        {"name": "rollouts.argoproj.io", "namespaces": []},
        {"name": "rollouts.argoproj.io", "namespaces": ["a/b"]},
        {"name": "rollouts.argoproj.io", "namespaces": ["a"], "verbs": ["get"]},
    ],
)
def test_resource_without_group_or_namespace_is_rejected(helm: Helm, resource: Object) -> None:
    with pytest.raises(RenderError, match="imagesFrom"):
        helm.render({"imagesFrom": {"resources": [resource]}})


def test_cleanup_has_exactly_the_needed_cluster_rights(release: Release) -> None:
    assert set(grants(release.of("ClusterRole")["imagegate-cleanup"])) == {
        ("", "nodes", frozenset({"get", "list", "patch"}), ()),
        ("imagegate.dev", "imageprefetches", frozenset({"get", "list", "patch"}), ()),
        ("imagegate.dev", "nodegates", frozenset({"get", "delete"}), ("default",)),
    }


def test_watchdog_has_exactly_the_needed_cluster_rights(helm: Helm, release: Release) -> None:
    assert set(grants(release.of("ClusterRole")["imagegate-watchdog"])) == {
        ("", "nodes", frozenset({"get", "list", "patch"}), ()),
        ("imagegate.dev", "nodegates", frozenset({"get"}), ("default",)),
    }
    without = helm.render({"gate": {"watchdog": {"enabled": False}}})
    assert not [
        name
        for kind in ("CronJob", "ClusterRole", "Role")
        for name in without.of(kind)
        if "watchdog" in name
    ]


def test_puller_pods_have_their_own_namespace(helm: Helm) -> None:
    release = helm.render()
    assert set(release.of("Role")) == {
        "imagegate",
        "imagegate-kubelets",
        "default/imagegate-events",
        "default/imagegate-watchdog-events",
        f"{PULLERS}/imagegate-puller",
        "imagegate-watchdog",
        "imagegate-cleanup",
        f"{PULLERS}/imagegate-cleanup-puller",
    }
    namespace = release.one("Namespace")["metadata"]
    assert namespace["name"] == PULLERS
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    # It is kept, because it contains the users' pull secrets.
    assert namespace["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert f"--puller-namespaces={PULLERS}" in release.container()["args"]


@pytest.mark.parametrize(
    "puller",
    [{"namespaces": ["ml"]}, {"namespaces": [NAMESPACE]}, {"createNamespace": False}],
    ids=["others", "the operator's own", "made by somebody else"],
)
def test_no_namespace_is_created_for_other_puller_settings(helm: Helm, puller: Object) -> None:
    release = helm.render({"puller": puller})
    assert not release.of("Namespace")
    assert len(release.of("Role")) == 8


def test_kubelets_receive_the_token_of_a_separate_account(helm: Helm, release: Release) -> None:
    assert set(grants(release.of("ClusterRole")["imagegate-kubelets"])) == {
        ("", "nodes/stats", frozenset({"get"}), ())
    }
    assert (
        release.of("ServiceAccount")["imagegate-kubelets"]["automountServiceAccountToken"] is False
    )
    env = {each["name"]: each.get("value") for each in release.container()["env"]}
    assert env["IMAGEGATE_KUBELET_SERVICE_ACCOUNT"] == "imagegate-kubelets"
    without = helm.render({"kubelet": {"readDiskUsage": False}})
    rendered = str(without.objects)
    assert "nodes/stats" not in rendered
    assert "imagegate-kubelets" not in rendered
    assert "serviceaccounts/token" not in rendered


FENCE = {f"imagegate-fence-{name}" for name in ("nodes", "prefetches", "gates", "pods")}


def test_fence_is_on_by_default_and_can_be_disabled(helm: Helm) -> None:
    release = helm.render()
    assert set(release.of("ValidatingAdmissionPolicy")) == FENCE
    assert set(release.of("ValidatingAdmissionPolicyBinding")) == FENCE
    for policy in release.of("ValidatingAdmissionPolicy").values():
        assert policy["spec"]["failurePolicy"] == "Fail"
        # Without a parameter, because an unreadable parameter would reject all requests.
        assert "paramKind" not in policy["spec"]
        (condition,) = policy["spec"]["matchConditions"]
        assert condition["expression"].startswith("request.userInfo.username in ['system:service")
    assert not helm.render({"fence": {"enabled": False}}).of("ValidatingAdmissionPolicy")


def test_chart_renders_no_fence_if_validating_policies_are_not_served(helm: Helm) -> None:
    policy = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"
    assert not helm.render(served=("v1/Pod",)).of("ValidatingAdmissionPolicy")
    assert helm.render(served=("v1/Pod", policy)).of("ValidatingAdmissionPolicy")


def test_fence_uses_the_names_and_accounts_of_the_release(helm: Helm) -> None:
    values = {
        "serviceAccount": {"create": False, "name": "mine"},
        "gate": {"taintKey": "example.com/hold", "otherTaintKeys": ["example.com/old"]},
        "puller": {
            "namespaces": ["ml", "web"],
            "priorityClass": {"create": False, "name": "low"},
        },
    }
    policies = helm.render(values, release="prod").of("ValidatingAdmissionPolicy")
    assert set(policies) == {name.replace("imagegate", "prod-imagegate") for name in FENCE}
    accounts = [
        f"system:serviceaccount:{NAMESPACE}:{name}"
        for name in (
            "mine",
            "prod-imagegate-cleanup",
            "prod-imagegate-watchdog",
        )
    ]
    for policy in policies.values():
        (condition,) = policy["spec"]["matchConditions"]
        assert all(f"'{account}'" in condition["expression"] for account in accounts)
    nodes = policies["prod-imagegate-fence-nodes"]
    assert "['example.com/hold','example.com/old']" in str(nodes["spec"]["variables"])
    pods = str(policies["prod-imagegate-fence-pods"]["spec"])
    assert "['ml','web']" in pods
    assert "== 'low'" in pods


@pytest.mark.parametrize("key", ["node.kubernetes.io/not-ready", "karpenter.sh/x", "a'b", "a/b/c"])
def test_foreign_or_invalid_taint_key_is_rejected(helm: Helm, key: str) -> None:
    with pytest.raises(RenderError, match="otherTaintKeys"):
        helm.render({"gate": {"otherTaintKeys": [key]}})


def test_no_role_has_a_dangerous_right(release: Release) -> None:
    for role in roles(release):
        for group, resource, verbs, _ in grants(role):
            assert "*" not in {group, resource, *verbs}
            assert resource not in {
                "nodes/proxy",
                "nodes/status",
                "pods/exec",
                "configmaps",
            }
            assert not verbs & {"escalate", "bind", "impersonate"}
            if role["kind"] == "ClusterRole":
                assert resource not in ("pods", "secrets")


def test_right_to_read_pull_secrets_can_be_disabled(helm: Helm) -> None:
    release = helm.render({"registry": {"readPullSecrets": False}})
    assert "secrets" not in {r for role in roles(release) for _, r, *_ in grants(role)}


def test_only_named_pull_secrets_can_be_read(helm: Helm) -> None:
    release = helm.render({"prefetchPolicy": {"pullSecrets": ["ml-pull", "web-pull"]}})
    read = {grant for role in roles(release) for grant in grants(role) if grant[1] == "secrets"}
    assert read == {("", "secrets", frozenset({"get"}), ("ml-pull", "web-pull"))}


def test_every_binding_names_a_role_and_an_account_of_the_chart(release: Release) -> None:
    accounts = set(release.of("ServiceAccount"))
    assert accounts == {
        "imagegate",
        "imagegate-cleanup",
        "imagegate-kubelets",
        "imagegate-watchdog",
    }
    for kind in ("ClusterRole", "Role"):
        bindings = release.of(f"{kind}Binding")
        people = {"imagegate-view", "imagegate-edit"} if kind == "ClusterRole" else set()
        assert set(bindings) == set(release.of(kind)) - people
        for name, binding in bindings.items():
            assert binding["roleRef"] == {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": kind,
                "name": name.rpartition("/")[2],
            }
            helpers = ["cleanup", "watchdog"]
            if kind == "ClusterRole":  # the Role is bound to the operator, to request the token
                helpers.append("kubelets")
            account = next((f"imagegate-{each}" for each in helpers if each in name), "imagegate")
            assert binding["subjects"] == [
                {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
            ]


def test_existing_service_account_can_be_used(helm: Helm) -> None:
    release = helm.render({"serviceAccount": {"create": False, "name": "mine"}})
    assert "imagegate" not in release.of("ServiceAccount")
    assert release.pod()["serviceAccountName"] == "mine"
    assert release.of("ClusterRoleBinding")["imagegate"]["subjects"][0]["name"] == "mine"


def test_built_in_roles_include_the_rights_for_prefetches(helm: Helm, release: Release) -> None:
    view, edit = (release.of("ClusterRole")[f"imagegate-{name}"] for name in ("view", "edit"))
    assert set(grants(view)) == {
        ("imagegate.dev", "imageprefetches", frozenset(READ), ()),
        ("imagegate.dev", "nodegates", frozenset(READ), ()),
    }
    assert set(grants(edit)) == {
        (
            "imagegate.dev",
            "imageprefetches",
            frozenset({"create", "update", "patch", "delete", "deletecollection"}),
            (),
        ),
    }
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    aggregated = [
        {key.removeprefix(prefix) for key in role["metadata"]["labels"] if key.startswith(prefix)}
        for role in (view, edit)
    ]
    # `edit` may write only if a value says so, because an ImagePrefetch can hold joining nodes.
    assert aggregated == [{"view", "edit", "admin"}, {"admin"}]
    edit = helm.render({"rbac": {"aggregateToEdit": True}}).of("ClusterRole")["imagegate-edit"]
    assert {f"{prefix}edit", f"{prefix}admin"} <= set(edit["metadata"]["labels"])
    assert set(helm.render({"rbac": {"aggregateClusterRoles": False}}).of("ClusterRole")) == {
        "imagegate",
        "imagegate-cleanup",
        "imagegate-kubelets",
        "imagegate-watchdog",
    }
