"""A client of the REST API that holds every answer against ``openapi.yaml``."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from tests.rest import spec

BASE = "/api/v1/registry"


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The parsed JSON."""
        return json.loads(self.raw)

    @property
    def data(self) -> Any:
        """The result of a request that was done."""
        assert self.body["success"] is True, self.raw
        return self.body["data"]

    @property
    def code(self) -> str:
        """The code of the error."""
        assert self.body["success"] is False, self.raw
        return str(self.body["error"]["code"])

    @property
    def fields(self) -> list[str]:
        """The fields that the error names."""
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
        """Sends a request.

        Args:
            method: HTTP method.
            path: With its query, as it is to be sent, below ``base``.
            document: What the body is to be as JSON.
            data: The body as it is.
            headers: Headers.
            base: What the path is below.
        """
        whole = base + path
        url = URL(self.base + whole, encoded=True)
        async with self.session.request(
            method, url, json=document, data=data, headers=headers, allow_redirects=False
        ) as response:
            answer = Answer(response.status, response.headers, await response.read())
        if method in {"GET", "HEAD", "POST", "PUT", "DELETE"}:
            spec.check(method, whole.partition("?")[0], answer.status, answer.headers, answer.raw)
        return answer

    async def get(self, path: str, **headers: str) -> Answer:
        """Reads; ``headers`` have underscores for hyphens."""
        return await self.call("GET", path, headers=_names(headers))

    async def outside(self, path: str, **headers: str) -> Answer:
        """Reads outside the API."""
        return await self.call("GET", path, headers=_names(headers), base="")

    async def post(self, path: str, document: Any = None, **headers: str) -> Answer:
        """Posts JSON, or nothing."""
        return await self.call("POST", path, document, headers=_names(headers))

    async def put(self, path: str, document: Any = None, **headers: str) -> Answer:
        """Puts JSON."""
        return await self.call("PUT", path, document, headers=_names(headers))

    async def delete(self, path: str, **headers: str) -> Answer:
        """Deletes."""
        return await self.call("DELETE", path, headers=_names(headers))


def service(name: Any = "agent", **fields: Any) -> dict[str, Any]:
    """The least that can be registered, with more on top."""
    least = {"name": name, "endpoint": "http://agent.test:8080", "version": "1.0.0", "capabilities": []}
    return {**least, **fields}


@asynccontextmanager
async def client(base: str) -> AsyncIterator[Rest]:
    """A client of the server at a base URL."""
    async with aiohttp.ClientSession() as session:
        yield Rest(base, session)


def _names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
