"""``GET /services``: filters, pages and cached answers."""

from typing import Any
from urllib.parse import quote

from structlog.testing import capture_logs

from ossa.registry.v1.registry_service_pb2 import UpdateServiceRequest
from ossa.registry.v1.service_pb2 import Service
from registry_server.gateway.parameters import FILTERS
from tests.rest.client import Answer, Rest, service
from tests.rest.raw import exchange
from tests.support.server import Server

FLEET: list[dict[str, Any]] = [
    service(
        "alpha",
        version="1.0.0",
        capabilities=[{"name": "translate", "version": "1.2.0"}],
        health={"status": "healthy"},
        metadata={"tags": ["ai", "nlp"], "environment": "production", "labels": {"region": "eu", "tier": "gold"}},
    ),
    service(
        "beta",
        version="1.5.0",
        capabilities=[{"name": "translate", "version": "2.0.0"}],
        health={"status": "unhealthy"},
        metadata={"tags": ["ai"], "environment": "staging", "labels": {"region": "us", "empty": ""}},
    ),
    service(
        "Gamma-AI",
        version="2.0.0",
        capabilities=[{"name": "ocr/pdf", "version": "1.0.0"}],
        group="readers",
        health={"status": "degraded"},
        metadata={"tags": ["vision"], "environment": "production", "labels": {"region": "eu"}},
    ),
    service("delta", version="weird-build", health={"status": "maintenance"}),
]


async def register_fleet(rest: Rest) -> None:
    for each in FLEET:
        assert (await rest.post("/services", each)).status == 201


