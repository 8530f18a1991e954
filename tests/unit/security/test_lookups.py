"""``NameLookups``: look-ups that are given up."""

import asyncio
import gc
from typing import Any

import pytest

from registry_server.security.lookups import NameLookups


async def test_error_of_a_look_up_that_was_given_up_is_not_logged() -> None:
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    lookups = NameLookups()
    with pytest.raises(TimeoutError):
        await lookups.look_up("x" * 300, 80, "owner", 0)  # a name that is too long fails at once
    lookups._threads.shutdown(wait=True)
    for _ in range(3):
        await asyncio.sleep(0.01)
    gc.collect()
    assert logged == []
    lookups.close()
