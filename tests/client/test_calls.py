"""The RPC of a request and whether it may be repeated, both from the descriptor."""

import pytest
from google.protobuf.message import Message

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import Backoff
from registry_client.calls import _METHODS, Caller, _Method
from registry_client.channel import Channels

REPEATABLE: list[Message] = [
    pb.GetServiceRequest(name="a"),
    pb.RegisterServiceRequest(),
    pb.UpdateServiceRequest(),
    pb.UnregisterServiceRequest(name="a"),
    pb.HeartbeatRequest(names=["a"]),
    pb.CheckServiceHealthRequest(name="a"),
]
NOT_REPEATABLE: list[Message] = [
    pb.RegisterServiceRequest(create_only=True),
    pb.UpdateServiceRequest(expected_revision=1),
    pb.UnregisterServiceRequest(name="a", expected_revision=1),
]


def repr_of(request: Message) -> str:
    return " ".join([type(request).__name__, *str(request).split()])


@pytest.mark.parametrize("method", _METHODS.values(), ids=lambda method: method.name)
def test_every_rpc_states_whether_it_may_be_repeated(method: _Method) -> None:
    assert method.idempotent, "set its option idempotency_level in the proto"


@pytest.mark.parametrize("request_", [*REPEATABLE, *NOT_REPEATABLE], ids=repr_of)
def test_only_calls_without_preconditions_are_repeatable(request_: Message) -> None:
    (method,) = (each for (kind, _), each in _METHODS.items() if kind is type(request_))
    assert f"{method.name}Request" == request_.DESCRIPTOR.name
    assert method.is_repeatable(request_) is (request_ in REPEATABLE)


async def test_request_and_response_of_different_rpcs_are_rejected() -> None:
    caller = Caller(Channels(["registry.test:1"], None, None, Backoff()), timeout=1.0)
    with pytest.raises(KeyError, match="GetStatsResponse"):
        await caller.call(pb.GetServiceRequest(name="a"), pb.GetStatsResponse)
