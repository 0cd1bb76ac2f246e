"""Objects that the API server must accept or reject, with its message.

The unit tests decode each row. The end-to-end tests apply each row to a real API server with
`kubectl apply --dry-run=server`, because only that tests the CEL rules. This file uses the standard
library only. For every new rule, add a row on each side of its limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]

DIGEST = "sha256:" + "0123456789abcdef" * 4
NAME_63 = "a" * 63
LABEL_KEY_MAX = "d" * 63 + "." + "e" * 63 + "." + "f" * 63 + "." + "g" * 61 + "/" + "n" * 63


@dataclass(frozen=True)
class Row:
    """An object, and the expected result."""

    id: str
    body: Object
    refused: str | None = None
    """A fragment of the API server's message; None if the object is accepted."""
    filled: Object = field(default_factory=dict)
    """Fields that the accepted object must contain, with the API server's defaults."""
    stored: Object | None = None
    """An object that must exist before; `body` is then an update of it."""
    read: str | None = None
    """A fragment of the decoder's message, if it differs from `refused`."""
    only_api_server: bool = False
    """Whether only the API server rejects the object, and the decoder accepts it."""


def prefetch(*images: str, name: str = "example", **spec: Any) -> Object:
    """Make an ImagePrefetch, with a default image. Names in `spec` are those of the JSON fields."""
    entries = [{"image": image} for image in images or ("registry.example/app:1",)]
    return {
        "apiVersion": "imagegate.dev/v1alpha1",
        "kind": "ImagePrefetch",
        "metadata": {"name": name},
        "spec": {"images": entries, **spec},
    }


def repositories(*entries: Object) -> Object:
    """Make an ImagePrefetch with these repositories and no image."""
    return {**prefetch(), "spec": {"repositories": list(entries)}}


def _policy_of(repository: str, **policy: Object) -> Object:
    return {"repository": repository, "policy": policy or {"alphabetical": {}}}


def _policy(**policy: Object) -> Object:
    return repositories({"repository": "ml/llm", "policy": policy})


def _filter(pattern: str, extract: str | None = None) -> Object:
    filter_ = {"pattern": pattern} if extract is None else {"pattern": pattern, "extract": extract}
    return repositories({**_policy_of("ml/llm"), "filterTags": filter_})


def gate(name: str = "default", **spec: Any) -> Object:
    """Make a NodeGate."""
    return {
        "apiVersion": "imagegate.dev/v1alpha1",
        "kind": "NodeGate",
        "metadata": {"name": name},
        "spec": spec,
    }


def _images(entries: object) -> Object:
    return {**prefetch(), "spec": {"images": entries}}


def _requirement(**requirement: Any) -> Object:
    return prefetch(nodeSelector={"matchExpressions": [requirement]})


_NOTHING = (
    "there is nothing to pull: name images in spec.images, workloads in spec.imagesFrom, or"
    " repositories in spec.repositories"
)
_BUILDS = {
    "repository": "registry.example/ml/llm",
    "filterTags": {"pattern": "^main-[a-f0-9]+-(?P<ts>[0-9]+)$", "extract": "$ts"},
    "policy": {"numerical": {"order": "asc"}},
    "keep": 2,
}
_WORKLOADS = {"kind": "Deployment", "namespace": "serving"}
_CANARY = {
    "apiVersion": "example.com/v1",
    "kind": "Canary",
    "namespace": "serving",
    "podTemplates": ["spec.workers[*].template"],
    "images": ["spec.image"],
}

