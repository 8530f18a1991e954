"""Backup and restore of all services of a registry, independent of where and how its Redis stores them.

A backup is a compressed text file: a JSON object that describes it, one object for each service, and one that ends it.
It is read by one script, so it is the state of one revision. It contains no events, and no epoch: a restored
registry starts a new history, because the revisions after the backup would otherwise identify other changes.
"""

import asyncio
import gzip
import json
import os
import sys
import zlib
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError
from redis.asyncio import Redis

from ossa.registry.v1.service_pb2 import Service
from registry_server.config import EMBEDDED, Settings
from registry_server.errors import ConfigurationError
from registry_server.store.connecting import Connections
from registry_server.store.embedded import EmbeddedRedis, running_socket_url
from registry_server.store.failures import translate_errors
from registry_server.store.keys import DATA_FORMAT, Keys
from registry_server.store.tls import RedisTls

_T = TypeVar("_T")

_KIND: Final = "ossa-registry backup"
_FORMAT: Final = 1
_STANDARD_STREAM: Final = Path("-")
_HASHES: Final = ("records", "ttls", "owners", "checks")
"""Hashes from names to what a backup holds of each service."""
_READ: Final = """
local answer = {}
for i = 1, 4 do answer[i] = redis.call('GET', KEYS[i]) end
answer[5] = redis.call('ZRANGE', KEYS[5], 0, -1, 'WITHSCORES')
for i = 6, #KEYS do answer[i] = redis.call('HGETALL', KEYS[i]) end
return answer
"""
_SERVICES_PER_COMMAND: Final = 1_000
_EXTRA_TIMEOUT_SECONDS: Final = 300.0
"""Reading a million services takes Redis several seconds."""
_SWEEP_WAIT_INTERVALS: Final = 3.0
"""Sweep intervals in which every running registry sweeps the leases."""


class Summary(NamedTuple):
    """What was backed up or restored."""

    services: int
    revision: int
    redis: str
    """The Redis, for people."""


class Content(NamedTuple):
    """The content of a backup."""

    header: Mapping[str, Any]
    services: list[dict[str, Any]]


async def back_up(settings: Settings, file: Path) -> Summary:
    """Write all services of a registry to a file, also while the registry runs.

    Args:
        settings: Settings of the registry: where its data is.
        file: File that is replaced when the backup is complete, or ``-`` for standard output.

    Raises:
        ConfigurationError: The settings are invalid, there is no registry, or the file cannot be written.
        StoreUnavailable: Redis does not answer.
    """
    async with _open_redis(settings, running=True) as (client, keys, place):
        header, services = await _read(client, keys, place)
    await asyncio.to_thread(_write_file, file, _lines(header, services))
    return Summary(len(services), header["revision"], place)


async def restore(settings: Settings, file: Path, *, replace: bool) -> Summary:
    """Store the services of a backup; nothing is changed unless all of it can be stored.

    Leases are later extended by the time since the backup, when the first process sweeps them.

    Args:
        settings: Settings of the registry: where its data is.
        file: A backup, or ``-`` for standard input.
        replace: Whether to replace the services that Redis holds.

    Raises:
        ConfigurationError: The file is no complete backup, a registry runs, or Redis holds services.
        StoreUnavailable: Redis does not answer.
    """
    content = await asyncio.to_thread(_read_file, file)
    async with _open_redis(settings, running=False) as (client, keys, place):
        await _require_no_sweeps(client, keys, settings.lease.sweep_interval_ms / 1000, place)
        with translate_errors("HKEYS", keys.records):
            present: Any = await client.hkeys(keys.records)
        if present and not replace:
            raise ConfigurationError(f"{place} holds {len(present)} services; --replace removes them first")
        await _write(client, keys, content, present)
    return Summary(len(content.services), content.header["revision"], place)


@asynccontextmanager
async def _open_redis(settings: Settings, *, running: bool) -> AsyncIterator[tuple[Redis, Keys, str]]:
    """Connect to the Redis of a registry, and start an embedded one that does not run.

    Args:
        settings: Settings of the registry.
        running: Whether the registry may be running.
    """
    keys = Keys.under(settings.redis.key_prefix)
    url, place = settings.redis.url.get_secret_value(), settings.redis.safe_url
    tls = RedisTls(settings.redis.tls_ca_file, settings.redis.tls_cert_file, settings.redis.tls_key_file)
    async with AsyncExitStack() as stack:
        if url == EMBEDDED:
            place = str(settings.data_dir)
            url = running_socket_url(settings.data_dir) if running else ""
            url = url or (await stack.enter_async_context(EmbeddedRedis(settings.data_dir))).url
        connections = Connections(url, timeout=settings.redis.timeout_ms / 1000, key=keys.revision, tls=tls)
        stack.push_async_callback(connections.close)
        client = connections.client(extra_timeout=_EXTRA_TIMEOUT_SECONDS)
        stack.push_async_callback(client.aclose)
        yield client, keys, place


