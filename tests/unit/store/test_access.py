"""What the registry needs from Redis: verified when it opens the store, and documented."""

import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from registry_server import __version__
from registry_server.errors import ConfigurationError, StoreFault, StoreUnavailable
from registry_server.store import Position, ProbeResult, RedisStore
from registry_server.store.access import explain_faults, find_faults
from registry_server.store.keys import DATA_FORMAT, Keys
from registry_server.store.lua import Scripts
from tests.support.redis_process import RedisProcess
from tests.support.security import registry_acl
from tests.unit.store.harness import LEASE_EXPIRED, StoreHarness

KEYS = Keys.under("ossa:services")
ACCESS = Scripts().sources["access"]
VERIFIED = set(re.findall(r"try\('(\w+)'", ACCESS))
TYPES = {
    **dict.fromkeys(("revision", "epoch", "sweep", "format"), "string"),
    **dict.fromkeys(("records", "ttls", "checks", "owners", "owned", "repair", "merged"), "hash"),
    **dict.fromkeys(("leases", "members"), "zset"),
    "events": "stream",
    "loads": "stream",
    "bare": "set",
}


@asynccontextmanager
async def admin(process: RedisProcess) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(process.url, decode_responses=True) as client:
        yield client


@asynccontextmanager
async def store_of_user(process: RedisProcess, *changes: str, **options: Any) -> AsyncIterator[RedisStore]:
    """Create a store whose user has the documented rights, except for changes."""
    async with admin(process) as client:
        await client.execute_command("ACL", "SETUSER", "registry", "reset", *registry_acl("secret"), *changes)
    store = RedisStore(process.url.replace("//", "//registry:secret@"), **options)
    try:
        yield store
    finally:
        await store.close()


async def refusal(process: RedisProcess, *changes: str, **options: Any) -> str:
    """Return why a store cannot be opened, and verify that it is one sentence."""
    async with store_of_user(process, *changes, **options) as store:
        with pytest.raises(ConfigurationError) as raised:
            await store.open()
    message = str(raised.value)
    assert re.match(r"redis\.\w+: \S", message)
    assert len(message.splitlines()) == 1
    return message


def test_every_command_of_the_registry_is_verified() -> None:
    store = Path(__file__).parents[3] / "registry_server" / "store"
    used = set(re.findall(r"redis\.call\('(\w+)'", "".join(file.read_text() for file in store.glob("scripts/*.lua"))))
    used |= set(re.findall(r"run_command\(\s*\"(\w+)\"", "".join(file.read_text() for file in store.glob("*.py"))))
    used |= {"HSCAN", "HGETALL", "XRANGE", "XREAD", "XREVRANGE"}  # methods of redis-py in reader.py
    assert used - {"EVALSHA", "WAIT"} <= VERIFIED


@pytest.mark.parametrize("command", sorted(VERIFIED | {"INFO", "EVALSHA", "SCRIPT", "PING"}))
async def test_missing_permission_is_named_at_start(redis_process: RedisProcess, command: str) -> None:
    message = await refusal(redis_process, f"-{command.lower()}")

    assert f"Redis refuses {command}" in message
    assert f"; grant the Redis user of the registry +{command.lower()}" in message


async def test_all_missing_permissions_are_named_at_once(redis_process: RedisProcess) -> None:
    message = await refusal(redis_process, "-@write")

    rights = set(message.rpartition("registry ")[2].split())
    assert {"+set", "+del", "+hset", "+hdel", "+zadd", "+zrem", "+xadd", "+srem", "+pexpireat"} <= rights


@pytest.mark.parametrize("patterns", [(), ("~ossa:registry:*",), ("~ossa:services:*",), ("~other:*",)])
async def test_missing_keys_are_named_at_start(redis_process: RedisProcess, patterns: tuple[str, ...]) -> None:
    message = await refusal(redis_process, "resetkeys", *patterns)

    assert "keys used as arguments" in message
    assert message.endswith("grant the Redis user of the registry the keys ~ossa:*")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [(("resetpass", ">other"), "WRONGPASS"), (("off",), "WRONGPASS")],
    ids=["changed password", "disabled user"],
)
async def test_refused_credentials_prevent_a_start(
    redis_process: RedisProcess, changes: tuple[str, ...], cause: str
) -> None:
    message = await refusal(redis_process, *changes)

    assert f"Redis refuses AUTH: {cause}" in message
    assert message.endswith("correct the user and the password in redis.url")
    assert "secret" not in message


