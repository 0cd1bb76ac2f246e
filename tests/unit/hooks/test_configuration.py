"""The file of receivers: which configuration is accepted, and which errors are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagegate.hooks import configuration
from imagegate.hooks.configuration import InvalidConfiguration
from imagegate.hooks.directory import Directory
from imagegate.hooks.event import Receiver, Source, TokenRule
from imagegate.hooks.sources import SOURCES

MORE = dict(SOURCES) | {
    "cloud": Source(
        "cloud",
        SOURCES["generic"].parse,
        SOURCES["generic"].verify,
        says_registry=False,
        proofs=frozenset({"token", "topics"}),
    )
}
GOOD = """
- name: mine
  source: distribution
  path: 0123456789abcdef
  registry: registry.example:5000
  secrets: [new-secret, old-secret]
- name: cloud
  source: cloud
  path: 0123456789abcdeF
  registry: eu.example/virtual
  token: {issuer: "https://i.example", audience: me, email: a@b, keysURL: "https://k.example"}
  topics: ["arn:aws:sns:x"]
"""


def test_complete_file_is_read() -> None:
    assert configuration.parse(GOOD.encode(), MORE) == (
        Receiver(
            "mine",
            "distribution",
            "0123456789abcdef",
            "registry.example:5000",
            ("new-secret", "old-secret"),
        ),
        Receiver(
            "cloud",
            "cloud",
            "0123456789abcdeF",
            "eu.example/virtual",
            token=TokenRule("https://i.example", "me", "a@b", "https://k.example"),
            topics=("arn:aws:sns:x",),
        ),
    )


def test_empty_file_has_no_receivers() -> None:
    assert configuration.parse(b"", MORE) == ()
    assert configuration.parse(b"[]", MORE) == ()


HARBOR = "name: a, source: harbor, path: 0123456789abcdef"
CLOUD = "name: a, source: cloud, path: 0123456789abcdef"
QUAY = "name: a, source: quay"
ECR_SNS = "name: a, source: ecr-sns, path: 0123456789abcdef"
EVENT_GRID = "name: a, source: acr-eventgrid, path: 0123456789abcdef"
NEXUS = "name: a, source: nexus, path: 0123456789abcdef, registry: a.b"
GAR = "name: a, source: gar, path: 0123456789abcdef"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("name: a", "receiver a: source: Field required; receiver a: path: Field required"),
        ("", "receiver number 1: name: Field required"),
        ("name: a, source: nope, path: 0123456789abcdef", "source: one of acr, "),
        (f"{QUAY}, path: short", "receiver a: path: at least 16 characters"),
        (f"{QUAY}, path: 0123456789abcde/", "path: at least 16 characters"),
        (f"{QUAY}, path: 1234567890123456", "path: Input should be a valid string"),
        (f"{QUAY}, path: 0123456789abcdef, secrets: [secret-word]", "secrets: quay cannot prove"),
        (CLOUD, "registry: is needed"),
        (HARBOR, "receiver a: secrets: is needed; or pathOnly: true"),
        (f"{HARBOR}, secrets: [long-enough], pathOnly: true", "pathOnly: remove it"),
        (f"{HARBOR}, pathOnly: 1", "pathOnly: Input should be a valid boolean"),
        (EVENT_GRID, "secrets or token: is needed; or pathOnly: true"),
        (f"{ECR_SNS}, pathOnly: true", "topics: is needed"),
        (f"{NEXUS}, secrets: [fifteen-letters]", "at least 16 characters, because nexus signs"),
        (f"{HARBOR}, token: {{issuer: a, audience: b}}", "token: harbor cannot prove"),
        (f"{HARBOR}, topics: [a]", "topics: harbor cannot prove"),
        (f"{HARBOR}, secrets: [short]", "secrets: each needs at least 8"),
        (ECR_SNS, "topics: is needed"),
        (GAR, "token.email: is needed"),
        (f"{GAR}, token: {{issuer: a, audience: b}}", "token.email: is needed"),
        (f"{HARBOR}, secrets: ['spaces around ']", "no space around"),
        (f"{HARBOR}, secrets: [123456789]", "secrets.0: Input should be a valid string"),
        (f"{HARBOR}, secret: aaaaaaaaa", "secret: Extra inputs"),
        (f"{HARBOR}, registry: 'https://a.example'", "registry: host, host:port"),
        (f"{HARBOR}, registry: a.example/", "registry: host, host:port or host/path"),
        (f"{HARBOR}, registry: a.example/B", "registry: host, host:port or host/path"),
        (f"{HARBOR}, registry: 'a.example/b:1'", "registry: host, host:port or host/path"),
        (f"{HARBOR}, registry: unqualified", "registry: host, host:port"),
        (f"{CLOUD}, registry: a.b, token: {{issuer: a}}", "token.audience: Field required"),
        (
            f"{CLOUD}, registry: a.b, token: {{issuer: a, audience: b, keysURL: 'http://a'}}",
            "must begin with https",
        ),
    ],
)
def test_invalid_entry_is_rejected_with_its_field(entry: str, problem: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        configuration.parse(f"- {{{entry}}}".encode(), MORE)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        f"{HARBOR}, pathOnly: true",
        f"{HARBOR}, secrets: [eight-ch]",
        f"{NEXUS}, secrets: [sixteen-letters-]",
        f"{QUAY}, path: 0123456789abcdef",
        f"{QUAY}, path: 0123456789abcdef, pathOnly: true",
    ],
)
def test_minimal_entry_is_accepted(entry: str) -> None:
    (receiver,) = configuration.parse(f"- {{{entry}}}".encode(), MORE)
    assert receiver.path_only == ("pathOnly" in entry)


def test_number_of_receivers_is_limited() -> None:
    """The limit exists because each request is compared with every path."""
    lines = [f"- {{name: r{n}, source: quay, path: 0123456789abcdef{n}}}" for n in range(1001)]
    assert len(configuration.parse("\n".join(lines[:1000]).encode(), MORE)) == 1000
    with pytest.raises(InvalidConfiguration, match="more than 1000 receivers"):
        configuration.parse("\n".join(lines).encode(), MORE)


@pytest.mark.parametrize(
    "text", [b"- hello", b"a: [", b"\xff", b"{a: b}", b"7", b"a: b", b"- !!python/x a"]
)
def test_text_that_is_no_list_is_rejected(text: bytes) -> None:
    with pytest.raises(InvalidConfiguration):
        configuration.parse(text, MORE)


def test_duplicate_names_and_paths_are_rejected() -> None:
    one = "- {name: a, source: quay, path: 0123456789abcdef}\n"
    with pytest.raises(InvalidConfiguration) as caught:
        configuration.parse((one + one).encode(), MORE)
    assert str(caught.value) == (
        "receiver a: its name is used by another receiver, too;"
        " receiver a: its path is used by another receiver, too"
    )


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("secrets:", "secrets: 7 #"),
        GOOD.replace("new-secret", "'new-secret '"),
        GOOD.replace("[new-secret", "[{new-secret: 1}"),
        GOOD.replace("distribution", "quay"),
        GOOD + "\n  - new-secret: [0123456789abcdef",
    ],
)
def test_errors_contain_no_secret(text: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        configuration.parse(text.encode(), MORE)
    for secret in ("new-secret", "old-secret", "0123456789abcdef"):
        assert secret not in str(caught.value)


# ---- the file as the kubelet updates it


class Mounted:
    """A Secret's key in a volume: a link through a second link to a directory, which the kubelet
    replaces as a whole (pkg/volume/util/atomic_writer.go).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "receivers.yaml"
        self.count = 0

    def write(self, text: str) -> None:
        self.count += 1
        data = self.folder / f"..data-{self.count}"
        data.mkdir()
        (data / "receivers.yaml").write_text(text)
        new = self.folder / "..data_tmp"
        new.symlink_to(data.name)
        new.rename(self.folder / "..data")
        if not self.file.is_symlink():
            self.file.symlink_to("..data/receivers.yaml")


