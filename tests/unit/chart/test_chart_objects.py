"""The rendered objects: their names, their arguments, and the settings of a user."""

import dataclasses
import json
import pathlib
import re
import shutil

import pytest
import yaml

from imagegate.puller.mode import Mode
from tests.cluster.paths import CHECKOUT
from tests.unit.cli import parsing

from .rendering import CHART, NAMESPACE, POLICY_BETA, POLICY_V1, PULLERS, Helm, Object, RenderError

CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "Namespace",
    "PriorityClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def test_every_object_has_its_labels_and_namespace(helm: Helm) -> None:
    release = helm.render(
        {"commonLabels": {"team": "platform"}, "networkPolicy": {"enabled": True}, "hooks": HOOKS},
        served=(POLICY_V1,),
    )
    for obj in release.objects:
        metadata = obj["metadata"]
        assert metadata["labels"]["app.kubernetes.io/name"] == "imagegate", metadata["name"]
        assert metadata["labels"]["app.kubernetes.io/instance"] == "imagegate", metadata["name"]
        assert metadata["labels"]["team"] == "platform", metadata["name"]
        # Kubernetes stores Events of objects without a namespace in `default`.
        places = {"events": "default", "puller": PULLERS}
        own = places.get(metadata["name"].rpartition("-")[2], NAMESPACE)
        assert metadata.get("namespace") == (None if obj["kind"] in CLUSTER_SCOPED else own), (
            metadata["name"]
        )


@pytest.mark.parametrize(
    ("release", "values", "name"),
    [
        ("imagegate", {}, "imagegate"),
        ("prod", {}, "prod-imagegate"),
        ("prod", {"nameOverride": "gate"}, "prod-gate"),
        ("prod", {"fullnameOverride": "node-images"}, "node-images"),
        ("a" * 53, {}, "a" * 52),
    ],
)
def test_names_begin_with_the_full_name_of_the_release(
    helm: Helm, release: str, values: Object, name: str
) -> None:
    rendered = helm.render(values, served=(POLICY_V1,), release=release)
    names = {
        obj["metadata"]["name"]
        for obj in rendered.objects
        if obj["kind"] not in ("CustomResourceDefinition", "Namespace")
    }
    assert rendered.one("Deployment")["metadata"]["name"] == name
    assert {found for found in names if not found.startswith(name)} == set()
    assert len(rendered.one("Job")["metadata"]["name"]) <= 63
    assert f"--lease-name={name}" in rendered.container()["args"]
    assert f"--deployment={name}" in rendered.container("Job")["args"]


def test_values_become_arguments(helm: Helm) -> None:
    values = {
        "gate": {"taintKey": "example.com/hold", "silenceSeconds": 600, "suspend": True},
        "puller": {
            "namespaces": ["ml", "web"],
            "image": {"repository": "registry.example/pause", "digest": "sha256:" + "0" * 64},
            "mode": "Container",
            "container": {"image": {"repository": "registry.example/busybox", "tag": "static"}},
            "labels": {"team": "a=b"},
            "annotations": {"note": 'two "words"'},
            "imagePullSecrets": [{"name": "one"}, {"name": "two"}],
        },
        "log": {"level": "debug", "format": "text"},
        "resyncSeconds": 1000000,
        "extraArgs": ["--one", "--two=2"],
    }
    assert helm.render(values).container()["args"] == [
        "run",
        "--namespace=$(POD_NAMESPACE)",
        "--identity=$(POD_NAME)",
        "--lease-name=imagegate",
        "--puller-namespaces=ml,web",
        "--puller-image=registry.example/pause@sha256:" + "0" * 64,
        "--puller-mode=Container",
        "--puller-container-image=registry.example/busybox:static",
        '--puller-resources={"limits":{"memory":"32Mi"},"requests":{"cpu":"1m","memory":"4Mi"}}',
        "--puller-priority-class=imagegate-puller",
        "--puller-label=team=a=b",
        '--puller-annotation=note=two "words"',
        "--puller-image-pull-secret=one",
        "--puller-image-pull-secret=two",
        "--gate-taint-key=example.com/hold",
        "--gate-silence-seconds=600",
        "--gate-exclude-control-plane=true",
        "--gate-suspend=true",
        "--gate-source=watch",
        "--http-port=8080",
        "--resync-seconds=1000000",
        "--log-level=debug",
        "--log-format=text",
        "--one",
        "--two=2",
    ]