@pytest.mark.slow
async def test_missing_password_prevents_a_start(tmp_path: Path) -> None:
    async with RedisProcess(tmp_path, "--appendonly", "no", password="secret") as process:
        store = RedisStore(process.url)
        with pytest.raises(ConfigurationError, match=r"Redis refuses AUTH: NOAUTH .*; correct the user"):
            await store.open()
        await store.close()


async def test_missing_database_prevents_a_start(redis_process: RedisProcess) -> None:
    store = RedisStore(f"{redis_process.url}/99")
    with pytest.raises(ConfigurationError, match=r"^redis\.url: .*DB index is out of range; correct redis\.url"):
        await store.open()
    await store.close()


async def test_redis_that_is_too_old_prevents_a_start(
    redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry_server.store.redis_store.MIN_REDIS_VERSION", (99, 0))

    assert re.search(r"Redis \d+\.\d+\.\d+ is too old", await refusal(redis_process))


async def test_server_that_is_no_redis_prevents_a_start() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        store = RedisStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(ConfigurationError, match=r"^redis\.url: .*; correct redis\.url or the"):
            await store.open()
        await store.close()


async def test_missing_permission_to_wait_for_replicas_prevents_a_start(redis_process: RedisProcess) -> None:
    message = await refusal(redis_process, "-wait", wait_replicas=1)

    assert "Redis refuses WAIT" in message
    assert "+wait" in message


@pytest.mark.parametrize("field", TYPES)
async def test_key_of_another_type_is_named_at_start(redis_process: RedisProcess, field: str) -> None:
    key = getattr(KEYS, field)
    async with admin(redis_process) as client:
        await (client.lpush(key, "x") if TYPES[field] == "string" else client.set(key, "x"))

    message = await refusal(redis_process)

    assert f" on {key}: WRONGTYPE" in message
    assert "restore the keys ossa:* from a backup" in message


@pytest.mark.parametrize("field", ["revision", "sweep", "format"])
async def test_value_that_is_no_number_is_named_at_start(redis_process: RedisProcess, field: str) -> None:
    async with admin(redis_process) as client:
        await client.set(getattr(KEYS, field), "junk")

    assert f" on {getattr(KEYS, field)}: DAMAGED the value is not a number" in await refusal(redis_process)


@pytest.mark.parametrize("other_changes", [False, True])
async def test_newer_format_is_refused_whatever_else_it_changed(
    redis_process: RedisProcess, *, other_changes: bool
) -> None:
    async with admin(redis_process) as client:
        await client.set(KEYS.format, DATA_FORMAT + 1)
        if other_changes:
            await client.set(KEYS.leases, "not a zset any more")

    message = await refusal(redis_process)

    assert message == (
        f"redis.url: ossa:registry:format is {DATA_FORMAT + 1}: a newer version of ossa-registry wrote this data, "
        f"and version {__version__} reads format {DATA_FORMAT}; install the newer version, or restore a backup of this "
        "version"
    )


async def test_format_of_any_length_is_refused(redis_process: RedisProcess) -> None:
    async with admin(redis_process) as client:
        await client.set(KEYS.format, "9" * 5_000)  # more digits than int() accepts

    message = await refusal(redis_process)

    assert f"ossa:registry:format is {'9' * 18}: a newer version" in message


async def test_format_is_written_once_and_kept(redis_process: RedisProcess) -> None:
    async with store_of_user(redis_process) as store, admin(redis_process) as client:
        await store.open()
        await store.share_format()
        assert await client.get(KEYS.format) == str(DATA_FORMAT)
        await client.set(KEYS.format, "0")
        await store.open()
        await store.share_format()
        assert await client.get(KEYS.format) == "0"
        await client.set(KEYS.format, DATA_FORMAT + 1)
        with pytest.raises(ConfigurationError, match="newer version"):
            await store.share_format()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["EVALSHA", "SCRIPT", "HSCAN", "XADD"])
async def test_renamed_command_is_named_at_start(tmp_path: Path, command: str) -> None:
    async with RedisProcess(tmp_path, "--rename-command", command, "", "--appendonly", "no") as process:
        message = await refusal(process)

    assert f"Redis refuses {command}" in message
    assert "remove the rename-command" in message


async def test_unavailable_redis_does_not_prevent_a_start() -> None:
    store = RedisStore("redis://127.0.0.1:1")
    with pytest.raises(StoreUnavailable):
        await store.open()
    await store.close()


