import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.errors import StoreUnavailable
from registry_server.health.leases import LeaseSweeper
from registry_server.instrumentation.audit import Audit
from registry_server.runtime.tasks import cancel
from registry_server.store import Position, RedisStore, StoredEvent, StoreLimits, SweepResult
from registry_server.store.limits import DEFAULT_LIMITS
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.waiting import until

LONG = 60.0  # interval in seconds at which no second regular sweep happens during a test
SLACK_MS = 2_000  # delay that a slow machine may cause


class RecordingStore(RedisStore):
    """Counts attempted sweeps and records the results of successful ones."""

    def __init__(self, url: str, *, interval: float, limits: StoreLimits) -> None:
        super().__init__(url, timeout=5.0, sweep_interval=interval, limits=limits)
        self.interval = interval
        self.attempts = 0
        self.sweeps: list[SweepResult] = []
        self._sweep_leases = self.writer.sweep_leases
        self.writer.sweep_leases = self._sweep_and_count  # type: ignore[method-assign]

    async def _sweep_and_count(self, reason: EventReason.ValueType, applied: Position | None = None) -> SweepResult:
        self.attempts += 1
        swept = await self._sweep_leases(reason, applied)
        self.sweeps.append(swept)
        return swept

    @property
    def removed(self) -> list[str]:
        return [name for sweep in self.sweeps for name in sweep.removed]


class Registry:
    """Services with leases in a store; restores documents and records the calls."""

    def __init__(self, store: RecordingStore, client: Redis, epoch: str) -> None:
        self.store = store
        self.client = client
        self._epoch = epoch
        self.restored: list[list[str]] = []
        self.failures: list[Exception] = []
        """Errors that the next calls of ``restore`` raise."""

    async def register(self, *names: str, ttl: float) -> None:
        outcomes = await asyncio.gather(
            *(
                self.store.writer.write_service(
                    small_service(name),
                    seen=Position(self._epoch, 0),
                    expected=0,
                    type=EventType.EVENT_TYPE_SERVICE_REGISTERED,
                    reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
                    ttl=ttl,
                    renew=True,
                )
                for name in names
            )
        )
        assert all(isinstance(outcome, int) for outcome in outcomes)

    async def restore(self, names: Sequence[str]) -> None:
        self.restored.append(sorted(names))
        if self.failures:
            raise self.failures.pop()
        revisions: Any = await self.client.hmget(self.store.keys.records, list(names))
        for name, wire in zip(names, revisions, strict=True):
            service = small_service(name)
            service.MergeFromString(wire)
            await self.store.writer.touch_service(
                service, seen=Position(self._epoch, 0), expected=service.revision, ttl=LONG, renew=False
            )

    async def lease_end(self, name: str) -> float:
        score = await self.client.zscore(self.store.keys.leases, name)
        assert score is not None
        return float(score)

    async def removal_events(self) -> dict[str, StoredEvent]:
        events = [event async for page in self.store.reader.scan_events(1 << 53) for event in page]
        return {event.name: event for event in events if not event.after}

    async def documents(self) -> set[bytes]:
        return {key async for key in self.client.scan_iter(self.store.keys.document_prefix + "*")}

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[asyncio.Task[None]]:
        sweeper = LeaseSweeper(
            self.store,
            interval=self.store.interval,
            restore=self.restore,
            applied_position=lambda: None,
            audit=Audit(),
        )
        task = asyncio.create_task(sweeper.run())
        yield task
        await cancel([task])
        assert task.cancelled(), "the sweeper ended by itself"


@asynccontextmanager
async def open_registry(
    process: RedisProcess, *, interval: float, limits: StoreLimits = DEFAULT_LIMITS
) -> AsyncIterator[Registry]:
    store = RecordingStore(process.url, interval=interval, limits=limits)
    await store.open()
    async with Redis.from_url(process.url) as client:
        yield Registry(store, client, (await store.reader.resolve_head()).epoch)
    await store.close()


@pytest.mark.slow
async def test_lease_expires_at_its_end_and_not_at_the_next_interval(redis: RedisProcess) -> None:
    async with open_registry(redis, interval=LONG) as registry:
        await registry.register("second", ttl=0.5)
        await registry.register("first", ttl=0.2)
        await registry.register("third", ttl=0.8)
        await registry.register("other", ttl=LONG)
        await registry.register("permanent", ttl=0)
        deadlines = {name: await registry.lease_end(name) for name in ("first", "second", "third")}

        async with registry.sweeping():
            await until(lambda: len(registry.store.removed) == 3)

        assert registry.store.removed == ["first", "second", "third"]
        removals = await registry.removal_events()
        assert removals.keys() == deadlines.keys()
        for name, deadline in deadlines.items():
            assert 0 <= removals[name].at_ms - deadline < SLACK_MS
            assert removals[name].type == EventType.EVENT_TYPE_SERVICE_UNREGISTERED
            assert removals[name].reason == EventReason.EVENT_REASON_LEASE_EXPIRED


