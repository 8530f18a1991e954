"""Tables of RPCs: a handler that is missing or declares no permission is an error at import."""

from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.rpc.methods import declarations, rpc
from registry_server.rpc.service import RPCS
from registry_server.security.permissions import READ

HEALTH: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
"""Has the RPCs Check, List and Watch."""


class Complete:
    @rpc(READ)
    async def check(self) -> None: ...

    @rpc(READ, streams="watches")
    async def watch(self) -> None: ...


class WithoutPermission(Complete):
    async def watch(self) -> None: ...


def test_declarations_are_found_by_the_name_of_the_rpc() -> None:
    table = declarations(HEALTH, Complete, complete=False)
    assert {name: each.streams for name, each in table.items()} == {"Check": None, "Watch": "watches"}


def test_handler_without_a_declared_permission_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"^WithoutPermission\.watch must exist and declare @rpc\(permission\)$"):
        declarations(HEALTH, WithoutPermission, complete=False)


def test_rpc_without_a_handler_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"^Complete\.list must exist and declare @rpc\(permission\)$"):
        declarations(HEALTH, Complete)


def test_every_stream_of_the_registry_is_limited() -> None:
    methods = pb.DESCRIPTOR.services_by_name["RegistryService"].methods
    streams = {each.name for each in methods if each.client_streaming or each.server_streaming}
    assert {name for name, each in RPCS.items() if each.streams} == streams
