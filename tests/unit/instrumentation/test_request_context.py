"""Where a call comes from: what is believed of what its client says."""

import pytest

from registry_server.instrumentation.request_context import RequestContext, parse_trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def origin(**headers: str) -> RequestContext:
    return RequestContext("grpc", {key.replace("_", "-"): value for key, value in headers.items()}.get, lambda: "peer")


@pytest.mark.parametrize("given", ["a", "req-1.a:b/c=d", "x" * 128, "6f1c4d2e-0d0a-4c3e-9a55-6f0e3a0f7b11"])
def test_a_proper_request_id_is_taken(given: str) -> None:
    assert origin(x_request_id=given).request_id == given


@pytest.mark.parametrize("given", ["", "a b", "a\nb", "a\x00", "a\x1b[31m", 'a"b', "é", "x" * 129, "\u2028"])
def test_any_other_is_replaced_by_one_of_ours(given: str) -> None:
    first, second = origin(x_request_id=given), origin(x_request_id=given)
    assert first.request_id == first.request_id
    assert len({first.request_id, second.request_id, given}) == 3


@pytest.mark.parametrize(
    ("given", "trace"),
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
def test_a_traceparent_is_read_as_w3c_says(given: str | None, trace: str) -> None:
    assert parse_trace_id(given) == trace


def test_the_fields_of_a_line_have_a_trace_only_if_there_is_one() -> None:
    assert origin(x_request_id="a").log_fields() == {"transport": "grpc", "peer": "peer", "request_id": "a"}
    fields = origin(x_request_id="a", traceparent=f"00-{TRACE}-{SPAN}-01").log_fields()
    assert fields["trace_id"] == TRACE
