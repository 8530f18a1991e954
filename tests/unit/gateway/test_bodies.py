"""Tests of the bodies of REST requests."""

import pytest

from registry_server.errors import InvalidRequest
from registry_server.gateway.bodies import parse_json


def test_a_string_without_an_end_is_searched_once() -> None:
    body = b"[" + b"0," * 75_000 + b'"' + b'\\"' * 400_000  # takes an hour if the search begins again at each quote
    with pytest.raises(InvalidRequest, match="more than 70000 values"):
        parse_json(body)