def test_commands_in_the_pod_read_registry_and_kubelet_settings(
    helm: Helm, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "registry": {
            "plainHTTP": ["a.example", "b.example:5000"],
            "privateHosts": ["gitlab.corp", "minio.corp"],
            "tokenServices": ["b.example:5000=auth.example", "docker.io=login.example"],
            "caFile": "/ca/registry.pem",
            "credentialProviders": {"configFile": "/cloud/config.yaml", "binDir": "/cloud/bin"},
        },
        "kubelet": {"caFile": "/ca/kubelet.pem", "insecureTLS": True},
    }
    for entry in helm.render(values).container()["env"]:
        monkeypatch.setenv(entry["name"], str(entry.get("value", "")))
    parsed = parsing.parse(["plan", "-f", "-"])
    assert parsed.registry_plain_http == ("a.example", "b.example:5000")
    assert parsed.registry_private_hosts == ("gitlab.corp", "minio.corp")
    assert parsed.registry_token_services == {
        ("b.example:5000", "auth.example"),
        ("docker.io", "login.example"),
    }
    assert parsed.registry_ca_file == "/ca/registry.pem"
    assert parsed.credential_provider_config == "/cloud/config.yaml"
    assert parsed.credential_provider_bin_dir == "/cloud/bin"
    assert parsed.kubelet_ca_file == "/ca/kubelet.pem"
    assert parsed.kubelet_insecure_tls is True


HOOKS = {"enabled": True, "secretName": "receivers", "port": 9443}


