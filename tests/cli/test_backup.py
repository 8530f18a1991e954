"""``backup`` and ``restore``, of an embedded Redis and of a separate one, after all data was lost."""

import asyncio
import gzip
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from registry_client import RegistryClient, Service, make_service
from tests.cli.program import Done, Program
from tests.support.redis_process import RedisProcess
from tests.support.security import Policy, registry_acl
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def call(directory: Path, *args: str) -> Done:
    return await asyncio.to_thread(Program("127.0.0.1:1", directory).run, *args)


@asynccontextmanager
async def registry(policy: Policy, *flags: str) -> AsyncIterator[RegistryClient]:
    """Run a registry with a policy, and yield a client with the key of an agent."""
    async with (
        ServerProcess(*flags, f"--security.policy-file={policy.file}") as server,
        RegistryClient(server.grpc_address, token=policy.keys["agent"]) as client,
    ):
        yield client


@pytest.fixture(params=["embedded", "embedded, long path", "separate"])
async def flags(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[str, ...]]:
    """The setting that says where a registry stores its data."""
    if request.param == "separate":
        async with RedisProcess(tmp_path / "redis") as redis:
            yield (f"--redis.url={redis.url}",)
        return
    yield (f"--data-dir={tmp_path / ('long' * 30 if 'long' in request.param else 'data')}",)


