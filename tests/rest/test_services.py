"""Registration and single services over REST."""

import json
import re
from typing import Any

import pytest

from ossa.registry.v1.registry_service_pb2 import GetServiceRequest
from tests.grpc.calls import redis_client, set_remaining_lease
from tests.rest.client import Rest, service
from tests.support.redis_process import RedisProcess
from tests.support.server import Server

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

OSSA_DOCUMENT: dict[str, Any] = {
    "name": "ai-text-processor",
    "endpoint": "https://ai-service.company.com:8080",
    "version": "2.1.0",
    "capabilities": [
        {
            "name": "text-analysis",
            "version": "2.0.0",
            "description": "Advanced text analysis with sentiment detection",
            "inputs": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 5000}}},
            "outputs": {"type": "object", "nothing": None, "half": 0.5, "list": [1, "two", True]},
        }
    ],
    "health": {
        "status": "healthy",
        "lastCheck": "2026-11-24T05:00:00.125Z",
        "responseTime": 12.5,
        "details": {"load": 0.7},
    },
    "metadata": {"tags": ["ai", "nlp"], "environment": "production", "labels": {"region": "eu"}},
    "group": "text",
    "healthCheck": {"type": "http", "path": "/up", "intervalMs": 10000, "timeoutMs": 500},
    "ttlSeconds": 60,
}


async def test_document_of_the_ossa_reference_implementation_round_trips(rest: Rest) -> None:
    answer = await rest.post("/services", OSSA_DOCUMENT)
    assert answer.status == 201
    registered = answer.data
    assigned = {name: registered.pop(name) for name in ("registeredAt", "updatedAt", "revision")}
    changed = registered["health"].pop("statusChangedAt")
    assert registered == OSSA_DOCUMENT
    assert all(TIME.fullmatch(time) for time in (assigned["registeredAt"], assigned["updatedAt"], changed))
    assert answer.headers["Location"] == "/api/v1/registry/services/ai-text-processor"
    assert answer.headers["ETag"] == f'"{assigned["revision"]}"'
    read = await rest.get("/services/ai-text-processor")
    assert read.data == answer.data
    assert read.headers["ETag"] == answer.headers["ETag"]


async def test_service_registered_over_rest_is_readable_over_grpc(rest: Rest, server: Server) -> None:
    await rest.post("/services", OSSA_DOCUMENT)
    found = (await server.stub.GetService(GetServiceRequest(name="ai-text-processor"))).service
    assert found.health.response_time.ToMilliseconds() == 12
    assert found.health.response_time.nanos == 12_500_000
    assert found.ttl.seconds == 60
    assert found.health_check.http.path == "/up"
    assert found.capabilities[0].outputs["half"] == 0.5


async def test_envelope_has_the_members_of_the_ossa_implementation(rest: Rest) -> None:
    body = (await rest.post("/services", service())).body
    assert list(body) == ["success", "data", "meta"]
    assert list(body["meta"]) == ["timestamp", "version", "requestId"]
    failed = (await rest.get("/services/unknown")).body
    assert list(failed) == ["success", "error", "meta"]
    assert list(failed["error"]) == ["code", "message", "details"]
    assert failed["error"] == {
        "code": "SERVICE_NOT_FOUND",
        "message": "service 'unknown' is not registered",
        "details": {"name": "unknown"},
    }


async def test_registering_again_replaces_all_but_registered_at(rest: Rest) -> None:
    first = (await rest.post("/services", service())).data
    again = await rest.post("/services", service(version="1.1.0"))
    assert again.status == 201
    assert again.data["registeredAt"] == first["registeredAt"]
    assert again.data["version"] == "1.1.0"
    same = await rest.post("/services", service(version="1.1.0"))
    assert same.data["revision"] == again.data["revision"]


async def test_create_only_refuses_a_registered_name(rest: Rest) -> None:
    assert (await rest.post("/services?createOnly=true", service())).status == 201
    taken = await rest.post("/services?createOnly=true", service())
    assert (taken.status, taken.code) == (409, "SERVICE_EXISTS")
    assert (await rest.post("/services?createOnly=false", service())).status == 201


async def test_returned_document_can_be_registered_again(rest: Rest) -> None:
    read = (await rest.post("/services", OSSA_DOCUMENT)).data
    assert (await rest.post("/services", read)).data == read


