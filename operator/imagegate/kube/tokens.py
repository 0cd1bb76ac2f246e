"""Tokens of a service account other than the operator's own (TokenRequest).

The receiver of a token may misuse it. So the operator's own token is sent only to the API server.
"""

from __future__ import annotations

import asyncio

from imagegate.errors import ImagegateError
from imagegate.kube.client import Client

SHORTEST = 600
"""Lifetime of a token in seconds: the shortest that the API server grants."""
USED = 0.75
"""Part of its lifetime in which a token is used, so that it does not expire during a request."""
REPLACED_AFTER = 60.0
"""Seconds before a refused token is replaced, so that a kubelet that refuses every token causes
only one request a minute."""
ASK_AGAIN = 10.0
"""Seconds between two requests after a failure, because thousands of nodes may need the token."""


class Tokens:
    """Tokens of one account. A token is requested on demand and cached until shortly before it
    expires.

    The tokens are not bound to a pod, because the API server binds only tokens of the pod's own
    account (kubernetes, pkg/registry/core/serviceaccount/storage/token.go). They become invalid
    after ten minutes, or when the account is deleted.
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
        """Raises a KubeError, or NotLeader, because the request is a write."""
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
        """Drop a refused token: the account may be a new one, or the signing key has changed."""
        now = asyncio.get_running_loop().time()
        if token == self._token and now - self._asked_at >= REPLACED_AFTER:
            self._token = ""
