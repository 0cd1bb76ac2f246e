"""The class of a failed pull, from the message of the container runtime.

The messages are those of containerd 2.x, 1.7 and CRI-O as the kubelet passes them on in
``state.waiting.message``; ``tests/unit/domain/messages/`` has recorded ones.
"""

from __future__ import annotations

import re

from imagegate.domain import failures
from imagegate.domain.facts import Pod
from imagegate.domain.failures import FailureClass

PULL_ERRORS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "ImageInspectError",
        "InvalidImageName",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
"""The reasons for which a container waits while its image cannot be pulled."""

CREATE_ERRORS = frozenset({"CreateContainerConfigError", "CreateContainerError"})
"""The kubelet considers the image present, but cannot create a container from it. No pull is
running, and the next attempt of this pod fails in the same way."""

# The first match wins, so specific patterns come before general patterns: a 429 is often wrapped in
# "failed to resolve reference". A bare number is never enough ("short read: expected 403 bytes" has
# no HTTP status), and neither is a bare "not found", because runtimes also report it for snapshots,
# leases and content in the node's own store.
_CLASSES: tuple[tuple[str, FailureClass], ...] = (
    (r"no space left on device|disk quota exceeded", failures.DISK_FULL),
    (r"pull QPS exceeded", failures.PULL_QPS_EXCEEDED),
    (
        r"SignatureValidationFailed|signature validation failed|source image rejected",
        failures.SIGNATURE_INVALID,
    ),
    (r"image verifier|blocked pull of", failures.VERIFIER_REFUSED),
    (r"toomanyrequests|too many requests|\bstatus\b.*\b429\b|rate limit", failures.THROTTLED),
    (
        r"no such host|server misbehaving|temporary failure in name resolution|lookup \S+ on",
        failures.NAME_RESOLUTION_FAILED,
    ),
    (r"proxy authentication required|\bstatus\b.*\b407\b", failures.PROXY_REFUSED),
    # If the proxy answers CONNECT with an error, Go reports only the reason phrase.
    (
        r"failed to do request: [a-z]+\s*: (forbidden|unauthorized|method not allowed)\s*$",
        failures.PROXY_REFUSED,
    ),
    (
        r"proxyconnect|socks connect"
        r"|failed to do request: [a-z]+\s*: (bad gateway|service unavailable|gateway time-?out"
        r"|internal server error)\s*$",
        failures.PROXY_FAILED,
    ),
    (r"x509|tls: |certificate|server gave HTTP response to HTTPS client", failures.TLS_FAILED),
    (
        r"connection refused|connection reset|no route to host|(network|host) is (unreachable|down)"
        r"|broken pipe|cannot assign requested address"
        r"|RegistryUnavailable|registry is unavailable",
        failures.REGISTRY_UNREACHABLE,
    ),
    (
        r"no match for platform|no matching manifest|does not match the specified platform"
        r"|no image found in (image index|manifest list) for",
        failures.PLATFORM_MISSING,
    ),
    (
        r"cannot be pulled due to configured policy|\bstatus\b.*\b412\b|precondition failed$"
        r"|\bstatus\b.*\b451\b|quarantined?\b",
        failures.REFUSED_BY_POLICY,
    ),
    (
        r"no longer supported since|schema ?(version )?1\b|manifest\.v1\+",
        failures.SCHEMA_UNSUPPORTED,
    ),
    (r"decryption|decrypt\b|missing private key", failures.DECRYPTION_KEY_MISSING),
    (
        r"stream processor|no processor for media-?type|unsupported (compression|layer)",
        failures.LAYER_UNSUPPORTED,
    ),
    (r"text.html|doctype html|<html", failures.NOT_A_REGISTRY),
    (
        r"(unsupported|unknown|unexpected|invalid) (config )?media ?type"
        r"|is not an? (container )?image\b|unsupported artifact",
        failures.NOT_AN_IMAGE,
    ),
    (r"short-name|short name mode", failures.SHORT_NAME),
    (r"pull policy of never", failures.IMAGE_NEVER_PULLED),
    (
        r"parent snapshot|snapshot .*does not exist|content digest|unable to find content"
        r"|missing content|no such content|lease .*(not found|does not exist)"
        r"|(layer|blob) does not exist in|layer not known|image not known"
        r"|failed to get (reader|content)|locked for .* since|ref .* locked",
        failures.NODE_STORE_DAMAGED,
    ),
    (
        r"snapshotter \S* ?(was )?not (found|loaded)|snapshotter not loaded|no such snapshotter"
        r"|failed to (get|start|load) snapshotter|unknown service .*snapshots",
        failures.SNAPSHOTTER_FAILED,
    ),
    (
        r"read-only file system|input.output error|structure needs cleaning",
        failures.NODE_DISK_FAILED,
    ),
    (
        r"too many open files|inotify|cannot allocate memory|resource temporarily unavailable"
        r"|too many levels of",
        failures.NODE_LIMIT_REACHED,
    ),
    (
        r"lchown .*invalid argument|potentially insufficient UIDs or GIDs|id ?mapping",
        failures.IDS_OUT_OF_RANGE,
    ),
    (
        r"operation not permitted|mount callback failed on .*permission denied",
        failures.SNAPSHOTTER_FAILED,
    ),
    # The token service belongs to the registry, even if it has another address.
    (r"(oauth|anonymous|auth|bearer) token.*\bstatus\b.*\b40[13]\b", failures.UNAUTHORIZED),
    (r"STORAGE \W*40[13]\b", failures.REGISTRY_STORAGE_REFUSED),
    (
        r"\bstatus\b.*\b40[13]\b|unauthorized|authorization failed|insufficient_scope"
        r"|(?<!permission )\bdenied\b|no basic auth credentials|forbidden"
        r"|credentials could not be verified|credentials re-verification",
        failures.UNAUTHORIZED,
    ),
    (
        r"invalid reference format|InvalidImageName|couldn't parse image",
        failures.INVALID_IMAGE_NAME,
    ),
    (
        r"manifest[ _]unknown|name[ _]unknown|repository name not known|repository does not exist"
        r"|\bstatus\b.*\b404\b"
        # "not found" for the reference, or for requested content. Names were removed before.
        r"|failed to resolve( reference| image)?\b[\s:]*not found"
        r"|from remote: not found|content at\W*not found|manifest for\W*not found"
        r"|(error reading|reading) manifest\b.*\bnot found"
        r"|requested (image|access to the resource)\W*(is )?not found|artifact\W*not found",
        failures.IMAGE_NOT_FOUND,
    ),
    (
        r"\bstatus\b.*\b5\d\d\b|internal server error|bad gateway|service unavailable"
        r"|gateway timeout",
        failures.REGISTRY_ERROR,
    ),
    (
        r"\beof\b|short read|unexpected commit digest|digest did not match"
        r"|failed size validation|content size mismatch|goaway|http2: |stream error"
        r"|invalid tar header|archive/tar|gzip: |zstd: |magic number mismatch|invalid checksum",
        failures.TRANSFER_BROKEN,
    ),
    (r"^CreateContainer(Config)?Error\b", failures.CONTAINER_NOT_CREATED),
    (r"timeout|timed out|deadline exceeded|context canceled", failures.TRANSFER_TIMEOUT),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), cls) for pattern, cls in _CLASSES)
