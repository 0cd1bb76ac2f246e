"""Image references, with the test cases of github.com/distribution/reference (v0.6.0).

Its `TestReferenceParse` does not normalise. The expected domain and path here are those of
`ParseNormalizedNamed`, because the kubelet calls that function and `parse` is a port of it.
"""

import json
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imagegate.api import references

F64 = "f" * 64
F128 = "f" * 128
HEX = "1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a"
DBCC = "dbcc1c35ac38df41fd2f5e4130b32ffdb93ebae8b3dbe638c23575912276fc9c"

# text -> domain, path, tag, digest
VALID = {
    # reference_test.go, TestReferenceParse
    "test_com": ("docker.io", "library/test_com", None, None),
    "test.com:tag": ("docker.io", "library/test.com", "tag", None),
    "test.com:5000": ("docker.io", "library/test.com", "5000", None),
    "test.com/repo:tag": ("test.com", "repo", "tag", None),
    "test:5000/repo": ("test:5000", "repo", None, None),
    "test:5000/repo:tag": ("test:5000", "repo", "tag", None),
    f"test:5000/repo@sha256:{F64}": ("test:5000", "repo", None, f"sha256:{F64}"),
    f"test:5000/repo:tag@sha256:{F64}": ("test:5000", "repo", "tag", f"sha256:{F64}"),
    "lowercase:Uppercase": ("docker.io", "library/lowercase", "Uppercase", None),
    "Uppercase/lowercase:tag": ("Uppercase", "lowercase", "tag", None),
    "a/" * 127 + "a:tag-puts-this-over-max": (
        "docker.io",
        "a/" * 127 + "a",
        "tag-puts-this-over-max",
        None,
    ),
    "sub-dom1.foo.com/bar/baz/quux": ("sub-dom1.foo.com", "bar/baz/quux", None, None),
    "sub-dom1.foo.com/bar/baz/quux:some-long-tag": (
        "sub-dom1.foo.com",
        "bar/baz/quux",
        "some-long-tag",
        None,
    ),
    "b.gcr.io/test.example.com/my-app:test.example.com": (
        "b.gcr.io",
        "test.example.com/my-app",
        "test.example.com",
        None,
    ),
    "xn--n3h.com/myimage:xn--n3h.com": ("xn--n3h.com", "myimage", "xn--n3h.com", None),
    f"xn--7o8h.com/myimage:xn--7o8h.com@sha512:{F128}": (
        "xn--7o8h.com",
        "myimage",
        "xn--7o8h.com",
        f"sha512:{F128}",
    ),
    "foo_bar.com:8080": ("docker.io", "library/foo_bar.com", "8080", None),
    "foo/foo_bar.com:8080": ("docker.io", "foo/foo_bar.com", "8080", None),
    "192.168.1.1": ("docker.io", "library/192.168.1.1", None, None),
    "192.168.1.1:5000": ("docker.io", "library/192.168.1.1", "5000", None),
    "192.168.1.1:5000/repo:5050": ("192.168.1.1:5000", "repo", "5050", None),
    "[2001:db8::1]/repo": ("[2001:db8::1]", "repo", None, None),
    "[2001:db8:1:2:3:4:5:6]/repo:tag": ("[2001:db8:1:2:3:4:5:6]", "repo", "tag", None),
    f"[2001:db8::1]:5000/repo:tag@sha256:{F64}": (
        "[2001:db8::1]:5000",
        "repo",
        "tag",
        f"sha256:{F64}",
    ),
    "[::1]:5000/repo": ("[::1]:5000", "repo", None, None),
    # reference_test.go and regexp_test.go, names
    "test_com/foo": ("docker.io", "test_com/foo", None, None),
    "simple/name": ("docker.io", "simple/name", None, None),
    "aa-a/a": ("docker.io", "aa-a/a", None, None),
    "do__cker/docker": ("docker.io", "do__cker/docker", None, None),
    "registry.io/foo/project--id.module--name.ver---sion--name": (
        "registry.io",
        "foo/project--id.module--name.ver---sion--name",
        None,
        None,
    ),
    "example.com/some_separator__underscore/myimage": (
        "example.com",
        "some_separator__underscore/myimage",
        None,
        None,
    ),
    "192.168.1.1:750050/repo": ("192.168.1.1:750050", "repo", None, None),
    "[fd00123123123]:75050/repo": ("[fd00123123123]:75050", "repo", None, None),
    f"localhost:8080@sha256:{F64}": ("docker.io", "library/localhost", "8080", f"sha256:{F64}"),
    f"localhost:8080/name@sha256:{F64}": ("localhost:8080", "name", None, f"sha256:{F64}"),
    f"localhost@sha256:{F64}": ("docker.io", "library/localhost", None, f"sha256:{F64}"),
    # normalize_test.go
    "docker/docker": ("docker.io", "docker/docker", None, None),
    "library/debian": ("docker.io", "library/debian", None, None),
    "debian": ("docker.io", "library/debian", None, None),
    "docker.io/docker/docker": ("docker.io", "docker/docker", None, None),
    "docker.io/library/debian": ("docker.io", "library/debian", None, None),
    "docker.io/debian": ("docker.io", "library/debian", None, None),
    "index.docker.io/docker/docker": ("docker.io", "docker/docker", None, None),
    "index.docker.io/library/debian": ("docker.io", "library/debian", None, None),
    "index.docker.io/debian": ("docker.io", "library/debian", None, None),
    "127.0.0.1:5000/library/debian": ("127.0.0.1:5000", "library/debian", None, None),
    "192.168.0.1:8/debian": ("192.168.0.1:8", "debian", None, None),
    "thisisthesongthatneverendsitgoesonandonandonthisisthesongthatnev": (
        "docker.io",
        "library/thisisthesongthatneverendsitgoesonandonandonthisisthesongthatnev",
        None,
        None,
    ),
    "[fc00:1:2:3:4:5:6:7]:5000/library/debian": (
        "[fc00:1:2:3:4:5:6:7]:5000",
        "library/debian",
        None,
        None,
    ),
    f"docker.io/{HEX}": ("docker.io", f"library/{HEX}", None, None),
    "Docker/docker": ("Docker", "docker", None, None),
    "DOCKER/docker": ("DOCKER", "docker", None, None),
    "docker---rules/docker": ("docker.io", "docker---rules/docker", None, None),
    "jess/t": ("docker.io", "jess/t", None, None),
    "dock__er/docker": ("docker.io", "dock__er/docker", None, None),
    f"redis@sha256:{DBCC}": ("docker.io", "library/redis", None, f"sha256:{DBCC}"),
    DBCC[:-1]: ("docker.io", f"library/{DBCC[:-1]}", None, None),
    "localhost/foo": ("localhost", "foo", None, None),
    "docker.io/library/foo/bar": ("docker.io", "library/foo/bar", None, None),
    # The grammar has no such registry, but runtimes connect to it; the package's Domain() is empty.
    "foo_bar.com/app": ("foo_bar.com", "app", None, None),
}