BAD_BODIES: dict[str, tuple[Any, list[str]]] = {
    "empty": ({}, ["capabilities", "endpoint", "name", "version"]),
    "no capabilities": ({"name": "a", "endpoint": "http://a", "version": "1"}, ["capabilities"]),
    "capabilities null": (service(capabilities=None), ["capabilities"]),
    "capabilities an object": (service(capabilities={"name": "c"}), ["capabilities"]),
    "capabilities text": (service(capabilities="c"), ["capabilities"]),
    "capability text": (service(capabilities=["c"]), ["capabilities[0]"]),
    "capability without a name": (service(capabilities=[{"version": "1"}]), ["capabilities[0].name"]),
    "unknown field": (service(colour="red"), ["colour"]),
    "unknown fields inside": (
        service(health={"mood": 1}, metadata={"tag": []}, capabilities=[{"name": "c", "input": {}}]),
        ["capabilities[0].input", "health.mood", "metadata.tag"],
    ),
    "field names of gRPC": (service(registered_at=1, health_check={}), ["health_check", "registered_at"]),
    "number as name": (service(name=5), ["name"]),
    "bad name": (service(name="a b"), ["name"]),
    "empty name": (service(name=""), ["name"]),
    "bad endpoint": (service(endpoint="file://a"), ["endpoint"]),
    "password in the endpoint": (service(endpoint="http://u:p@a"), ["endpoint"]),
    "empty version": (service(version=""), ["version"]),
    "status in capitals": (service(health={"status": "HEALTHY"}), ["health.status"]),
    "time without offset": (service(health={"lastCheck": "2026-11-24T05:00:00"}), ["health.lastCheck"]),
    "time as a number": (service(health={"lastCheck": 1}), ["health.lastCheck"]),
    "negative time": (service(health={"responseTime": -1}), ["health.responseTime"]),
    "time as text": (service(health={"responseTime": "12ms"}), ["health.responseTime"]),
    "tags as text": (service(metadata={"tags": "a,b"}), ["metadata.tags"]),
    "tag with a comma": (service(metadata={"tags": ["a,b"]}), ["metadata.tags[0]"]),
    "number as label": (service(metadata={"labels": {"a": 1}}), ['metadata.labels["a"]']),
    "label key": (service(metadata={"labels": {"_a b": "1"}}), ['metadata.labels["_a b"]']),
    "schema as text": (service(capabilities=[{"name": "c", "inputs": "x"}]), ["capabilities[0].inputs"]),
    "short lease": (service(ttlSeconds=1), ["ttlSeconds"]),
    "check": (
        service(healthCheck={"type": "http", "path": "x", "intervalMs": 1, "degradedAfterMs": 0}),
        ["healthCheck.degradedAfterMs", "healthCheck.intervalMs", "healthCheck.path"],
    ),
    "check of another kind": (service(healthCheck={"type": "tcp", "path": "/x"}), ["healthCheck.path"]),
    "check service": (service(healthCheck={"type": "grpc", "service": "x" * 300}), ["healthCheck.service"]),
    "all at once": (service(colour="red", name=1, version="", endpoint="x"), ["colour", "endpoint", "name", "version"]),
    "an array": ([], ["service"]),
    "null": (None, ["body"]),
    "text": ("x", ["service"]),
}


@pytest.mark.parametrize("case", BAD_BODIES)
async def test_bad_registration_is_refused_with_all_bad_fields(case: str, rest: Rest) -> None:
    body, fields = BAD_BODIES[case]
    answer = await rest.call("POST", "/services", data=b"" if body is None else json.dumps(body), headers=JSON)
    assert (answer.status, answer.code) == (400, "INVALID_REQUEST")
    assert sorted(answer.fields) == fields


JSON = {"Content-Type": "application/json"}
BAD_JSON = {
    "empty": b"",
    "truncated": b"{",
    "trailing": b"{} {}",
    "single quotes": b"{'name': 1}",
    "not utf-8": b'{"name": "\xff"}',
    "utf-16": '{"name": "a"}'.encode("utf-16"),
    "key twice": b'{"name": "a", "name": "b"}',
    "key twice, deep": b'{"capabilities": [{"inputs": {"a": {"b": 1, "b": 2}}}]}',
    "NaN": b'{"ttlSeconds": NaN}',
    "infinity": b'{"ttlSeconds": -Infinity}',
    "deep": b"[" * 500_000,
    "deep object": b'{"a":' * 100_000,
    "huge number": b'{"ttlSeconds": ' + b"9" * 5_000 + b"}",
}


