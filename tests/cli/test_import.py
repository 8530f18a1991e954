"""``import ossa``: registers what the OSSA reference implementation left in its Redis."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import make_service
from tests.cli.program import Done, Program
from tests.support.redis_process import RedisProcess
from tests.support.server import running
from tests.support.shared_redis import SharedRedis
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

PREFIX = "acme:[1]:services"
FOUND = "documents of the OSSA reference implementation found"


def document(name: str, **members: Any) -> dict[str, Any]:
    """Return a document as the reference implementation writes it."""
    return {
        "name": name,
        "endpoint": "https://ai.company.com:8080",
        "version": "2.1.0",
        "capabilities": [{"name": "text-analysis", "version": "2.0.0", "inputs": {"type": "object"}}],
        "health": {"status": "healthy", "lastCheck": "2026-11-24T05:00:00.000Z", "responseTime": 12},
        "metadata": {"tags": ["ai"], "environment": "production"},
        "registeredAt": "2026-11-24T05:00:00.000Z",
        "updatedAt": "2026-11-24T05:00:00.000Z",
        **members,
    }


class OldRedis:
    """A Redis with documents of the reference implementation."""

    def __init__(self, process: RedisProcess) -> None:
        self.url = process.url
        self.client: Any = Redis.from_url(process.url)  # its types depend on the version

    def store(self, name: str, content: object, *, expires: bool = True, prefix: str = PREFIX) -> None:
        """Store a document under the key of a service."""
        text = content if isinstance(content, str) else json.dumps(content)
        self.client.set(f"{prefix}:{name}", text, ex=300 if expires else None)


@pytest.fixture
def old(tmp_path: Path) -> Iterator[OldRedis]:
    """A Redis of its own, which differs from that of the registry."""
    with SharedRedis(tmp_path / "old") as process:
        yield OldRedis(process)


def import_from(old: OldRedis, program: Program, *args: str) -> Done:
    return program.run("import", "ossa", "--redis", old.url, "--key-prefix", PREFIX, *args)


def test_documents_are_checked_and_then_registered(old: OldRedis, program: Program) -> None:
    old.store("ai-text", document("ai-text"))
    old.store("permanent", document("permanent", metadata={"tags": [], "cost": 3}, extra=1), expires=False)
    old.client.hset(f"{PREFIX}:index", "ai-text", "1")
    old.store("other", document("other"), prefix="acme:1:services")
    lines = [
        "ai-text {}",
        "permanent {}; permanent, because its key does not expire; without extra, metadata.cost, which are no fields",
    ]
    done = import_from(old, program, "--dry-run")
    assert (done.code, done.out.splitlines()) == (0, [each.format("would be registered") for each in lines])
    assert done.err == "ossa-registry: 2 documents: 2 would be registered, 0 refused\n"
    assert program.run_ok("list", "-o", "name").out == ""

    done = import_from(old, program)
    assert done.code == 0
    assert done.out.splitlines()[:2] == [each.format("is valid") for each in lines]
    assert done.err == "ossa-registry: 2 documents: 2 registered, 0 before, 0 refused\n"
    ai, permanent = program.run_ok("get", "ai-text", "permanent", "-o", "json").json
    stored = document("ai-text")
    assert {key: ai[key] for key in stored if key not in {"health", "metadata", "registeredAt", "updatedAt"}} == {
        key: stored[key] for key in ("name", "endpoint", "version", "capabilities")
    }
    assert ai["health"]["status"] == "healthy"
    assert ai["metadata"]["environment"] == "production"
    assert ("ttlSeconds" in ai, permanent["ttlSeconds"]) == (False, 0)


def test_import_can_be_repeated_and_keeps_newer_services(old: OldRedis, program: Program) -> None:
    old.store("a", document("a"))
    program.run_ok("register", "a", "http://new.test", "--version", "3.0.0")
    done = import_from(old, program)
    assert (done.code, done.out.splitlines()[1]) == (0, "a was registered before, and is unchanged")
    assert program.run_ok("get", "a", "-o", "json").json["version"] == "3.0.0"


def test_invalid_documents_are_refused_with_key_and_path(old: OldRedis, program: Program) -> None:
    old.store("good", document("good"))
    old.store("bad", document("bad name", capabilities=[{"name": "c", "inputs": {"maximum": 2**63 - 1}}]))
    old.store("worse", document("worse", endpoint="javascript:1", version=""))
    old.store("text", "hello")
    for args in (("--dry-run",), ()):
        done = import_from(old, program, *args)
        assert done.code == 1
        assert done.out.startswith("good ")
        problems = [line.removeprefix(f"ossa-registry: {PREFIX}:") for line in done.err.splitlines()[:-1]]
        for expected in (
            "bad: capabilities[0].inputs.maximum: would become",
            "text: is not a JSON object",
            "worse: endpoint: ",
            "worse: version: is required",
        ):
            assert any(each.startswith(expected) for each in problems), problems
    assert program.run_ok("list", "-o", "name").out == "good\n"


def test_hostile_keys_and_values_are_refused_one_line_each(old: OldRedis, program: Program) -> None:
    deep = "[" * 100_000
    for end in (b"\xff", b"\xfe", b"line\nbreak", b"\x1b[31mred"):
        old.client.set(f"{PREFIX}:".encode() + end, json.dumps(document("-")))
    old.store("deep", deep)
    old.store("long", document("long", metadata={"description": "d" * (1 << 20)}))
    old.store("list", [document("a")])
    old.store("types", {"name": 1, "endpoint": {}, "version": [], "capabilities": "c", "health": 1, "metadata": []})
    done = import_from(old, program)
    assert (done.code, done.out) == (1, "")
    *lines, counts = [line.removeprefix("ossa-registry: ") for line in done.err.splitlines()]
    assert counts == "8 documents: 0 registered, 0 before, 8 refused"
    assert all(line.startswith(f"{PREFIX}:") and line.isprintable() for line in lines), lines
    for key in ("deep", "long", "list"):
        assert f"{PREFIX}:{key}: is not a JSON object of at most 1 MiB" in lines


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("redis://127.0.0.1:1", 4, "cannot read the Redis of --redis"),
        ("http://127.0.0.1:1", 2, "--redis: "),
    ],
)
def test_unusable_redis_is_named(url: str, code: int, message: str, program: Program) -> None:
    done = program.run("import", "ossa", "--redis", url)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(f"ossa-registry: {message}")


@pytest.mark.parametrize("own", [False, True], ids=["of the reference implementation", "of this registry"])
async def test_start_on_the_redis_of_the_reference_implementation_is_reported(redis: RedisProcess, own: bool) -> None:  # noqa: FBT001
    OldRedis(redis).store("a", document("a", **({"revision": 1} if own else {})), prefix="ossa:services")
    with capture_logs() as logs:
        async with running(redis.url) as server:
            await until(lambda: any(each["event"] == ("store connected" if own else FOUND) for each in logs))
            # The follower checks its connection when it has read the event of a write.
            await server.stub.RegisterService(
                pb.RegisterServiceRequest(service=make_service("b", "http://b.test", version="1"))
            )
    assert not [each for each in logs if each["event"] == "store disconnected"]
    (found,) = [each for each in logs if each["event"] == FOUND] or [{"command": ""}]
    command = "ossa-registry import ossa --redis URL --key-prefix ossa:services --dry-run"
    assert found["command"] == ("" if own else command)