ACCEPTED = (
    Row(
        "defaults-are-filled-in",
        prefetch("nginx"),
        filled={
            "spec": {
                "images": [{"image": "nginx"}],
                "nodeSelector": {},
                "gate": {
                    "mode": "NewNodes",
                    "policy": "FailOpen",
                    "timeoutSeconds": 600,
                    "onReboot": "Verify",
                },
                "rollout": {
                    "maxParallel": "10%",
                    "seeds": 1,
                    "fanout": 2,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "paused": False,
                },
                "retry": {"limit": 6, "minSeconds": 10, "maxSeconds": 300},
                "refresh": {"mode": "Never", "intervalSeconds": 300},
                "retention": {"mode": "Keep"},
                "disk": {"maxUsagePercent": 75},
                "dryRun": False,
            }
        },
    ),
    Row(
        "defaults-beside-what-is-set",
        prefetch(gate={"mode": "Never"}, rollout={"seeds": 3}, retry={"timeoutSeconds": 60}),
        filled={
            "spec": {
                "gate": {"mode": "Never", "policy": "FailOpen"},
                "rollout": {"seeds": 3, "maxParallel": "10%"},
                "retry": {"timeoutSeconds": 60, "limit": 6},
            }
        },
    ),
    Row(
        "everything-set",
        prefetch(
            f"registry.example:5000/ml/llm:2026.11@{DIGEST}",
            nodeSelector={
                "matchLabels": {"pool": "gpu", "example.com/tier": ""},
                "matchExpressions": [
                    {"key": "zone", "operator": "In", "values": ["a", "b"]},
                    {"key": "spot", "operator": "DoesNotExist"},
                ],
            },
            imagePullSecrets=[{"name": "pull"}, {"name": "other.pull"}],
            pullerNamespace="pullers",
            gate={
                "mode": "NewNodes",
                "policy": "FailClosed",
                "timeoutSeconds": 900,
                "onReboot": "Hold",
            },
            rollout={
                "maxParallel": 5,
                "seeds": 2,
                "fanout": 4,
                "topologyKey": "rack",
                "paused": True,
            },
            retry={"limit": 1, "minSeconds": 1, "maxSeconds": 2, "timeoutSeconds": 3600},
            refresh={"mode": "Digest", "intervalSeconds": 60},
            retention={"mode": "Release"},
            disk={"maxUsagePercent": 100},
            dryRun=True,
        ),
    ),
    Row("name-of-63", prefetch(name=NAME_63)),
    Row("name-of-one-digit", prefetch(name="1")),
    Row("64-images", prefetch(*(f"registry.example/app:{n}" for n in range(64)))),
    Row(
        "64-long-images-do-not-exhaust-the-cel-budget",
        prefetch(*(f"registry.example/{'a' * 240}/{n:03}:{'t' * 128}" for n in range(64))),
    ),
    Row(
        "image-with-its-own-secrets",
        _images([{"image": "nginx", "imagePullSecrets": [{"name": "mine"}]}]),
        filled={"spec": {"images": [{"image": "nginx", "imagePullSecrets": [{"name": "mine"}]}]}},
    ),
    Row(
        "image-with-no-secrets-on-purpose",
        _images([{"image": "nginx", "imagePullSecrets": []}]),
        filled={"spec": {"images": [{"image": "nginx", "imagePullSecrets": []}]}},
    ),
    Row("image-tag-of-128", prefetch("nginx:" + "t" * 128)),
    Row("image-path-of-255", prefetch("registry.example/" + "a" * 255)),
    Row("image-path-of-255-after-a-port", prefetch("registry:5000/" + "a" * 255 + ":1")),
    Row("image-host-of-248-with-a-port", prefetch("h" * 248 + ":5000/app:1")),
    Row("image-official-name-of-247", prefetch("a" * 247)),
    Row("image-port-and-tag", prefetch("localhost:5000/app:1.0_rc-2")),
    Row("image-ipv6", prefetch("[2001:db8::1]:5000/app")),
    Row("image-uppercase-registry", prefetch("Registry/app")),
    Row("image-sha512", prefetch("app@sha512:" + "0f" * 64)),
    Row("image-64-hex-below-a-registry", prefetch("registry.example/" + "0f" * 32)),
    Row(
        "images-that-only-look-alike",
        prefetch(
            "nginx",
            "nginx:1",
            f"nginx@{DIGEST}",
            "library/nginx/x",
            "nginx/x",
            "quay.io/nginx",
            "docker.io/quay.io/nginx",
            "localhost/nginx",
            "docker.io/localhost/nginx",
            "mirror.example/docker.io/library/nginx",
            "mirror.example/index.docker.io/library/nginx",
            "mirror.example:5000/nginx",
            "Docker.io/nginx",
        ),
    ),
    Row("max-parallel-1", prefetch(rollout={"maxParallel": 1})),
    Row("max-parallel-1-percent", prefetch(rollout={"maxParallel": "1%"})),
    Row("max-parallel-100-percent", prefetch(rollout={"maxParallel": "100%"})),
    Row("max-parallel-5000", prefetch(rollout={"maxParallel": 5000})),
    Row("gate-timeout-1", prefetch(gate={"timeoutSeconds": 1})),
    Row("gate-timeout-a-day", prefetch(gate={"timeoutSeconds": 86400})),
    Row("retry-min-is-max", prefetch(retry={"minSeconds": 30, "maxSeconds": 30})),
    Row("puller-namespace-of-63", prefetch(pullerNamespace=NAME_63)),
    Row("topology-key-of-317", prefetch(rollout={"topologyKey": LABEL_KEY_MAX})),
    Row(
        "start-after",
        prefetch(startAfter=[{"namespace": NAME_63, "daemonSet": "a.b-" + "c" * 249}]),
        filled={"spec": {"startAfter": [{"namespace": NAME_63, "daemonSet": "a.b-" + "c" * 249}]}},
    ),
    Row(
        "start-after-8",
        prefetch(
            startAfter=[
                {"namespace": f"n{number % 2}", "daemonSet": f"d{number // 2}"}
                for number in range(8)
            ]
        ),
    ),
    Row("no-workloads", prefetch(imagesFrom=[])),
    Row(
        "images-from-workloads",
        prefetch(imagesFrom=[_WORKLOADS]),
        filled={"spec": {"imagesFrom": [{**_WORKLOADS, "selector": {}}]}},
    ),
    Row("images-from-workloads-alone", {**prefetch(), "spec": {"imagesFrom": [_WORKLOADS]}}),
    Row(
        "images-from-workloads-and-an-empty-list",
        {**prefetch(), "spec": {"images": [], "imagesFrom": [_WORKLOADS]}},
    ),
    Row(
        "images-from-16-of-all-kinds",
        prefetch(
            imagesFrom=[
                {
                    "kind": kind,
                    "namespace": NAME_63,
                    "selector": {
                        "matchLabels": {"app": f"a{n}"},
                        "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a"]}],
                    },
                }
                for n, kind in enumerate(
                    ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"] * 3
                    + ["Deployment"]
                )
            ]
        ),
    ),
    Row("images-from-any-kind", prefetch(imagesFrom=[_CANARY])),
    Row(
        "images-from-known-kinds",
        prefetch(
            imagesFrom=[
                {"apiVersion": version, "kind": kind, "namespace": "serving"}
                for version, kind in (
                    ("argoproj.io/v1alpha1", "Rollout"),
                    ("leaderworkerset.x-k8s.io/v99", "LeaderWorkerSet"),
                    ("apps/v1", "Deployment"),
                )
            ]
        ),
    ),
    Row(
        "images-from-longest-paths",
        prefetch(
            imagesFrom=[
                {
                    **_CANARY,
                    "podTemplates": [f"{n:a>3}[*]." + "b" * 249 for n in range(16)],
                    "images": ["x_-9." * 51 + "y"] * 16,
                }
            ]
            * 16
        ),
    ),
    Row(
        "repositories-defaults-are-filled-in",
        repositories({"repository": "ml/llm", "policy": {"numerical": {}}}),
        filled={
            "spec": {
                "repositories": [
                    {"repository": "ml/llm", "policy": {"numerical": {"order": "asc"}}, "keep": 2}
                ]
            }
        },
    ),
    Row("repositories-of-flux", repositories(_BUILDS, {**_BUILDS, "repository": "ml/other"})),
    *(
        Row(f"repositories-range-{number}", _policy(semver={"range": text}))
        for number, text in enumerate(
            (">=1.4 <2", ">=1.0.0-0, <2 || ^3.x-0", "*", "~1.2.3", " 1.2 - 1.4.5 ", "v1")
        )
    ),
    *(
        Row(f"repositories-extract-{number}", _filter(r"^(?P<ts>[0-9]+)-(a)$", extract))
        for number, extract in enumerate(("$ts", "${ts}", "$1", "v$ts.$2", "$0"))
    ),
    Row(
        "repositories-longest",
        repositories(
            *(
                {
                    "repository": f"{n}.example:5000/" + "a" * 237,
                    "filterTags": {"pattern": "(a)" + "b" * 253, "extract": "$1" * 64},
                    "policy": {"semver": {"range": " || ".join(["1.2.3"] * 13)}},
                    "keep": 7,
                    "imagePullSecrets": [{"name": f"s{m}"} for m in range(16)],
                }
                for n in range(8)
            )
        ),
    ),
    Row(
        "repositories-and-images-of-64",
        {
            **repositories({**_BUILDS, "keep": 16}),
            "spec": {
                "images": [{"image": f"a:{n}"} for n in range(48)],
                "repositories": [{**_BUILDS, "keep": 16}],
            },
        },
    ),
    Row("selector-exists", _requirement(key="gpu", operator="Exists")),
    Row(
        "gate-defaults-are-filled-in",
        gate(),
        filled={
            "spec": {
                "taintKey": "startup-taint.cluster-autoscaler.kubernetes.io/imagegate",
                "suspend": False,
                "silenceSeconds": 300,
            }
        },
    ),
    Row(
        "gate-without-spec",
        {key: value for key, value in gate().items() if key != "spec"},
        filled={"spec": {"silenceSeconds": 300}},
    ),
    Row("gate-own-key", gate(taintKey="example.com/imagegate")),
    Row("gate-key-without-prefix", gate(taintKey="imagegate")),
    Row("gate-silence-30", gate(silenceSeconds=30)),
    Row("gate-silence-a-day", gate(silenceSeconds=86400)),
    Row(
        "gate-suspend-later",
        gate(taintKey="example.com/imagegate", suspend=True),
        stored=gate(taintKey="example.com/imagegate"),
    ),
)