def test_rotated_secret_is_read_and_an_invalid_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mounted = Mounted(tmp_path)
    directory = Directory(mounted.file, MORE)

    def secrets() -> tuple[str, ...]:
        found = directory.find("0123456789abcdef")
        assert found is not None
        return found.secrets

    directory.reload()  # The Secret is not there yet.
    assert directory.find("0123456789abcdef") is None
    assert "No such file" in caplog.records[-1].error  # type: ignore[attr-defined]
    caplog.clear()

    mounted.write(GOOD)
    directory.reload()
    assert secrets() == ("new-secret", "old-secret")

    mounted.write(GOOD.replace("new-secret, old-secret", "newer-secret, new-secret"))
    directory.reload()
    assert secrets() == ("newer-secret", "new-secret")

    caplog.clear()
    mounted.write("- {name: mine}")
    for _ in range(3):
        directory.reload()
    assert secrets() == ("newer-secret", "new-secret")
    assert [record.message for record in caplog.records] == ["push receivers not read"]

    mounted.write("[]")
    directory.reload()
    assert directory.find("0123456789abcdef") is None


def test_receiver_is_found_by_its_exact_path_only(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(GOOD)
    directory = Directory(tmp_path / "f", MORE)
    directory.reload()
    assert directory.find("0123456789abcdef") is not None
    for path in ("", "0123456789abcde", "0123456789abcdef/", "0123456789ABCDEF", "\udcff"):
        assert directory.find(path) is None
