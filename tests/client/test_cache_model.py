"""The cache's index and kept answers against a plain dict."""

from hypothesis import given
from hypothesis import strategies as st

from registry_client import Event, EventType, HealthStatus, NoEndpoint, RegistryClient, Service, make_service
from registry_client.resolve import Question, matches

QUESTIONS = [
    Question(capability, version, "", "", labels)
    for capability in ("", "x", "y")
    for version in ("", "^1")
    for labels in (frozenset(), frozenset({("zone", "eu")}))
]


@st.composite
def changes(draw: st.DrawFn) -> Event:
    """One service appears, changes or goes; or the registry tells of itself."""
    name = draw(st.sampled_from("abcd"))
    offered = draw(st.lists(st.sampled_from(["x@1.0.0", "x@2.0.0", "y@1.0.0", "z"]), max_size=3, unique=True))
    zone = draw(st.sampled_from(["eu", "us"]))
    service = make_service(name, f"http://{name}.test", version="1.0.0", capabilities=offered, labels={"zone": zone})
    service.health.status = draw(st.sampled_from(HealthStatus.values()))
    kinds = [kind for kind in EventType.values() if kind != EventType.EVENT_TYPE_UNSPECIFIED]
    kind = draw(st.sampled_from(kinds))
    if kind == EventType.EVENT_TYPE_REGISTRY_ERROR:
        return Event(type=kind, error="half of the services fail")
    return Event(type=kind, service=service)


@given(st.lists(st.lists(changes(), max_size=4), max_size=12))
def test_every_question_is_answered_as_by_looking_at_all(batches: list[list[Event]]) -> None:
    cache = RegistryClient().cache(fallback=["degraded"])
    model: dict[str, Service] = {}
    for batch in batches:
        for event in batch:
            if event.type in (EventType.EVENT_TYPE_SERVICE_UNREGISTERED, EventType.EVENT_TYPE_SERVICE_UNMATCHED):
                model.pop(event.service.name, None)
            elif event.HasField("service"):
                model[event.service.name] = event.service
        cache._take(batch)

        assert cache.services == model
        for question in QUESTIONS:
            expected = {name: service for name, service in model.items() if matches(question)(service)}
            asked = {**question._asdict(), "labels": dict(question.labels)}
            assert {each.name: each for each in cache.find(**asked)} == expected
            best = {name for name, each in expected.items() if each.health.status == HealthStatus.HEALTH_STATUS_HEALTHY}
            best = best or {
                name for name, each in expected.items() if each.health.status == HealthStatus.HEALTH_STATUS_DEGRADED
            }
            try:
                picked = {cache.resolve(**asked).name for _ in range(len(best) or 1)}
            except NoEndpoint:
                picked = set()
            assert picked == best