def names(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.raw
    return [each["name"] for each in answer.data["services"]]


EXPECTED_NAMES = {
    "": ["Gamma-AI", "alpha", "beta", "delta"],
    "name=^a": ["alpha"],
    "name=ai": ["Gamma-AI"],
    "name=A%24": ["alpha", "beta", "delta"],
    "name=b|d": ["beta", "delta"],
    "capability=translate": ["alpha", "beta"],
    "capability=ocr/pdf": ["Gamma-AI"],
    "capability=ocr%2Fpdf": ["Gamma-AI"],
    "capability=none": [],
    "capability=translate&capabilityVersion=2.0.0": ["beta"],
    "capability=translate&capabilityVersion=%3E%3D1.2%20%3C2": ["alpha"],
    "capability=translate&capabilityVersion=>=1.2+<2": ["alpha"],
    "health=healthy": ["alpha"],
    "health=healthy,degraded": ["Gamma-AI", "alpha"],
    "health=unknown": [],
    "health=maintenance": ["delta"],
    "tags=ai": ["alpha", "beta"],
    "tags=nlp,vision": ["Gamma-AI", "alpha"],
    "tags=ai,nlp&tagMatch=any": ["alpha", "beta"],
    "tags=ai,nlp&tagMatch=all": ["alpha"],
    "tags=ai&tags=nlp&tagMatch=all": ["alpha"],
    "tags=%20ai%20,%20nlp&tagMatch=all": ["alpha"],
    "tags=ai,,nlp,&tagMatch=all": ["alpha"],
    "name=alpha&available=false": ["alpha"],
    "version=1.5.0": ["beta"],
    "version=^1": ["alpha", "beta"],
    "version=weird-build": ["delta"],
    "environment=production": ["Gamma-AI", "alpha"],
    "group=readers": ["Gamma-AI"],
    "group=alpha": ["alpha"],
    "label.region=eu": ["Gamma-AI", "alpha"],
    "label.region=eu&label.tier=gold": ["alpha"],
    "label.empty=": ["beta"],
    "label.region=": [],
    "health=healthy&environment=production": ["alpha"],
    "name=a&capability=translate&health=healthy&tags=ai&version=1.0.0&environment=production&group=alpha": ["alpha"],
}


async def test_every_filter_finds_the_expected_services(rest: Rest) -> None:
    await register_fleet(rest)
    for query, expected in EXPECTED_NAMES.items():
        assert names(await rest.get(f"/services?{query}")) == expected, query
        assert names(await rest.get(f"/services?{query}")) == expected, f"{query}, again"
    tested = {part.partition("=")[0] for query in EXPECTED_NAMES for part in query.split("&")}
    assert set(FILTERS) <= tested


async def test_search_returns_the_best_first(rest: Rest) -> None:
    await register_fleet(rest)
    data = (await rest.get("/search?q=translation&limit=1")).data
    (result,) = data["results"]
    assert result["service"] == (await rest.get(f"/services/{result['service']['name']}")).data
    assert (result["matchedCapabilities"], data["total"], data["stale"]) == (["translate"], 2, False)
    found = (await rest.get("/search?q=translation&label.region=us")).data["results"]
    assert [each["service"]["name"] for each in found] == ["beta"]
    bad = await rest.get("/search?q=%20&limit=101&page=1&name=(")
    assert (bad.status, set(bad.fields)) == (400, {"q", "limit", "page", "name"})


async def test_explanation_names_the_reason(rest: Rest) -> None:
    await register_fleet(rest)
    data = (await rest.get("/explain?capability=translat&label.region=eu&for=beta")).data
    assert data == {
        "totalSize": 0,
        "conditions": [
            {
                "field": "capability",
                "wanted": "translat",
                "matchingCount": 0,
                "nearest": ["translate"],
                "actual": "translate",
                "holds": False,
            },
            {
                "field": 'labels["region"]',
                "wanted": "eu",
                "matchingCount": 2,
                "nearest": [],
                "actual": "us",
                "holds": False,
            },
        ],
        "found": True,
        "matches": False,
        "lastEvent": data["lastEvent"],
        "similarNames": [],
        "summary": "beta does not match: capability 'translat' is wanted, it has translate; "
        "labels[\"region\"] 'eu' is wanted, it has us.",
    }
    assert data["lastEvent"]["service"]["name"] == "beta"
    bad = await rest.get("/explain?for=%20&page=1&health=bad")
    assert (bad.status, set(bad.fields)) == (400, {"for", "page", "health"})


async def test_answer_has_the_documented_members(rest: Rest) -> None:
    await register_fleet(rest)
    query = "health=healthy,degraded&tags=ai,nlp&tagMatch=any&label.region=eu&name=a&version=1.0.0&available=true"
    data = (await rest.get(f"/services?{query}")).data
    assert data == {
        "services": [(await rest.get("/services/alpha")).data],
        "count": 1,
        "total": 1,
        "filter": {
            "namePattern": "a",
            "version": "1.0.0",
            "healthStatus": "healthy,degraded",
            "tags": ["ai", "nlp"],
            "tagMatch": "any",
            "labels": {"region": "eu"},
            "available": True,
        },
        "nextPageToken": None,
    }


async def test_empty_registry_returns_an_empty_list(rest: Rest) -> None:
    assert (await rest.get("/services")).data == {
        "services": [],
        "count": 0,
        "total": 0,
        "filter": {},
        "nextPageToken": None,
    }


BAD_QUERIES: dict[str, list[str]] = {
    "colour=red": ["colour"],
    "Capability=x": ["Capability"],
    "page_size=1": ["page_size"],
    "capability=": ["capability"],
    "tags=" + ",".join(f"t{i}" for i in range(65)): ["tags"],
    "capability=a&capability=b": ["capability"],
    "health=sick": ["health"],
    "health=": ["health"],
    "health=,": ["health"],
    "tags=a&tagMatch=some": ["tagMatch"],
    "name=(": ["name"],
    "name=a(?=b)": ["name"],
    "name=" + "a" * 513: ["name"],
    "version=%3E%3D1%0A": ["version"],
    "capabilityVersion=1.0.0": ["capabilityVersion"],
    "capability=a%00b": ["capability"],
    "environment=" + "e" * 129: ["environment"],
    "label.=x": ["label."],
    "label.a%20b=x": ["label.a b"],
    "label.region=" + "x" * 257: ["label.region"],
    "label.region=a&label.region=b": ["label.region"],
    "&".join(f"label.k{i}=x" for i in range(65)): ["label"],
    "pageSize=0": ["pageSize"],
    "pageSize=-1": ["pageSize"],
    "pageSize=1001": ["pageSize"],
    "pageSize=ten": ["pageSize"],
    "pageSize=1.0": ["pageSize"],
    "pageSize=99999999999999999999": ["pageSize"],
    "pageSize=%D9%A1": ["pageSize"],  # an Arabic digit
    "pageToken=abc": ["pageToken"],
    "pageToken=%F0%9F%90%8D": ["pageToken"],
    "colour=red&health=sick&pageSize=0&name=(&capability=": ["capability", "colour", "health", "name", "pageSize"],
}


async def test_all_bad_parameters_are_reported_at_once(rest: Rest) -> None:
    for query, fields in BAD_QUERIES.items():
        answer = await rest.get(f"/services?{query}")
        assert (answer.status, answer.code) == (400, "INVALID_REQUEST"), query
        assert sorted(answer.fields) == fields


async def test_pages_contain_every_service_exactly_once(rest: Rest) -> None:
    for i in range(7):
        await rest.post("/services", service(f"agent-{i}"))
    seen: list[str] = []
    query = "/services?pageSize=3"
    for count, last in ((3, False), (3, False), (1, True)):
        data = (await rest.get(query)).data
        assert (data["count"], data["total"]) == (count, 7)
        seen += [each["name"] for each in data["services"]]
        assert (data["nextPageToken"] is None) == last
        query = f"/services?pageSize=3&pageToken={quote(data['nextPageToken'] or '')}"
    assert seen == [f"agent-{i}" for i in range(7)]


async def test_page_token_is_only_valid_with_its_filter(rest: Rest) -> None:
    await register_fleet(rest)
    token = (await rest.get("/services?pageSize=1")).data["nextPageToken"]
    assert (await rest.get(f"/services?pageSize=1&capability=translate&pageToken={token}")).fields == ["pageToken"]


async def test_default_page_size_is_100(rest: Rest) -> None:
    for i in range(101):
        await rest.post("/services", service(f"agent-{i:03}"))
    data = (await rest.get("/services")).data
    assert (data["count"], data["total"]) == (100, 101)


async def test_cached_answer_is_invalidated_by_every_relevant_change(rest: Rest, server: Server) -> None:
    await register_fleet(rest)
    query = "/services?capability=translate"
    assert names(await rest.get(query)) == ["alpha", "beta"]

    await rest.put("/services/alpha", {"version": "1.0.1"})
    assert [each["version"] for each in (await rest.get(query)).data["services"]] == ["1.0.1", "1.5.0"]

    request = UpdateServiceRequest(service=Service(name="beta", version="1.6.0"))
    await server.stub.UpdateService(request)
    assert [each["version"] for each in (await rest.get(query)).data["services"]] == ["1.0.1", "1.6.0"]

    await rest.post("/services", service("new", capabilities=[{"name": "translate", "version": "1"}]))
    assert names(await rest.get(query)) == ["alpha", "beta", "new"]

    await rest.delete("/services/alpha")
    assert names(await rest.get(query)) == ["beta", "new"]

    await rest.put("/services/beta", {"capabilities": []})
    assert names(await rest.get(query)) == ["new"]


async def test_queries_beyond_the_cache_size_are_answered(rest: Rest) -> None:
    await register_fleet(rest)
    for i in range(700):
        assert names(await rest.get(f"/services?name=alpha&pageSize={i + 1}")) == ["alpha"]


async def test_raw_bytes_in_a_query_never_cause_a_server_error(server: Server) -> None:
    with capture_logs() as logs:
        for query in (b"name=\xff\xfe", b"label.\xff=1", b"name=%ff", b"\xed\xa0\x80=1", b"name=\xc3\xa9"):
            status, _, _ = await exchange(server.http, b"GET /api/v1/registry/services?" + query + b" HTTP/1.1")
            assert status in (200, 400), query
    assert all(line["path"].isascii() for line in logs), "log sinks may not accept other characters"
