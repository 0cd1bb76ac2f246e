"""The keyring finds the credentials that the kubelet would use.

The tables are those of k8s.io/kubernetes v1.36.3 pkg/credentialprovider (keyring_test.go,
config_test.go, secrets/secrets_test.go). `golden/kubelet-keyring.json` holds the answers of that
package to random secrets; `golden/oracle.go` is the program that called the package.
"""

from __future__ import annotations

import base64
import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagegate.api.references import parse
from imagegate.registry import globs, keychain, pull_secrets
from imagegate.registry.errors import InvalidSecret
from imagegate.registry.keychain import Keyring
from imagegate.registry.pull_secrets import CONFIG_KEY, CONFIG_TYPE, LEGACY_TYPE, PullSecret
from tests.unit.registry.secrets import auth, secret

GOLDEN = Path(__file__).parent / "golden" / "kubelet-keyring.json"


def legacy(place: str, username: str = "foo", password: str = "bar") -> Keyring:
    content = {place: {"email": "foo@bar.baz", "auth": auth(username, password)}}
    return Keyring([secret(content, kind=LEGACY_TYPE)])


def logins(keyring: Keyring, image: str) -> list[tuple[str, str]]:
    return [(found.username, found.password) for found in keyring.lookup_name(image)]


class TestKubeletTables:
    @pytest.mark.parametrize(
        ("glob", "target", "expected"),
        [
            ("*.kubernetes.io", "prefix.kubernetes.io", True),
            ("prefix.*.io", "prefix.kubernetes.io", True),
            ("prefix.kubernetes.*", "prefix.kubernetes.io", True),
            ("*-good.kubernetes.io", "prefix-good.kubernetes.io", True),
            ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah", True),
            ("prefix.*.io/foo", "prefix.kubernetes.io/foo/bar", True),
            ("*.kubernetes.io:1111/blah", "prefix.kubernetes.io:1111/blah", True),
            ("prefix.*.io:1111/foo", "prefix.kubernetes.io:1111/foo/bar", True),
            ("*.kubernetes.io", "kubernetes.io", False),
            ("*.*.kubernetes.io", "prefix.kubernetes.io", False),
            ("*.*.kubernetes.io", "kubernetes.io", False),
            ("*kubernetes.io", "a.kubernetes.io", False),
            ("*kubernetes.io", "kubernetes.io", True),
            ("*.*.*.kubernetes.io", "a.b.c.kubernetes.io", True),
            ("kubernetes.io", "kubernetes.com", False),
            ("k*.io", "quay.io", False),
            ("ab*ba.io", "aba.io", False),  # not in the kubelet's table; tried with its code
            ("a*b*a.io", "aba.io", True),
            ("*a*a*.io", "banana.io", True),
            ("*.kubernetes.io:1234/blah", "prefix.kubernetes.io:1111/blah", False),
            ("prefix.*.io/foo", "prefix.kubernetes.io:1111/foo/bar", False),
        ],
    )
    def test_url_matches_as_in_the_kubelet(self, glob: str, target: str, expected: bool) -> None:
        parsed = globs.parse(glob), globs.parse(target)
        assert parsed[0] is not None
        assert parsed[1] is not None
        assert globs.matches(*parsed) is expected  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("glob", "target"),
        [
            ("https://hello.kubernetes.io", "hello.kubernetes.io"),
            ("https://*.docker.io", "prefix.docker.io"),
            ("https://prefix.*.io", "prefix.docker.io"),
            ("https://prefix.docker.*", "prefix.docker.io"),
            ("https://*.docker.io/path", "prefix.docker.io/path"),
            ("https://prefix.*.io/path", "prefix.docker.io/path/subpath"),
            ("https://prefix.docker.*/path", "prefix.docker.io/path"),
            ("https://*.docker.io:8888", "prefix.docker.io:8888"),
            ("https://prefix.*.io:8888", "prefix.docker.io:8888"),
            ("https://prefix.docker.*:8888", "prefix.docker.io:8888"),
            ("https://*.docker.io/path:1111", "prefix.docker.io/path:1111"),
            ("https://*.docker.io/v1/", "prefix.docker.io/path:1111"),
            ("https://*.docker.io/v2/", "prefix.docker.io/path:1111"),
            ("https://prefix.docker.*/path:1111", "prefix.docker.io/path:1111"),
            ("prefix.docker.io:1111", "prefix.docker.io:1111/path"),
            ("*.docker.io:1111", "prefix.docker.io:1111/path"),
        ],
    )
    def test_keyring_finds_a_matching_glob(self, glob: str, target: str) -> None:
        assert logins(legacy(glob), f"{target}/foo/bar") == [("foo", "bar")]

    @pytest.mark.parametrize(
        ("glob", "target"),
        [
            ("https://hello.kubernetes.io", "world.mesos.org/foo/bar"),
            ("https://*.docker.com", "prefix.docker.io"),
            ("https://suffix.*.io", "prefix.docker.io"),
            ("https://prefix.docker.c*", "prefix.docker.io"),
            ("https://prefix.*.io/path:1111", "prefix.docker.io/path/subpath:1111"),
            ("suffix.*.io", "prefix.docker.io"),
        ],
    )
    def test_keyring_ignores_another_glob(self, glob: str, target: str) -> None:
        assert logins(legacy(glob), f"{target}/foo/bar") == []

    @pytest.mark.parametrize(
        ("image", "hits"),
        [
            ("world.mesos.org/foo/bar", 0),
            ("google/docker-registry", 1),
            ("jenkins", 1),
            ("index.docker.io/v1//google/docker-registry", 1),
        ],
    )
    def test_docker_hub_entry_matches_docker_hub_images(self, image: str, hits: int) -> None:
        assert logins(legacy("https://index.docker.io/v1/"), image) == [("foo", "bar")] * hits

    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            ("foo/bar", True),
            ("docker.io/foo/bar", True),
            ("index.docker.io/foo/bar", True),
            ("foo", True),
            ("", False),
            ("registry.tld/foo/bar", False),
            ("registry:5000/foo/bar", False),
            ("myhostdocker.io/foo/bar", False),
        ],
    )
    def test_docker_hub_image_is_recognized(self, image: str, expected: bool) -> None:
        assert keychain.is_docker_hub(image) is expected

    @pytest.mark.parametrize(
        ("image", "users"),
        [
            ("bar.example.com", ["ada"]),
            ("bar.example.com/pong", ["grace", "ada"]),
            ("bar.example.com/ping", ["ada"]),
            ("bar.example.com/pongz", ["grace", "ada"]),
            ("bar.example.com/pong/pang", ["grace", "ada"]),
            ("example.com", []),
            ("foo.example.com", []),
        ],
    )
    def test_most_specific_entry_is_first(self, image: str, users: list[str]) -> None:
        content = {
            "bar.example.com/pong": {"username": "grace", "password": "squash"},
            "bar.example.com": {"username": "ada", "password": "smash"},
        }
        keyring = Keyring([secret(content, kind=LEGACY_TYPE)])
        assert [username for username, _ in logins(keyring, image)] == users

    @pytest.mark.parametrize("image", ["quay.io", "quay.io/foo", "quay.io/foo/bar"])
    def test_v1_suffix_is_ignored_as_in_kubernetes_issue_3797(self, image: str) -> None:
        assert logins(legacy("https://quay.io/v1/", "rex", "tiny arms"), image) == [
            ("rex", "tiny arms")
        ]

    @pytest.mark.parametrize(
        ("entry", "expected"),
        [
            ({"username": "foo", "password": "bar", "email": "e"}, ("foo", "bar")),
            ({"auth": "Zm9vOmJhcg==", "email": "e"}, ("foo", "bar")),
            ({"username": "foo", "password": "bar", "auth": "cGluZzpwb25n"}, ("ping", "pong")),
            ({"auth": "pants", "email": "e"}, None),
            ({"email": False}, None),
            ({"auth": "Zm9vOmJhcg"}, ("foo", "bar")),
            ({"auth": "Zm9vOm\nJhcg==\n"}, ("foo", "bar")),
            ({"auth": "cGFudHM="}, None),
            ({"auth": "Zm9vOmJhcg== "}, None),
        ],
    )
    def test_entry_is_read_as_the_kubelet_reads_it(
        self, entry: dict[str, Any], expected: tuple[str, str] | None
    ) -> None:
        made = secret({"auths": {"registry.test": entry}})
        if expected is None:
            with pytest.raises(InvalidSecret):
                Keyring([made])
        else:
            assert logins(Keyring([made]), "registry.test") == [expected]

    @pytest.mark.parametrize("kind", [CONFIG_TYPE, LEGACY_TYPE])
    @pytest.mark.parametrize(
        "entry", [{"auth": "dXNlcjpwYXNzd29yZA=="}, {"username": "user", "password": "password"}]
    )
    def test_both_secret_types_are_read(self, kind: str, entry: dict[str, str]) -> None:
        content: dict[str, Any] = {"test.registry.io": entry}
        keyring = Keyring(
            [secret({"auths": content} if kind == CONFIG_TYPE else content, kind=kind)]
        )
        assert logins(keyring, "test.registry.io") == [("user", "password")]
        assert logins(keyring, "other.registry.io") == []
        assert keyring.ignored == ()

    @pytest.mark.parametrize("kind", [CONFIG_TYPE, LEGACY_TYPE, "Opaque"])
    def test_secret_with_the_key_of_another_type_is_ignored(self, kind: str) -> None:
        made = secret({"auths": {"registry.test": {"auth": auth("a", "b")}}})
        wrong = pull_secrets.LEGACY_KEY if kind == CONFIG_TYPE else CONFIG_KEY
        keyring = Keyring([PullSecret("ml", "odd", kind, {wrong: made.data[CONFIG_KEY]})])
        assert logins(keyring, "registry.test") == []
        assert keyring.ignored == ("ml/odd",)


