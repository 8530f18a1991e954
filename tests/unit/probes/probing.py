"""What the tests of probes share: a probe made at once, and names that lead where a test wants."""

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Never

import pytest
from google.protobuf.json_format import ParseDict

from ossa.registry.v1.service_pb2 import Service
from registry_server.config import HealthCheckSettings
from registry_server.probes import Outcome, OutcomeKind, Plan, Prober
from registry_server.security.egress import EgressPolicy

OK, DEGRADED, FAILED = OutcomeKind.OK, OutcomeKind.DEGRADED, OutcomeKind.FAILED
INCONCLUSIVE = OutcomeKind.INCONCLUSIVE
LONG = "0.200s"
"""For probes that are to end by their timeout; all others have time enough for a busy machine."""
HANGS = "no answer within 200 ms"

Check = dict[str, Any]


def plan(endpoint: str, check: Check | None = None) -> Plan:
    service = Service(name="a", endpoint=endpoint, version="1.0.0")
    ParseDict(check or {}, service.health_check)
    return Plan.of(service, HealthCheckSettings(timeout_ms=10_000))


async def probe(
    endpoint: str, check: Check | None = None, *, authorities: bytes | None = None, policy: EgressPolicy | None = None
) -> Outcome:
    async with Prober(policy or EgressPolicy(), authorities=authorities) as prober:
        return await prober.probe(plan(endpoint, check))


def names(monkeypatch: pytest.MonkeyPatch, known: Mapping[str, Sequence[str] | Exception]) -> list[str]:
    """Names that are resolved in the place of the system's; gives those it was asked for."""
    asked: list[str] = []

    def look_up(host: str, port: int, *_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        addresses: Sequence[str] | Exception = [host]  # uvloop looks up addresses too, before it connects to them
        if host in known:
            asked.append(host)
            addresses = known[host]
        if isinstance(addresses, Exception):
            raise addresses
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@contextmanager
def hanging_dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Look-ups that give no answer before the block ends; gives the names that were asked for."""
    asked: list[str] = []
    ended = threading.Event()

    def hang(host: str, *_: object, **__: object) -> Never:
        asked.append(host)
        ended.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        yield asked
    finally:
        ended.set()  # the interpreter waits for the threads
