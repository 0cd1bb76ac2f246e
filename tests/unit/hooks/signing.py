"""Simulated token issuers and SNS: their keys, a certificate, and signed tokens and messages."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from imagegate.errors import ImagegateError
from imagegate.hooks import body, sns
from imagegate.hooks.event import Delivery

PAYLOADS = Path(__file__).parent / "payloads"
KEYS_URL = "https://keys.test/certs"
TOPIC = "arn:aws:sns:us-west-2:123456789012:ecr-pushes"
CERTIFICATE_URL = "https://sns.us-west-2.amazonaws.com/SimpleNotificationService-0123abcd.pem"
CLAIMS = {
    "iss": "https://accounts.google.com",
    "aud": "https://hooks.example.com/hooks/0123456789abcdef",
    "email": "imagegate@project.iam.gserviceaccount.com",
    "email_verified": True,
    "sub": "113774264463038321964",
}


def recorded(name: str) -> Any:
    return json.loads((PAYLOADS / name).read_bytes())


def delivery(content: object = None, **headers: str) -> Delivery:
    """A delivery with `content` as its body, encoded as JSON unless it is bytes."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Delivery({name.replace("_", "-"): value for name, value in headers.items()}, data)


class Web:
    """A `Fetch` that serves `pages` and records the requested URLs in `asked`."""

    def __init__(self, pages: Mapping[str, bytes]) -> None:
        self.pages = dict(pages)
        self.newer: dict[str, bytes] = {}
        """Pages that only a fetch with `fresh` sees."""
        self.asked: list[str] = []

    async def __call__(self, url: str, *, fresh: bool = False) -> bytes:
        self.asked.append(url)
        if fresh:
            self.pages |= self.newer
        if url not in self.pages:
            raise ImagegateError(f"{url}: 404")
        return self.pages[url]


@cache
def rsa_key(_: str = "issuer", bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(_: str = "issuer") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, name: str, **more: str) -> Any:
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm: Any = jwt.algorithms.RSAAlgorithm
    else:
        algorithm = jwt.algorithms.ECAlgorithm
    public = json.loads(algorithm.to_jwk(key.public_key()))
    # PyJWT writes `key_ops`; real issuers write `use` instead.
    return {k: v for k, v in public.items() if k != "key_ops"} | {"kid": name, "use": "sig"} | more


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def token(
    key: Any = None,
    *,
    algorithm: str = "RS256",
    headers: Mapping[str, Any] | None = None,
    expires: float = 3600,
    **claims: Any,
) -> str:
    """A token as the issuer signs it, with changed claims; a claim of None is left out."""
    now = int(time.time())
    said = {**CLAIMS, "iat": now, "exp": now + int(expires), **claims}
    return jwt.encode(
        {name: value for name, value in said.items() if value is not None},
        rsa_key() if key is None else key,
        algorithm,
        {"kid": "one", **(headers or {})},
    )


@cache
def certificate(days: int = 30, *, elliptic: bool = False) -> bytes:
    """A certificate of SNS in PEM that expires in `days`; with negative `days`, it has expired."""
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    key: Any = ec_key("sns") if elliptic else rsa_key("sns")
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=abs(days) + 1))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(Encoding.PEM)


def message(version: str = "2", *, key: rsa.RSAPrivateKey | None = None, **more: Any) -> Any:
    """An SNS notification that contains an ECR event; the signature covers `more`."""
    sent = {
        "Type": "Notification",
        "MessageId": "17dea24b-55c2-540b-8362-f916557af765",
        "TopicArn": TOPIC,
        "Message": json.dumps(recorded("ecr.json")),
        "Timestamp": "2022-07-28T21:24:08.324Z",
        "SignatureVersion": version,
        "SigningCertURL": CERTIFICATE_URL,
        "UnsubscribeURL": "https://sns.us-west-2.amazonaws.com/?Action=Unsubscribe",
        **more,
    }
    read = body.read(sns.Message, delivery({**sent, "Signature": ""}))
    algorithm = hashes.SHA1() if version == "1" else hashes.SHA256()
    signature = (key or rsa_key("sns")).sign(sns.signed(read), padding.PKCS1v15(), algorithm)
    return {**sent, "Signature": base64.b64encode(signature).decode()}


def confirmation(version: str = "2", **more: Any) -> Any:
    """The first message of SNS; a GET of its URL confirms the subscription."""
    url = f"https://sns.us-west-2.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}"
    return message(
        version,
        **{
            "Type": "SubscriptionConfirmation",
            "Message": f"You have chosen to subscribe to the topic {TOPIC}.",
            "Token": "2336412f37",
            "SubscribeURL": f"{url}&Token=2336412f37",
            **more,
        },
    )