# text -> fragment of the message
INVALID = {
    # reference_test.go, TestReferenceParse
    "": "must not be empty",
    ":justtag": "has an empty part",
    f"@sha256:{F64}": "has an empty part",
    f"repo@sha256:{'f' * 34}": "the sha256 digest has 34 characters, not 64",
    f"validname@invaliddigest:{F64}": '"invaliddigest" is not a supported digest algorithm',
    "Uppercase:tag": 'must be lowercase: write "uppercase" for "Uppercase"',
    "test:5000/Uppercase/lowercase:tag": 'write "uppercase" for "Uppercase"',
    "a/" * 128 + "a:tag": "has 257 characters: at most 255 are allowed",
    "aa/asdf$$^/aa": '"asdf$$^" cannot be part of a repository name',
    "[2001:db8::1]": "cannot be part of a repository name",
    "[2001:db8::1]:5000": "cannot be part of a repository name",
    "[2001:db8::1]:tag": "cannot be part of a repository name",
    "[fe80::1%eth0]:5000/repo": '"[fe80::1%eth0]:5000" is not a registry',
    "[fe80::1%@invalidzone]:5000/repo": "cannot be part of a repository name",
    # regexp_test.go
    "foo.com/": "has an empty part",
    "foo.com:http/bar": '"foo.com:http" is not a registry',
    "a//a/a": "has an empty part",
    "a/a/a/a/": "has an empty part",
    "foo.com/a-/a/a": '"a-" cannot be part',
    "foo_bar.com:8080/app": '"foo_bar.com:8080" is not a registry',
    "example.com/__underscore/myimage": '"__underscore" cannot be part',
    "example.com/nodouble..dots/myimage": '"nodouble..dots" cannot be part',
    "docker./docker": '"docker." is not a registry',
    ".docker/docker": '".docker" is not a registry',
    "do__cker:8080/docker": '"do__cker:8080" is not a registry',
    "Foo/FarB": 'write "farb" for "FarB"',
    "[fd00:1:2::3]75050/x": '"[fd00:1:2::3]75050" is not a registry',
    "fd00:1:2::3:75050/x": '"fd00:1:2::3:75050" is not a registry',
    "registry.com:8080/myapp@sha256:badbadbadbad": "has 12 characters, not 64",
    "registry.com:8080/myapp:invalid~tag": '"invalid~tag" is not a tag',
    "registry.com:8080/myapp@bad": "a digest must follow '@'",
    # normalize_test.go
    "https://github.com/docker/docker": 'no URL scheme: remove "https://"',
    "docker/Docker": 'write "docker" for "Docker"',
    "-docker": '"-docker" cannot be part',
    "-docker.io/docker/docker": '"-docker.io" is not a registry',
    "docker///docker": "has an empty part",
    "docker.io/docker/Docker": 'write "docker" for "Docker"',
    "[fc00::1]:5000": "cannot be part of a repository name",
    "fc00::1:5000/debian": '"fc00::1:5000" is not a registry',
    "[2001:db8:3:4::192.0.2.33]:5000/debian": "is not a registry",
    HEX: "64 hex digits are an image ID",
    "____/____": '"____" cannot be part',
    "dock_.er/docker": '"dock_.er" is not a registry',
    "docker/": "has an empty part",
    "this_is_not_a_valid_namespace_because_its_length_is_greater_than_255" * 4 + "/docker": (
        "characters: at most 255 are allowed"
    ),
    "-foo": "cannot be part of a repository name",
    # frequent mistakes of users
    "nginx:": "there is no tag after ':'",
    "nginx:-foo": '"-foo" is not a tag',
    "nginx:1:2": '"1:2" is not a tag',
    "nginx@": "a digest must follow '@'",
    "nginx@latest": "a digest must follow '@'",
    f"nginx@sha256:{'F' * 64}": "must be lowercase hex",
    f"nginx@SHA256:{F64}": '"SHA256" is not a supported digest algorithm',
    f"nginx@sha256:{F64}@sha256:{F64}": "characters, not 64",
    f"nginx:{'t' * 129}": "the tag has 129 characters: at most 128",
    "nginx latest": '" " (U+0020) is not allowed',
    "nginx\n": r'"\n" (U+000A) is not allowed',
    "nginx\x00": r'"\u0000" (U+0000) is not allowed',
    "bücher": '"ü" (U+00FC) is not allowed',
    "[0]/app": '"[0]" cannot be part',
    "\u212a8s.gcr.io/pause": "(U+212A) is not allowed",  # the Kelvin sign, whose lower() is "k"
    "foo_bar.com/" + "a" * 244: "has 256 characters",
}