@pytest.mark.parametrize("case", BAD_JSON)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_body_that_is_not_json_is_refused(method: str, case: str, rest: Rest) -> None:
    path = "/services" if method == "POST" else "/services/a"
    answer = await rest.call(method, path, data=BAD_JSON[case], headers=JSON)
    assert (answer.status, answer.code, answer.fields) == (400, "INVALID_REQUEST", ["body"])


async def test_body_may_begin_with_a_byte_order_mark(rest: Rest) -> None:
    answer = await rest.call("POST", "/services", data="\ufeff" + json.dumps(service()), headers=JSON)
    assert answer.status == 201


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\ud800": 1}'])
async def test_lone_surrogate_is_refused(text: str, rest: Rest) -> None:
    body = f'{{"name": "a", "endpoint": "http://a", "version": "1", "capabilities": [], "group": {text}}}'
    answer = await rest.call("POST", "/services", data=body.encode(), headers=JSON)
    assert (answer.status, answer.fields) == (400, ["group"])


async def test_number_beyond_double_range_is_refused(rest: Rest) -> None:
    body = json.dumps(service(health={"details": {"n": 0}})).replace("0}", "1e999}")
    answer = await rest.call("POST", "/services", data=body, headers=JSON)
    assert (answer.status, answer.fields) == (400, ["health.details.n"])


