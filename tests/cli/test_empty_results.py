"""What a newcomer reads after an empty result, in six prepared cases. Each text alone says why, and what to try."""

import asyncio
import re
from pathlib import Path

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Capability, Metadata, Service
from tests.cli.program import Program
from tests.grpc.calls import redis_client, set_remaining_lease
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import running

HIDDEN = "The policy hides some services from 'viewer'; another credential may see more."
CASES = {
    "typo": (
        ("list", "--capability", "transalte"),
        "No service has capability 'transalte' (did you mean translate?).",
    ),
    "typo in a name": (
        ("get", "translater"),
        "service 'translater' is not registered | did you mean translator?",
    ),
    "range": (
        ("list", "--capability", "translate", "--capability-version", "^2"),
        "No service offers 'translate' in version '^2' (offered: 1.5.0).",
    ),
    "environment": (
        ("list", "--capability", "translate", "--environment", "staging"),
        "No service has environment 'staging' (there are: production, secret).",
    ),
    "expired": (
        ("list", "--capability", "summarize"),
        (
            "No service has capability 'summarize' (there are: pay, rank, translate). "
            "The last match was summarizer: its lease expired at TIME."
        ),
    ),
    "expired name": (
        ("get", "summarizer"),
        "service 'summarizer' is not registered | its lease expired at TIME.",
    ),
    "draining": (
        ("list", "--capability", "rank", "--available"),
        (
            "No service meets all 2 conditions at once; 1 service meets the others but is not available "
            "(healthy and not draining): scorer (healthy, draining)."
        ),
    ),
    "hidden": (
        ("list", "--capability", "pay"),
        f"No service has capability 'pay' (there are: rank, translate). {HIDDEN}",
    ),
    "hidden name": (
        ("get", "cashier"),
        f"service 'cashier' is not registered | {HIDDEN}",
    ),
}
"""Command, and what it prints as errors and notices. The policy restricts what the caller of the last two sees."""


def service(name: str, capability: str, environment: str = "production", **fields: object) -> Service:
    return small_service(
        name,
        capabilities=[Capability(name=capability, version="1.5.0")],
        metadata=Metadata(environment=environment),
        health_check={"heartbeat": {}},
        **fields,
    )


async def test_printed_answer_alone_gives_the_reason(redis: RedisProcess, tmp_path: Path) -> None:
    policy = Policy(tmp_path / "policy")
    viewer = next(entry for entry in policy.document["api_keys"] if entry["name"] == "viewer")
    viewer["sees"] = {"environments": ["production"]}
    policy.write()
    async with running(redis.url, security=policy.section) as server:
        agents = [
            service("translator", "translate"),
            service("summarizer", "summarize"),
            service("scorer", "rank", draining=True),
            service("cashier", "pay", "secret"),
        ]
        admin = policy.metadata("admin")
        await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=agents), metadata=admin)
        async with redis_client(redis) as client:
            await set_remaining_lease(client, "summarizer", -1)
        await server.stub.Cleanup(pb.CleanupRequest(), metadata=admin)
        program = Program(server.grpc_address, tmp_path)

        async def printed(case: str) -> str:
            token = policy.keys["viewer" if case.startswith("hidden") else "operator"]
            done = await asyncio.to_thread(program.run, *CASES[case][0], OSSA_REGISTRY_TOKEN=token)
            said = [line.removeprefix("ossa-registry: ") for line in done.err.splitlines()]
            return re.sub(r"20\S+Z", "TIME", " | ".join(said))

        assert {case: await printed(case) for case in CASES} == {case: text for case, (_, text) in CASES.items()}
