"""Recorded messages of runtimes about failed pulls, and their failure classes.

The messages were recorded by ``python -m tests.e2e.collect_messages``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from imagegate.domain import failures, messages
from imagegate.domain.messages import PULL_ERRORS

FOLDER = Path(__file__).parent / "messages"

EXPECTED = {
    "manifest-401": "Unauthorized",
    "manifest-403": "Unauthorized",
    "manifest-404": "ImageNotFound",
    "manifest-429": "Throttled",
    "manifest-500": "RegistryError",
    "manifest-502": "RegistryError",
    "manifest-503": "RegistryError",
    "manifest-504": "RegistryError",
    "manifest-reset": "RegistryUnreachable",
    "manifest-stall": "TransferTimeout",
    "manifest-truncated": "TransferBroken",
    "manifest-corrupt": "TransferBroken",
    "blob-401": "Unauthorized",
    "blob-403": "Unauthorized",
    "blob-404": "ImageNotFound",
    "blob-429": "Throttled",
    "blob-500": "RegistryError",
    "blob-502": "RegistryError",
    "blob-503": "RegistryError",
    "blob-504": "RegistryError",
    "layer-reset": "RegistryUnreachable",
    "layer-stall": "TransferTimeout",
    "layer-truncated": "TransferBroken",
    "layer-corrupt": "TransferBroken",
    "token-200": "Unauthorized",
    "token-401": "Unauthorized",
    "token-403": "Unauthorized",
    "token-429": "Throttled",
    "token-503": "RegistryError",
    "tls-untrusted": "TLSFailed",
    "tls-mismatch": "TLSFailed",
    "tls-plain-http": "TLSFailed",
    "refused": "RegistryUnreachable",
    "unroutable": "RegistryUnreachable",
    "dns-nxdomain": "NameResolutionFailed",
    "dns-servfail": "NameResolutionFailed",
    "dns-silent": "NameResolutionFailed",
    "no-tag": "ImageNotFound",
    "no-repository": "ImageNotFound",
    "no-credentials": "Unauthorized",
    "no-platform": "PlatformMissing",
    "invalid-name": "InvalidImageName",
    "disk-full-content": "DiskFull",
    "disk-full-unpack": "DiskFull",
    "kubelet-qps": "PullQPSExceeded",
}
ODD = {
    "damaged-tar": "TransferBroken",
    "disk-read-only": "NodeDiskFailed",
    "encrypted": "LayerUnsupported",
    "proxy-connect-403": "ProxyRefused",
    "proxy-connect-407": "ProxyRefused",
    "proxy-connect-502": "ProxyFailed",
    "schema-1": "SchemaUnsupported",
    "unknown-compression": "TransferBroken",
    "verifier": "VerifierRefused",
    "web-page": "NotARegistry",
}
"""Faults outside the registry; recorded with containerd 2.4 alone, some also for containers."""
AS_CONTAINER = ("damaged-tar", "encrypted", "schema-1", "unknown-compression", "web-page")
# These runtimes gave the pull up before the lookup ended, so the message does not mention DNS.
EXCEPTIONS = {
    ("containerd-1.7", "dns-silent"): "TransferTimeout",
    ("crio", "dns-silent"): "TransferTimeout",
}


class Recorded(NamedTuple):
    runtime: str
    fault: str
    reason: str
    message: str
    back_off: str


def recorded() -> list[Recorded]:
    return [
        Recorded(file.stem, each["fault"], each["reason"], each["message"], each["back_off"])
        for file in sorted(FOLDER.glob("*.json"))
        for each in json.loads(file.read_text())["messages"]
    ]


@pytest.mark.parametrize("said", recorded(), ids=lambda said: f"{said.runtime}-{said.fault}")
def test_every_recorded_message_has_its_class(said: Recorded) -> None:
    fault = said.fault.removesuffix("-container")
    expected = EXCEPTIONS.get((said.runtime, fault)) or (EXPECTED | ODD)[fault]
    assert said.reason in PULL_ERRORS
    assert messages.classify(f"{said.reason}: {said.message}").reason == expected
    if said.back_off:
        assert messages.classify(f"ImagePullBackOff: {said.back_off}").reason == expected


def test_every_runtime_has_a_recording_of_every_fault() -> None:
    """A fault that did not fail a pull, or that was not tried, must be noticed."""
    met: dict[str, set[str]] = {}
    for said in recorded():
        met.setdefault(said.runtime, set()).add(said.fault)
    every, kubelets = set(EXPECTED), {"kubelet-qps"}
    # CRI-O's library looks for a login only at /v2/, and does not verify the manifest of a tag.
    not_of_crio = {fault for fault in every if fault.startswith(("token-", "disk-"))}
    assert met == {
        "containerd-2.4": every,
        "containerd-1.7": every - kubelets,
        "crio": every - kubelets - not_of_crio - {"manifest-corrupt"},
        "odd": {*ODD, *(f"{fault}-container" for fault in AS_CONTAINER)},
    }


@pytest.mark.parametrize(
    "name", ["forbidden:404", "toomanyrequests:429", "x509:401", "eof:503", "certificate:1"]
)
def test_the_name_of_an_image_does_not_change_the_class(name: str) -> None:
    image = f"r.test/{name}"
    for message in (
        f'failed to pull and unpack image "{image}": failed to resolve image: {image}: strange',
        f"unexpected status from HEAD request to https://{image}/manifests/404: 418 teapot",
        f"initializing source docker://{image}: reading manifest 404 in r.test/forbidden: strange",
    ):
        assert messages.classify(f"ErrImagePull: {message}") is failures.PULL_FAILED


def test_a_number_is_not_a_status() -> None:
    message = "short read: expected 403 bytes but got 404: unexpected EOF"
    assert messages.classify(message).reason == "TransferBroken"


def test_a_refused_signature_is_a_permanent_failure() -> None:
    """In the words of the kubelet (pkg/kubelet/images/image_manager.go, evalCRIPullErr)."""
    message = (
        "SignatureValidationFailed: image pull failed for r.test/a:1 because the signature"
        " validation failed: Source image rejected: A signature was required, but no signature"
    )
    found = messages.classify(message)
    assert (found.reason, found.permanent) == ("SignatureInvalid", True)


def test_the_table_in_the_docs_has_every_class() -> None:
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    section = text.partition("## Why a pull fails\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    documented = {(reason.strip("`"), permanent, todo) for reason, _, permanent, todo in rows}
    assert documented == {
        (cls.reason, "yes" if cls.permanent else "no", cls.remedy) for cls in failures.CLASSES
    }
    assert all(meaning for _, meaning, _, _ in rows)