@pytest.mark.parametrize(
    "content_type",
    ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=latin-1", "multipart/form-data", ""],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_body_not_declared_as_json_is_refused(method: str, content_type: str, rest: Rest) -> None:
    path = "/services" if method == "POST" else "/services/agent"
    answer = await rest.call(method, path, data=b"{}", headers={"Content-Type": content_type})
    assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
async def test_equivalent_json_content_types_are_accepted(content_type: str, rest: Rest) -> None:
    answer = await rest.call("POST", "/services", data=json.dumps(service()), headers={"Content-Type": content_type})
    assert answer.status == 201


@pytest.mark.parametrize("query", ["?createOnly=yes", "?createOnly=", "?createOnly=true&createOnly=true", "?force=1"])
async def test_bad_parameters_of_a_registration_are_refused(query: str, rest: Rest) -> None:
    answer = await rest.post(f"/services{query}", service())
    assert (answer.status, answer.fields) == (400, [query[1:].partition("=")[0]])


# One service.


async def test_update_changes_only_the_fields_in_its_body(rest: Rest) -> None:
    before = (await rest.post("/services", OSSA_DOCUMENT)).data
    answer = await rest.put("/services/ai-text-processor", {"version": "2.2.0"})
    assert answer.status == 200
    changed = ("version", "updatedAt", "revision")
    assert {k: v for k, v in answer.data.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert answer.data["version"] == "2.2.0"
    assert answer.data["revision"] > before["revision"]
    assert answer.headers["ETag"] == f'"{answer.data["revision"]}"'


UPDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an object is replaced": ({"metadata": {"author": "me"}}, {"metadata": {"author": "me", "tags": [], "labels": {}}}),
    "an empty array": ({"capabilities": []}, {"capabilities": []}),
    "null clears": ({"ttlSeconds": None, "healthCheck": None}, {"ttlSeconds": None, "healthCheck": None}),
    "zero is a value": ({"ttlSeconds": 0}, {"ttlSeconds": 0}),
    "group falls back to the name": ({"group": None}, {"group": "ai-text-processor"}),
    "unchanged name": ({"name": "ai-text-processor", "version": "3"}, {"version": "3"}),
    "no fields": ({}, {}),
    "fields set by the registry are ignored": ({"revision": 99, "registeredAt": "x", "updatedAt": None}, {}),
}


@pytest.mark.parametrize("case", UPDATES)
async def test_update_replaces_the_fields_in_its_body(case: str, rest: Rest) -> None:
    before = (await rest.post("/services", OSSA_DOCUMENT)).data
    change, expected = UPDATES[case]
    answer = await rest.put("/services/ai-text-processor", change)
    assert answer.status == 200
    ignored = ("updatedAt", "revision")
    after = {**before, **expected}
    assert {k: v for k, v in answer.data.items() if k not in ignored} == {
        k: v for k, v in after.items() if k not in ignored and v is not None
    }


async def test_update_without_a_change_keeps_the_revision(rest: Rest) -> None:
    before = (await rest.post("/services", OSSA_DOCUMENT)).data
    for change in ({}, {"version": OSSA_DOCUMENT["version"]}, before):
        assert (await rest.put("/services/ai-text-processor", change)).data == before


async def test_update_can_set_the_status(rest: Rest) -> None:
    await rest.post("/services", service())
    answer = await rest.put("/services/agent", {"health": {"status": "maintenance", "responseTime": 3}})
    assert answer.data["health"]["status"] == "maintenance"
    assert answer.data["health"]["responseTime"] == 3


BAD_UPDATES: dict[str, tuple[Any, list[str]]] = {
    "unknown": ({"colour": 1, "mood": 2}, ["colour", "mood"]),
    "another name": ({"name": "other"}, ["name"]),
    "name null": ({"name": None}, ["name"]),
    "capabilities null": ({"capabilities": None}, ["capabilities"]),
    "capabilities text": ({"capabilities": "x"}, ["capabilities"]),
    "endpoint null": ({"endpoint": None}, ["endpoint"]),
    "version empty": ({"version": ""}, ["version"]),
    "rules": ({"endpoint": "x", "ttlSeconds": 1}, ["endpoint", "ttlSeconds"]),
    "an array": ([], ["service"]),
    "number": (5, ["service"]),
}


@pytest.mark.parametrize("case", BAD_UPDATES)
async def test_bad_update_is_refused_with_all_bad_fields(case: str, rest: Rest) -> None:
    before = (await rest.post("/services", service())).data
    body, fields = BAD_UPDATES[case]
    answer = await rest.put("/services/agent", body)
    assert (answer.status, answer.code, sorted(answer.fields)) == (400, "INVALID_REQUEST", fields)
    assert (await rest.get("/services/agent")).data == before


async def test_unregistering_removes_the_service(rest: Rest) -> None:
    await rest.post("/services", service())
    answer = await rest.delete("/services/agent")
    assert (answer.status, answer.data) == (200, {"message": "Service agent unregistered"})
    assert (await rest.get("/services/agent")).status == 404


ONE_SERVICE = [
    ("GET", "/services/{}"),
    ("HEAD", "/services/{}"),
    ("PUT", "/services/{}"),
    ("DELETE", "/services/{}"),
    ("GET", "/services/{}/health"),
    ("POST", "/services/{}/heartbeat"),
]


@pytest.mark.parametrize(("method", "path"), ONE_SERVICE)
async def test_unregistered_name_is_not_found(method: str, path: str, rest: Rest) -> None:
    answer = await rest.call(method, path.format("unknown"), {} if method == "PUT" else None)
    assert answer.status == 404
    if method != "HEAD":
        assert answer.code == "SERVICE_NOT_FOUND"


@pytest.mark.parametrize("name", ["a%20b", "a%2F%2Fb", "%00", "-a", "a" * 129, "%F0%9F%90%8D", "%FF", "%3Cscript%3E"])
@pytest.mark.parametrize(("method", "path"), ONE_SERVICE)
async def test_invalid_name_is_refused(method: str, path: str, name: str, rest: Rest) -> None:
    answer = await rest.call(method, path.format(name), {} if method == "PUT" else None)
    assert answer.status == 400
    if method != "HEAD":
        assert answer.fields == ["name"]


@pytest.mark.parametrize(("method", "path"), ONE_SERVICE)
async def test_service_paths_have_no_parameters(method: str, path: str, rest: Rest) -> None:
    await rest.post("/services", service())
    answer = await rest.call(method, path.format("agent") + "?full=1", {} if method == "PUT" else None)
    assert answer.status == 400
    if method != "HEAD":
        assert answer.fields == ["full"]
    assert (await rest.get("/services/agent")).status == 200


# Preconditions.


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ('"{now}"', 200),
        ("*", 200),
        ('"999", "{now}"', 200),
        ('"{now}","999"', 200),
        ('"999"', 412),
        ('"998", "999"', 412),
        ('W/"{now}"', 412),
        ('"x"', 412),
        ('""', 412),
        ('"0"', 412),
        ('"0{now}"', 412),
        ("{now}", 400),
        ('"{now}', 400),
        ("", 400),
        ("*, *", 400),
    ],
)
async def test_if_match_admits_only_the_current_revision(method: str, tags: str, status: int, rest: Rest) -> None:
    now = (await rest.post("/services", service())).data["revision"]
    document = {"version": "2"} if method == "PUT" else None
    answer = await rest.call(method, "/services/agent", document, headers={"If-Match": tags.format(now=now)})
    assert answer.status == status
    if status == 412:
        assert answer.code == "REVISION_MISMATCH"
        assert answer.body["error"]["details"]["actualRevision"] == str(now)
    if status == 400:
        assert answer.fields == ["If-Match"]
    if status != 200:
        assert (await rest.get("/services/agent")).data["revision"] == now


