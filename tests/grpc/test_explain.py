"""``ExplainDiscovery``: the reasons for empty results, as a newcomer meets them."""

from typing import Any

import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Capability, Health, Metadata, Service, ServiceFilter, TagMatch
from tests.grpc.calls import (
    HEALTHY,
    REGISTERED,
    UNHEALTHY,
    UNREGISTERED,
    failure,
    redis_client,
    register,
    register_all,
    set_remaining_lease,
    unregister,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server


def translator(name: str, **fields: Any) -> Service:
    metadata = Metadata(tags=["nlp", "fast"], environment="production", labels={"region": "eu"})
    defaults = {
        "capabilities": [Capability(name="translate", version="1.5.0")],
        "metadata": metadata,
        "health": Health(status=HEALTHY),
    }
    return small_service(name, **{**defaults, **fields})


async def explain(server: Server, name: str = "", **fields: Any) -> pb.ExplainDiscoveryResponse:
    request = pb.ExplainDiscoveryRequest(filter=ServiceFilter(**fields), name=name)
    return await server.stub.ExplainDiscovery(request)


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "a typo": (
        {"capability": "transalte"},
        "No service has capability 'transalte' (did you mean translate?).",
    ),
    "a typo with a version": (
        {"capability": "transalte", "capability_version": "^1"},
        "No service has capability 'transalte' (did you mean translate?).",
    ),
    "a range": (
        {"capability": "translate", "capability_version": "^2"},
        "No service offers 'translate' in version '^2' (offered: 1.10.0, 1.5.0).",
    ),
    "an environment": (
        {"environment": "staging"},
        "No service has environment 'staging' (there are: production).",
    ),
    "a combination": (
        {"capability": "translate", "labels": {"region": "us"}, "name_pattern": "^translator"},
        (
            "No service meets all 3 conditions at once; without labels[\"region\"] 'us', "
            "1 service matches: translator (eu)."
        ),
    ),
    "draining": (
        {"capability": "summarize", "available": True},
        (
            "No service meets all 2 conditions at once; 1 service meets the others but is not available "
            "(healthy and not draining): summarizer (healthy, draining)."
        ),
    ),
    "a status": ({"health": [UNHEALTHY]}, "No service is unhealthy (there are: healthy)."),
    "all tags": (
        {"tags": ["nlp", "fsat"], "tag_match": TagMatch.TAG_MATCH_ALL},
        "No service has tags 'fsat' (did you mean fast?).",
    ),
    "two reasons": (
        {"group": "x", "version": "9.0.0"},
        (
            "No service has version '9.0.0' (offered: 1.0.0), "
            "and none has group 'x' (there are: summarizer, translator, zz)."
        ),
    ),
    "a pattern": (
        {"name_pattern": "^translater$"},
        "No service has a name that matches '^translater$' (did you mean translator?).",
    ),
    "nothing": ({"environment": "production"}, "2 services match."),
}


@pytest.mark.parametrize("case", REASONS)
async def test_summary_gives_the_reason(server: Server, case: str) -> None:
    await register_all(
        server,
        [
            translator("translator"),
            translator("summarizer", capabilities=[Capability(name="summarize")], draining=True),
            small_service(
                "zz",
                capabilities=[Capability(name="translate", version="1.10.0")],
                health=Health(status=HEALTHY),
                metadata=Metadata(labels={"region": "us"}),
            ),
        ],
    )
    fields, summary = REASONS[case]
    assert (await explain(server, **fields)).summary == summary


async def test_conditions_are_counted_one_by_one(server: Server) -> None:
    await register_all(server, [translator("a"), translator("b", version="2.0.0"), small_service("c")])
    fields = {"capability": "translate", "version": "^2", "tags": ["slow", "nlp"], "labels": {"zone": "1"}}
    answer = await explain(server, "a", **fields)
    shown = [(each.field, each.wanted, each.matching_count, each.actual, each.holds) for each in answer.conditions]
    assert shown == [
        ("capability", "translate", 2, "translate", True),
        ("tags", "slow or nlp", 2, "nlp, fast", True),
        ("version", "^2", 1, "1.0.0", False),
        ('labels["zone"]', "1", 0, "", False),
    ]
    assert (answer.found, answer.matches, answer.total_size, answer.last_event.type) == (True, False, 0, REGISTERED)
    assert answer.summary == (
        "a does not match: version '^2' is wanted, it has 1.0.0; labels[\"zone\"] '1' is wanted, it has none."
    )
    assert (await explain(server, "b", version="^2")).summary == "b matches."


async def test_names_that_left_are_explained(server: Server, redis: RedisProcess) -> None:
    await register_all(server, [translator("gone"), translator("expired"), translator("translator")])
    await unregister(server, "gone")
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "expired", -1)
    await server.stub.Cleanup(pb.CleanupRequest())

    answer = await explain(server, "gone", capability="translate")
    assert (answer.found, answer.matches, answer.total_size) == (False, False, 1)
    assert (answer.last_event.type, answer.last_event.service.name) == (UNREGISTERED, "gone")
    assert answer.summary.startswith("gone is not registered: it was unregistered at 20")
    assert (await explain(server, "expired")).summary.startswith("expired is not registered: its lease expired at 20")
    unknown = await explain(server, "Translater")
    assert unknown.similar_names == ["translator"]
    assert unknown.summary == "Translater is not registered; did you mean translator?"
    assert (await explain(server, "qqq")).summary == "qqq is not registered."

    await register(server, translator("gone"))
    again = await explain(server, "gone")
    assert (again.summary, again.last_event.type) == ("gone is registered.", REGISTERED)


async def test_invalid_filters_and_names_are_rejected(server: Server) -> None:
    error = await failure(explain(server, "no name", capability_version="^1", health=[0]))
    assert set(error.fields) == {"name", "filter.capability_version", "filter.health[0]"}
