"""A client of the REST API that validates every answer against ``openapi.yaml``."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from tests.rest import spec

BASE = "/api/v1/registry"


class Answer(NamedTuple):
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The parsed JSON."""
        return json.loads(self.raw)

    @property
    def data(self) -> Any:
        """The result of a successful request."""
        assert self.body["success"] is True, self.raw
        return self.body["data"]

    @property
    def code(self) -> str:
        """The code of the error."""
        assert self.body["success"] is False, self.raw
        return str(self.body["error"]["code"])

    @property
    def fields(self) -> list[str]:
        """The fields with violations."""
        return [violation["field"] for violation in self.body["error"]["details"]["violations"]]


class Rest:
    """Calls the API over real sockets."""

    def __init__(self, base: str, session: aiohttp.ClientSession) -> None:
        self.base = base
        self.session = session

    async def call(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        base: str = BASE,
    ) -> Answer:
        """Send a request and validate the answer.

        Args:
            method: HTTP method.
            path: Path below ``base`` and query, already percent-encoded.
            document: Value to send as JSON.
            data: Raw body.
            headers: Headers.
            base: Prefix of the path.
        """
        full_path = base + path
        url = URL(self.base + full_path, encoded=True)
        async with self.session.request(
            method, url, json=document, data=data, headers=headers, allow_redirects=False
        ) as response:
            answer = Answer(response.status, response.headers, await response.read())
        if method in {"GET", "HEAD", "POST", "PUT", "DELETE"}:
            spec.check(method, full_path.partition("?")[0], answer.status, answer.headers, answer.raw)
        return answer

    async def get(self, path: str, **headers: str) -> Answer:
        """Send GET; ``headers`` have underscores for hyphens, here and below."""
        return await self.call("GET", path, headers=_hyphenated(headers))

    async def get_outside_api(self, path: str, **headers: str) -> Answer:
        """Send GET for a path outside the API."""
        return await self.call("GET", path, headers=_hyphenated(headers), base="")

    async def post(self, path: str, document: Any = None, **headers: str) -> Answer:
        """Send POST with JSON, or without a body."""
        return await self.call("POST", path, document, headers=_hyphenated(headers))

    async def put(self, path: str, document: Any = None, **headers: str) -> Answer:
        """Send PUT with JSON."""
        return await self.call("PUT", path, document, headers=_hyphenated(headers))

    async def delete(self, path: str, **headers: str) -> Answer:
        """Send DELETE."""
        return await self.call("DELETE", path, headers=_hyphenated(headers))


def service(name: Any = "agent", **fields: Any) -> dict[str, Any]:
    """Return a registration with the required fields and ``fields``."""
    required = {"name": name, "endpoint": "http://agent.test:8080", "version": "1.0.0", "capabilities": []}
    return {**required, **fields}


@asynccontextmanager
async def client(base: str) -> AsyncIterator[Rest]:
    """Yield a client of the server at a base URL."""
    async with aiohttp.ClientSession() as session:
        yield Rest(base, session)


def _hyphenated(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
