"""A signed token (JWT) in ``Authorization``, as Google Pub/Sub and Microsoft Entra send it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt

from imagegate.errors import ImagegateError
from imagegate.hooks.event import Delivery, Fetch, TokenRule, Unverified

_ALGORITHMS = ("RS256", "ES256")
_LEEWAY = 60.0
"""Seconds that two clocks may differ by."""
_OPTIONS: jwt.types.Options = {
    "require": ["exp", "iat", "iss", "aud"],
    "strict_aud": True,
    "enforce_minimum_key_length": True,
}
LIFETIME = 24 * 3600.0
"""Seconds from a token's ``iat`` to its ``exp``, at most. Google's live for an hour, Microsoft
Entra's for up to 24."""
# PyJWT's own errors, and what its parsing of hostile JSON lets through.
_ERRORS = (jwt.PyJWTError, ValueError, AttributeError, RecursionError)


async def verify(delivery: Delivery, rule: TokenRule, keys_url: str, fetch: Fetch) -> None:
    """The token says all that the rule asks for, and the issuer signed it. Raises Unverified.

    `keys_url` is where the source's usual issuer publishes its keys, unless the rule says where.
    What the token itself names as its keys (``jku``, ``x5u``, ``jwk``) is not looked at. A name
    (``kid``) that is not among the keys that `fetch` keeps may be of a new one: they are asked for
    again, which `fetch` bounds.
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
        raise Unverified("the token is signed with no key of the issuer")
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
    # Who signs is told by e-mail; one that the issuer has not verified is anybody's.
    if claims.get("email_verified") is not True or claims.get("email") != rule.email:
        raise Unverified("the token is not that of the configured e-mail")


def _check_lifetime(claims: Mapping[str, Any]) -> None:
    """A token that is good for years is a password that nobody can change. Raises Unverified."""
    if float(claims["exp"]) - float(claims["iat"]) > LIFETIME + _LEEWAY:
        raise Unverified("the token is good for more than 24 hours")


def _application(claims: Mapping[str, Any]) -> object:
    """The client to which Microsoft Entra issued the token: ``azp`` (v2), or ``appid`` (v1)."""
    return claims.get("azp", claims.get("appid"))


def _key_name(token: str) -> str:
    """Before keys are asked for: what can be no token of ours makes nobody ask."""
    try:
        header = jwt.get_unverified_header(token)
    except _ERRORS:
        raise Unverified("Authorization holds no token") from None
    name = header.get("kid")
    if header.get("alg") not in _ALGORITHMS or not isinstance(name, str):
        raise Unverified("the token is not signed as it should be")
    return name


def _read(data: bytes) -> dict[str, jwt.PyJWK]:
    """The keys for signatures of a JWKS, by their names. Raises Unverified."""
    try:
        keys = jwt.PyJWKSet.from_json(data.decode()).keys
    except _ERRORS:
        raise Unverified("what is published are no keys") from None
    return {
        key.key_id: key
        for key in keys
        if isinstance(key.key_id, str) and key.public_key_use in (None, "sig")
    }
