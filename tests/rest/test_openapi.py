"""``openapi.yaml`` is valid, served and matches the code. ``Rest`` checks every response against it."""

import re
from typing import Any

import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from ossa.registry.v1.service_pb2 import Capability, Health, HealthCheck, Metadata, Service
from ossa_common.event_names import EVENT_NAMES
from ossa_common.json_shape import PROBE_TYPES, STATUS_BY_WORD, json_keys
from ossa_common.violations import MAX_VIOLATIONS
from registry_server import errors
from registry_server.admission import OUTCOMES
from registry_server.gateway import sse
from registry_server.gateway.envelope import HTTP_CODES
from registry_server.gateway.middleware import MAX_URL_BYTES
from registry_server.gateway.parameters import EVENTS, FILTERS, PAGE, TAG_MATCHES
from registry_server.gateway.routes import ROUTES
from registry_server.model import endpoints, filters, requests, rules, validation
from tests.rest import spec
from tests.rest.client import BASE, Rest, service
from tests.rest.spec import DOCUMENT, Node, operations, parameters, schema

OPERATIONS = [(method, path) for method, path, _ in operations()]
# REST has no parameters for revisions or probes, and the event stream reports its end in an event.
NOT_IN_REST = {errors.RevisionNotReached, errors.ProbingDisabled, errors.WatcherTooSlow}


async def test_document_is_served_unchanged(rest: Rest) -> None:
    answer = await rest.get_outside_api("/openapi.yaml")
    assert answer.raw == spec.FILE.read_bytes()
    assert answer.headers["Content-Type"] == "application/yaml; charset=utf-8"
    assert yaml.safe_load(answer.raw) == DOCUMENT


def test_document_is_valid_openapi() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_document_has_exactly_the_routes_of_the_server() -> None:
    routes = {(route.method, route.path) for route in ROUTES if not route.path.startswith("/docs/")}
    assert routes == set(OPERATIONS)


LABEL = "label.KEY"
QUERIES = {
    ("POST", f"{BASE}/services"): {"createOnly"},
    ("GET", f"{BASE}/services"): {*FILTERS, *PAGE, LABEL},
    ("DELETE", f"{BASE}/services/{{name}}"): {"instanceId"},
    ("GET", f"{BASE}/search"): {*FILTERS, "q", "limit", LABEL},
    ("GET", f"{BASE}/explain"): {*FILTERS, "for", LABEL},
    ("GET", f"{BASE}/history"): {"name", "since", *PAGE},
    ("GET", f"{BASE}/capabilities"): {*PAGE},
    ("GET", f"{BASE}/events"): {*FILTERS, *EVENTS, LABEL},
}
VALID_VALUES = {
    "createOnly": "true",
    "snapshot": "true",
    "health": "healthy",
    "tagMatch": "all",
    "available": "true",
    "since": "2026-11-24T12:00:00Z",
    "pageSize": "5",
    "limit": "5",
    "capabilityVersion": "1&capability=x",
}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_operation_has_exactly_the_query_parameters_of_the_server(method: str, path: str) -> None:
    queries = {each.value["name"] for each in parameters(method, path) if each.value["in"] == "query"}
    assert queries == QUERIES.get((method, path), set())


@pytest.mark.parametrize(("method", "path"), [each for each in QUERIES if each[0] == "GET"])
async def test_every_documented_parameter_is_accepted(method: str, path: str, rest: Rest) -> None:
    await rest.post("/services", service("one", capabilities=[{"name": "a", "version": "1"}]))
    await rest.post("/services", service("two", capabilities=[{"name": "b", "version": "1"}]))
    for name in QUERIES[method, path]:
        if name in {"pageToken", "lastEventId"}:  # must come from the registry; covered by separate tests
            continue
        required = "&q=x" if path.endswith("/search") and name != "q" else ""
        answer = await rest.call(
            "HEAD" if path.endswith("events") else method,
            f"?{name}={VALID_VALUES.get(name, 'x')}{required}",
            base=path,
        )
        assert answer.status == 200, name


