"""``StoreHarness``: a store under test, with direct access to its Redis."""

import json
from typing import Any, NamedTuple, TypeAlias

import redis.asyncio

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Service
from registry_server.store import (
    FORGET_CHECK,
    KEEP_CHECK,
    CheckChange,
    Conflict,
    EpochChanged,
    Position,
    RedisStore,
    StoredEvent,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service

Outcome: TypeAlias = int | Conflict | EpochChanged

REGISTERED = EventType.EVENT_TYPE_SERVICE_REGISTERED
UPDATED = EventType.EVENT_TYPE_SERVICE_UPDATED
UNREGISTERED = EventType.EVENT_TYPE_SERVICE_UNREGISTERED
CLIENT_REQUEST = EventReason.EVENT_REASON_CLIENT_REQUEST
LEASE_EXPIRED = EventReason.EVENT_REASON_LEASE_EXPIRED
REGISTRY_ERROR = EventType.EVENT_TYPE_REGISTRY_ERROR
HEALTH_CHECK = EventReason.EVENT_REASON_HEALTH_CHECK
SLACK_MS = 5_000  # longest time between two commands on a slow machine


class StoreHarness(NamedTuple):
    """A store, a plain client of the same Redis, and the store's epoch."""

    store: RedisStore
    client: "redis.asyncio.Redis"
    epoch: str

    def position(self, epoch: str | None) -> Position:
        """Return a position that the store is not behind."""
        return Position(self.epoch if epoch is None else epoch, 0)

    async def write_service(
        self,
        service: Service | str,
        expected: int = 0,
        *,
        ttl: float = 60,
        renew: bool = True,
        forget_check: bool = False,
        check: CheckChange = KEEP_CHECK,
        epoch: str | None = None,
    ) -> Outcome:
        return await self.store.writer.write_service(
            small_service(service) if isinstance(service, str) else service,
            seen=self.position(epoch),
            expected=expected,
            type=UPDATED if expected else REGISTERED,
            reason=CLIENT_REQUEST,
            ttl=ttl,
            renew=renew,
            check=FORGET_CHECK if forget_check else check,
        )

    async def touch_service(
        self, name: str, expected: int, *, ttl: float = 60, renew: bool = True, epoch: str | None = None
    ) -> Outcome:
        return await self.store.writer.touch_service(
            small_service(name),
            seen=self.position(epoch),
            expected=expected,
            ttl=ttl,
            renew=renew,
        )

    async def delete_service(self, name: str, expected: int, *, epoch: str | None = None) -> Outcome:
        return await self.store.writer.delete_service(
            name, seen=self.position(epoch), expected=expected, reason=CLIENT_REQUEST
        )

    async def publish_notice(self, error: str, *, epoch: str | None = None) -> int | EpochChanged:
        return await self.store.writer.publish_notice(error, seen=self.position(epoch), reason=HEALTH_CHECK)

    async def read_members(self) -> set[str]:
        listed: Any = await self.client.zrange(self.store.keys.members, 0, -1)
        return {member.decode() for member in listed}

    async def now_ms(self) -> int:
        seconds, micros = await self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def read_document(self, name: str) -> Any:
        text = await self.client.get(self.store.keys.document_prefix + name)
        return text and json.loads(text)

    async def read_document_ttl_ms(self, name: str) -> int:
        """Return the remaining time of a document; -1 = it does not expire, -2 = it does not exist."""
        return int(await self.client.pttl(self.store.keys.document_prefix + name))

    async def read_record(self, name: str) -> Service | None:
        wire: Any = await self.client.hget(self.store.keys.records, name)
        return Service.FromString(wire) if wire else None

    async def read_deadline(self, name: str) -> float | None:
        score = await self.client.zscore(self.store.keys.leases, name)
        return None if score is None else float(score)

    async def set_deadline(self, name: str, deadline_ms: int) -> None:
        await self.client.zadd(self.store.keys.leases, {name: deadline_ms})
        await self.client.pexpireat(self.store.keys.document_prefix + name, deadline_ms)

    async def read_revision(self) -> int:
        return int(await self.client.get(self.store.keys.revision) or 0)

    async def read_events(self) -> list[StoredEvent]:
        return [event async for page in self.store.reader.scan_events(1 << 53) for event in page]

    async def read_contents(self) -> dict[bytes, Any]:
        """Return everything in Redis."""
        found: dict[bytes, Any] = {}
        async for key in self.client.scan_iter():
            match await self.client.type(key):
                case b"string":
                    # Rounded up, so that a lease of 60 s compares equal for ten seconds.
                    found[key] = await self.client.get(key), -(-await self.client.ttl(key) // 10)
                case b"hash":
                    found[key] = await self.client.hgetall(key)
                case b"zset":
                    found[key] = await self.client.zrange(key, 0, -1, withscores=True)
                case b"set":
                    found[key] = await self.client.smembers(key)
                case b"stream":
                    found[key] = await self.client.xrange(key)
        return found


async def open_harness(process: RedisProcess, **options: Any) -> StoreHarness:
    store = RedisStore(process.url, **options)
    await store.open()
    return StoreHarness(store, redis.asyncio.Redis.from_url(process.url), (await store.reader.resolve_head()).epoch)
