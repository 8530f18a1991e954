"""Damaged, incomplete and missing data of an embedded Redis: never an empty registry, and the command that recovers."""

# ruff: noqa: ASYNC240 - in these tests the event loop has nothing else to serve
import asyncio
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio
from structlog.testing import capture_logs

from registry_server.errors import ConfigurationError
from registry_server.instrumentation.problems import Problems
from registry_server.store.append_only import check_directory, explain_failure
from registry_server.store.embedded import EmbeddedRedis
from tests.support.waiting import TIMEOUT_SECONDS, until

pytestmark = pytest.mark.slow

DIRECTORY = "appendonlydir"
MANIFEST = f"{DIRECTORY}/appendonly.aof.manifest"
KEYS = 50


async def fill(data_dir: Path, *, rewrite: bool = True) -> None:
    """Write 50 keys before and 50 after a rewrite of the append-only file: into its base and its increment."""
    async with EmbeddedRedis(data_dir) as server, redis.asyncio.Redis.from_url(server.url) as client:
        await client.mset({f"base-{i}": "x" * 100 for i in range(KEYS)})
        if rewrite:
            await client.bgrewriteaof()
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while (await client.info("persistence"))["aof_rewrite_in_progress"]:
                    await asyncio.sleep(0.01)
        for i in range(KEYS):
            await client.set(f"late-{i}", "x" * 100)
        await until((data_dir / "registry.marker").exists)


async def count_keys(data_dir: Path) -> int:
    async with EmbeddedRedis(data_dir) as server, redis.asyncio.Redis.from_url(server.url) as client:
        return int(await client.dbsize())


async def startup_error(data_dir: Path) -> str:
    with pytest.raises(ConfigurationError) as raised:
        await count_keys(data_dir)
    message = str(raised.value)
    assert message.startswith("data_dir: ")
    assert len(message.splitlines()) == 1
    return message


def run(command: str) -> None:
    """Run a command in a shell, and confirm its question."""
    environment = {"PATH": os.defpath}
    subprocess.run(["/bin/bash", "-c", command], env=environment, input=b"y\n", capture_output=True, check=True)


def increment(data_dir: Path) -> Path:
    """Return the newest file, to which Redis appends."""
    files = sorted(data_dir.glob(f"{DIRECTORY}/*.incr.aof")) or [data_dir / "appendonly.aof"]
    return files[-1]


def overwrite_middle(data_dir: Path) -> None:
    file = increment(data_dir)
    content = bytearray(file.read_bytes())
    middle = len(content) - 25 * len(content) // KEYS // 2
    content[middle : middle + 200] = bytes(200)
    file.write_bytes(content)


def append_zeros(data_dir: Path) -> None:
    """Damage the file as ext4 and XFS do when the machine loses power."""
    with increment(data_dir).open("ab") as file:
        file.write(bytes(4096))


def empty_manifest(data_dir: Path) -> None:
    (data_dir / MANIFEST).write_bytes(b"")


def empty_base(data_dir: Path) -> None:
    next(data_dir.glob(f"{DIRECTORY}/*.base.*")).write_bytes(b"")


def corrupt_manifest(data_dir: Path) -> None:
    (data_dir / MANIFEST).write_bytes(bytes(80))


RECOVERABLE: dict[str, tuple[Callable[[Path], None], str, range]] = {
    "bytes in the middle": (overwrite_middle, "Bad file format reading the append only file", range(KEYS, 2 * KEYS)),
    "zeros at the end": (append_zeros, "Bad file format reading the append only file", range(2 * KEYS, 2 * KEYS + 1)),
    "manifest missing": (
        lambda path: (path / MANIFEST).unlink(),
        "manifest is missing or empty",
        range(2 * KEYS, 2 * KEYS + 1),
    ),
    "manifest empty": (empty_manifest, "manifest is missing or empty", range(2 * KEYS, 2 * KEYS + 1)),
    "manifest corrupted": (corrupt_manifest, "FATAL AOF MANIFEST FILE ERROR", range(2 * KEYS, 2 * KEYS + 1)),
    "increment missing": (lambda path: increment(path).unlink(), "incr.aof", range(KEYS, KEYS + 1)),
    "base empty": (empty_base, "base.rdb is empty", range(KEYS, KEYS + 1)),
    "base missing": (lambda path: next(path.glob(f"{DIRECTORY}/*.base.*")).unlink(), "base.rdb", range(KEYS, KEYS + 1)),
}


@pytest.mark.parametrize(("damage", "reason", "expected"), RECOVERABLE.values(), ids=RECOVERABLE)
async def test_damaged_data_is_refused_with_the_command_that_recovers_it(
    data_dir: Path, damage: Callable[[Path], None], reason: str, expected: range
) -> None:
    await fill(data_dir)
    if not (data_dir / DIRECTORY).exists():
        pytest.skip("needs Redis 7")
    damage(data_dir)

    message = await startup_error(data_dir)
    assert reason in message
    assert await startup_error(data_dir) == message, "the failed start has changed nothing"

    command = re.split(r"(?:with|after): ", message)[-1]
    run(command)
    assert await count_keys(data_dir) in expected


@pytest.mark.usefixtures("wheel_only")
@pytest.mark.parametrize("damage", [overwrite_middle, append_zeros])
async def test_file_of_redis_6_is_recovered_by_redis_server_itself(
    data_dir: Path, damage: Callable[[Path], None]
) -> None:
    await fill(data_dir)
    damage(data_dir)

    message = await startup_error(data_dir)
    assert "Bad file format reading the append only file" in message

    run(message.rpartition("with: ")[2])
    assert await count_keys(data_dir) >= KEYS