def test_push_hooks_have_their_own_pods(helm: Helm) -> None:
    release = helm.render({"hooks": HOOKS, "networkPolicy": {"enabled": True}})
    deployment = release.of("Deployment")["imagegate-hooks"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = parsing.receiver(container["args"])
    assert (settings.namespace, settings.pushes_configmap) == (NAMESPACE, "imagegate-pushes")
    (mount,) = container["volumeMounts"]
    assert str(settings.file.parent) == mount["mountPath"]
    assert "subPath" not in mount, "the kubelet does not update a subPath mount"
    (volume,) = pod["volumes"]
    assert volume["secret"] == {"secretName": "receivers", "optional": True}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (
        ports
        == {"http": settings.http_port, "hooks": settings.port}
        == {"http": 8080, "hooks": 9443}
    )
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "env" not in container, "no credentials of registries"

    services = release.of("Service")
    (port,) = services["imagegate-hooks"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (9443, "hooks")
    for other in ("imagegate", "imagegate-hooks-metrics"):
        (port,) = services[other]["spec"]["ports"]
        assert port["targetPort"] == "http", "the port of the hooks serves no metrics"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for name in ("imagegate-hooks", "imagegate-hooks-metrics"):
        assert services[name]["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()

    policies = release.of("NetworkPolicy")
    rules = policies["imagegate-hooks"]["spec"]["ingress"]
    assert rules[1] == {"ports": [{"port": "hooks", "protocol": "TCP"}]}
    assert (
        policies["imagegate-hooks"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    )


def test_push_hooks_open_no_port_of_the_operator(helm: Helm) -> None:
    """Senders reach no pod that may become leader, and such a pod mounts no receiver Secret."""
    values: Object = {"networkPolicy": {"enabled": True}}
    without, release = helm.render(values), helm.render({**values, "hooks": HOOKS})
    before, pod = (each.of("Deployment")["imagegate"]["spec"] for each in (without, release))
    args = pod["template"]["spec"]["containers"][0]["args"]
    assert parsing.operator(args).pushes_configmap == "imagegate-pushes"
    args.remove("--pushes-configmap=imagegate-pushes")
    assert pod == before
    labels = pod["template"]["metadata"]["labels"]
    selecting = [
        name
        for name, service in release.of("Service").items()
        if service["spec"]["selector"].items() <= labels.items()
    ]
    assert selecting == ["imagegate"]
    policies = release.of("NetworkPolicy")
    assert policies["imagegate"] == without.one("NetworkPolicy")


def test_network_policy_limits_the_senders_of_push_hooks(helm: Helm) -> None:
    gateway = {"namespaceSelector": {"matchLabels": {"name": "gateway"}}}
    policy = {"enabled": True, "hooksFrom": [gateway]}
    release = helm.render({"hooks": HOOKS, "networkPolicy": policy})
    rules = release.of("NetworkPolicy")["imagegate-hooks"]["spec"]["ingress"]
    assert rules[1]["from"] == [gateway]


def test_account_of_push_hooks_may_only_write_the_pushes_configmap(helm: Helm) -> None:
    release = helm.render({"hooks": HOOKS})
    deployment = release.of("Deployment")["imagegate-hooks"]
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == "imagegate-hooks"

    def granted(account: str) -> list[Object]:
        """All rules that are granted to an account."""
        roles = release.of("Role") | release.of("ClusterRole")
        bindings = release.of("RoleBinding") | release.of("ClusterRoleBinding")
        return [
            rule
            for name, binding in bindings.items()
            if account in {subject["name"] for subject in binding["subjects"]}
            for rule in roles[name]["rules"]
        ]

    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["imagegate-pushes"]}
    assert granted("imagegate-hooks") == [{**rule, "verbs": ["get", "patch"]}]
    of_maps = [each for each in granted("imagegate") if "configmaps" in each["resources"]]
    assert of_maps == [{**rule, "verbs": ["get", "list", "watch"]}], "the leader only reads"
    (configmap,) = release.of("ConfigMap").values()
    assert "data" not in configmap, "an upgrade must not delete waiting pushes"


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_pods_of_push_hooks_are_scraped_with_the_operator(helm: Helm, kind: str) -> None:
    monitor = {kind[0].lower() + kind[1:]: {"enabled": True}}
    release = helm.render(
        {"metrics": monitor, "hooks": HOOKS}, served=(f"monitoring.coreos.com/v1/{kind}",)
    )
    selector = release.one(kind)["spec"]["selector"]
    (expression,) = selector["matchExpressions"]
    assert (expression["operator"], expression["values"]) == ("In", ["operator", "hooks"])
    for deployment in release.of("Deployment").values():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert selector["matchLabels"].items() <= labels.items()
        assert labels[expression["key"]] in expression["values"]


def test_push_hooks_are_off_by_default(helm: Helm) -> None:
    release = helm.render()
    assert set(release.of("Service")) == {"imagegate"}
    assert "volumes" not in release.pod()
    assert not [each for each in release.container()["args"] if "pushes" in each]
    assert not [each for each in release.objects if "hooks" in each["metadata"]["name"]]


@pytest.mark.parametrize(
    ("values", "problem"),
    [({"enabled": True}, "hooks.secretName is needed"), ({**HOOKS, "port": 8080}, "port")],
)
def test_invalid_push_hook_values_are_rejected(helm: Helm, values: Object, problem: str) -> None:
    with pytest.raises(RenderError, match=problem):
        helm.render({"hooks": values})


@pytest.mark.parametrize("half", ["configFile", "binDir"])
def test_incomplete_credential_providers_are_rejected(helm: Helm, half: str) -> None:
    with pytest.raises(RenderError, match="configFile and binDir go together"):
        helm.render({"registry": {"credentialProviders": {half: "/cloud"}}})


def test_no_credential_provider_variables_are_set_by_default(helm: Helm) -> None:
    names = {entry["name"] for entry in helm.render({}).container()["env"]}
    assert not {name for name in names if "CREDENTIAL_PROVIDER" in name}


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
@pytest.mark.parametrize("served", [(), (POLICY_V1,)])
def test_operator_understands_its_arguments(helm: Helm, kind: str, served: tuple[str, ...]) -> None:
    puller = {
        "labels": {"team": "ml"},
        "annotations": {"note": "a=b"},
        "imagePullSecrets": [{"name": "pull"}],
    }
    args = helm.render({"puller": puller}, served=served).container(kind)["args"]
    parsed = parsing.parse(args)
    assert parsed.lease_name == "imagegate"
    assert parsed.gate_taint_key == "startup-taint.cluster-autoscaler.kubernetes.io/imagegate"
    if kind == "Deployment":
        assert parsed.gate_source == ("policy" if served else "watch")
        assert dict(parsed.puller_annotation) == {"note": "a=b"}
        assert parsed.puller_mode == Mode.AUTO
        assert parsed.puller_container_image == (
            "docker.io/library/busybox:1.37.0-musl"
            "@sha256:fc6dddc4c44b1bfe37f41cae8e67d1693828e8f42a91862816d7953e2c9d3f23"
        )


def test_image_is_set_by_version_tag_or_digest(helm: Helm) -> None:
    digest = "sha256:" + "1" * 64
    assert helm.render().container()["image"] == "ghcr.io/imagegate/imagegate:0.1.0"
    assert (
        helm.render({"image": {"tag": "v2"}}).container()["image"]
        == "ghcr.io/imagegate/imagegate:v2"
    )
    both = helm.render({"image": {"tag": "v2", "digest": digest}})
    assert (
        both.container()["image"]
        == both.container("Job")["image"]
        == f"ghcr.io/imagegate/imagegate@{digest}"
    )


def test_default_puller_images_have_the_digests_of_the_security_document(helm: Helm) -> None:
    document = (CHECKOUT / "docs/security.md").read_text()
    for option, repository in (("image", "pause"), ("container-image", "busybox")):
        (argument,) = (
            argument
            for argument in helm.render().container()["args"]
            if argument.startswith(f"--puller-{option}=")
        )
        reference, digest = argument.partition("=")[2].split("@")
        assert repository in reference
        assert f"| `{reference}` | `{digest}`" in document


def test_copy_of_a_default_puller_image_has_no_digest_by_default(helm: Helm) -> None:
    """A copy may have another digest, for example after `docker pull` and `docker push`."""
    for image in ({"repository": "registry.example/pause"}, {"tag": "3.10"}):
        args = helm.render({"puller": {"image": image}}).container()["args"]
        (reference,) = (a for a in args if a.startswith("--puller-image="))
        assert "@" not in reference


def test_every_image_can_be_set_by_digest(helm: Helm) -> None:
    """A tag may change; a digest makes every node run the checked image."""
    ours, pause, busybox = ("sha256:" + digit * 64 for digit in "123")
    release = helm.render(
        {
            "image": {"digest": ours},
            "puller": {"image": {"digest": pause}, "container": {"image": {"digest": busybox}}},
            "hooks": {"enabled": True, "secretName": "hooks"},
        }
    )
    args = release.of("Deployment")["imagegate"]["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    assert f"--puller-image=registry.k8s.io/pause@{pause}" in args
    assert f"--puller-container-image=docker.io/library/busybox@{busybox}" in args
    images = set(re.findall(r'"image": "([^"]*)"', json.dumps(release.objects)))
    assert images == {f"ghcr.io/imagegate/imagegate@{ours}"}


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"digest": "sha256:1"}},
        {"puller": {"image": {"digest": "3.10.2"}}},
        {"puller": {"container": {"image": {"digest": "sha512:" + "1" * 64}}}},
    ],
)
def test_invalid_digest_is_rejected(helm: Helm, values: Object) -> None:
    with pytest.raises(RenderError, match="digest"):
        helm.render(values)


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_pods_are_restricted_and_tolerate_every_taint(helm: Helm, kind: str) -> None:
    release = helm.render()
    pod, container = release.pod(kind), release.container(kind)
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & set(pod)
    # The pods must run on held, unready and uninitialized nodes: a new cluster has no others.
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "system-cluster-critical"
    assert container["resources"]["limits"] == {"memory": "512Mi"}


