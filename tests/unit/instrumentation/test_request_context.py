"""Request context: which headers of a client are accepted."""

import pytest

from registry_server.instrumentation.request_context import RequestContext, parse_trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


class Context(RequestContext):
    transport = "grpc"
    peer = "peer"

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def header(self, name: str) -> str | None:
        return self._headers.get(name)


def context_with(**headers: str) -> RequestContext:
    return Context({key.replace("_", "-"): value for key, value in headers.items()})


@pytest.mark.parametrize("sent", ["a", "req-1.a:b/c=d", "x" * 128, "6f1c4d2e-0d0a-4c3e-9a55-6f0e3a0f7b11"])
def test_valid_request_id_is_used(sent: str) -> None:
    assert context_with(x_request_id=sent).request_id == sent


@pytest.mark.parametrize("sent", ["", "a b", "a\nb", "a\x00", "a\x1b[31m", 'a"b', "é", "x" * 129, "\u2028"])
def test_invalid_request_id_is_replaced_by_a_generated_one(sent: str) -> None:
    first, second = context_with(x_request_id=sent), context_with(x_request_id=sent)
    assert first.request_id == first.request_id
    assert len({first.request_id, second.request_id, sent}) == 3


@pytest.mark.parametrize(
    ("sent", "trace"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE),
        (f"00-{TRACE}-{SPAN}-00", TRACE),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", TRACE),
        (f"cc-{TRACE}-{SPAN}-01", TRACE),
        (None, ""),
        ("", ""),
        (f"00-{TRACE}-{SPAN}-01-more", ""),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-{SPAN}-01", ""),
        (f"00-{TRACE}-{SPAN}", ""),
        (f"00-{TRACE}-{SPAN}-01\n", ""),
        (f"cc-{TRACE}-{SPAN}-01-" + "x" * 600, ""),
    ],
)
def test_traceparent_is_parsed_according_to_w3c(sent: str | None, trace: str) -> None:
    assert parse_trace_id(sent) == trace


def test_log_fields_contain_a_trace_only_if_there_is_one() -> None:
    assert context_with(x_request_id="a").log_fields() == {"transport": "grpc", "peer": "peer", "request_id": "a"}
    fields = context_with(x_request_id="a", traceparent=f"00-{TRACE}-{SPAN}-01").log_fields()
    assert fields["trace_id"] == TRACE