def codes_of(response: Node) -> set[str]:
    """Return the error codes in the description of a response."""
    return set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", response.value["description"]))


def documented_codes() -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for _, _, operation in operations():
        for status in operation.value["responses"]:
            if int(status) >= 400 and "application/json" in operation["responses"][status].value.get("content", {}):
                found.setdefault(int(status), set()).update(codes_of(operation["responses"][status]))
    return found


def test_every_error_is_documented_under_its_status() -> None:
    expected: dict[int, set[str]] = {500: {errors.RegistryError.reason}}
    for error, outcome in OUTCOMES.items():
        if error not in NOT_IN_REST:
            expected.setdefault(outcome.status, set()).add(error.reason)
    for number, code in HTTP_CODES.items():
        if number != 405:  # methods without an operation
            expected.setdefault(number, set()).add(code)
    assert documented_codes() == expected


def test_codes_in_descriptions_match_the_schemas() -> None:
    for name, response in DOCUMENT["components"]["responses"].items():
        node = spec.ROOT["components"]["responses"][name]
        if name == "Message":
            continue
        text = str(response["content"]["application/json"]["schema"])
        for code in codes_of(node):
            assert code in text


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("Service", json_keys(Service.DESCRIPTOR)),
        ("ServiceRegistration", json_keys(Service.DESCRIPTOR)),
        ("ServiceUpdate", json_keys(Service.DESCRIPTOR)),
        ("Capability", json_keys(Capability.DESCRIPTOR)),
        ("Health", json_keys(Health.DESCRIPTOR)),
        ("Metadata", json_keys(Metadata.DESCRIPTOR)),
        ("HealthCheck", json_keys(HealthCheck.DESCRIPTOR)),
    ],
)
def test_schema_has_exactly_the_keys_of_the_code(name: str, keys: tuple[str, ...]) -> None:
    assert set(schema(name).value["properties"]) == set(keys)
    assert schema(name).value["additionalProperties"] is False


