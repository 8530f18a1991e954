"""Services as messages and as JSON, and the reading of one into the other."""

from typing import Any

from ossa.registry.v1.service_pb2 import Service
from ossa_common.json_reader import read_service


def build_service(**fields: Any) -> Service:
    """Return a service from plain values, which protobuf accepts but its type stubs do not."""
    return Service(**fields)


def full() -> Service:
    """Return a service with every field set."""
    return build_service(
        name="a",
        endpoint="http://a",
        capabilities=[
            {
                "name": "c",
                "version": "1",
                "inputs": {"z": None, "type": "object", "a": [1, 2.5, True, "x", {"b": []}], "o": {}},
                "outputs": {"n": -3},
                "description": "d",
            },
            {"name": "bare"},
        ],
        version="1.0",
        health={
            "status": "HEALTH_STATUS_DEGRADED",
            "last_check": {"seconds": 1_795_496_400, "nanos": 1_000_000},
            "response_time": {"nanos": 12_500_000},
            "details": {"queue": 5},
            "error": "slow",
            "status_changed_at": {"seconds": 1_795_496_399, "nanos": 999_000_000},
        },
        metadata={
            "description": "D",
            "tags": ["t"],
            "author": "A",
            "documentation": "http://docs",
            "environment": "E",
            "labels": {"z": "1", "a": "ü"},
        },
        registered_at={"seconds": 1_795_496_400},
        updated_at={"seconds": 1_795_496_401, "nanos": 123_999_999},
        revision=7,
        group="g",
        health_check={
            "http": {"path": "/h", "method": "HEAD", "headers": {"B": "2", "A": "1"}, "expected_statuses": [200, 204]},
            "interval": {"seconds": 10},
            "timeout": {"nanos": 1_500_000},
            "failure_threshold": 4,
            "success_threshold": 5,
            "degraded_after": {"nanos": 250_000_000},
        },
        ttl={"seconds": 30, "nanos": 500_000_000},
        instance_id="i-1",
        draining=True,
        maintenance={"reason": "r", "since": {"seconds": 1_795_496_400}, "by": "op"},
    )


FULL: dict[str, Any] = {
    "name": "a",
    "endpoint": "http://a",
    "capabilities": [
        {
            "name": "c",
            "version": "1",
            "inputs": {"a": [1, 2.5, True, "x", {"b": []}], "o": {}, "type": "object", "z": None},
            "outputs": {"n": -3},
            "description": "d",
        },
        {"name": "bare", "version": ""},
    ],
    "version": "1.0",
    "health": {
        "status": "degraded",
        "lastCheck": "2026-11-24T05:00:00.001Z",
        "responseTime": 12.5,
        "details": {"queue": 5},
        "error": "slow",
        "statusChangedAt": "2026-11-24T04:59:59.999Z",
    },
    "metadata": {
        "description": "D",
        "tags": ["t"],
        "author": "A",
        "documentation": "http://docs",
        "environment": "E",
        "labels": {"a": "ü", "z": "1"},
    },
    "registeredAt": "2026-11-24T05:00:00.000Z",
    "updatedAt": "2026-11-24T05:00:01.123Z",
    "group": "g",
    "healthCheck": {
        "type": "http",
        "path": "/h",
        "method": "HEAD",
        "headers": {"A": "1", "B": "2"},
        "expectedStatuses": [200, 204],
        "intervalMs": 10_000,
        "timeoutMs": 1.5,
        "failureThreshold": 4,
        "successThreshold": 5,
        "degradedAfterMs": 250,
    },
    "ttlSeconds": 30.5,
    "instanceId": "i-1",
    "draining": True,
    "maintenance": {"reason": "r", "since": "2026-11-24T05:00:00.000Z", "by": "op"},
    "revision": 7,
}


def service_from_document(document: object) -> Service:
    """Return the service of a document without violations."""
    service, violations = read_service(document)
    assert violations == []
    return service