def golden() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
    return cases


def test_answers_are_those_of_the_kubelet() -> None:
    matches = refused = 0
    for case in golden():
        secrets = [
            PullSecret("n", str(number), s["type"], {s["key"]: base64.b64decode(s["data"])})
            for number, s in enumerate(case["secrets"])
        ]
        if case["failed"]:
            refused += 1
            with pytest.raises(InvalidSecret):
                Keyring(secrets)
            continue
        keyring = Keyring(secrets)
        for image, expected in case["images"].items():
            found = [
                [
                    base64.b64encode(part.encode("utf-8", "surrogateescape")).decode()
                    for part in each
                ]
                for each in logins(keyring, image)
            ]
            assert found == expected, (case, image)
            matches += len(found)
    assert matches > 100
    assert refused > 20


class TestReferences:
    """Calls of `lookup`, with references normalized as the kubelet does."""

    @pytest.mark.parametrize(
        "place",
        [
            "docker.io",
            "https://docker.io",
            "index.docker.io",
            "https://index.docker.io/v1/",
            "https://index.docker.io/v2/",
            "http://index.docker.io/v1/",
            "*.io",
            "docker.io/library",
            "docker.io/library/nginx",
        ],
    )
    @pytest.mark.parametrize(
        "image", ["nginx", "nginx:1", "docker.io/nginx", "index.docker.io/nginx"]
    )
    def test_every_name_of_docker_hub_matches(self, place: str, image: str) -> None:
        assert len(legacy(place).lookup(parse(image))) == 1

    @pytest.mark.parametrize(
        "place", ["registry-1.docker.io", "hub.docker.com", "https://index.docker.io/v1", "nginx"]
    )
    def test_other_names_do_not_match_docker_hub(self, place: str) -> None:
        assert legacy(place).lookup(parse("nginx")) == ()

    def test_docker_hub_index_key_is_only_a_fallback(self) -> None:
        content = {
            "index.docker.io": {"username": "fallback", "password": ""},
            "docker.io/ml": {"username": "team", "password": ""},
        }
        keyring = Keyring([secret({"auths": content})])
        assert [c.username for c in keyring.lookup(parse("ml/llm"))] == ["team"]
        assert [c.username for c in keyring.lookup(parse("nginx"))] == ["fallback"]

    def test_secrets_for_the_same_registry_keep_their_order(self) -> None:
        keyring = Keyring(
            secret({"auths": {place: {"username": user, "password": ""}}}, name=user)
            for place, user in [
                ("registry.test", "first"),
                ("registry.test/ml", "specific"),
                ("https://registry.test/", "second"),
            ]
        )
        found = keyring.lookup(parse("registry.test/ml/llm:1"))
        assert [c.username for c in found] == ["specific", "first", "second"]
        assert [c.source for c in found] == [
            "secret ml/specific",
            "secret ml/first",
            "secret ml/second",
        ]

    def test_ipv6_address_matches_only_with_its_port(self) -> None:
        """The kubelet has this defect too, and we keep it: see `globs`."""
        assert len(legacy("[::1]:5000").lookup(parse("[::1]:5000/app"))) == 1
        assert legacy("[::1]").lookup(parse("[::1]/app")) == ()

    def test_tokens_are_read_although_the_kubelet_ignores_them(self) -> None:
        entry = {"identitytoken": "refresh", "registrytoken": "bearer"}
        (found,) = Keyring([secret({"auths": {"registry.test": entry}})]).lookup_name(
            "registry.test/app"
        )
        assert (found.identity_token, found.registry_token) == ("refresh", "bearer")
        assert not found.anonymous

    def test_number_too_long_for_python_is_ignored(self) -> None:
        content = b'{"auths": {"registry.test": {"username": "u", "since": ' + b"9" * 5000 + b"}}}"
        assert len(Keyring([secret(content)]).lookup_name("registry.test")) == 1

    def test_secret_is_read_from_its_kubernetes_object(self) -> None:
        data = base64.b64encode(b'{"auths": {"registry.test": {"username": "u"}}}').decode()
        body = {
            "metadata": {"namespace": "ml", "name": "pull"},
            "type": CONFIG_TYPE,
            "data": {CONFIG_KEY: data, "other": 5},
        }
        (found,) = Keyring([PullSecret.from_object(body)]).lookup_name("registry.test")
        assert (found.username, found.source) == ("u", "secret ml/pull")
        body["data"] = {CONFIG_KEY: "not base64!"}
        with pytest.raises(InvalidSecret, match=r"pull secret ml/pull: \.dockerconfigjson is not"):
            PullSecret.from_object(body)