@pytest.mark.parametrize(("option", "value"), [("maxmemory", "1"), ("min-replicas-to-write", "1")])
async def test_temporary_refusal_of_writes_does_not_prevent_a_start(
    redis_process: RedisProcess, option: str, value: str
) -> None:
    async with admin(redis_process) as client:
        await client.config_set(option, value)
    async with store_of_user(redis_process) as store:
        await store.open()


async def test_verification_changes_nothing(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.store.writer.write_check("a", b"check", expected=1)
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    contents = await harness.read_contents()

    await harness.store.open()

    assert await harness.read_contents() == contents


async def test_verification_creates_no_key(redis_process: RedisProcess) -> None:
    async with store_of_user(redis_process) as store, admin(redis_process) as client:
        await store.open()
        assert await client.keys("*") == []


async def test_documented_rights_suffice(redis_process: RedisProcess) -> None:
    """Every method of the store; ``tests/e2e/test_refused_start.py`` runs whole registries."""
    async with store_of_user(redis_process) as store, admin(redis_process) as client:
        await client.execute_command("ACL", "LOG", "RESET")
        await store.open()
        epoch = (await store.reader.resolve_head()).epoch
        subject = StoreHarness(store, client, epoch)
        assert await subject.write_service("a") == 1
        await store.writer.renew_leases(["a"])
        await store.writer.write_check("a", b"check", expected=1)
        await store.writer.write_checks([ProbeResult("a", b"check", renew=True)])
        await store.writer.sweep_leases(LEASE_EXPIRED)
        await store.writer.announce_member("process", 60)
        await store.writer.remove_member("process", 60)
        await subject.publish_notice("trouble")
        await store.reader.read_check("a")
        await store.reader.read_owners()
        await store.reader.wait_for_events(0)
        assert [page async for page in store.reader.scan_records()]
        assert await subject.read_events()
        await store.repairs.request_turn(Position(epoch, 9), epoch)
        await store.sample_memory()
        assert store.counters.memory is not None
        await store.reconnect()
        await store.share_format()
        assert await client.execute_command("ACL", "LOG") == []


# Errors in scripts as Redis 6.2, 7.0, 7.2 and 8 word them, and what the message must contain.
SCRIPT_ERRORS = {
    "@user_script: 133: The user executing the script can't run this command or subcommand": "+time",
    "ERR The user executing the script can't run this command or subcommand": "+time",
    "ERR ACL failure in script: User x has no permissions to run the 'time' command script: 0a, on @user_script:1.": (
        "+time"
    ),
    "ERR ACL failure in script: No permissions to access a key": "~ossa:*",
    "@user_script: 1: Unknown Redis command called from Lua script": "rename-command",
    "ERR Unknown Redis command called from script script: 0a1b, on @user_script:1.": "rename-command",
}


@pytest.mark.parametrize(("text", "expected"), SCRIPT_ERRORS.items())
def test_errors_of_all_versions_are_explained(text: str, expected: str) -> None:
    faults = find_faults([(b"SET", b"ossa:registry:epoch", b"ERR syntax error"), (b"TIME", b"", text.encode())])

    assert [fault.command for fault in faults] == ["TIME"]
    assert expected in explain_faults(faults, KEYS)
    assert "user_script" not in explain_faults(faults, KEYS)


def test_command_of_the_handshake_is_named() -> None:
    cause = "NOPERM User registry has no permissions to run the 'client|setname' command"
    message = explain_faults([StoreFault("INFO", "", cause, temporary=False)], KEYS)

    assert "Redis refuses CLIENT SETNAME: NOPERM" in message
    assert message.endswith("+client|setname")


@pytest.mark.parametrize(
    ("prefix", "pattern"), [("{ossa}:services", "~{ossa}:*"), ("plain", "~plain:*"), ("a:b:services", "~a:b:*")]
)
def test_pattern_of_keys_follows_the_prefix(prefix: str, pattern: str) -> None:
    fault = StoreFault("EVALSHA", "", "No permissions to access a key", temporary=False)
    assert explain_faults([fault], Keys.under(prefix)).endswith(pattern)


def test_keys_in_different_slots_of_a_cluster_are_explained() -> None:
    fault = StoreFault("EVALSHA", "", "CROSSSLOT Keys in request don't hash to the same slot", temporary=False)
    assert "redis.key_prefix needs a hash tag" in explain_faults([fault], KEYS)


def test_acl_of_the_production_example_is_the_documented_one() -> None:
    text = (Path(__file__).parents[3] / "deploy" / "production" / "redis.conf").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("user registry ")]
    _, _, *rules = shlex.split(line)
    assert rules == [*registry_acl("CHANGE-ME"), "+role", "+wait"]