async def _read(client: Redis, keys: Keys, place: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    # A script instead of a transaction, for which the permissions of a registry do not suffice.
    names = [
        keys.epoch,
        keys.format,
        keys.revision,
        keys.sweep,
        keys.leases,
        *(getattr(keys, each) for each in _HASHES),
    ]
    with translate_errors("EVAL"):
        answer: Any = await client.eval(_READ, len(names), *names)
    epoch, data_format, revision, sweep, leases, *hashes = answer
    if epoch is None:
        raise ConfigurationError(f"{place} holds no registry under {keys.document_prefix.removesuffix(':')}")
    parts = {part: _pairs(flat) for part, flat in zip(_HASHES, hashes, strict=True)}
    ends = {name: float(end) for name, end in _pairs(leases).items()}
    services = [
        {
            "name": name.decode(errors="surrogateescape"),
            "lease_ends_ms": None if ends.get(name, float("inf")) == float("inf") else int(ends[name]),
        }
        | {part: b64encode(values[name]).decode() for part, values in parts.items() if name in values}
        for name in sorted(parts["records"])
    ]
    header = {
        "kind": _KIND,
        "format": _FORMAT,
        "data_format": int(data_format or DATA_FORMAT),
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": int(revision or 0),
        "swept_at_ms": int(sweep or 0),
    }
    return header, services


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def _write(client: Redis, keys: Keys, content: Content, present: Sequence[bytes]) -> None:
    owned: dict[Any, int] = {}
    with translate_errors("EXEC"):
        async with client.pipeline(transaction=True) as transaction:
            # Not the epoch of the backup: the first process starts a new history.
            transaction.delete(*(set(keys[1:]) - {keys.secret}))
            for names in _groups(present):
                transaction.delete(*(keys.document_prefix.encode() + name for name in names))
            for services in _groups(content.services):
                for part in _HASHES:
                    values = {each["name"]: b64decode(each[part]) for each in services if part in each}
                    if values:
                        transaction.hset(getattr(keys, part), mapping=values)
                ends = {
                    each["name"]: float("inf") if each["lease_ends_ms"] is None else each["lease_ends_ms"]
                    for each in services
                }
                transaction.zadd(keys.leases, ends)
                transaction.sadd(keys.bare, *ends)  # so that a process writes their documents
                for each in services:
                    if owner := b64decode(each.get("owners", "")):
                        owned[owner] = owned.get(owner, 0) + 1
            if owned:
                transaction.hset(keys.owned, mapping=owned)
            transaction.set(keys.revision, content.header["revision"])
            transaction.set(keys.sweep, content.header["swept_at_ms"])
            await transaction.execute()


def _groups(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Yield items in groups for one command each."""
    for start in range(0, len(items), _SERVICES_PER_COMMAND):
        yield items[start : start + _SERVICES_PER_COMMAND]


async def _require_no_sweeps(client: Redis, keys: Keys, interval: float, place: str) -> None:
    """Check that no registry runs: it would write back what it holds in memory.

    Raises:
        ConfigurationError: The leases were swept meanwhile.
    """
    with translate_errors("GET", keys.sweep):
        before = await client.get(keys.sweep)
        if before is None:
            return
        await asyncio.sleep(_SWEEP_WAIT_INTERVALS * interval)
        if await client.get(keys.sweep) != before:
            raise ConfigurationError(f"a registry runs on {place}; stop all of its processes, then restore")


def _lines(header: Mapping[str, Any], services: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    count = 0
    yield json.dumps(header).encode() + b"\n"
    for each in services:
        count += 1
        yield json.dumps(each).encode() + b"\n"
    yield json.dumps({"services": count}).encode() + b"\n"


def _write_file(file: Path, lines: Iterable[bytes]) -> None:
    try:
        if file == _STANDARD_STREAM:
            with gzip.GzipFile(fileobj=sys.stdout.buffer, mode="wb") as packed:
                packed.writelines(lines)
            return
        part = file.with_name(f".{file.name}.part")
        # Readable by this user only: the metadata of services may be confidential.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb") as packed:
                packed.writelines(lines)
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(file)
    except OSError as error:
        raise ConfigurationError(f"cannot write {file}: {error.strerror}") from error


def _read_file(file: Path) -> Content:
    try:
        packed = sys.stdin.buffer.read() if file == _STANDARD_STREAM else file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    try:
        return _parse(file, packed)
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, DecodeError, RecursionError) as error:
        raise ConfigurationError(f"{file}: is not a complete backup of ossa-registry") from error


def _parse(file: Path, packed: bytes) -> Content:
    """Return the content of a backup.

    Raises:
        ConfigurationError: A newer version wrote it.
        OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, DecodeError, RecursionError: It is damaged or
            incomplete.
    """
    header, *services, end = map(json.loads, gzip.decompress(packed).splitlines())
    if header["kind"] != _KIND or end != {"services": len(services)}:
        raise ValueError(header)
    _check_integers(header, "format", "data_format", "revision", "swept_at_ms")
    # Before the services, which may look different in a newer format.
    if header["format"] > _FORMAT or header["data_format"] > DATA_FORMAT:
        raise ConfigurationError(f"{file}: a newer version of ossa-registry wrote this backup; use that version")
    if len({_checked_name(each) for each in services}) != len(services):
        raise ValueError("a service occurs twice")
    return Content(header, services)


def _checked_name(service: dict[str, Any]) -> str:
    """Return the name of a service. All of its parts can be stored: Redis would not undo the rest of the transaction.

    Raises:
        ValueError, LookupError, TypeError, DecodeError: It is damaged.
    """
    name = Service.FromString(b64decode(service["records"], validate=True)).name
    if service["name"] != name:
        raise ValueError(name)
    if service["lease_ends_ms"] is not None:
        _check_integers(service, "lease_ends_ms")
    for part in service.keys() & set(_HASHES):
        b64decode(service[part], validate=True)
    int(b64decode(service.get("ttls", b64encode(b"0"))))
    return name


def _check_integers(document: dict[str, Any], *keys: str) -> None:
    if not all(type(document[key]) is int and document[key] >= 0 for key in keys):
        raise ValueError(document)
