"""The failure classes of messages of runtimes; the arithmetic of the back-off."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagegate.domain import failures, messages, retry
from imagegate.domain.facts import Attempts, RetrySpec

# In the wording of other registries and older runtimes; `test_messages.py` has recorded messages.
MESSAGES = [
    (
        'rpc error: code = NotFound desc = failed to pull and unpack image "r.test/a:1":'
        " failed to resolve image: r.test/a:1: not found",
        "ImageNotFound",
    ),
    (
        'failed to pull and unpack image "secure.registry.test/a:1": failed to resolve image: pull'
        " access denied, repository does not exist or may require authorization: authorization"
        " failed: no basic auth credentials",
        "Unauthorized",
    ),
    (
        'failed to resolve reference "r.test/a:1": unexpected status from HEAD request'
        " to https://r.test/v2/a/m: 403 Forbidden",
        "Unauthorized",
    ),
    (
        'failed to do request: Head "http://10.90.0.1:5000/v2/a/manifests/1": dial tcp'
        " 10.90.0.1:5000: connect: connection refused",
        "RegistryUnreachable",
    ),
    (
        "dial tcp: lookup registry.invalid on 10.96.0.10:53: no such host",
        "NameResolutionFailed",
    ),
    (
        "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        "TLSFailed",
    ),
    (
        "unexpected status from HEAD request to https://r/v2/a/m: 429 Too Many Requests",
        "Throttled",
    ),
    ("toomanyrequests: You have reached your pull rate limit.", "Throttled"),
    (
        "unexpected status from HEAD request to https://r/v2/a/m: 503 Service Unavailable",
        "RegistryError",
    ),
    (
        "failed to copy: httpReadSeeker: failed open: failed to do request: context deadline"
        " exceeded",
        "TransferTimeout",
    ),
    ("failed to copy: unexpected EOF", "TransferBroken"),
    (
        'failed commit on ref "layer-sha256:ab": unexpected commit digest sha256:cd, expected'
        " sha256:ab: failed precondition",
        "TransferBroken",
    ),
    (
        "failed to extract layer sha256:ab: write /var/lib/containerd/x: no space left on device",
        "DiskFull",
    ),
    ("no match for platform in manifest sha256:ab: not found", "PlatformMissing"),
    (
        'InvalidImageName: couldn\'t parse image name "A:1": invalid reference format',
        "InvalidImageName",
    ),
    ("reading manifest 1 in r/a: manifest unknown", "ImageNotFound"),  # [crio]
    ("something nobody has seen before", "PullFailed"),
]


# From public reports: failures of all components between the registry and a container.
REPORTED: list[tuple[str, str]] = [
    (line.split("\t")[1], line.split("\t")[0])
    for line in (Path(__file__).parent / "messages" / "reported.tsv").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(("message", "reason"), MESSAGES + REPORTED)
def test_every_message_has_its_class(message: str, reason: str) -> None:
    assert messages.classify(message).reason == reason


def test_only_failures_that_a_person_must_fix_are_permanent() -> None:
    permanent = {cls.reason for m, _ in MESSAGES if (cls := messages.classify(m)).permanent}
    assert permanent == {
        "DiskFull",
        "ImageNotFound",
        "Unauthorized",
        "PlatformMissing",
        "InvalidImageName",
    }


def series(message: str, count: int, spec: RetrySpec) -> list[float]:
    delays, attempts = [], None
    for _ in range(count):
        history = retry.History(attempts, spec, key="n1/g", now=1000.0)
        attempts = history.after(retry.Cause(messages.classify(message), message, "a"))
        delays.append(attempts.next_at - 1000.0)
    return delays


def test_the_back_off_doubles_up_to_the_maximum_and_never_ends() -> None:
    delays = series("unexpected EOF", 50, RetrySpec(limit=100, minimum=10, maximum=300))
    nominal = [10, 20, 40, 80, 160] + [300] * 45
    for delay, expected in zip(delays, nominal, strict=True):
        assert 0.9 * expected <= delay <= 1.1 * expected


def test_pull_that_the_kubelet_has_limited_is_tried_again_soon() -> None:
    delays = series("pull QPS exceeded", 4, RetrySpec(limit=6, minimum=10, maximum=300))
    assert [round(delay / 2**n) for n, delay in enumerate(delays)] == [3, 3, 3, 3]
    (faster,) = series("pull QPS exceeded", 1, RetrySpec(limit=6, minimum=1, maximum=300))
    assert round(faster) == 1


def test_create_that_failed_is_repeated_under_the_same_name() -> None:
    def then(earlier: Attempts | None) -> retry.History:
        return retry.History(earlier, RetrySpec(), key="n1/g", now=1000.0)

    pulled = retry.Cause(failures.PULL_FAILED, "")
    refused = retry.Cause(failures.POD_NOT_CREATED, "")
    first = then(None).not_created(refused)
    assert (first.count, first.number) == (1, 1)
    second = then(first).after(pulled)
    assert (second.count, second.number) == (2, 2)
    third = then(second).not_created(refused)
    assert (third.count, third.number) == (3, 2)
    lost = then(third).lost(retry.Cause(failures.EVICTED_BY_KUBELET, ""))
    assert (lost.count, lost.number) == (1, 3), (
        "the pod number continues although the count starts again"
    )


def test_after_the_limit_or_a_permanent_failure_retries_are_slow() -> None:
    spec = RetrySpec(limit=3, minimum=1, maximum=100)
    assert series("unexpected EOF", 3, spec)[2] >= 90
    assert series("manifest unknown", 1, spec)[0] >= 90


def test_the_jitter_differs_between_nodes_and_is_constant_for_a_node() -> None:
    def delay(key: str) -> float:
        history = retry.History(None, RetrySpec(), key=key, now=0.0)
        return history.after(retry.Cause(failures.PULL_FAILED, "")).next_at

    assert delay("n1/g") == delay("n1/g")
    assert len({delay(f"n{number}/g") for number in range(20)}) > 10


def test_a_large_count_does_not_overflow() -> None:
    assert series("eof", 5000, RetrySpec(limit=10**9))[-1] <= 330