async def test_incomplete_last_command_is_removed_and_reported(data_dir: Path) -> None:
    await fill(data_dir)
    file = increment(data_dir)
    file.write_bytes(file.read_bytes()[:-37])

    with capture_logs() as logs:
        assert await count_keys(data_dir) == 2 * KEYS - 1

    (warning,) = [entry for entry in logs if entry["event"] == "append-only file truncated"]
    assert re.fullmatch(rf"{re.escape(file.name)} at offset \d+", warning["position"])


def test_manifest_of_several_bases_can_only_be_restored_from_a_backup(data_dir: Path) -> None:
    """After a rewrite only the manifest knows which files the new base replaces."""
    directory = data_dir / DIRECTORY
    directory.mkdir(parents=True)
    for name in ("appendonly.aof.1.base.rdb", "appendonly.aof.2.base.rdb", "appendonly.aof.3.incr.aof", "temp-1.rdb"):
        (directory / name).write_text("data")

    with pytest.raises(ConfigurationError, match=rf"; restore {directory} from a backup$"):
        check_directory(data_dir)


def remove_files(data_dir: Path) -> None:
    shutil.rmtree(data_dir / DIRECTORY, ignore_errors=True)
    (data_dir / "appendonly.aof").unlink(missing_ok=True)


def empty_increment(data_dir: Path) -> None:
    """Lose the content of the file, as some filesystems do when the machine loses power."""
    increment(data_dir).write_bytes(b"")


@pytest.mark.parametrize(
    ("lose", "reason"),
    [(remove_files, "its append-only file is missing"), (empty_increment, "Redis has loaded no data")],
)
async def test_registry_whose_data_is_lost_starts_only_without_the_marker(
    data_dir: Path, lose: Callable[[Path], None], reason: str
) -> None:
    await fill(data_dir, rewrite=False)
    lose(data_dir)

    message = await startup_error(data_dir)
    assert f"{data_dir} held a registry, but {reason}" in message
    assert f"remove {data_dir}/registry.marker to start with an empty registry" in message

    (data_dir / "registry.marker").unlink()
    assert await count_keys(data_dir) == 0


async def test_unused_data_dir_is_not_marked(data_dir: Path) -> None:
    assert await count_keys(data_dir) == 0
    remove_files(data_dir)
    assert await count_keys(data_dir) == 0


async def test_base_of_a_newer_redis_is_explained(data_dir: Path) -> None:
    await fill(data_dir)
    base = next(data_dir.glob(f"{DIRECTORY}/*.base.rdb"), None)
    if base is None:
        pytest.skip("needs Redis 7")
    base.write_bytes(b"REDIS0099" + base.read_bytes()[9:])

    message = await startup_error(data_dir)
    assert "Can't handle RDB format version 99; a newer version of Redis has written the data" in message


async def test_damage_while_the_registry_runs_is_a_problem_until_it_is_repaired(data_dir: Path) -> None:
    await fill(data_dir)
    problems = Problems()
    async with EmbeddedRedis(data_dir, problems=problems) as server, redis.asyncio.Redis.from_url(server.url) as client:
        intact = increment(data_dir).read_bytes()
        append_zeros(data_dir)
        with capture_logs() as logs:
            os.kill((await client.info("server"))["process_id"], signal.SIGKILL)
            await until(lambda: "embedded_redis" in problems.active)
        (first, *_) = [entry["error"] for entry in logs if entry["event"] == "redis-server restart failed"]
        assert f"--fix {increment(data_dir)}" in first

        increment(data_dir).write_bytes(intact)
        await until(lambda: not problems.active)
        assert await client.dbsize() == 2 * KEYS


LINE = "13:M 30 Nov 2026 16:01:02.345 "
LOGS = {
    "Redis 7 may not read a file": (
        f"{LINE}# Fatal error: can't open the append log file a.aof for reading: Permission denied\n",
        """for reading: Permission denied; let this user read and write it: chown -R "$(id -u)" /data""",
    ),
    "Redis 6 may not read the file": (
        LINE + "# Fatal error: can't open the append log file for reading: Permission denied\n",
        "Permission denied; let this user",
    ),
    "the disk is full": (
        LINE + "# Can't open or create append-only dir appendonlydir: No space left on device",
        "Can't open or create append-only dir appendonlydir: No space left on device; free space on the disk of /data",
    ),
    "the base file is corrupted": (
        LINE + "# Wrong RDB checksum expected: (1) but got (2). Aborting now.\n",
        "Wrong RDB checksum; restore /data from a backup",
    ),
    "another file than the last one is incomplete": (
        "!!! Warning: short read while loading the AOF file appendonly.aof.3.incr.aof!!!\n"
        + LINE
        + "# Fatal error: the truncated file is not the last file\n",
        "--fix /data/appendonlydir/appendonly.aof.3.incr.aof",
    ),
    "another reason": (
        f"{LINE}# WARNING Memory overcommit must be enabled!\n{LINE}# Something unknown.\n{LINE}* Bye",
        "Something unknown.",
    ),
    "no reason": ("", "it logged no reason"),
}


@pytest.mark.parametrize(("log", "expected"), LOGS.values(), ids=LOGS)
def test_log_of_redis_is_explained(log: str, expected: str) -> None:
    explained = explain_failure(log, Path("/data"), Path("/usr/bin/redis-server"))

    assert expected in explained
    assert "\n" not in explained
    assert "overcommit" not in explained