class TestMessages:
    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"{", "it is not JSON from line 1, column 2 on"),
            (b'{"auths": NaN}', "NaN and Infinity are not JSON"),
            (b"[" * 100_000, "it is nested too deeply"),
            (b"[]", 'it must be an object with "auths"'),
            (b'{"auths": []}', "the registries must be an object"),
            (b'{"auths": {"a": {}, "b": 5}}', "registry 2 of 2: it must be an object"),
            (b'{"auths": {"a": {"Password": 5}}}', 'registry 1 of 1: "password" must be a string'),
            (b'{"auths": {"a": {"auth": "%"}}}', 'registry 1 of 1: "auth" is not base64'),
            (b'{"auths": {"a": {"auth": "eA=="}}}', '"auth" is not base64 of username:password'),
            (b'{"HttpHeaders": {"a": 1}}', '"HttpHeaders" must be an object of strings'),
        ],
    )
    def test_error_names_problem_field_and_remedy(self, content: bytes, problem: str) -> None:
        with pytest.raises(InvalidSecret) as caught:
            Keyring([secret(content)])
        assert str(caught.value) == (
            f"pull secret ml/pull: .dockerconfigjson: {problem}"
            if problem.startswith(("it", "NaN", "the", "registry", '"Http'))
            else f"pull secret ml/pull: .dockerconfigjson: registry 1 of 1: {problem}"
        ) + (
            "; the kubelet pulls nothing with it: create it again, for example with"
            " `kubectl create secret docker-registry`"
        )
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELD = st.sampled_from(["auth", "Auth", "username", "password", "email", "identitytoken"])
ENTRY = st.dictionaries(FIELD, JSON | st.text(), max_size=4) | JSON
AUTHS = st.dictionaries(st.text() | st.sampled_from(["registry.test", "[::1", "%zz"]), ENTRY | JSON)
CONFIG = st.dictionaries(st.sampled_from(["auths", "Auths", "HttpHeaders"]), AUTHS | JSON) | JSON
BYTES = CONFIG.map(lambda value: json.dumps(value).encode()) | st.binary()