def test_only_operator_pods_are_selected(helm: Helm) -> None:
    served = ("monitoring.coreos.com/v1/PodMonitor",)
    release = helm.render(
        {"networkPolicy": {"enabled": True}, "metrics": {"podMonitor": {"enabled": True}}},
        served=served,
    )
    selectors = [
        release.one("Deployment")["spec"]["selector"]["matchLabels"],
        release.one("Service")["spec"]["selector"],
        release.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        release.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        release.one("PodMonitor")["spec"]["selector"]["matchLabels"],
        release.pod()["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    operator = release.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    cleanup = release.one("Job")["spec"]["template"]["metadata"]["labels"]
    for selector in selectors:
        assert selector.items() <= operator.items()
        assert not selector.items() <= cleanup.items()


def test_pod_settings_reach_both_pods(helm: Helm) -> None:
    shared = {
        "nodeSelector": {"pool": "system"},
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["registry.example"]}],
        "imagePullSecrets": [{"name": "pull"}],
    }
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    release = helm.render({**shared, "extraEnv": [proxy]})
    for kind in ("Deployment", "Job"):
        assert shared.items() <= release.pod(kind).items()
        assert proxy in release.container(kind)["env"]


def test_placement_can_be_replaced(helm: Helm) -> None:
    spread = {
        "maxSkew": 2,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"mine": "yes"}},
    }
    affinity: Object = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}
        }
    }
    pod = helm.render(
        {"affinity": affinity, "topologySpreadConstraints": [spread], "priorityClassName": ""}
    ).pod()
    assert pod["affinity"] == affinity
    assert pod["topologySpreadConstraints"] == [spread]
    assert "priorityClassName" not in pod