@pytest.mark.parametrize("tags", ['"1"', "*", '"1", "2"'])
async def test_if_match_for_an_unregistered_name_is_not_found(tags: str, rest: Rest) -> None:
    assert (await rest.delete("/services/unknown", If_Match=tags)).status == 404
    assert (await rest.put("/services/unknown", {}, If_Match=tags)).status == 404


@pytest.mark.parametrize(
    ("tags", "status"),
    [('"{now}"', 304), ('W/"{now}"', 304), ('"1000", "{now}"', 304), ("*", 304), ('"1000"', 200), ("x", 400)],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_if_none_match_answers_304_for_the_current_revision(
    method: str, tags: str, status: int, rest: Rest
) -> None:
    now = (await rest.post("/services", service())).data["revision"]
    answer = await rest.call(method, "/services/agent", headers={"If-None-Match": tags.format(now=now)})
    assert answer.status == status
    if status != 400:
        assert answer.headers["ETag"] == f'"{now}"'
    if status == 304:
        assert answer.raw == b""


# Health and leases.


async def test_service_health_includes_the_lease_expiry(rest: Rest) -> None:
    await rest.post("/services", service(health={"status": "degraded", "responseTime": 1.5, "error": "slow"}))
    health = (await rest.get("/services/agent/health")).data
    assert (health["status"], health["responseTime"], health["error"]) == ("degraded", 1.5, "slow")
    assert TIME.fullmatch(health["leaseExpiresAt"])


async def test_health_of_a_permanent_service_has_no_lease_expiry(rest: Rest) -> None:
    await rest.post("/services", service(ttlSeconds=0))
    assert "leaseExpiresAt" not in (await rest.get("/services/agent/health")).data


async def test_heartbeat_renews_the_lease(rest: Rest) -> None:
    await rest.post("/services", service())
    before = (await rest.get("/services/agent/health")).data["leaseExpiresAt"]
    while True:  # until the store's clock has advanced by a millisecond
        answer = await rest.post("/services/agent/heartbeat")
        assert (answer.status, answer.data) == (200, {"message": "Lease of service agent renewed"})
        if (await rest.get("/services/agent/health")).data["leaseExpiresAt"] > before:
            return


# Instances.


async def test_instance_of_a_service_is_checked_and_taken_over(rest: Rest) -> None:
    registered = (await rest.post("/services", service(instanceId="one"))).data
    assert registered["instanceId"] == "one"
    path, renewed = "/services/agent/heartbeat", {"message": "Lease of service agent renewed"}
    for body in ({"instanceId": "one"}, {"instanceId": "one", "draining": None}, {}, None):
        assert (await rest.post(path, body)).data == renewed
    await rest.post(path, {"instanceId": "one", "draining": True})
    assert (await rest.get("/services/agent")).data["draining"] is True

    taken = (await rest.post("/services", service(instanceId="two"))).data
    assert taken["instanceId"] == "two"
    assert "draining" not in taken
    for refused in (
        await rest.post(path, {"instanceId": "one", "draining": True}),
        await rest.delete("/services/agent?instanceId=one"),
    ):
        assert (refused.status, refused.code) == (409, "INSTANCE_SUPERSEDED")
        assert refused.body["error"]["details"] == {"name": "agent"}
    assert (await rest.get("/services/agent")).data == taken
    assert (await rest.delete("/services/agent?instanceId=two")).status == 200


async def test_update_ignores_the_instance_of_a_service_that_was_read(rest: Rest) -> None:
    read = (await rest.post("/services", service(instanceId="one"))).data
    for changed in ({**read, "version": "9.0.0"}, {"instanceId": "two", "draining": True, "version": "9.0.0"}):
        updated = (await rest.put("/services/agent", changed)).data
        assert (updated["instanceId"], updated["version"], "draining" in updated) == ("one", "9.0.0", False)


async def test_load_of_a_heartbeat_is_part_of_the_health(rest: Rest) -> None:
    await rest.post("/services", service(instanceId="one"))
    assert "load" not in (await rest.get("/services/agent/health")).data
    for body, expected in (
        ({"instanceId": "one", "load": {"inFlight": 3, "capacity": 8}}, (3, 8)),
        ({"load": None}, (3, 8)),
        ({"load": {}}, (0, 0)),
    ):
        assert (await rest.post("/services/agent/heartbeat", body)).status == 200
        load = (await rest.get("/services/agent/health")).data["load"]
        assert (load["inFlight"], load["capacity"]) == expected
        assert load["reportedAt"].endswith("Z")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"load": {"inFlight": -1, "capacity": 1.5, "busy": 1}}, ["load.inFlight", "load.capacity", "load.busy"]),
        ({"load": 3}, ["load"]),
        ({"instanceId": "two words"}, ["instanceId"]),
        ({"instanceId": 7, "draining": "yes", "drain": True}, ["instanceId", "draining", "drain"]),
        ([], ["body"]),
    ],
)
async def test_invalid_heartbeat_body_is_refused_by_field(body: Any, fields: list[str], rest: Rest) -> None:
    await rest.post("/services", service())
    answer = await rest.post("/services/agent/heartbeat", body)
    assert (answer.status, answer.code, answer.fields) == (400, "INVALID_REQUEST", fields)
    answer = await rest.delete("/services/agent?instanceId=" + "x" * 65)
    assert (answer.status, answer.fields) == (400, ["instanceId"])