@settings(max_examples=300, deadline=None)
@given(data=BYTES, kind=st.sampled_from([CONFIG_TYPE, LEGACY_TYPE]), image=st.text())
@example(data=b'{"auths": {"\\ud800": {"auth": "\\udfff"}}}', kind=CONFIG_TYPE, image="\ud800")
def test_arbitrary_secret_does_not_crash_the_keyring(data: bytes, kind: str, image: str) -> None:
    try:
        keyring = Keyring([secret(data, kind=kind)])
    except InvalidSecret:
        return
    for name in (image, "registry.test/app", "nginx"):
        for found in keyring.lookup_name(name):
            found.username.encode("utf-8", "surrogateescape")
            found.password.encode("utf-8", "surrogateescape")


MARK = "Tr0ub4dor&3"


@settings(max_examples=300, deadline=None)
@given(
    data=st.tuples(
        BYTES | st.just(json.dumps({MARK: {"auth": MARK, "password": MARK}}).encode()),
        st.integers(min_value=0),
    ),
    kind=st.sampled_from([CONFIG_TYPE, LEGACY_TYPE]),
)
def test_error_and_repr_contain_nothing_of_the_secret(data: tuple[bytes, int], kind: str) -> None:
    content, place = data
    place %= len(content) + 1
    content = content[:place] + MARK.encode() + content[place:]
    made = secret(content, kind=kind)
    assert MARK not in repr(made)
    try:
        keyring = Keyring([made])
    except InvalidSecret as error:
        text = "".join(traceback.format_exception(error)) + repr(error)
        assert MARK not in text
        return
    assert not any(MARK in repr(found) for found in keyring.lookup_name("nginx"))


@settings(deadline=None)
@given(st.text())
def test_password_is_kept_unchanged(password: str) -> None:
    made = secret({"auths": {"registry.test": {"username": "u", "password": password}}})
    expected = password.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    found = Keyring([made]).lookup_name("registry.test")
    assert [c.password for c in found] == [expected]
    assert password not in repr(found) or len(password) < 5