def test_probes_use_the_named_port(helm: Helm) -> None:
    container = helm.render().container()
    assert container["ports"] == [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_disruption_budget_needs_two_replicas(helm: Helm) -> None:
    assert helm.render().one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert not helm.render({"replicaCount": 1}).of("PodDisruptionBudget")
    assert not helm.render({"podDisruptionBudget": {"enabled": False}}).of("PodDisruptionBudget")


def test_puller_priority_is_low_and_preempts_nothing(helm: Helm) -> None:
    priority = helm.render().one("PriorityClass")
    assert priority["metadata"]["name"] == "imagegate-puller"
    assert (priority["value"], priority["preemptionPolicy"], priority["globalDefault"]) == (
        -1000,
        "Never",
        False,
    )
    given = helm.render({"puller": {"priorityClass": {"create": False, "name": "batch"}}})
    assert not given.of("PriorityClass")
    assert "--puller-priority-class=batch" in given.container()["args"]
    with pytest.raises(RenderError, match=r"puller\.priorityClass\.name"):
        helm.render({"puller": {"priorityClass": {"create": False}}})


def test_crds_are_the_generated_ones(helm: Helm) -> None:
    rendered = helm.render().of("CustomResourceDefinition")
    for path in (CHART / "crds-src").glob("*.yaml"):
        source = yaml.safe_load(path.read_text(encoding="utf-8"))
        crd = rendered.pop(source["metadata"]["name"])
        assert crd["spec"] == source["spec"]
        annotations = source["metadata"].get("annotations", {}) | {
            "helm.sh/resource-policy": "keep"
        }
        assert crd["metadata"]["annotations"] == annotations
    assert not rendered


def test_crds_can_be_disabled_or_not_kept(helm: Helm) -> None:
    assert not helm.render({"crds": {"enabled": False}}).of("CustomResourceDefinition")
    for crd in helm.render({"crds": {"keep": False}}).of("CustomResourceDefinition").values():
        assert "helm.sh/resource-policy" not in crd["metadata"].get("annotations", {})


def test_monitors_need_the_crds_of_the_prometheus_operator(helm: Helm) -> None:
    service, pod = "monitoring.coreos.com/v1/ServiceMonitor", "monitoring.coreos.com/v1/PodMonitor"
    monitor = {"enabled": True, "labels": {"release": "prometheus"}, "interval": "30s"}
    spec = helm.render({"metrics": {"serviceMonitor": monitor}}, served=(service,)).one(
        "ServiceMonitor"
    )["spec"]
    assert spec["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]
    spec = helm.render({"metrics": {"podMonitor": monitor}}, served=(pod,)).one("PodMonitor")[
        "spec"
    ]
    assert spec["podMetricsEndpoints"] == [{"port": "http", "path": "/metrics", "interval": "30s"}]

    with pytest.raises(RenderError, match="choose one"):
        helm.render(
            {"metrics": {"serviceMonitor": monitor, "podMonitor": monitor}}, served=(service, pod)
        )
    with pytest.raises(RenderError, match="Prometheus Operator's CRDs first"):
        helm.render({"metrics": {"serviceMonitor": monitor}})
    with pytest.raises(RenderError, match=r"needs service\.enabled"):
        helm.render(
            {"metrics": {"serviceMonitor": monitor}, "service": {"enabled": False}},
            served=(service,),
        )


def test_network_policy_is_optional_and_limits_ingress(helm: Helm) -> None:
    assert not helm.render().of("NetworkPolicy")
    peers = [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    spec = helm.render({"networkPolicy": {"enabled": True, "ingressFrom": peers}}).one(
        "NetworkPolicy"
    )["spec"]
    assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}], "from": peers}]
    assert spec["egress"] == [{}]


