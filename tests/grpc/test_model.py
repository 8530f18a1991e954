"""Model-based test: after any operations, every read of the registry matches a dict of services."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, NamedTuple

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Capability, Health, HealthStatus, Metadata, Service, ServiceFilter, TagMatch
from tests.grpc.calls import (
    DEGRADED,
    HEALTHY,
    MAINTENANCE,
    UNHEALTHY,
    UNKNOWN,
    UNMATCHED,
    UNREGISTERED,
    Watch,
    discover,
    failure,
    find_names,
    get,
    register,
    register_all,
    report,
    unregister,
    update,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running

Services = dict[str, Service]
Operation = Callable[..., Coroutine[Any, Any, None]]

NAMES: Final = ["A", "a", "a-1", "a.1", "b", "b2", "c_3", "z"]
VERSIONS: Final = ["1.0.0", "1.5.2", "2.0.0-rc.1", "2.0.0", "nightly"]
# Versions that each filter matches, determined by hand.
VERSION_FILTERS: Final[Mapping[str, set[str]]] = {
    "1.0.0": {"1.0.0"},
    "nightly": {"nightly"},
    "9.9.9": set(),
    "^1": {"1.0.0", "1.5.2"},
    ">1.0.0": {"1.5.2", "2.0.0"},
    ">=2.0.0-rc.1": {"2.0.0-rc.1", "2.0.0"},
    "1.0.x || 2": {"1.0.0", "2.0.0"},
    "*": {"1.0.0", "1.5.2", "2.0.0"},
}
# Names that each pattern matches.
PATTERNS: Final[Mapping[str, set[str]]] = {
    "a": {"A", "a", "a-1", "a.1"},
    "^B": {"b", "b2"},
    r"[-._]\d$": {"a-1", "a.1", "c_3"},
    "^.$": {"A", "a", "b", "z"},
    "nothing": set(),
}
STATUSES: Final = [HEALTHY, UNHEALTHY, DEGRADED, UNKNOWN, MAINTENANCE]
CAPABILITIES: Final = ["sum", "translate", "vision"]
TAGS: Final = ["x", "y", "z"]
ENVIRONMENTS: Final = ["", "production", "staging"]
GROUPS: Final = ["", "a", "g"]
LABELS: Final = st.dictionaries(st.sampled_from(["region", "tier"]), st.sampled_from(["", "eu", "us"]), max_size=2)

statuses = st.sampled_from(STATUSES)
names = st.sampled_from(NAMES)
some_tags = st.lists(st.sampled_from(TAGS), unique=True, max_size=3)
capabilities = st.lists(
    st.builds(
        Capability,
        name=st.sampled_from(CAPABILITIES),
        version=st.sampled_from([*VERSIONS, ""]),
        description=st.sampled_from(["", "one", "another"]),
    ),
    unique_by=lambda capability: (capability.name, capability.version),
    max_size=3,
)
services = st.builds(
    Service,
    name=names,
    endpoint=st.sampled_from(["http://one.test", "http://two.test"]),
    version=st.sampled_from(VERSIONS),
    group=st.sampled_from(GROUPS),
    draining=st.booleans(),
    capabilities=capabilities,
    health=st.none() | st.builds(Health, status=statuses),
    metadata=st.none() | st.builds(Metadata, tags=some_tags, environment=st.sampled_from(ENVIRONMENTS), labels=LABELS),
)


@st.composite
def filters(draw: st.DrawFn) -> ServiceFilter:
    """Generate filters with any combination of fields, mostly with few."""
    fields: dict[str, st.SearchStrategy[Any]] = {
        "name_pattern": st.sampled_from(list(PATTERNS)),
        "capability": st.sampled_from([*CAPABILITIES, "none"]),
        "health": st.lists(statuses, min_size=1, max_size=3),
        "tags": st.lists(st.sampled_from(TAGS), min_size=1, max_size=3),
        "tag_match": st.sampled_from(list(TagMatch.values())),
        "version": st.sampled_from(list(VERSION_FILTERS)),
        "environment": st.sampled_from(ENVIRONMENTS),
        "group": st.sampled_from([*GROUPS, "A"]),
        "labels": LABELS,
        "available": st.just(value=True),
    }
    chosen = draw(st.sets(st.sampled_from(list(fields)), max_size=3))
    filter_ = ServiceFilter(**{field: draw(fields[field]) for field in sorted(chosen)})
    if filter_.capability and draw(st.booleans()):
        filter_.capability_version = draw(st.sampled_from(list(VERSION_FILTERS)))
    return filter_


def matches(service: Service, filter_: ServiceFilter) -> bool:
    """Return whether a service matches, as the contract specifies ``ServiceFilter``."""
    tags = set(service.metadata.tags)
    combine = all if filter_.tag_match == TagMatch.TAG_MATCH_ALL else any
    return (
        (not filter_.name_pattern or service.name in PATTERNS[filter_.name_pattern])
        and (
            not filter_.capability
            or any(
                capability.name == filter_.capability
                and (
                    not filter_.capability_version or capability.version in VERSION_FILTERS[filter_.capability_version]
                )
                for capability in service.capabilities
            )
        )
        and (not filter_.available or (service.health.status == HEALTHY and not service.draining))
        and (not filter_.health or service.health.status in filter_.health)
        and (not filter_.tags or combine(tag in tags for tag in filter_.tags))
        and (not filter_.version or service.version in VERSION_FILTERS[filter_.version])
        and (not filter_.environment or service.metadata.environment == filter_.environment)
        and (not filter_.group or service.group == filter_.group)
        and all(service.metadata.labels.get(key) == value for key, value in filter_.labels.items())
    )


# Operations. Each is applied to the registry and to the model.


async def do_register(server: Server, model: Services, service: Service) -> None:
    model[service.name] = await register(server, service)


async def do_register_all(server: Server, model: Services, batch: list[Service]) -> None:
    for service in await register_all(server, batch):
        model[service.name] = service


async def do_update(server: Server, model: Services, service: Service, path: str) -> None:
    if service.name in model:
        model[service.name] = await update(server, service, path)
    else:
        assert (await failure(update(server, service, path))).code is grpc.StatusCode.NOT_FOUND


async def do_unregister(server: Server, model: Services, name: str) -> None:
    if name in model:
        assert await unregister(server, name) == model.pop(name)
    else:
        assert (await failure(unregister(server, name))).code is grpc.StatusCode.NOT_FOUND


async def do_report(server: Server, model: Services, name: str, status: HealthStatus.ValueType) -> None:
    if name not in model:
        assert (await failure(report(server, name, status))).code is grpc.StatusCode.NOT_FOUND
        return
    health = await report(server, name, status)
    service = await get(server, name)
    if status == model[name].health.status:
        assert service == model[name]
    else:
        assert service.health == health
    model[name] = service


def _operation(function: Callable[..., Coroutine[Any, Any, None]], *arguments: st.SearchStrategy[Any]) -> Any:
    return st.tuples(st.just(function), st.tuples(*arguments))


operations = st.one_of(
    _operation(do_register, services),
    _operation(do_register, services),
    _operation(do_register_all, st.lists(services, min_size=1, max_size=4)),
    _operation(
        do_update,
        services,
        st.sampled_from(["version", "group", "capabilities", "metadata.tags", "metadata", "health"]),
    ),
    _operation(do_unregister, names),
    _operation(do_report, names, statuses),
)


# Comparisons.


async def check_discovery(server: Server, model: Services, filter_: ServiceFilter, page_size: int) -> None:
    expected = [model[name] for name in sorted(model) if matches(model[name], filter_)]
    revision = max((service.revision for service in model.values()), default=0)
    shown: list[Service] = []
    token = ""
    while True:
        page = await discover(server, filter=filter_, page_size=page_size, page_token=token)
        assert page.total_size == len(expected)
        assert page.revision >= revision
        shown += page.services
        token = page.next_page_token
        if not token:
            break
        assert len(page.services) == page_size
    assert shown == expected
    for name in [*list(model)[:2], "unknown"]:
        request = pb.ExplainDiscoveryRequest(filter=filter_, name=name)
        explanation = await server.stub.ExplainDiscovery(request)
        assert explanation.matches == (model.get(name) in expected)
        assert explanation.matches == (explanation.found and all(each.holds for each in explanation.conditions))
        assert explanation.total_size == len(expected)


async def check_counts(server: Server, model: Services) -> None:
    answer = await server.stub.GetStats(pb.GetStatsRequest())
    assert answer.stats == expected_stats(model)
    capabilities = await server.stub.ListCapabilities(pb.ListCapabilitiesRequest())
    assert list(capabilities.capabilities) == expected_capabilities(model)
    assert not capabilities.next_page_token


def expected_stats(model: Services) -> pb.RegistryStats:
    all_services = model.values()
    count_status = [service.health.status for service in all_services].count
    offered = [capability.name for service in all_services for capability in service.capabilities]
    return pb.RegistryStats(
        total_services=len(all_services),
        healthy_services=count_status(HEALTHY),
        unhealthy_services=count_status(UNHEALTHY),
        degraded_services=count_status(DEGRADED),
        unknown_services=count_status(UNKNOWN),
        services_in_maintenance=count_status(MAINTENANCE),
        unique_capabilities=len(set(offered)),
        total_capabilities=len(offered),
        unique_versions=len({service.version for service in all_services}),
        unique_tags=len({tag for service in all_services for tag in service.metadata.tags}),
        average_capabilities_per_service=len(offered) / len(all_services) if all_services else 0,
    )


def expected_capabilities(model: Services) -> list[pb.CapabilitySummary]:
    summaries: dict[str, pb.CapabilitySummary] = {}
    for name in sorted(model):
        for capability in model[name].capabilities:
            summary = summaries.setdefault(capability.name, pb.CapabilitySummary(name=capability.name))
            summary.versions[:] = sorted({*summary.versions, capability.version} - {""})
            if name not in summary.service_names:
                summary.service_names.append(name)
            summary.description = summary.description or capability.description
            summary.service_count = len(summary.service_names)
    return [summaries[name] for name in sorted(summaries)]


async def check_watch(server: Server, watch: Watch, shown: Services, model: Services, filter_: ServiceFilter) -> None:
    """Compare the state of a watcher with the model; the events from its cursor must equal the live events."""
    async with watching(server, filter=filter_, cursor=watch.cursor) as again:
        health = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        missed = await again.until(health.revision)
    assert await watch.events(len(missed)) == missed
    for event in missed:
        if event.type in (UNREGISTERED, UNMATCHED):
            assert shown.pop(event.service.name, None) is not None, "only a known service can be removed"
        else:
            shown[event.service.name] = event.service
    assert shown == {name: service for name, service in model.items() if matches(service, filter_)}


class Scenario(NamedTuple):
    steps: list[tuple[Operation, tuple[Any, ...]]]
    filters: list[ServiceFilter]
    page_size: int


scenarios = st.builds(
    Scenario,
    st.lists(operations, min_size=2, max_size=24),
    st.lists(filters(), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3, 1000]),
)


async def play(server: Server, scenario: Scenario) -> Services:
    """Apply the steps to an empty registry, compare everything after each and return the model."""
    steps, filters_, page_size = scenario
    for name in await find_names(server, ServiceFilter()):
        await unregister(server, name)
    model: Services = {}
    first_half = len(steps) // 2
    for operation, arguments in steps[:first_half]:
        await operation(server, model, *arguments)
    async with watching(server, filter=filters_[0], include_snapshot=True) as watch:
        shown = {event.service.name: event.service for event in await watch.snapshot()}
        for operation, arguments in steps[first_half:]:
            for filter_ in filters_:
                await check_discovery(
                    server, model, filter_, page_size
                )  # fills caches that the operation must invalidate
            await operation(server, model, *arguments)
            for filter_ in filters_:
                await check_discovery(server, model, filter_, page_size)
            await check_counts(server, model)
        await check_watch(server, watch, shown, model, filters_[0])
    return model


async def check_property(examples: int, check: Callable[[Scenario], Coroutine[Any, Any, None]]) -> None:
    """Run an asynchronous property in this event loop; Hypothesis waits for it in a separate thread."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(scenarios)
    def in_thread(scenario: Scenario) -> None:
        asyncio.run_coroutine_threadsafe(check(scenario), loop).result(timeout=60)

    await asyncio.to_thread(in_thread)


async def test_discovery_stats_and_watches_match_a_dict(server: Server) -> None:
    async def check(scenario: Scenario) -> None:
        await play(server, scenario)

    await check_property(120, check)


async def test_server_that_starts_later_returns_the_same(redis: RedisProcess, server: Server) -> None:
    async def check(scenario: Scenario) -> None:
        model = await play(server, scenario)
        async with running(redis.url) as later:
            for filter_ in scenario.filters:
                await check_discovery(later, model, filter_, scenario.page_size)
            await check_counts(later, model)

    await check_property(10, check)
