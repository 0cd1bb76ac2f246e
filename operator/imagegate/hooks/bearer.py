"""A signed token (JWT) in ``Authorization``, as Google Pub/Sub and Microsoft Entra send it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt

from imagegate.errors import ImagegateError
from imagegate.hooks.event import Delivery, Fetch, TokenRule, Unverified

_ALGORITHMS = ("RS256", "ES256")
_LEEWAY = 60.0
"""Largest tolerated difference between two clocks, in seconds."""
_OPTIONS: jwt.types.Options = {
    "require": ["exp", "iat", "iss", "aud"],
    "strict_aud": True,
    "enforce_minimum_key_length": True,
}
LIFETIME = 24 * 3600.0
"""Longest time from a token's ``iat`` to its ``exp``, in seconds. Tokens of Google are valid for an
hour, tokens of Microsoft Entra for up to 24 hours."""
# PyJWT's own errors, and the errors of its JSON parser that it does not catch for hostile input.
_ERRORS = (jwt.PyJWTError, ValueError, AttributeError, RecursionError)


async def verify(delivery: Delivery, rule: TokenRule, keys_url: str, fetch: Fetch) -> None:
    """Check that the token has the claims of the rule and that the issuer signed it. Raises
    Unverified.

    `keys_url` is where the source's usual issuer publishes its keys; the rule may name another URL.
    Keys that the token itself names (``jku``, ``x5u``, ``jwk``) are ignored. A key name (``kid``)
    that is not among the cached keys may belong to a new key. So the keys are fetched again, and
    `fetch` limits how often.
    """
    scheme, _, token = delivery.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unverified("there is no token in Authorization")
    token = token.strip()
    name = _key_name(token)
    try:
        keys = _read(await fetch(rule.keys_url or keys_url))
        if name not in keys:
            keys = _read(await fetch(rule.keys_url or keys_url, fresh=True))
    except ImagegateError as error:
        raise Unverified(f"no keys of the issuer: {error}") from error
    if name not in keys:
        raise Unverified("the issuer has no key with the kid of the token")
    try:
        claims = jwt.decode(
            token,
            keys[name],
            algorithms=_ALGORITHMS,
            issuer=rule.issuer,
            audience=rule.audience,
            leeway=_LEEWAY,
            options=_OPTIONS,
        )
    except _ERRORS as error:
        raise Unverified(f"the token is not accepted: {error}") from None
    _check_lifetime(claims)
    if rule.application and _application(claims) != rule.application:
        raise Unverified("the token is not that of the configured application")
    if not rule.email:
        return
    # The signer is identified by its e-mail claim. An unverified e-mail identifies nobody.
    if claims.get("email_verified") is not True or claims.get("email") != rule.email:
        raise Unverified("the token is not that of the configured e-mail")


def _check_lifetime(claims: Mapping[str, Any]) -> None:
    """Refuse long-lived tokens, because they cannot be revoked. Raises Unverified."""
    if float(claims["exp"]) - float(claims["iat"]) > LIFETIME + _LEEWAY:
        raise Unverified("the token is good for more than 24 hours")


def _application(claims: Mapping[str, Any]) -> object:
    """The client to which Microsoft Entra issued the token: ``azp`` (v2), or ``appid`` (v1)."""
    return claims.get("azp", claims.get("appid"))


def _key_name(token: str) -> str:
    """The token's ``kid``. Rejects tokens that cannot be valid before the issuer's keys are
    fetched, so that forged tokens cause no requests. Raises Unverified.
    """
    try:
        header = jwt.get_unverified_header(token)
    except _ERRORS:
        raise Unverified("Authorization holds no token") from None
    name = header.get("kid")
    if header.get("alg") not in _ALGORITHMS or not isinstance(name, str):
        raise Unverified("the token has no kid, or an alg that is not accepted")
    return name


def _read(data: bytes) -> dict[str, jwt.PyJWK]:
    """The signature keys of a JWKS by their names. Raises Unverified."""
    try:
        keys = jwt.PyJWKSet.from_json(data.decode()).keys
    except _ERRORS:
        raise Unverified("the issuer's keys cannot be read") from None
    return {
        key.key_id: key
        for key in keys
        if isinstance(key.key_id, str) and key.public_key_use in (None, "sig")
    }