@pytest.mark.slow
async def test_renewed_lease_does_not_expire(redis: RedisProcess) -> None:
    async with open_registry(redis, interval=LONG) as registry:
        await registry.register("kept", "left", ttl=0.5)
        async with registry.sweeping():
            while not registry.store.removed:
                assert await registry.store.writer.renew_leases(["kept"]) == []
                await asyncio.sleep(0.05)
            assert registry.store.removed == ["left"]
            await until(lambda: len(registry.store.removed) == 2)


@pytest.mark.store_limits(sweep_batch=10)
async def test_leases_that_end_together_are_removed_in_consecutive_batches(
    redis: RedisProcess, limits: StoreLimits
) -> None:
    async with open_registry(redis, interval=LONG, limits=limits) as registry:
        names = [f"s{i}" for i in range(35)]
        await registry.register(*names, ttl=0.05)

        async with registry.sweeping():
            await until(lambda: sorted(registry.store.removed) == sorted(names))

        assert max(len(sweep.removed) for sweep in registry.store.sweeps) == 10


@pytest.mark.slow
async def test_sweeper_without_leases_sweeps_once_per_interval(redis: RedisProcess) -> None:
    async with open_registry(redis, interval=0.1) as registry:
        await registry.register("permanent", ttl=0)
        loop = asyncio.get_running_loop()
        async with registry.sweeping():
            started = loop.time()
            await until(lambda: registry.store.attempts == 5)
            elapsed = loop.time() - started

        assert elapsed >= 0.35
        assert all(sweep.shift_seconds == 0 for sweep in registry.store.sweeps)


@pytest.mark.own_redis
async def test_sweeper_retries_once_per_interval_and_resumes_after_an_outage(redis: RedisProcess) -> None:
    async with open_registry(redis, interval=0.1) as registry:
        await registry.register("a", ttl=1.0)
        async with registry.sweeping():
            await until(lambda: bool(registry.store.sweeps))
            await redis.stop()
            loop = asyncio.get_running_loop()
            started, before = loop.time(), registry.store.attempts
            await until(lambda: registry.store.attempts == before + 5)
            assert loop.time() - started >= 0.35
            assert registry.store.removed == []

            await redis.start()
            await until(lambda: registry.store.removed == ["a"])

        # Leases are extended by an outage, in which services could not send heartbeats.
        assert sum(sweep.shift_seconds for sweep in registry.store.sweeps) > 0.35


@pytest.mark.slow
async def test_documents_that_expired_while_no_process_swept_are_restored(redis: RedisProcess) -> None:
    async with open_registry(redis, interval=1.0) as registry:
        await registry.register("a", "b", "c", ttl=LONG)
        everything = await registry.documents()
        seconds, _ = await registry.client.time()
        await registry.client.set(registry.store.keys.sweep, (int(seconds) - 100) * 1000)
        prefix = registry.store.keys.document_prefix
        await registry.client.delete(f"{prefix}a", f"{prefix}c")

        async with registry.sweeping():
            await until(lambda: bool(registry.restored))
            await until(lambda: len(registry.store.sweeps) > 2)

        assert registry.restored == [["a", "c"]]
        assert await registry.documents() == everything
        assert registry.store.sweeps[0].shift_seconds == pytest.approx(100, abs=SLACK_MS / 1000)
        assert registry.store.removed == []


@pytest.mark.slow
@pytest.mark.store_limits(sweep_batch=3)
async def test_many_documents_are_restored_in_consecutive_batches(redis: RedisProcess, limits: StoreLimits) -> None:
    async with open_registry(redis, interval=LONG, limits=limits) as registry:
        names = [f"s{i}" for i in range(8)]
        await registry.register(*names, ttl=LONG)
        everything = await registry.documents()
        await registry.client.delete(*everything)
        await registry.store.writer.renew_leases(names)

        async with registry.sweeping():
            await until(
                lambda: sum(map(len, registry.restored)) == 8 and not registry.store.sweeps[-1].missing_documents
            )

        assert max(map(len, registry.restored)) == 3
        assert await registry.documents() == everything


@pytest.mark.slow
async def test_failed_restoration_is_retried(redis: RedisProcess) -> None:
    async with open_registry(redis, interval=0.1) as registry:
        await registry.register("a", ttl=LONG)
        everything = await registry.documents()
        await registry.client.delete(*everything)
        await registry.store.writer.renew_leases(["a"])
        registry.failures = [StoreUnavailable(), StoreUnavailable()]

        async with registry.sweeping():
            await until(lambda: len(registry.restored) == 3 and not registry.store.sweeps[-1].missing_documents)

        assert await registry.documents() == everything
