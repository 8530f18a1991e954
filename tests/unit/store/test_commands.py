import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.problems import Problems
from registry_server.store import StoreLimits
from registry_server.store.commands import Commands
from registry_server.store.counters import StoreCounters
from registry_server.store.keys import Keys
from registry_server.store.lua import Scripts
from registry_server.store.refusals import Refusals
from tests.support.redis_process import RedisProcess

REDIS_TIMEOUT = 1.0
TIMEOUT = 20.0
KEYS = Keys.under("test")


@pytest.fixture
async def client(redis: RedisProcess) -> AsyncIterator[Redis]:
    async with Redis.from_url(
        redis.url, socket_timeout=REDIS_TIMEOUT, socket_connect_timeout=REDIS_TIMEOUT, retry=Retry(NoBackoff(), 0)
    ) as connected:
        yield connected


@pytest.fixture
async def commands(client: Redis, limits: StoreLimits) -> AsyncIterator[Commands]:
    sent = Commands(client, Scripts(), KEYS, StoreCounters(), Refusals(Problems(), Scripts(), KEYS), limits=limits)
    await sent.load_scripts()
    yield sent
    async with asyncio.timeout(TIMEOUT):
        await sent.close()


async def count_reads(client: Redis) -> int:
    """Return how often Redis has read from a connection: once per round trip, unless that is large."""
    return int((await client.info("stats"))["total_reads_processed"])


async def outcomes(*tasks: asyncio.Task[object]) -> list[object]:
    async with asyncio.timeout(TIMEOUT):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_caller_receives_the_answer_to_its_command(commands: Commands) -> None:
    answers = await asyncio.gather(*(commands.run_command("ECHO", i) for i in range(1000)))

    assert answers == [str(i).encode() for i in range(1000)]


async def test_commands_are_executed_in_order_of_arrival(commands: Commands, client: Redis) -> None:
    await asyncio.gather(*(commands.run_command("RPUSH", "list", i) for i in range(1000)))

    assert [int(value) for value in await client.lrange("list", 0, -1)] == list(range(1000))


async def test_simultaneous_commands_share_round_trips(commands: Commands, client: Redis) -> None:
    await commands.run_command("PING")
    before = await count_reads(client)

    await asyncio.gather(*(commands.run_command("INCR", "n") for _ in range(4 * StoreLimits().commands_batch)))

    assert await count_reads(client) - before <= 4 + 2
    assert await client.get("n") == str(4 * StoreLimits().commands_batch).encode()


async def test_commands_during_a_round_trip_share_the_next_one(commands: Commands, client: Redis) -> None:
    before = await count_reads(client)
    first = asyncio.create_task(commands.run_command("BLPOP", "nothing", "0.1"))
    await asyncio.sleep(0.02)  # its round trip has begun

    rest = [asyncio.create_task(commands.run_command("INCR", "n")) for _ in range(100)]
    await asyncio.gather(first, *rest)

    assert await count_reads(client) - before <= 2 + 2


@pytest.mark.store_limits(commands_batch=10)
async def test_round_trip_has_a_limited_number_of_commands(commands: Commands, client: Redis) -> None:
    before = await count_reads(client)

    await asyncio.gather(*(commands.run_command("INCR", "n") for _ in range(100)))

    assert await count_reads(client) - before >= 10


