import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2 import Consistency
from ossa.registry.v1.service_pb2 import Capability, Health, Metadata, Service, ServiceFilter, TagMatch
from tests.grpc.calls import (
    DEGRADED,
    HEALTHY,
    MAINTENANCE,
    UNHEALTHY,
    UNKNOWN,
    UNREGISTERED,
    disconnectable_followers,
    discover,
    failure,
    find_names,
    get,
    heartbeat,
    redis_client,
    register,
    register_all,
    report,
    set_remaining_lease,
    unregister,
    update,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.support.server import Server, running

ANY, ALL = TagMatch.TAG_MATCH_ANY, TagMatch.TAG_MATCH_ALL
STRONG = Consistency.CONSISTENCY_STRONG
NAME = "ai-text-processor"


def names(answer: pb.DiscoverServicesResponse) -> list[str]:
    return [service.name for service in answer.services]


# Filters. The target is the example service of the OSSA reference implementation, HEALTHY and in group
# `text-processing`, among services that share none of its values.

HITS: dict[str, dict[str, Any]] = {
    "everything": {},
    "the whole name": {"name_pattern": "^ai-text-processor$"},
    "a part of the name, unanchored": {"name_pattern": "text-p"},
    "the name in another case": {"name_pattern": "AI-Text"},
    "a pattern": {"name_pattern": r"^[a-z]{2}-(text|image)-\w+r$"},
    "a pattern anchored at one end": {"name_pattern": "processor$"},
    "capability": {"capability": "text-analysis"},
    "another capability": {"capability": "translate"},
    "exact capability version": {"capability": "text-analysis", "capability_version": "2.0.0"},
    "capability version range": {"capability": "translate", "capability_version": ">=1.2 <2"},
    "capability version caret": {"capability": "translate", "capability_version": "^1.4"},
    "capability version x-range": {"capability": "translate", "capability_version": "1.x"},
    "capability version either-or": {"capability": "translate", "capability_version": "<1 || >=1.4"},
    "exact version": {"version": "2.1.0"},
    "version range": {"version": ">=2 <3"},
    "version tilde": {"version": "~2.1"},
    "version equals": {"version": "=2.1.0"},
    "version hyphen": {"version": "2 - 3"},
    "any version": {"version": "*"},
    "health": {"health": [HEALTHY]},
    "health: any of": {"health": [UNHEALTHY, HEALTHY, DEGRADED]},
    "tag": {"tags": ["ai"]},
    "tags: any, by default": {"tags": ["ai", "vision"]},
    "tags: any": {"tags": ["vision", "nlp"], "tag_match": ANY},
    "tags: all": {"tags": ["ai", "nlp"], "tag_match": ALL},
    "tags: all, in another order and twice": {"tags": ["nlp", "ai", "nlp"], "tag_match": ALL},
    "environment": {"environment": "production"},
    "group": {"group": "text-processing"},
    "label": {"labels": {"region": "eu"}},
    "labels": {"labels": {"region": "eu", "tier": "gold"}},
    "all fields": {
        "name_pattern": "^AI",
        "capability": "text-analysis",
        "capability_version": "^2",
        "health": [HEALTHY, DEGRADED],
        "tags": ["ai", "nlp"],
        "tag_match": ALL,
        "version": ">=2.1 <2.2",
        "environment": "production",
        "group": "text-processing",
        "labels": {"region": "eu", "tier": "gold"},
        "available": True,
    },
    "available": {"available": True},
}

NEAR_MISSES: dict[str, dict[str, Any]] = {
    "anchored at another start": {"name_pattern": "^text"},
    "anchored at another end": {"name_pattern": "text$"},
    "a dot is any character, but one": {"name_pattern": "ai.{0}text"},
    "a part of the capability's name": {"capability": "text"},
    "the capability's name in another case": {"capability": "Text-Analysis"},
    "the version of another capability": {"capability": "text-analysis", "capability_version": "1.4.2"},
    "a range that only another capability matches": {"capability": "text-analysis", "capability_version": "^1"},
    "capability version: less than": {"capability": "translate", "capability_version": "<1.4.2"},
    "capability version: greater than": {"capability": "translate", "capability_version": ">1.4.2"},
    "exact capability version: no prefix": {"capability": "translate", "capability_version": "1.4"},
    "exact version: no prefix": {"version": "2.1"},
    "version: excluded upper bound": {"version": ">=1 <2.1.0"},
    "version tilde": {"version": "~2.0"},
    "version caret": {"version": "^1.9"},
    "health": {"health": [UNHEALTHY]},
    "health: any of the others": {"health": [UNHEALTHY, DEGRADED, UNKNOWN, MAINTENANCE]},
    "a part of a tag": {"tags": ["a"]},
    "a tag in another case": {"tags": ["AI"]},
    "tags: one is missing": {"tags": ["ai", "nlp", "vision"], "tag_match": ALL},
    "tags: none present": {"tags": ["vision", "audio"], "tag_match": ANY},
    "environment in another case": {"environment": "Production"},
    "a part of the environment": {"environment": "prod"},
    "the name instead of the group": {"group": NAME},
    "a part of the group": {"group": "text"},
    "another value of the label": {"labels": {"region": "us"}},
    "a label that is not set": {"labels": {"zone": "eu"}},
    "a label with no value": {"labels": {"region": ""}},
    "one label of two has another value": {"labels": {"region": "eu", "tier": "silver"}},
    "the value of another label": {"labels": {"region": "gold"}},
}


async def register_example_and_others(server: Server) -> Service:
    """Register the example service and others that share none of its values; return the example service."""
    service = example_service()
    service.group = "text-processing"
    service.health.status = HEALTHY
    others = [
        small_service("vision", health=Health(status=MAINTENANCE), version="nightly"),
        small_service(
            "audio",
            version="0.9.0",
            health=Health(status=UNKNOWN),
            capabilities=[Capability(name="transcribe", version="3.0.0")],
            metadata=Metadata(tags=["sound"], environment="staging", labels={"region": "ap"}),
        ),
    ]
    await register_all(server, others)
    return await register(server, service)


@pytest.mark.parametrize("case", HITS)
async def test_service_is_found_by(server: Server, case: str) -> None:
    service = await register_example_and_others(server)
    answer = await discover(server, filter=ServiceFilter(**HITS[case]))
    assert service in answer.services
    assert (
        answer.total_size == len(answer.services) == (3 if case == "everything" else 2 if case == "any version" else 1)
    )
    assert answer.revision == service.revision


@pytest.mark.parametrize("case", NEAR_MISSES)
async def test_service_is_not_found_by(server: Server, case: str) -> None:
    await register_example_and_others(server)
    answer = await discover(server, filter=ServiceFilter(**NEAR_MISSES[case]))
    assert NAME not in names(answer)


@pytest.mark.parametrize("field", [field for field in HITS["all fields"] if field not in ("tag_match", "available")])
async def test_all_fields_of_a_filter_must_match(server: Server, field: str) -> None:
    await register_example_and_others(server)
    misses = {
        "name_pattern": "^text",
        "capability": "translate",
        "capability_version": "^1",
        "health": [UNHEALTHY],
        "tags": ["ai", "vision"],
        "version": "<2",
        "environment": "staging",
        "group": "audio",
        "labels": {"region": "eu", "tier": "silver"},
    }
    assert await find_names(server, ServiceFilter(**HITS["all fields"])) == [NAME]
    assert await find_names(server, ServiceFilter(**{**HITS["all fields"], field: misses[field]})) == []


async def test_available_services_are_healthy_and_not_draining(server: Server) -> None:
    for name, status, draining in (("a", HEALTHY, False), ("b", HEALTHY, True), ("c", DEGRADED, False)):
        await register(server, small_service(name, health=Health(status=status), draining=draining))
    available = ServiceFilter(available=True)
    assert await find_names(server, available) == ["a"]
    await register(server, small_service("b", health=Health(status=HEALTHY)))
    await register(server, small_service("a", health=Health(status=HEALTHY), draining=True))
    assert await find_names(server, available) == ["b"], "the kept query follows the changes"


async def test_version_ranges_match_only_semantic_versions(server: Server) -> None:
    for version in ("1.0.0", "1.5", "v1.9.0", "2.0.0-rc.1", "2.0.0", "nightly", "2024-06-01"):
        await register(server, small_service(f"s-{version}", version=version))
    assert await find_names(server, ServiceFilter(version="<2")) == ["s-1.0.0", "s-1.5", "s-v1.9.0"]
    assert await find_names(server, ServiceFilter(version=">=2.0.0-rc.1")) == ["s-2.0.0", "s-2.0.0-rc.1"]
    assert await find_names(server, ServiceFilter(version="nightly")) == ["s-nightly"]
    assert "s-nightly" not in await find_names(server, ServiceFilter(version="*"))


async def test_each_version_of_a_capability_is_found(server: Server) -> None:
    versions = [Capability(name="sum", version=version) for version in ("1.0.0", "2.0.0", "")]
    await register(server, small_service("a", capabilities=versions))
    await register(server, small_service("b", capabilities=versions[2:]))
    for version, expected in (("1.0.0", ["a"]), ("2.0.0", ["a"]), (">1", ["a"]), ("3.0.0", []), ("", ["a", "b"])):
        assert await find_names(server, ServiceFilter(capability="sum", capability_version=version)) == expected, (
            version
        )


async def test_group_defaults_to_the_name(server: Server) -> None:
    await register_all(server, [small_service("a"), small_service("a-2", group="a"), small_service("b", group="c")])
    assert await find_names(server, ServiceFilter(group="a")) == ["a", "a-2"]
    assert await find_names(server, ServiceFilter(group="b")) == []


async def test_all_bad_fields_of_a_query_are_reported(server: Server) -> None:
    filter_ = ServiceFilter(name_pattern="(", capability_version="^1", version=">1\n", tags=[""], health=[0])  # type: ignore[list-item]
    refused = await failure(
        discover(server, filter=filter_, page_size=-1, page_token="?", min_revision=-1, consistency=9)
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(refused.fields) == [
        "consistency",
        "filter.capability_version",
        "filter.health[0]",
        "filter.name_pattern",
        "filter.tags[0]",
        "filter.version",
        "min_revision",
        "page_size",
        "page_token",
    ]


# Pages.


async def test_services_are_ordered_by_the_bytes_of_their_names(server: Server) -> None:
    ordered = ["0", "9.a", "A", "B-", "B.", "B0", "BA", "B_", "Ba", "Z", "a", "a-b", "a.b", "aa", "z"]
    assert ordered == sorted(ordered)
    await register_all(server, (small_service(name, endpoint="http://a.test") for name in reversed(ordered)))
    assert names(await discover(server)) == ordered
    assert await pages(server, page_size=4) == [ordered[i : i + 4] for i in range(0, 15, 4)]


async def pages(server: Server, **fields: Any) -> list[list[str]]:
    """Return the names on each page."""
    result: list[list[str]] = []
    token = ""
    while True:
        page = await discover(server, page_token=token, **fields)
        result.append(names(page))
        token = page.next_page_token
        if not token:
            return result


@pytest.mark.parametrize(
    ("page_size", "lengths"), [(0, [100] * 10 + [50]), (1, [1] * 1050), (1000, [1000, 50]), (5000, [1000, 50])]
)
async def test_page_has_the_requested_size_within_the_limits(
    server: Server, page_size: int, lengths: list[int]
) -> None:
    expected = [f"s{i:04}" for i in range(1050)]
    await register_all(server, map(small_service, expected))
    walked = await pages(server, page_size=page_size)
    assert [len(page) for page in walked] == lengths
    assert [name for page in walked for name in page] == expected
    assert (await discover(server, page_size=page_size)).total_size == 1050


async def test_full_last_page_has_no_token(server: Server) -> None:
    await register_all(server, map(small_service, "abcd"))
    assert await pages(server, page_size=2) == [["a", "b"], ["c", "d"]]
    assert await pages(server, page_size=4) == [["a", "b", "c", "d"]]


async def test_total_size_counts_all_matching_services_on_every_page(server: Server) -> None:
    await register_all(server, (small_service(f"s{i}", group="odd" if i % 2 else "even") for i in range(9)))
    filter_ = ServiceFilter(group="odd")
    first = await discover(server, filter=filter_, page_size=3)
    second = await discover(server, filter=filter_, page_size=3, page_token=first.next_page_token)
    assert (names(first), first.total_size) == (["s1", "s3", "s5"], 4)
    assert (names(second), second.total_size, second.next_page_token) == (["s7"], 4, "")


async def test_paging_returns_unchanged_services_once_during_changes(server: Server) -> None:
    permanent = [f"stay-{i:03}" for i in range(60)]
    await register_all(server, map(small_service, permanent))
    done = asyncio.Event()

    async def add_and_remove(i: int) -> None:
        while not done.is_set():
            for name in (f"a-{i}", f"stay-{7 * i:03}x", f"z-{i}"):
                await register(server, small_service(name))
            await update(server, small_service(f"stay-{5 * i:03}", version="2.0.0"))
            for name in (f"z-{i}", f"stay-{7 * i:03}x", f"a-{i}"):
                await unregister(server, name)

    async with asyncio.TaskGroup() as group:
        for i in range(4):
            group.create_task(add_and_remove(i))
        for page_size in (1, 3, 7, 1, 3, 7, 20, 59):
            walked = [name for page in await pages(server, page_size=page_size) for name in page]
            assert walked == sorted(set(walked)), "names must be in order and unique"
            assert [name for name in walked if name in permanent] == permanent
        done.set()


async def test_page_token_stays_valid_after_its_service_is_removed(server: Server) -> None:
    await register_all(server, map(small_service, "abcde"))
    token = (await discover(server, page_size=2)).next_page_token
    await unregister(server, "b")
    await unregister(server, "c")
    assert names(await discover(server, page_size=2, page_token=token)) == ["d", "e"]
    for name in "de":
        await unregister(server, name)
    answer = await discover(server, page_size=2, page_token=token)
    assert (names(answer), answer.total_size, answer.next_page_token) == ([], 1, "")


async def test_page_token_is_valid_only_for_its_filter(server: Server) -> None:
    await register_all(server, (small_service(f"s{i}", metadata=Metadata(tags=["x", "y"])) for i in range(5)))
    filter_ = ServiceFilter(tags=["x", "y"])
    token = (await discover(server, filter=filter_, page_size=2)).next_page_token

    same = ServiceFilter(tags=["y", "x", "y"], tag_match=ANY)
    assert names(await discover(server, filter=same, page_size=3, page_token=token)) == ["s2", "s3", "s4"]
    for other in (ServiceFilter(), ServiceFilter(tags=["x"]), ServiceFilter(tags=["x", "y"], tag_match=ALL)):
        refused = await failure(discover(server, filter=other, page_size=2, page_token=token))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_invalid_page_tokens_are_refused(server: Server) -> None:
    await register_all(server, (small_service(f"s{i}", capabilities=[Capability(name=f"c{i}")]) for i in range(3)))
    token = (await discover(server, page_size=1)).next_page_token
    capabilities_page = await server.stub.ListCapabilities(pb.ListCapabilitiesRequest(page_size=1))
    for bad in ("?", "AAAA", "x" + token, token + "é", "=" * 2000, capabilities_page.next_page_token):
        refused = await failure(discover(server, page_token=bad))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"]), bad


# Freshness. Every query is sent twice, so that the second answer comes from the cache, before and after a change.

Change = Callable[[Server, RedisProcess], Awaitable[object]]


def tagged(name: str, **fields: Any) -> Service:
    return small_service(name, metadata=Metadata(tags=["x"]), **fields)


async def _expire(server: Server, redis: RedisProcess) -> None:
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "s3", -1)
    await server.stub.Cleanup(pb.CleanupRequest())


CHANGES: dict[str, Change] = {
    "a matching service is added": lambda server, _: register(server, tagged("s35")),
    "a matching service is added at the front": lambda server, _: register(server, tagged("a")),
    "a matching service is added at the end": lambda server, _: register(server, tagged("z")),
    "a service that does not match is added": lambda server, _: register(server, small_service("s36")),
    "a service is removed": lambda server, _: unregister(server, "s3"),
    "the last service of a page is removed": lambda server, _: unregister(server, "s1"),
    "the only service that does not match is removed": lambda server, _: unregister(server, "other"),
    "a service starts to match": lambda server, _: update(server, tagged("other")),
    "a service no longer matches": lambda server, _: update(server, Service(name="s3"), "metadata.tags"),
    "content on the first page changes": lambda server, _: register(server, tagged("s0", version="2.0.0")),
    "content on a page in the middle changes": lambda server, _: update(server, Service(name="s3", version="2.0.0")),
    "content on the last page changes": lambda server, _: update(server, Service(name="s6", version="2.0.0")),
    "health is reported": lambda server, _: report(server, "s3", UNHEALTHY),
    "health is set by a registration": lambda server, _: register(server, tagged("s3", health=Health(status=DEGRADED))),
    "health is updated": lambda server, _: update(server, Service(name="s3", health=Health(status=MAINTENANCE))),
    "the same health is reported": lambda server, _: report(server, "s3", UNKNOWN),
    "a heartbeat is sent": lambda server, _: heartbeat(server, "s3"),
    "identical content is registered": lambda server, _: register(server, tagged("s3")),
    "a batch is registered": lambda server, _: register_all(server, map(tagged, ("s1", "s35", "z"))),
    "a lease ends": _expire,
}


QUERIES: list[tuple[ServiceFilter, Callable[[Service], bool]]] = [
    (ServiceFilter(), lambda _: True),
    (ServiceFilter(tags=["x"]), lambda service: "x" in service.metadata.tags),
    (ServiceFilter(tags=["x", "y"]), lambda service: "x" in service.metadata.tags),
    (ServiceFilter(health=[UNKNOWN]), lambda service: service.health.status == UNKNOWN),
    (ServiceFilter(health=[UNHEALTHY, DEGRADED]), lambda service: service.health.status in (UNHEALTHY, DEGRADED)),
    (ServiceFilter(name_pattern="S"), lambda service: "s" in service.name),
    (ServiceFilter(version="<2"), lambda service: service.version == "1.0.0"),
    (ServiceFilter(version="2.0.0"), lambda service: service.version == "2.0.0"),
    (ServiceFilter(group="s3"), lambda service: service.group == "s3"),
]


async def each_page(server: Server, filter_: ServiceFilter, page_size: int) -> list[pb.DiscoverServicesResponse]:
    answers = [await discover(server, filter=filter_, page_size=page_size)]
    while token := answers[-1].next_page_token:
        answers.append(await discover(server, filter=filter_, page_size=page_size, page_token=token))
    return answers


@pytest.mark.parametrize("case", CHANGES)
async def test_answers_are_current_immediately_after(server: Server, redis: RedisProcess, case: str) -> None:
    await register_all(server, [*(tagged(f"s{i}") for i in range(7)), small_service("other")])

    async def check() -> None:
        every = [await get(server, name) for name in await find_names(server, ServiceFilter(name_pattern="."))]
        for filter_, matches in QUERIES:
            expected = [service for service in every if matches(service)]
            for page_size in (0, 2, 2, 0):  # the repeated queries are answered from the cache
                answers = await each_page(server, filter_, page_size)
                assert [service for answer in answers for service in answer.services] == expected
                assert {answer.total_size for answer in answers} == {len(expected)}

    await check()
    await CHANGES[case](server, redis)
    await check()


async def test_answers_contain_the_revision_of_their_state(server: Server) -> None:
    assert (await discover(server)).revision == 0
    for name in "abc":
        service = await register(server, small_service(name))
        for filter_ in (ServiceFilter(), ServiceFilter(group="none")):
            for _ in range(2):
                assert (await discover(server, filter=filter_)).revision == service.revision


async def test_answers_are_not_stale_while_the_store_is_connected(server: Server) -> None:
    for _ in range(3):
        assert not (await discover(server)).stale
        await register(server, small_service("a"))


async def test_discovery_waits_for_min_revision(server: Server) -> None:
    first = await register(server, small_service("a"))
    assert (await discover(server, min_revision=first.revision)).revision == first.revision
    request = pb.DiscoverServicesRequest(min_revision=first.revision + 1)
    waiting = asyncio.ensure_future(server.stub.DiscoverServices(request, timeout=20))
    assert names(await discover(server)) == ["a"]
    await register(server, small_service("b"))
    assert names(await waiting) == ["a", "b"]


async def test_unreached_min_revision_ends_with_the_deadline(server: Server) -> None:
    await register(server, small_service("a"))
    request = pb.DiscoverServicesRequest(min_revision=2**62)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await server.stub.DiscoverServices(request, timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_strong_answer_includes_earlier_writes_through_another_server(
    server: Server, redis: RedisProcess
) -> None:
    async with running(redis.url) as other, disconnectable_followers(redis) as disconnect_followers:
        for i in range(20):
            await disconnect_followers()
            written = await register(server, small_service("a", version=f"{i}.0.0"))
            answer = await discover(other, consistency=STRONG)
            assert list(answer.services) == [written]
            assert answer.revision >= written.revision
        await disconnect_followers()
        await unregister(server, "a")
        assert names(await discover(other, consistency=STRONG)) == []


async def test_eventual_answer_with_min_revision_includes_writes_elsewhere(server: Server, redis: RedisProcess) -> None:
    async with running(redis.url) as other:
        for i in range(50):
            written = await register(server, small_service("a", version=f"{i}.0.0"))
            request: dict[str, Any] = {"consistency": Consistency.CONSISTENCY_EVENTUAL}
            answer = await discover(other, min_revision=written.revision, **request)
            assert list(answer.services) == [written]


async def change_things(server: Server, seed: int) -> None:
    """Send 40 changes to services among s0000 to s1249; those that do not exist are skipped."""
    for i in range(40):
        name = f"s{(97 * seed + 31 * i) % 1_250:04}"
        changed = small_service(name, version=f"{i % 3}.0.{seed}")
        if i % 4 < 2:
            await register(server, changed)
        else:
            with suppress(grpc.aio.AioRpcError):
                await (unregister(server, name) if i % 4 == 2 else update(server, changed, "version"))


async def test_every_answer_shows_exactly_the_state_at_its_revision(server: Server) -> None:
    # More services than are filtered without yielding, so that changes happen in between; filters never repeat.
    base = await register_all(server, (small_service(f"s{i:04}", version=f"{i % 3}.0.0") for i in range(1_200)))
    answers: list[tuple[int, pb.DiscoverServicesResponse]] = []
    writing = True

    async def query(seed: int) -> None:
        for i in count():
            if not writing:
                return
            filter_ = ServiceFilter(name_pattern=f"^s.*({seed}|{i}|.)$", version=f"^{i % 3}")
            answers.append((i % 3, await discover(server, filter=filter_, page_size=1000)))

    async with watching(server) as watch:
        querying = [asyncio.create_task(query(seed)) for seed in range(3)]
        await asyncio.gather(*(change_things(server, seed) for seed in range(4)))
        writing = False
        await asyncio.gather(*querying)
        last = await register(server, small_service("last"))
        state = {service.name: service.version for service in base}
        states = {watch.messages[0].revision: dict(state)}
        for event in await watch.until(last.revision):
            state[event.service.name] = "" if event.type == UNREGISTERED else event.service.version
            states[event.revision] = dict(state)

    assert len({answer.revision for _, answer in answers}) > 5, "no changes during the queries"
    for major, answer in answers:
        state = states[answer.revision]
        assert names(answer) == sorted(name for name, version in state.items() if version.startswith(f"{major}."))
        assert answer.total_size == len(answer.services)


async def test_page_tokens_are_valid_in_all_processes_of_a_registry_only(redis: RedisProcess) -> None:
    async with running(redis.url) as first, running(redis.url) as second:
        for name in "abc":
            await register(first, small_service(name))
        token = (await discover(first, page_size=1)).next_page_token
        assert names(await discover(second, page_size=1, page_token=token, min_revision=3)) == ["b"]
    async with running(redis.url) as restarted:
        assert names(await discover(restarted, page_size=1, page_token=token)) == ["b"]
    async with running(redis.url, redis={"key_prefix": "another:services"}) as another:
        refused = await failure(discover(another, page_size=1, page_token=token))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])