async def lose_data(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Remove the data directory, or empty the Redis."""
    name, _, value = flags[0].partition("=")
    if name == "--data-dir":
        await asyncio.to_thread(shutil.move, value, tmp_path / "lost")
        return
    async with Redis.from_url(value) as client:
        await client.flushall()


async def test_restored_registry_equals_the_lost_one(flags: tuple[str, ...], tmp_path: Path) -> None:
    policy = Policy(tmp_path / "policy")
    async with registry(policy, *flags) as client:
        for number in range(3):
            await client.register_service(
                make_service(f"fleet-{number}", "http://a.test", version="1", health_check="heartbeat", ttl=60)
            )
        await client.register_service(make_service("fleet-p", "http://b.test", version="1", ttl=0, tags=["x"]))
        await client.unregister_service("fleet-2")
        await client.report_service_health("fleet-1", "degraded", error="slow")
        before = await found(client)
        done = await call(tmp_path, "backup", "registry.backup", *flags)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"3 services of revision {client.revision} backed up from ")
        await client.register_service(make_service("fleet-later", "http://b.test", version="1"))
    assert (tmp_path / "registry.backup").stat().st_mode & 0o777 == 0o600

    await lose_data(flags, tmp_path)
    done = await call(tmp_path, "restore", "registry.backup", *flags)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("3 services of revision ")

    async with registry(policy, *flags) as client:
        assert await found(client) == before
        _, lease = await client.get_service_health("fleet-0")
        assert lease is not None
        assert (await client.get_service_health("fleet-p"))[1] is None
        # Owners are restored: another identity may not change the service.
        async with RegistryClient(client.target, token=policy.keys["other"]) as other:
            with pytest.raises(Exception, match="registered by another identity"):
                await other.unregister_service("fleet-0")
        answer = await client.heartbeat(["fleet-0", "fleet-2"])
        assert list(answer.unknown_names) == ["fleet-2"]
        registered = await client.register_service(make_service("fleet-new", "http://c.test", version="1"))
        assert registered.revision > max(service.revision for service in before)


async def found(client: RegistryClient) -> list[Service]:
    return sorted(await client.find_services(), key=lambda service: service.name)


async def test_documents_of_other_programs_are_written_again(redis_flags: tuple[str, ...], tmp_path: Path) -> None:
    policy = Policy(tmp_path / "policy")
    async with registry(policy, *redis_flags) as client:
        await client.register_service(make_service("fleet-a", "http://a.test", version="1", health_check="heartbeat"))
        await call(tmp_path, "backup", "a.backup", *redis_flags)
    await lose_data(redis_flags, tmp_path)
    await call(tmp_path, "restore", "a.backup", *redis_flags)
    async with registry(policy, *redis_flags), Redis.from_url(redis_flags[0].partition("=")[2]) as redis:
        async with asyncio.timeout(60):
            while (document := await redis.get("ossa:services:fleet-a")) is None:
                await asyncio.sleep(0.05)
    assert json.loads(document)["name"] == "fleet-a"


@pytest.fixture
async def redis_flags(tmp_path: Path) -> AsyncIterator[tuple[str, ...]]:
    async with RedisProcess(tmp_path / "redis") as redis:
        yield (f"--redis.url={redis.url}",)


async def test_restore_refuses_a_running_registry_and_existing_services(
    redis_flags: tuple[str, ...], tmp_path: Path
) -> None:
    policy = Policy(tmp_path / "policy")
    async with registry(policy, *redis_flags) as client:
        await client.register_service(make_service("fleet-a", "http://a.test", version="1"))
        assert (await call(tmp_path, "backup", "a.backup", *redis_flags)).code == 0
        await client.register_service(make_service("fleet-b", "http://b.test", version="1"))
        done = await call(tmp_path, "restore", "a.backup", *redis_flags, "--replace")
        assert (done.code, done.out) == (2, "")
        assert "a registry runs on redis://" in done.err
    done = await call(tmp_path, "restore", "a.backup", *redis_flags)
    assert (done.code, done.out) == (2, "")
    assert "holds 2 services; --replace removes them first" in done.err
    assert (await call(tmp_path, "restore", "a.backup", *redis_flags, "--replace")).code == 0
    async with registry(policy, *redis_flags) as client:
        assert [service.name for service in await found(client)] == ["fleet-a"]


async def test_permissions_of_a_registry_suffice_for_backups(redis_flags: tuple[str, ...], tmp_path: Path) -> None:
    url = redis_flags[0].partition("=")[2]
    async with Redis.from_url(url) as admin:
        set_user: Any = admin.execute_command  # its type depends on the version
        await set_user("ACL", "SETUSER", "registry", "reset", *registry_acl("secret"))
        policy, limited = Policy(tmp_path / "policy"), "--redis.url=" + url.replace("//", "//registry:secret@")
        async with registry(policy, limited) as client:
            await client.register_service(make_service("fleet-a", "http://a.test", version="1"))
            assert (await call(tmp_path, "backup", "a.backup", limited)).code == 0
        done = await call(tmp_path, "restore", "a.backup", limited, "--replace")
        assert (done.code, "secret" in done.err) == (4, False)
        assert "no permissions to run the 'multi' command" in done.err
        await set_user("ACL", "SETUSER", "registry", "+@transaction")
        assert (await call(tmp_path, "restore", "a.backup", limited, "--replace")).code == 0


async def test_embedded_registry_that_runs_is_named(tmp_path: Path) -> None:
    policy, flag = Policy(tmp_path / "policy"), f"--data-dir={tmp_path / 'data'}"
    async with registry(policy, flag) as client:
        await client.register_service(make_service("fleet-a", "http://a.test", version="1"))
        assert (await call(tmp_path, "backup", "a.backup", flag)).code == 0
        done = await call(tmp_path, "restore", "a.backup", flag, "--replace")
    assert done.code == 2
    assert "is in use by another server, pid " in done.err
    # A stopped registry can be backed up too.
    assert (await call(tmp_path, "backup", "b.backup", flag)).code == 0


async def test_bad_backups_and_missing_registries_are_refused(redis_flags: tuple[str, ...], tmp_path: Path) -> None:
    done = await call(tmp_path, "backup", "a.backup", *redis_flags)
    assert done.code == 2
    assert "holds no registry under ossa:services" in done.err
    policy = Policy(tmp_path / "policy")
    async with registry(policy, *redis_flags) as client:
        await client.register_service(make_service("fleet-a", "http://a.test", version="1"))
        await call(tmp_path, "backup", "good.backup", *redis_flags)
        done = await call(tmp_path, "backup", "no/a.backup", *redis_flags)
        assert (done.code, "cannot write no/a.backup" in done.err) == (2, True)
    packed = (tmp_path / "good.backup").read_bytes()
    lines = gzip.decompress(packed).splitlines(keepends=True)
    bad = {
        "text": b"hello",
        "cut": packed[:-4],
        "changed": packed[:20] + bytes(20) + packed[40:],
        "incomplete": gzip.compress(b"".join(lines[:-1])),
        "fewer": gzip.compress(lines[0] + lines[-1]),
        "other": gzip.compress(b"{}\n{}\n"),
        "nested": gzip.compress(b"[" * 100_000),
        **{
            f"edited {i}": gzip.compress(b"".join(lines).replace(old, new))
            for i, (old, new) in enumerate(
                (
                    (b'"records": "', b'"records": "AAAA'),
                    (b'"format": 1', b'"format": "1"'),
                    (b'"data_format"', b'"unknown"'),
                    (b'"revision": ', b'"revision": -'),
                    (b'"lease_ends_ms": ', b'"lease_ends_ms": -'),
                    (b'"lease_ends_ms"', b'"unknown"'),
                    (b'"ttls": "', b'"ttls": "-'),
                    (lines[-1], lines[1] + b'{"services": 2}'),
                )
            )
        },
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        done = await call(tmp_path, "restore", name, *redis_flags, "--replace")
        assert (done.code, done.err) == (2, f"ossa-registry: {name}: is not a complete backup of ossa-registry\n")
    for field in (b'"format": ', b'"data_format": '):
        (tmp_path / "newer").write_bytes(gzip.compress(b"".join(lines).replace(field, field + b"9")))
        done = await call(tmp_path, "restore", "newer", *redis_flags, "--replace")
        assert "a newer version of ossa-registry wrote this backup" in done.err
    assert (await call(tmp_path, "restore", "no", *redis_flags)).err.startswith("ossa-registry: cannot read no: ")
    assert (await call(tmp_path, "backup", "x", "--redis.url=redis://127.0.0.1:1")).code == 4
    assert (await call(tmp_path, "backup", "x", "--colour=red")).code == 2