async def test_update_renews_the_lease_only_without_an_instance(rest: Rest, redis: RedisProcess) -> None:
    async with redis_client(redis) as client:
        for instance, renews in (({}, True), ({"instanceId": "one"}, False)):
            await rest.post("/services", service(**instance))
            for body in ({}, {"version": "2.0.0"}):
                await set_remaining_lease(client, "agent", 10)
                before = (await rest.get("/services/agent/health")).data["leaseExpiresAt"]
                await rest.put("/services/agent", body)
                assert ((await rest.get("/services/agent/health")).data["leaseExpiresAt"] > before) is renews


async def test_values_that_json_readers_would_change_are_refused_with_their_path(rest: Rest) -> None:
    schema = '{"enum":[9007199254740992,9007199254740993],"maximum":9223372036854775807}'
    body = f'{{"name":"a","endpoint":"http://a.test","version":"1","capabilities":[{{"name":"c","inputs":{schema}}}]}}'
    answer = await rest.call("POST", "/services", data=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert [each["field"] for each in answer.body["error"]["details"]["violations"]] == [
        "capabilities[0].inputs.enum[1]",
        "capabilities[0].inputs.maximum",
    ]
    answer = await rest.post("/services", service("a", capabilities=[{"name": "c", "inputs": True, "outputs": False}]))
    assert answer.data["capabilities"] == [{"name": "c", "version": "", "inputs": {}, "outputs": {"not": {}}}]
    answer = await rest.post("/services", service("a", capabilities=[{"name": "c", "inputs": {"fields": None}}]))
    assert (answer.status, answer.body["error"]["details"]["violations"][0]["field"]) == (400, "capabilities[0].inputs")


async def test_tools_of_a_large_mcp_server_are_registered(rest: Rest) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string", "description": "d" * 50} for i in range(8)}}
    tools = [{"name": f"tool-{i}", "version": "1", "description": "d" * 200, "inputs": schema} for i in range(117)]
    tools += [{"name": f"small-{i}", "version": "1"} for i in range(256 - len(tools))]
    answer = await rest.post("/services", service("github", capabilities=tools))
    assert (answer.status, answer.data["capabilities"]) == (201, tools)
    tools.append({"name": "more", "version": "1"})
    answer = await rest.post("/services", service("github", capabilities=tools))
    assert (
        answer.body["error"]["details"]["violations"][0]["description"]
        == "has 257 capabilities; at most 256 are allowed"
    )


async def test_text_in_a_body_may_have_any_number_of_separators(rest: Rest) -> None:
    schemas = [{"name": f"c{i}", "version": "", "inputs": {"text": ",[{" * 10_000}} for i in range(4)]
    answer = await rest.post("/services", service("a", capabilities=schemas))
    assert (answer.status, answer.data["capabilities"]) == (201, schemas)
