"""Tokens of a service account other than the operator's own (TokenRequest).

What a token is shown to may keep it. So nobody but the API server sees the operator's own.
"""

from __future__ import annotations

import asyncio

from imagegate.errors import ImagegateError
from imagegate.kube.client import Client

SHORTEST = 600
"""Seconds for which a token is asked for: the API server grants none for less."""
USED = 0.75
"""The part of its life in which a token is used: it must outlive the request."""
REPLACED_AFTER = 60.0
"""Seconds after which a token that was refused may be replaced: whoever refuses every token causes
one request a minute."""
ASK_AGAIN = 10.0
"""Seconds until a token is asked for again that was not granted: thousands of nodes want it."""


class Tokens:
    """One account's tokens, asked for when one is needed and kept until shortly before their end.

    They are not bound to a pod: the API server binds only tokens of the pod's own account
    (kubernetes, pkg/registry/core/serviceaccount/storage/token.go). The end of the account ends
    them, and so do ten minutes.
    """

    def __init__(self, client: Client, namespace: str, account: str) -> None:
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        self._asking = asyncio.Lock()
        self._token = ""
        self._asked_at = 0.0
        self._good_until = 0.0
        self._failed: tuple[float, ImagegateError] | None = None

    async def get(self) -> str:
        """Raises a KubeError, and NotLeader as any write."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._failed is not None and now - self._failed[0] < ASK_AGAIN:
                raise self._failed[1].with_traceback(None)
            if not self._token or now >= self._good_until:
                body = {
                    "apiVersion": "authentication.k8s.io/v1",
                    "kind": "TokenRequest",
                    "spec": {"expirationSeconds": SHORTEST},
                }
                try:
                    answer = await self._client.create(self._path, body)
                except ImagegateError as error:
                    self._failed = (now, error)
                    raise
                self._failed = None
                self._token = str(answer["status"]["token"])
                self._asked_at = now
                self._good_until = now + USED * float(answer["spec"]["expirationSeconds"])
            return self._token

    def refused(self, token: str) -> None:
        """Ask for another one: the account may have been made anew, or the signing key changed."""
        now = asyncio.get_running_loop().time()
        if token == self._token and now - self._asked_at >= REPLACED_AFTER:
            self._token = ""