def test_cleanup_consists_of_hooks(helm: Helm) -> None:
    release = helm.render()
    hooks = [
        obj for obj in release.objects if "helm.sh/hook" in obj["metadata"].get("annotations", {})
    ]
    assert {obj["kind"] for obj in hooks} == {
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "Job",
    }
    weights = {}
    for obj in hooks:
        annotations = obj["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-delete"
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
        assert obj["metadata"]["name"].startswith("imagegate-cleanup")
        weights[obj["kind"]] = int(annotations["helm.sh/hook-weight"])
    assert weights["ServiceAccount"] < weights["ClusterRoleBinding"] < weights["Job"]
    assert weights["Role"] < weights["RoleBinding"] < weights["Job"]
    job = release.one("Job")["spec"]
    # Helm waits 5 minutes. The Job must fail earlier, so that Helm reports more than a timeout.
    assert job["activeDeadlineSeconds"] < 300
    assert release.pod("Job")["restartPolicy"] == "Never"
    assert release.pod("Job")["serviceAccountName"] == "imagegate-cleanup"
    assert release.container("Job")["args"] == [
        "cleanup",
        "--namespace=$(POD_NAMESPACE)",
        "--deployment=imagegate",
        "--lease-name=imagegate",
        f"--puller-namespaces={PULLERS}",
        "--gate-taint-key=startup-taint.cluster-autoscaler.kubernetes.io/imagegate",
        "--log-level=info",
        "--log-format=json",
    ]

    without = helm.render({"cleanup": {"enabled": False}})
    assert not [
        obj for obj in without.objects if "helm.sh/hook" in obj["metadata"].get("annotations", {})
    ]


@pytest.mark.parametrize(
    ("values", "served", "source", "saying"),
    [
        ({}, (POLICY_V1,), "policy", "imagegate-node-gate"),
        ({}, (POLICY_BETA,), "policy", "v1beta1"),
        ({}, (), "watch", "best effort"),
        ({"gate": {"source": "none"}}, (POLICY_V1,), "none", "=pending:NoSchedule"),
    ],
)
def test_notes_name_the_active_gate(
    helm: Helm,
    tmp_path: pathlib.Path,
    values: Object,
    served: tuple[str, ...],
    source: str,
    saying: str,
) -> None:
    # A copied chart, because `helm template` prints no notes and `helm install` has no
    # --api-versions.
    chart = shutil.copytree(CHART, tmp_path / "imagegate")
    text = '{{ include "imagegate/templates/NOTES.txt" . | toJson }}'
    template = f"kind: Notes\nmetadata: {{name: notes}}\ntext: {text}\n"
    (chart / "templates" / "notes.yaml").write_text(template, encoding="utf-8")
    notes = (
        dataclasses.replace(helm, chart=chart).render(values, served=served).one("Notes")["text"]
    )

    assert f"GATE (source: {source})" in notes
    assert saying in notes
    assert "kind: ImagePrefetch" in notes
    assert '{"spec":{"suspend":true}}' in notes
    assert f"helm uninstall imagegate --namespace {NAMESPACE}" in notes
    assert not re.search(r"\n\n\n|<no value>|%!", notes)