@pytest.mark.parametrize("text", VALID)
def test_valid_reference_is_parsed(text: str) -> None:
    reference = references.parse(text)

    assert reference == references.Reference(*VALID[text])


@pytest.mark.parametrize("text", INVALID)
def test_invalid_reference_is_rejected_with_the_reason(text: str) -> None:
    with pytest.raises(references.InvalidReference, match=re.escape(INVALID[text])):
        references.parse(text)


# normalize_test.go, TestParseRepositoryInfo: other spellings -> familiar, full
NAMES = {
    ("fooo/bar", "docker.io/fooo/bar", "index.docker.io/fooo/bar"): (
        "fooo/bar",
        "docker.io/fooo/bar",
    ),
    ("ubuntu", "docker.io/library/ubuntu", "library/ubuntu"): (
        "ubuntu",
        "docker.io/library/ubuntu",
    ),
    ("other/library",): ("other/library", "docker.io/other/library"),
    ("127.0.0.1:8000/privatebase",): ("127.0.0.1:8000/privatebase", "127.0.0.1:8000/privatebase"),
    ("example.com/private/moonbase",): (
        "example.com/private/moonbase",
        "example.com/private/moonbase",
    ),
    ("ubuntu-12.04-base", "index.docker.io/library/ubuntu-12.04-base"): (
        "ubuntu-12.04-base",
        "docker.io/library/ubuntu-12.04-base",
    ),
    ("library/foo/bar", "docker.io/library/foo/bar"): (
        "library/foo/bar",
        "docker.io/library/foo/bar",
    ),
    ("Foo/bar",): ("Foo/bar", "Foo/bar"),
}


