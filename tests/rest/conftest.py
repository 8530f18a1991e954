"""Fixtures of the REST tests."""

from collections.abc import AsyncIterator

import pytest

from tests.rest.client import Rest, client
from tests.support.server import Server


@pytest.fixture
async def rest(server: Server) -> AsyncIterator[Rest]:
    """A client of a server with an empty Redis."""
    async with client(server.http) as rest:
        yield rest
