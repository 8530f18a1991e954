"""Model test: the cache's index and cached pickers against a plain dict."""

from hypothesis import given
from hypothesis import strategies as st

from registry_client import Event, EventType, HealthStatus, NoEndpoint, RegistryClient, Service, make_service
from registry_client.resolve import Query, query_matcher

QUERIES = [
    Query(capability, version, "", "", labels)
    for capability in ("", "x", "y")
    for version in ("", "^1")
    for labels in (frozenset(), frozenset({("zone", "eu")}))
]


@st.composite
def changes(draw: st.DrawFn) -> Event:
    """One service is added, changed or removed, or the registry reports a problem."""
    name = draw(st.sampled_from("abcd"))
    capabilities = draw(st.lists(st.sampled_from(["x@1.0.0", "x@2.0.0", "y@1.0.0", "z"]), max_size=3, unique=True))
    zone = draw(st.sampled_from(["eu", "us"]))
    service = make_service(
        name, f"http://{name}.test", version="1.0.0", capabilities=capabilities, labels={"zone": zone}
    )
    service.health.status = draw(st.sampled_from(HealthStatus.values()))
    kinds = [kind for kind in EventType.values() if kind != EventType.EVENT_TYPE_UNSPECIFIED]
    kind = draw(st.sampled_from(kinds))
    if kind == EventType.EVENT_TYPE_REGISTRY_ERROR:
        return Event(type=kind, error="half of the services fail")
    return Event(type=kind, service=service)


@given(st.lists(st.lists(changes(), max_size=4), max_size=12))
def test_every_query_returns_the_same_services_as_a_full_scan(batches: list[list[Event]]) -> None:
    cache = RegistryClient().cache(fallback=["degraded"])
    model: dict[str, Service] = {}
    for batch in batches:
        for event in batch:
            if event.type in (EventType.EVENT_TYPE_SERVICE_UNREGISTERED, EventType.EVENT_TYPE_SERVICE_UNMATCHED):
                model.pop(event.service.name, None)
            elif event.HasField("service"):
                model[event.service.name] = event.service
        cache._apply_events(batch)

        assert cache.services == model
        for query in QUERIES:
            expected = {name: service for name, service in model.items() if query_matcher(query)(service)}
            arguments = {**query._asdict(), "labels": dict(query.labels)}
            assert {each.name: each for each in cache.find(**arguments)} == expected
            expected_names = {
                name for name, each in expected.items() if each.health.status == HealthStatus.HEALTH_STATUS_HEALTHY
            }
            expected_names = expected_names or {
                name for name, each in expected.items() if each.health.status == HealthStatus.HEALTH_STATUS_DEGRADED
            }
            try:
                resolved = {cache.resolve(**arguments).name for _ in range(len(expected_names) or 1)}
            except NoEndpoint:
                resolved = set()
            assert resolved == expected_names