@pytest.mark.parametrize(
    ("text", "familiar", "full"),
    [(text, *expected) for texts, expected in NAMES.items() for text in texts],
)
def test_reference_has_a_familiar_and_a_full_name(text: str, familiar: str, full: str) -> None:
    reference = references.parse(text)

    assert (reference.familiar, reference.name) == (familiar, full)
    assert str(reference) == full
    assert reference.normalized == f"{full}:latest"


def test_tag_and_digest_are_both_kept() -> None:
    reference = references.parse(f"busybox:1@sha256:{F64}")

    assert reference.familiar == f"busybox:1@sha256:{F64}"
    assert reference.normalized == f"docker.io/library/busybox:1@sha256:{F64}"


def test_reference_with_a_digest_gets_no_latest_tag() -> None:
    assert references.parse(f"busybox@sha256:{F64}").normalized.endswith(f"busybox@sha256:{F64}")


def test_long_text_is_truncated_in_messages() -> None:
    with pytest.raises(references.InvalidReference) as caught:
        references.parse("a" * 5000)

    assert len(str(caught.value)) < 400


components = st.from_regex(r"[a-z0-9]{1,6}(([._]|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
domains = st.one_of(
    st.sampled_from(["docker.io", "index.docker.io", "localhost", "LOCAL"]),
    st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,4}[a-zA-Z0-9])?(:[0-9]{1,5})", fullmatch=True),
    st.from_regex(r"[a-z0-9]{1,4}\.[a-zA-Z0-9]{1,4}(:[0-9]{1,5})?", fullmatch=True),
    st.from_regex(r"\[[a-fA-F0-9:]{1,6}:[a-fA-F0-9:]{0,6}\](:[0-9]{1,5})?", fullmatch=True),
)
tags = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
digests = st.sampled_from(sorted(references.DIGEST_LENGTHS.items())).flatmap(
    lambda item: st.from_regex(rf"\A{item[0]}:[a-f0-9]{{{item[1]}}}\Z")
)


@st.composite
def valid_texts(draw: st.DrawFn) -> str:
    domain = draw(st.none() | domains)
    path = "/".join(draw(st.lists(components, min_size=1, max_size=4)))
    tag, digest = draw(st.none() | tags), draw(st.none() | digests)
    text = f"{domain}/{path}" if domain else path
    return text + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


@given(valid_texts())
def test_reference_of_the_grammar_is_parsed_completely(text: str) -> None:
    assume(not re.fullmatch("[a-f0-9]{64}", text))
    reference = references.parse(text)

    assert text.removeprefix("index.").removeprefix("docker.io/") in str(reference)
    assert references.parse(str(reference)) == reference


@given(valid_texts())
def test_normalizing_twice_changes_nothing(text: str) -> None:
    normalized = references.parse(text).normalized

    again = references.parse(normalized)
    assert again.normalized == normalized
    assert again.tag is not None or again.digest is not None


@given(valid_texts())
def test_familiar_name_refers_to_the_same_image(text: str) -> None:
    reference = references.parse(text)
    on_hub = reference.domain == references.DEFAULT_DOMAIN
    first = reference.path.split("/")[0]
    assume(not on_hub or not ("." in first or first == "localhost"))

    assert references.parse(reference.familiar) == reference


@given(st.text(alphabet="aZ09._-:/@[]%~ \né", max_size=24) | st.text(max_size=12))
def test_arbitrary_text_is_parsed_stably_or_rejected_with_a_quote(text: str) -> None:
    try:
        reference = references.parse(text)
    except references.InvalidReference as error:
        message = str(error)
    else:
        message = ""
        assert references.parse(str(reference)) == reference

    assert not text or not message or json.dumps(text, ensure_ascii=False) in message
