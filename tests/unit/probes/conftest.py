"""Fixtures of the probe tests."""

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from tests.support.endpoints import Certificates, make_certificates


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner on each event loop that the server may use: uvloop reports some errors differently."""
    with asyncio.Runner(loop_factory=request.param) as created:
        yield created


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))