async def test_cancelled_caller_does_not_affect_others(commands: Commands) -> None:
    tasks = [asyncio.create_task(commands.run_command("ECHO", i)) for i in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[5].cancel()

    results = await outcomes(*tasks)

    assert [isinstance(result, asyncio.CancelledError) for result in results] == [i in (0, 5) for i in range(10)]
    assert [result for result in results if isinstance(result, bytes)] == [
        b"1",
        b"2",
        b"3",
        b"4",
        b"6",
        b"7",
        b"8",
        b"9",
    ]
    assert await commands.run_command("ECHO", "later") == b"later"


@pytest.mark.own_redis
async def test_caller_cancelled_in_flight_does_not_affect_others(commands: Commands, redis: RedisProcess) -> None:
    redis.pause()
    tasks = [asyncio.create_task(commands.run_command("ECHO", i)) for i in range(10)]
    await asyncio.sleep(REDIS_TIMEOUT / 20)  # they have been sent
    tasks[3].cancel()
    redis.resume()

    results = await outcomes(*tasks)

    assert isinstance(results.pop(3), asyncio.CancelledError)
    assert results == [str(i).encode() for i in range(10) if i != 3]


async def test_refused_command_fails_only_its_caller(commands: Commands) -> None:
    await commands.run_command("SET", "text", "x")

    results = await outcomes(
        asyncio.create_task(commands.run_command("ECHO", "a")),
        asyncio.create_task(commands.run_command("LPUSH", "text", "x")),
        asyncio.create_task(commands.run_command("ECHO", "b")),
    )

    assert (results[0], results[2]) == (b"a", b"b")
    assert isinstance(results[1], StoreUnavailable)


async def test_command_that_cannot_be_encoded_fails(commands: Commands) -> None:
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(UnicodeEncodeError):
            await commands.run_command("SET", "key", "\ud800")

    assert await commands.run_command("ECHO", "later") == b"later"


@pytest.mark.own_redis
async def test_lost_connection_fails_commands_in_flight_only(commands: Commands, redis: RedisProcess) -> None:
    redis.pause()
    tasks = [asyncio.create_task(commands.run_command("INCR", "n")) for _ in range(50)]
    await asyncio.sleep(REDIS_TIMEOUT / 20)
    redis.kill()

    for result in await outcomes(*tasks):
        assert isinstance(result, StoreUnavailable)

    await redis.restart()
    assert await commands.run_command("INCR", "n") == 1


@pytest.mark.own_redis
@pytest.mark.store_limits(commands_batch=10)
async def test_all_waiting_commands_fail_after_one_timeout(commands: Commands, redis: RedisProcess) -> None:
    loop = asyncio.get_running_loop()
    redis.pause()
    began = loop.time()
    tasks = [asyncio.create_task(commands.run_command("INCR", "n")) for _ in range(100)]

    for result in await outcomes(*tasks):
        assert isinstance(result, StoreUnavailable)
    assert loop.time() - began < 3 * REDIS_TIMEOUT

    redis.resume()
    assert await commands.run_command("ECHO", "later") == b"later"


@pytest.mark.own_redis
async def test_errors_do_not_contain_the_address_of_redis(commands: Commands, redis: RedisProcess) -> None:
    await redis.stop()

    results = await outcomes(*(asyncio.create_task(commands.run_command("GET", "some-key")) for _ in range(3)))

    for result in results:
        assert isinstance(result, StoreUnavailable)
        assert str(redis.port) not in str(result)
        assert "some-key" not in str(result)
    await redis.start()
    assert await commands.run_command("GET", "some-key") is None


@pytest.mark.own_redis
async def test_late_answer_is_discarded(commands: Commands, redis: RedisProcess) -> None:
    redis.pause()
    with pytest.raises(StoreUnavailable, match="in time"):
        await commands.run_command("ECHO", "late")
    redis.resume()

    assert await asyncio.gather(*(commands.run_command("ECHO", i) for i in range(5))) == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.own_redis
async def test_no_command_is_repeated(commands: Commands, redis: RedisProcess) -> None:
    tried, done = 0, 0
    for _ in range(3):
        tasks = [asyncio.create_task(commands.run_command("INCR", "n")) for _ in range(2000)]
        tried += len(tasks)
        await tasks[600]
        redis.kill()
        done += sum(isinstance(result, int) for result in await outcomes(*tasks))
        await redis.restart()
        # If Redis died after its last answer, the first command after the restart may discover that.
        await outcomes(asyncio.create_task(commands.run_command("PING")))

    assert 0 < done < tried
    assert done <= int(await commands.run_command("GET", "n")) <= tried


async def test_lost_scripts_are_reloaded(commands: Commands, client: Redis) -> None:
    await client.script_flush()

    answers = await asyncio.gather(
        *(commands.run_command("ECHO", i) for i in range(3)),
        *(commands.run_script("head", "epoch", "", 0, keys=["repair"]) for _ in range(3)),
    )

    assert answers == [b"0", b"1", b"2", *[[b"epoch", 0]] * 3]


async def test_close_waits_for_submitted_commands(client: Redis) -> None:
    commands = Commands(client, Scripts(), KEYS, StoreCounters(), Refusals(Problems(), Scripts(), KEYS))
    tasks = [asyncio.create_task(commands.run_command("INCR", "n")) for _ in range(1000)]
    await asyncio.sleep(0)

    await commands.close()

    assert await client.get("n") == b"1000"
    assert await asyncio.gather(*tasks) == list(range(1, 1001))
    await commands.close()  # nothing was submitted
