"""Verification of a delivery by a secret in a header, or by an HMAC signature."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from imagegate.hooks import verify
from imagegate.hooks.event import Delivery, Receiver, Unverified

BODY = b'{"events":[]}'


def receiver(*secrets: str) -> Receiver:
    return Receiver(name="r", source="s", path="p" * 16, secrets=secrets)


def delivery(**headers: str) -> Delivery:
    return Delivery({name.replace("_", "-"): value for name, value in headers.items()}, BODY)


def signed(secret: str, algorithm: str = "sha256", body: bytes = BODY) -> str:
    return hmac.new(secret.encode(), body, getattr(hashlib, algorithm)).hexdigest()


@pytest.mark.parametrize("secret", ["old", "new", "sécret"])
@pytest.mark.parametrize("form", ["{}", "Bearer {}", "bearer  {}"])
def test_authorization_with_any_configured_secret_is_accepted(secret: str, form: str) -> None:
    verify.by_header(
        delivery(authorization=form.format(secret)),
        receiver("old", "new", "sécret"),
        "authorization",
    )


def test_basic_credentials_are_accepted() -> None:
    shown = base64.b64encode(b"user:password").decode()
    verify.by_header(
        delivery(authorization=f"Basic {shown}"), receiver("user:password"), "authorization"
    )


@pytest.mark.parametrize(
    "value",
    ["", "Bearer ", "Bearer", "Basic ", "Basic !!", "Basic dXNlcg==", "secre", "secrets", "Secret",
     "Token secret", "Bearer secret secret", "\udcff"],
)  # fmt: skip
def test_authorization_without_a_configured_secret_is_rejected(value: str) -> None:
    with pytest.raises(Unverified):
        verify.by_header(delivery(authorization=value), receiver("secret"), "authorization")


def test_header_is_accepted_only_with_its_prefix() -> None:
    to = receiver("one", "two")
    verify.by_header(delivery(x_key="key=two"), to, "x-key", "key=")
    for headers in ({"x_key": "two"}, {"x_key": "key=Bearer two"}, {"other": "key=two"}):
        with pytest.raises(Unverified):
            verify.by_header(delivery(**headers), to, "x-key", "key=")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_hmac_with_any_configured_secret_is_accepted(algorithm: str) -> None:
    to = receiver("old", "new")
    for secret in to.secrets:
        value = f"{algorithm}={signed(secret, algorithm)}"
        verify.by_hmac(delivery(x_sign=value), to, "x-sign", algorithm, f"{algorithm}=")


@pytest.mark.parametrize(
    "value",
    ["", "sha256=", "sha256=00", signed("secret"), "sha256=" + signed("other"),
     "sha256=" + signed("secret", body=BODY + b" "), "sha1=" + signed("secret", "sha1"),
     "sha256=" + signed("secret") + "0", "sha256=\udcff"],
)  # fmt: skip
def test_wrong_hmac_is_rejected(value: str) -> None:
    with pytest.raises(Unverified):
        verify.by_hmac(delivery(x_sign=value), receiver("secret"), "x-sign", "sha256", "sha256=")
    with pytest.raises(Unverified):
        verify.by_hmac(delivery(), receiver("secret"), "x-sign", "sha256", "sha256=")


def test_receiver_without_secrets_accepts_every_delivery() -> None:
    verify.by_header(delivery(), receiver(), "authorization")
    verify.by_hmac(delivery(), receiver(), "x-sign", "sha256")
