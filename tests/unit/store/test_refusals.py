"""``Refusals``: the command, the key and the cause of an error, also within scripts."""

import re

import pytest

from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.problems import Problems
from registry_server.store import RedisStore
from registry_server.store.keys import Keys
from registry_server.store.lua import SCRIPT_NAMES, Scripts
from tests.support.redis_process import RedisProcess
from tests.unit.store.harness import LEASE_EXPIRED, StoreHarness

KEYS = Keys.under("ossa:services")


@pytest.mark.parametrize("script", sorted(set(SCRIPT_NAMES) - {"access"}))
def test_each_line_of_a_script_has_one_call_with_a_known_key(script: str) -> None:
    for line in Scripts().sources[script].splitlines():
        calls = re.findall(r"redis\.call\('(\w+)'(?:, (\w+))?", line)
        assert len(calls) <= 1, line
        assert all(KEYS.of_variable(variable) for command, variable in calls if command != "TIME"), line


async def test_error_in_a_script_names_command_and_key(harness: StoreHarness) -> None:
    keys = harness.store.keys
    await harness.client.set(keys.leases, "of another program")
    with pytest.raises(StoreUnavailable) as raised:
        await harness.write_service("a")
    assert raised.value.fault is not None
    assert raised.value.fault.command == "ZADD in commit.lua"
    assert raised.value.fault.key == keys.leases
    assert raised.value.fault.cause.startswith("WRONGTYPE ")
    assert not raised.value.fault.temporary
    assert str(raised.value) == "the store refuses ZADD in commit.lua (WRONGTYPE); try again"


async def test_refused_script_is_a_problem_for_some_seconds(redis_process: RedisProcess) -> None:
    now = 0.0
    problems = Problems(lambda: now)
    store = RedisStore(redis_process.url, problems=problems)
    await store.open()
    await store._client.set(store.keys.leases, "of another program")
    with pytest.raises(StoreUnavailable):
        await store.writer.sweep_leases(LEASE_EXPIRED)
    assert set(problems.active) == {"store_sweep"}
    assert f"in sweep.lua {store.keys.leases}: WRONGTYPE" in problems.active["store_sweep"]
    now = 20.0
    assert not problems.active
    await store.close()
