"""Helpers of the probe tests: single probes, and name resolution that a test controls."""

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from ossa.registry.v1.service_pb2 import Service
from registry_server.config import HealthCheckSettings
from registry_server.probes import Outcome, OutcomeKind, Plan
from registry_server.probes.prober import Prober
from registry_server.security.egress import EgressPolicy

OK, DEGRADED, FAILED = OutcomeKind.OK, OutcomeKind.DEGRADED, OutcomeKind.FAILED
INCONCLUSIVE = OutcomeKind.INCONCLUSIVE
SHORT_TIMEOUT = "0.100s"
"""Timeout of probes that are expected to time out; the default is long enough for a busy machine."""
TIMED_OUT = "no answer within 100 ms"

Check = dict[str, Any]


def plan(endpoint: str, check: Check | None = None) -> Plan:
    service = Service(name="a", endpoint=endpoint, version="1.0.0")
    ParseDict(check or {}, service.health_check)
    return Plan.of(service, HealthCheckSettings(timeout_ms=10_000))


async def send_probe(
    endpoint: str, check: Check | None = None, *, authorities: bytes | None = None, policy: EgressPolicy | None = None
) -> Outcome:
    async with Prober(policy or EgressPolicy(), authorities=authorities) as prober:
        return await prober.send_probe(plan(endpoint, check))


def resolve_names(monkeypatch: pytest.MonkeyPatch, known: Mapping[str, Sequence[str] | Exception]) -> list[str]:
    """Replace the system's resolver for some names; return a list to which every look-up of them is added."""
    lookups: list[str] = []

    def look_up(host: str, port: int, *_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        addresses: Sequence[str] | Exception = [host]  # uvloop also looks up addresses, before it connects to them
        if host in known:
            lookups.append(host)
            addresses = known[host]
        if isinstance(addresses, Exception):
            raise addresses
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return lookups


@contextmanager
def hanging_dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let look-ups except of localhost hang until the end of the block; yield the list of names that hang."""
    lookups: list[str] = []
    ended = threading.Event()
    resolve = socket.getaddrinfo

    def hang(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "localhost":
            return resolve(host, *arguments, **options)
        lookups.append(host)
        ended.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        yield lookups
    finally:
        ended.set()  # the interpreter waits for these threads on exit
