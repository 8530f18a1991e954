"""Maintenance by operators over REST."""

from typing import Any

import pytest

from tests.rest.client import Rest, service

PATH = "/services/a/maintenance"


async def test_maintenance_starts_and_ends(rest: Rest) -> None:
    await rest.post("/services", service("a", health={"status": "healthy"}, healthCheck={"type": "none"}))
    started = await rest.call("PUT", PATH, {"enabled": True, "reason": "disk replacement"})
    assert started.status == 200
    assert started.data["health"]["status"] == "maintenance"
    assert started.data["health"]["error"] == started.data["maintenance"]["reason"] == "disk replacement"
    assert started.headers["ETag"] == f'"{started.data["revision"]}"'
    again = await rest.call("PUT", PATH, {"enabled": True, "reason": "disk replacement"})
    assert again.data == started.data

    # What a client has read can be sent back, and does not count as a report.
    assert (await rest.call("PUT", "/services/a", started.data)).data == started.data
    assert (await rest.post("/services", started.data)).data == started.data
    await rest.call("PUT", "/services/a", {"health": {"status": "degraded", "error": "slow"}})
    health = (await rest.get("/services/a/health")).data
    assert (health["status"], health["error"]) == ("maintenance", "disk replacement")
    assert (health["observed"]["status"], health["observed"]["error"]) == ("degraded", "slow")
    assert [each["name"] for each in (await rest.get("/services?health=maintenance")).data["services"]] == ["a"]

    ended = await rest.call("PUT", PATH, {"enabled": False})
    assert (ended.data["health"]["status"], ended.data["health"]["error"]) == ("degraded", "slow")
    assert "maintenance" not in ended.data
    assert "observed" not in (await rest.get("/services/a/health")).data


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["enabled"]),
        ({"enabled": None}, ["enabled"]),
        ({"enabled": "on"}, ["enabled"]),
        ({"enabled": 1}, ["enabled"]),
        ({"enabled": True, "reason": 7}, ["reason"]),
        ({"enabled": True, "reason": "r" * 1025}, ["reason"]),
        ({"enabled": True, "reason": "\ud800"}, ["reason"]),
        ({"enabled": False, "reason": "done"}, ["reason"]),
        ({"enabled": True, "name": "b"}, ["name"]),
        ({"enabled": True, "until": "tomorrow"}, ["until"]),
        ([True], ["body"]),
    ],
)
async def test_bad_body_names_the_field(rest: Rest, body: Any, fields: list[str]) -> None:
    await rest.post("/services", service("a"))
    answer = await rest.call("PUT", PATH, body)
    assert (answer.status, answer.code, answer.fields) == (400, "INVALID_REQUEST", fields)


async def test_unknown_name_is_not_found(rest: Rest) -> None:
    answer = await rest.call("PUT", PATH, {"enabled": True})
    assert (answer.status, answer.code) == (404, "SERVICE_NOT_FOUND")