# Names are removed before the patterns are tried: an image may be called "forbidden:404".
_NAMES = re.compile(
    r'"[^"]*"|(?<!\S)(?!\W?(input/output|text/html)\b)\S*/\S*|\breading manifest \S+ in\b'
)
# A redirect: the paths of a registry's API begin with /v2/.
_STORAGE = re.compile(r"\brequest to https?://[^/\s]+/(?!v2/)\S*?:?(?=\s)")
_DECIDES = (
    # CRI-O: the answer of the registry itself is after the answers of its mirrors.
    re.compile(r"\(Mirrors also failed: \[.*?\]\): (?P<last>.*)", re.DOTALL),
    # CRI-O: pulled as an image first, then as an artifact.
    re.compile(r"pull image err: (?P<last>.*?); artifact err: ", re.DOTALL),
)
LONGEST_MESSAGE = 4096
"""Characters of a message that are searched. The longest recorded messages have some hundred. A
node may write any number, and the time of the patterns grows with the square of it: 64 KiB blocked
the event loop for more than a minute."""


def classify(message: str) -> FailureClass:
    """The class of a failed pull, from the runtime's message."""
    message = message[:LONGEST_MESSAGE]
    for several in _DECIDES:
        if found := several.search(message):
            message = found["last"]
    if "token" not in message:
        message = _STORAGE.sub("request to STORAGE", message)
    text = _NAMES.sub(" ", message)
    return next((cls for pattern, cls in _COMPILED if pattern.search(text)), failures.PULL_FAILED)


def blamed(pod: Pod, message: str) -> str:
    """The image of the pod that a message is about: the image that it names, else the first."""
    named = (image for image in pod.images if image in message)
    return next(named, pod.images[0] if pod.images else "")