def limits() -> list[tuple[Any, Any]]:
    """Return pairs of a documented limit and the limit in the code."""
    of = {name: schema(name).value for name in DOCUMENT["components"]["schemas"]}
    metadata, check = of["Metadata"]["properties"], of["HealthCheck"]["properties"]
    query = {name: node["schema"] for name, node in DOCUMENT["components"]["parameters"].items()}
    capability = of["Capability"]["properties"]
    return [
        (of["Name"]["pattern"], f"^{rules.NAME.regex.pattern}$"),
        (capability["name"]["pattern"], f"^{rules.CAPABILITY_NAME.regex.pattern}$"),
        (capability["description"]["maxLength"], validation.MAX_DESCRIPTION_LENGTH),
        (capability["version"]["maxLength"], validation.MAX_VERSION_LENGTH),
        (of["Capabilities"]["maxItems"], validation.MAX_CAPABILITIES),
        (of["ServiceVersion"]["maxLength"], validation.MAX_VERSION_LENGTH),
        (of["Endpoint"]["maxLength"], endpoints.MAX_ENDPOINT_LENGTH),
        (of["Health"]["properties"]["error"]["maxLength"], rules.MAX_ERROR_LENGTH),
        (of["Status"]["enum"], list(STATUS_BY_WORD)),
        (metadata["description"]["maxLength"], validation.MAX_DESCRIPTION_LENGTH),
        (metadata["author"]["maxLength"], validation.MAX_AUTHOR_LENGTH),
        (metadata["documentation"]["maxLength"], validation.MAX_DOCUMENTATION_LENGTH),
        (metadata["environment"]["maxLength"], validation.MAX_ENVIRONMENT_LENGTH),
        (metadata["tags"]["maxItems"], validation.MAX_TAGS),
        (metadata["tags"]["items"]["maxLength"], validation.MAX_TAG_LENGTH),
        (metadata["labels"]["maxProperties"], validation.MAX_LABELS),
        (metadata["labels"]["propertyNames"]["pattern"], f"^{rules.LABEL_KEY.regex.pattern}$"),
        (metadata["labels"]["additionalProperties"]["maxLength"], validation.MAX_LABEL_VALUE_LENGTH),
        (check["type"]["enum"], list(PROBE_TYPES)),
        (check["method"]["enum"], list(validation._METHODS)),
        (check["path"]["maxLength"], validation._MAX_PATH_LENGTH),
        (check["headers"]["maxProperties"], validation._MAX_HEADERS),
        (check["headers"]["additionalProperties"]["maxLength"], validation._MAX_HEADER_VALUE_LENGTH),
        (check["expectedStatuses"]["maxItems"], validation._MAX_EXPECTED_STATUSES),
        (check["service"]["maxLength"], validation._MAX_GRPC_SERVICE_LENGTH),
        (check["failureThreshold"]["maximum"], validation._MAX_THRESHOLD),
        (check["successThreshold"]["maximum"], validation._MAX_THRESHOLD),
        *(
            ((check[key]["minimum"], check[key]["maximum"]), tuple(limit.total_seconds() * 1000 for limit in span))
            for key, span in (
                ("intervalMs", validation._INTERVAL_RANGE),
                ("timeoutMs", validation._TIMEOUT_RANGE),
                ("degradedAfterMs", validation._DEGRADED_AFTER_RANGE),
            )
        ),
        (
            of["TtlSeconds"]["anyOf"][1],
            {"minimum": validation.MIN_TTL.total_seconds(), "maximum": validation.MAX_TTL.total_seconds()},
        ),
        (query["NamePattern"]["maxLength"], filters.MAX_PATTERN_LENGTH),
        (query["Capability"]["maxLength"], filters.MAX_VALUE_LENGTH),
        (query["Label"]["maxLength"], validation.MAX_LABEL_VALUE_LENGTH),
        (query["TagMatch"]["enum"], list(TAG_MATCHES)),
        (query["PageSize"]["maximum"], requests.MAX_PAGE_SIZE),
        (query["PageSize"]["default"], requests.DEFAULT_PAGE_SIZE),
        (of["Error"]["properties"]["details"]["properties"]["violations"]["maxItems"], MAX_VIOLATIONS),
        (of["Change"]["properties"]["reason"]["enum"], list(sse.REASONS.values())),
        (f"{MAX_URL_BYTES:,} bytes" in DOCUMENT["components"]["responses"]["UrlTooLong"]["description"], True),
        (
            set(
                re.findall(
                    r"`((?:service|registry):[a-z:]+)`", DOCUMENT["paths"][f"{BASE}/events"]["get"]["description"]
                )
            ),
            {*EVENT_NAMES.values(), sse.SNAPSHOT_STARTED, sse.SNAPSHOT_COMPLETE},
        ),
        (
            set(of["ServiceList"]["properties"]["filter"]["properties"]),
            {*FILTERS, "labels", "namePattern", "healthStatus"} - {"name", "health"},
        ),
    ]


def test_documented_limits_match_the_code() -> None:
    assert [pair for pair in limits() if pair[0] != pair[1]] == []


def test_examples_match_their_schemas() -> None:
    for _, _, operation in operations():
        if "requestBody" in operation:
            media = operation["requestBody"]["content"]["application/json"]
            for name in media.value["examples"]:
                assert media["schema"].violations(media["examples"][name].value["value"]) == []


async def test_examples_are_accepted_by_the_server(rest: Rest) -> None:
    examples = {operation.value["operationId"]: operation for _, _, operation in operations()}
    post, put = (
        next(iter(examples[name].value["requestBody"]["content"]["application/json"]["examples"].values()))["value"]
        for name in ("registerService", "updateService")
    )
    assert (await rest.post("/services", post)).status == 201
    assert (await rest.put(f"/services/{post['name']}", put)).status == 200