REFUSED = (
    # required fields
    Row(
        "no-spec",
        {key: value for key, value in prefetch().items() if key != "spec"},
        "spec: Required value",
        read="spec: this field is required",
    ),
    Row(
        "no-images-field",
        {**prefetch(), "spec": {}},
        _NOTHING,
    ),
    Row("no-images", _images([]), _NOTHING),
    Row(
        "no-images-and-no-workloads",
        {**prefetch(), "spec": {"images": [], "imagesFrom": []}},
        _NOTHING,
    ),
    Row(
        "65-images",
        prefetch(*(f"registry.example/app:{n}" for n in range(65))),
        "Too many: 65: must have at most 64 items",
        read="spec.images: the number of entries must be at most 64",
    ),
    Row(
        "misspelt-field",
        prefetch(nodeSelectors={}),
        'unknown field "spec.nodeSelectors"',
        only_api_server=True,
    ),
    # metadata.name
    Row("name-of-64", prefetch(name="a" * 64), f'"{"a" * 64}" is not a name for an ImagePrefetch'),
    Row(
        "name-with-a-dot",
        prefetch(name="llm.serving"),
        '"llm.serving" is not a name for an ImagePrefetch, which becomes part of the node label'
        " cached.imagegate.dev/NAME: use at most 63 lowercase letters",
    ),
    # image references
    Row("image-empty", prefetch(""), "is not an image reference", read="must not be empty"),
    Row(
        "image-uppercase",
        prefetch("registry.example/Team/app:1"),
        '"registry.example/Team/app:1" is not an image reference: the repository name must be'
        " lowercase",
    ),
    Row(
        "image-bare-uppercase",
        prefetch("Nginx"),
        '"Nginx" is not an image reference: the repository name must be lowercase',
    ),
    Row(
        "image-scheme",
        prefetch("https://registry.example/app"),
        '"https://registry.example/app" is not an image reference: a reference has no URL scheme',
    ),
    Row(
        "image-id",
        prefetch("0f" * 32),
        "64 hex digits are an image ID, not a name: write name@sha256:ID",
    ),
    Row(
        "image-short-digest",
        prefetch("app@sha256:abc123"),
        "a digest must follow '@': write sha256: and its 64 lowercase hex digits",
        read="the sha256 digest has 6 characters, not 64",
    ),
    Row(
        "image-uppercase-digest",
        prefetch("app@sha256:" + "AB" * 32),
        "a digest must follow '@'",
        read="the sha256 digest must be lowercase hex",
    ),
    Row(
        "image-unknown-algorithm",
        prefetch("app@md5:" + "ab" * 16),
        "a digest must follow '@'",
        read='"md5" is not a supported digest algorithm',
    ),
    Row(
        "image-tag-of-129",
        prefetch("nginx:" + "t" * 129),
        "and the tag of at most 128 letters",
        read="the tag has 129 characters",
    ),
    Row(
        "image-empty-tag",
        prefetch("nginx:"),
        '"nginx:" is not an image reference: write [registry[:port]/]name[:tag]',
        read="there is no tag after ':'",
    ),
    Row(
        "image-space",
        prefetch("nginx latest"),
        '"nginx latest" is not an image reference: write',
        read='"nginx latest" is not an image reference: " " (U+0020) is not allowed',
    ),
    Row(
        "image-line-break",
        prefetch("nginx\n"),
        "this is not an image reference: write",
        read=r'"nginx\n" is not an image reference',
    ),
    Row(
        "image-not-ascii",
        prefetch("registry.example/bücher"),
        '"registry.example/bücher" is not an image reference: write',
        read='"registry.example/bücher" is not an image reference',
    ),
    Row(
        "image-bad-port",
        prefetch("registry.example:http/app"),
        "is not an image reference: write [registry[:port]/]",
        read='"registry.example:http" is not a registry',
    ),
    Row(
        "image-path-of-256",
        prefetch("registry.example/" + "a" * 256),
        "the repository name is longer than 255 characters, without the registry",
        read="the repository name has 256 characters",
    ),
    Row(
        "image-path-of-256-after-a-port",
        prefetch("registry:5000/" + "a" * 256 + ":1"),
        "the repository name is longer than 255 characters, without the registry",
        read="the repository name has 256 characters",
    ),
    Row(
        "image-official-name-of-248",
        prefetch("a" * 248),
        "the repository name is longer than 255 characters",
        read="the repository name has 256 characters",
    ),
    Row(
        "image-of-513",
        prefetch("a." * 200 + "example/" + "a" * 105),
        "may not be more than 512 bytes",
        read="at most 512 characters",
    ),
    # duplicates
    Row(
        "duplicate-exactly",
        prefetch("nginx", "nginx"),
        'Duplicate value: {"image":"nginx"}',
        read='"nginx" and "nginx" are the same image',
    ),
    Row(
        "duplicate-by-docker-hub",
        prefetch("nginx", "docker.io/library/nginx:latest"),
        "two entries are the same image, docker.io/library/nginx:latest: keep one of them",
        read='"nginx" and "docker.io/library/nginx:latest" are the same image',
    ),
    Row(
        "duplicate-by-docker-index",
        prefetch("index.docker.io/nginx:1", "library/nginx:1"),
        "two entries are the same image, docker.io/library/nginx:1: keep one of them",
        read="are the same image, docker.io/library/nginx:1: keep one of them",
    ),
    Row(
        "duplicate-by-user",
        prefetch("other", "team/app", "docker.io/team/app:latest"),
        "two entries are the same image, docker.io/team/app:latest: keep one of them",
        read="are the same image, docker.io/team/app:latest: keep one of them",
    ),
    Row(
        "duplicate-by-latest",
        prefetch("localhost:5000/app", "localhost:5000/app:latest"),
        "two entries are the same image, localhost:5000/app:latest: keep one of them",
        read="are the same image, localhost:5000/app:latest: keep one of them",
    ),
    Row(
        "duplicate-by-digest",
        prefetch(f"nginx@{DIGEST}", f"docker.io/nginx@{DIGEST}"),
        f"two entries are the same image, docker.io/library/nginx@{DIGEST}: keep one of them",
        read=f"are the same image, docker.io/library/nginx@{DIGEST}: keep one of them",
    ),
    # secrets, namespaces, selectors
    Row(
        "duplicate-secret",
        prefetch(imagePullSecrets=[{"name": "pull"}, {"name": "pull"}]),
        'spec.imagePullSecrets[1]: Duplicate value: {"name":"pull"}',
        only_api_server=True,
    ),
    Row(
        "duplicate-secret-of-an-image",
        _images([{"image": "nginx", "imagePullSecrets": [{"name": "a"}, {"name": "a"}]}]),
        'spec.images[0].imagePullSecrets[1]: Duplicate value: {"name":"a"}',
        only_api_server=True,
    ),
    Row(
        "secret-name",
        prefetch(imagePullSecrets=[{"name": "Pull_Secret"}]),
        '"Pull_Secret" is not the name of a Secret: use lowercase letters',
    ),
    Row(
        "puller-namespace",
        prefetch(pullerNamespace="image.gate"),
        '"image.gate" is not a DNS label: use lowercase letters',
    ),
    Row(
        "puller-namespace-of-64",
        prefetch(pullerNamespace="a" * 64),
        "may not be more than 63 bytes",
        read="at most 63 characters",
    ),
    Row(
        "selector-label-key",
        prefetch(nodeSelector={"matchLabels": {"pool": "a", "bad key": "b"}}),
        'spec.nodeSelector.matchLabels: Invalid value: "bad key" is not a qualified name',
        read='spec.nodeSelector.matchLabels: "bad key" is not a qualified name',
    ),
    Row(
        "selector-label-value",
        prefetch(nodeSelector={"matchLabels": {"pool": "-a"}}),
        '"-a" is not a label value: use letters',
    ),
    Row(
        "selector-operator",
        _requirement(key="pool", operator="Equals", values=["a"]),
        'Unsupported value: "Equals": supported values: "In", "NotIn", "Exists", "DoesNotExist"',
        read='but this is "Equals"',
    ),
    Row(
        "selector-in-nothing",
        _requirement(key="pool", operator="In"),
        "operators In and NotIn need at least one entry in values",
    ),
    Row(
        "selector-exists-with-values",
        _requirement(key="pool", operator="Exists", values=["a"]),
        "Exists and DoesNotExist take none",
    ),
    # startAfter
    Row(
        "start-after-9",
        prefetch(startAfter=[{"namespace": "a", "daemonSet": f"d{n}"} for n in range(9)]),
        "spec.startAfter: Too many: 9: must have at most 8 items",
        read="spec.startAfter: the number of entries must be at most 8",
    ),
    Row(
        "start-after-twice",
        prefetch(startAfter=[{"namespace": "a", "daemonSet": "d"}] * 2),
        'spec.startAfter[1]: Duplicate value: {"daemonSet":"d","namespace":"a"}',
        only_api_server=True,
    ),
    Row(
        "start-after-without-namespace",
        prefetch(startAfter=[{"daemonSet": "d"}]),
        "spec.startAfter[0].namespace: Required value",
        read="spec.startAfter[0].namespace: this field is required",
    ),
    Row(
        "start-after-bad-namespace",
        prefetch(startAfter=[{"namespace": "a.b", "daemonSet": "d"}]),
        '"a.b" is not a DNS label',
    ),
    Row(
        "start-after-bad-daemon-set",
        prefetch(startAfter=[{"namespace": "a", "daemonSet": "Spegel"}]),
        '"Spegel" is not the name of a DaemonSet',
    ),
    # imagesFrom
    Row(
        "images-from-17",
        prefetch(imagesFrom=[{**_WORKLOADS, "namespace": f"n{n}"} for n in range(17)]),
        "spec.imagesFrom: Too many: 17: must have at most 16 items",
        read="spec.imagesFrom: the number of entries must be at most 16",
    ),
    Row(
        "images-from-pods",
        prefetch(imagesFrom=[{**_WORKLOADS, "kind": "Pod"}]),
        '"Pod" needs apiVersion: only Deployment, StatefulSet, DaemonSet, Job, CronJob have a',
    ),
    Row(
        "images-from-core-kind",
        prefetch(imagesFrom=[{**_CANARY, "apiVersion": "v1", "kind": "Secret"}]),
        '"v1" is not the apiVersion of a kind with an API group: write GROUP/VERSION',
    ),
    Row(
        "images-from-bad-kind",
        prefetch(imagesFrom=[{**_CANARY, "kind": "canaries/x"}]),
        '"canaries/x" is not a kind',
    ),
    Row(
        "images-from-unknown-kind-without-paths",
        prefetch(
            imagesFrom=[{"apiVersion": "example.com/v1", "kind": "Canary", "namespace": "serving"}]
        ),
        '"Canary" has no known fields for images: name them in podTemplates or images',
    ),
    Row(
        "images-from-known-name-in-another-group",
        prefetch(imagesFrom=[{**_WORKLOADS, "apiVersion": "example.com/v1"}]),
        '"Deployment" has no known fields for images',
    ),
    *(
        Row(
            f"images-from-path-{number}",
            prefetch(imagesFrom=[{**_CANARY, "podTemplates": [path]}]),
            f'"{path}" is not a path: write the names of fields',
        )
        for number, path in enumerate(("", "spec.", ".spec", "spec[0]", "$.spec", "a[*][*]"))
    ),
    Row(
        "images-from-path-of-images",
        prefetch(imagesFrom=[{**_CANARY, "images": ["spec.*"]}]),
        '"spec.*" is not a path: write the names of fields',
    ),
    Row(
        "images-from-17-paths",
        prefetch(imagesFrom=[{**_CANARY, "images": [f"spec.a{n}" for n in range(17)]}]),
        "spec.imagesFrom[0].images: Too many: 17: must have at most 16 items",
        read="spec.imagesFrom[0].images: the number of entries must be at most 16",
    ),
    Row(
        "images-from-no-namespace",
        prefetch(imagesFrom=[{"kind": "Deployment"}]),
        "spec.imagesFrom[0].namespace: Required value",
        read="spec.imagesFrom[0].namespace: this field is required",
    ),
    Row(
        "images-from-bad-selector",
        prefetch(imagesFrom=[{**_WORKLOADS, "selector": {"matchLabels": {"app": "-a"}}}]),
        '"-a" is not a label value',
    ),
    # gate, rollout, retry
    Row(
        "gate-mode",
        prefetch(gate={"mode": "AllNodes"}),
        'Unsupported value: "AllNodes": supported values: "NewNodes", "Never"',
        read='but this is "AllNodes"',
    ),
    Row(
        "gate-timeout-0",
        prefetch(gate={"timeoutSeconds": 0}),
        "spec.gate.timeoutSeconds in body should be greater than or equal to 1",
        read="greater than or equal to 1, but this is 0",
    ),
    Row(
        "gate-timeout-over-a-day",
        prefetch(gate={"timeoutSeconds": 86401}),
        "spec.gate.timeoutSeconds in body should be less than or equal to 86400",
        read="less than or equal to 86400, but this is 86401",
    ),
    Row(
        "gate-timeout-text",
        prefetch(gate={"timeoutSeconds": "10m"}),
        "spec.gate.timeoutSeconds in body must be of type integer",
        read="should be a valid integer",
    ),
    Row(
        "max-parallel-0",
        prefetch(rollout={"maxParallel": 0}),
        '"0" is not a number of nodes: use a whole number from 1, or a percentage from 1% to 100%',
    ),
    Row(
        "max-parallel-0-percent",
        prefetch(rollout={"maxParallel": "0%"}),
        '"0%" is not a number of nodes',
    ),
    Row(
        "max-parallel-101-percent",
        prefetch(rollout={"maxParallel": "101%"}),
        '"101%" is not a number of nodes',
    ),
    Row(
        "max-parallel-text",
        prefetch(rollout={"maxParallel": "10"}),
        '"10" is not a number of nodes',
    ),
    Row(
        "max-parallel-fraction",
        prefetch(rollout={"maxParallel": "2.5%"}),
        '"2.5%" is not a number of nodes',
    ),
    Row(
        "max-parallel-true",
        prefetch(rollout={"maxParallel": True}),
        "spec.rollout.maxParallel in body must be of type",
        read="spec.rollout.maxParallel: ",
    ),
    Row(
        "topology-key",
        prefetch(rollout={"topologyKey": "topology.kubernetes.io/zone/a"}),
        '"topology.kubernetes.io/zone/a" is not a qualified name',
    ),
    Row(
        "topology-key-name-of-64",
        prefetch(rollout={"topologyKey": "example.com/" + "a" * 64}),
        "is not a qualified name: use [DNS subdomain/]name, the name of at most 63 letters",
    ),
    # spec.repositories
    *(
        Row(
            f"repositories-name-{number}",
            repositories({**_BUILDS, "repository": name}),
            f'"{name}" is not a repository: write [registry[:port]/]name in lowercase, without a'
            " tag and a digest",
            read="is not a",
        )
        for number, name in enumerate(
            (
                "ml/llm:1",
                f"ml/llm@{DIGEST}",
                "ml/LLM",
                "localhost:5000",
                "https://reg.example/a",
                "a" * 248,
                "0123456789abcdef" * 4,
            )
        )
    ),
    Row(
        "repositories-same",
        repositories(
            _BUILDS, {**_BUILDS, "repository": "docker.io/library/llm"}, _policy_of("llm")
        ),
        "two entries are the same repository, docker.io/library/llm: keep one of them",
        read='"docker.io/library/llm" and "llm" are the same repository, docker.io/library/llm',
    ),
    Row(
        "repositories-no-policy",
        _policy(),
        "name exactly one of semver, numerical and alphabetical",
    ),
    Row(
        "repositories-two-policies",
        _policy(numerical={}, alphabetical={}),
        "name exactly one of semver, numerical and alphabetical",
    ),
    Row(
        "repositories-order",
        _policy(numerical={"order": "newest"}),
        'Unsupported value: "newest"',
        read="'asc' or 'desc'",
    ),
    *(
        Row(
            f"repositories-range-{number}",
            _policy(semver={"range": text}),
            f'"{text}" is not a range of versions: write comparisons such as',
        )
        for number, text in enumerate(("latest", "1.2.3.4", ">= <", "1 ||", "01.2.3", ">=1 and <2"))
    ),
    Row(
        "repositories-pattern",
        _filter("^(main-[0-9]+$"),
        "missing closing ): `^(main-[0-9]+$`",
        read='"^(main-[0-9]+$" is not a regular expression of RE2: missing )',
    ),
    Row(
        "repositories-pattern-backreference",
        _filter(r"(a)\1"),
        "invalid escape sequence",
        read="is not a regular expression of RE2: invalid escape sequence",
    ),
    Row(
        "repositories-extract-unknown-group",
        _filter("^main-(?P<ts>[0-9]+)$", "$time"),
        '"$time" names a group that the pattern does not have',
    ),
    Row(
        "repositories-extract-no-group",
        _filter("^main-(?P<ts>[0-9]+)$", "ts"),
        '"ts" names no group of the pattern: write $name or ${name}',
    ),
    Row(
        "repositories-keep-0",
        repositories({**_BUILDS, "keep": 0}),
        "should be greater than or equal to 1",
        read="greater than or equal to 1, but this is 0",
    ),
    Row(
        "repositories-keep-17",
        repositories({**_BUILDS, "keep": 17}),
        "should be less than or equal to 16",
        read="less than or equal to 16, but this is 17",
    ),
    Row(
        "repositories-and-images-of-65",
        {
            **repositories(),
            "spec": {
                "images": [{"image": f"a:{n}"} for n in range(49)],
                "repositories": [{**_BUILDS, "keep": 16}],
            },
        },
        "spec.images and the tags of spec.repositories are more than 64 images",
    ),
    Row(
        "retry-min-over-max",
        prefetch(retry={"minSeconds": 301}),
        "spec.retry.minSeconds: Invalid value: minSeconds must not be larger than maxSeconds",
        read="spec.retry: minSeconds must not be larger than maxSeconds, but 301 > 300",
    ),
    Row(
        "retry-limit-0",
        prefetch(retry={"limit": 0}),
        "spec.retry.limit in body should be greater than or equal to 1",
        read="greater than or equal to 1, but this is 0",
    ),
    Row(
        "retry-timeout-0",
        prefetch(retry={"timeoutSeconds": 0}),
        "should be greater than or equal to 1",
        read="greater than or equal to 1, but this is 0",
    ),
    # NodeGate
    Row(
        "gate-name",
        gate(name="gpu"),
        "a cluster has one NodeGate: name it 'default'",
    ),
    Row("gate-key", gate(taintKey="image gate"), '"image gate" is not a qualified name'),
    Row(
        "gate-foreign-key",
        gate(taintKey="node.kubernetes.io/not-ready"),
        '"node.kubernetes.io/not-ready" is a taint of Kubernetes itself or of Karpenter',
    ),
    Row(
        "gate-key-changed",
        gate(taintKey="example.com/new"),
        "taintKey cannot be changed, because nodes are held with the old key: delete the NodeGate,"
        " which releases every held node, and create it with the new key",
        stored=gate(taintKey="example.com/old"),
        only_api_server=True,
    ),
    Row(
        "gate-silence-29",
        gate(silenceSeconds=29),
        "should be greater than or equal to 30",
        read="greater than or equal to 30, but this is 29",
    ),
    Row(
        "gate-silence-over-a-day",
        gate(silenceSeconds=86401),
        "should be less than or equal to 86400",
        read="less than or equal to 86400, but this is 86401",
    ),
)
