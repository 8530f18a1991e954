"""Group commit: commands given while a round trip is under way share the next one."""

import asyncio
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.tracing import TRACE_ID, Tracer
from registry_server.store.counters import StoreCounters
from registry_server.store.failures import as_unavailable, is_elsewhere, translated
from registry_server.store.limits import DEFAULT_LIMITS, StoreLimits
from registry_server.store.lua import Scripts
from registry_server.store.values import Unconfirmed

_STALLED = 1.0
"""Seconds of a round trip after which nobody else is made to wait for it."""
_DOUBTED = 0.1
"""The same where the round trip before it failed: one asks whether Redis is back, the others are told at once."""
_UNTRACED: Final = nullcontext()


class Confirmation(NamedTuple):
    """How much is waited for after a round trip (Redis ``WAIT``)."""

    replicas: int
    """How many replicas must have what was written; 0 = none."""
    patience_ms: int
    """How long that may take."""


class Commands:
    """Sends the commands of many tasks over one connection, in the order in which they were given.

    Nothing is sent twice on its own: a command whose connection broke may have been carried out, and only the caller
    knows whether it may be repeated.
    """

    def __init__(
        self,
        client: Redis,
        scripts: Scripts,
        counters: StoreCounters,
        *,
        confirmation: Confirmation | None = None,
        tracer: Tracer | None = None,
        limits: StoreLimits = DEFAULT_LIMITS,
    ) -> None:
        """Prepares the sender.

        Args:
            client: Where to.
            scripts: What ``script`` runs.
            counters: Where scripts are counted.
            confirmation: What must be so before anybody gets an answer. If it is not, answers are ``Unconfirmed``.
            tracer: Times scripts that calls wait for, if calls are traced.
            limits: Size of a batch, and how many commands may wait.
        """
        self._figures = counters
        self._client = client
        self._confirmation = confirmation
        self._scripts = scripts
        self._tracer = tracer
        self._batch = limits.commands_batch
        self._max_waiting = limits.max_waiting_commands
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._sent_at = 0.0  # by the clock of the loop
        self._failed = False  # the last round trip
        self._normal = 0.0 if confirmation is None else confirmation.patience_ms / 1000

    async def run(self, *command: Any) -> Any:
        """Runs one command.

        Args:
            command: Name and arguments, as for redis-cli.

        Raises:
            StoreUnavailable: Redis did not answer; the command may or may not have been carried out.
            redis.exceptions.ResponseError: Redis refuses the command: a bug of ours.
        """
        if len(self._waiting) >= self._max_waiting:
            raise StoreUnavailable("too many writes are waiting for the store")
        loop = asyncio.get_running_loop()
        self.refuse_if_stalled()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, future))
        if self._sender is None:
            self._sent_at = loop.time()
            self._sender = asyncio.create_task(self._send_all(), name="store-commands")
        return await future

    async def script(self, name: str, keys: tuple[str, ...], *args: Any) -> Any:
        """Runs a Lua script by its name; errors as in ``run``."""
        began, how = time.perf_counter(), "failed"
        try:
            with self.traced(name):
                answer = await self.run("EVALSHA", self._scripts.digests[name], len(keys), *keys, *args)
            how = "ok"
        finally:
            self._figures.scripts[name].count(how, time.perf_counter() - began)
        return answer

    def traced(self, name: str) -> AbstractContextManager[None]:
        """Times a script as part of the call that waits for it; what no call asked for is of no trace."""
        return _UNTRACED if self._tracer is None or not TRACE_ID.get() else self._tracer.trace_script(name)

    @property
    def waiting(self) -> int:
        """How many commands wait for their round trip."""
        return len(self._waiting)

    async def load_scripts(self) -> None:
        """Makes the scripts known to Redis; needed once for each start of a Redis."""
        with translated():
            pipeline = self._client.pipeline(transaction=False)
            for source in self._scripts.sources.values():
                pipeline.script_load(source)
            await pipeline.execute()

    async def close(self) -> None:
        """Waits for what was given so far."""
        if self._sender is not None:
            await self._sender

    def refuse_if_stalled(self) -> None:
        """Refuses while Redis takes so long that who comes now would wait in vain, and cost memory until then.

        Raises:
            StoreUnavailable: It does.
        """
        if self._sender is None:
            return
        patience = self._normal + (_DOUBTED if self._failed else _STALLED)
        if asyncio.get_running_loop().time() - self._sent_at > patience:
            raise StoreUnavailable("the store takes too long to answer those who were first")

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
                await self._send(batch)
        finally:
            self._sender = None

    async def _send(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        try:
            results = await self._round_trip([command for command, _ in batch])
            self._failed = False
            # Those were not carried out.
            missing = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
            elsewhere = [i for i, result in enumerate(results) if _is_elsewhere(result)]
            if elsewhere:
                await self._client.connection_pool.disconnect(inuse_connections=False)
            if missing or elsewhere:  # Redis was restarted, or another one takes the writes
                await self.load_scripts()
                refused = sorted(missing + elsewhere)
                again = await self._round_trip([batch[i][0] for i in refused])
                for i, result in zip(refused, again, strict=True):
                    results[i] = result
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach those who wait: nobody else would tell them
            failure = error if isinstance(error, StoreUnavailable) else as_unavailable(error) or error
            self._failed = isinstance(failure, StoreUnavailable)
            if self._failed:
                # Those behind would each wait for the same timeout, one batch after the other.
                batch, self._waiting = batch + self._waiting, []
            results = [failure] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(as_unavailable(result) or result)
            else:
                future.set_result(result)

    async def _round_trip(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        if self._confirmation is not None:
            pipeline.execute_command("WAIT", *self._confirmation)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        if self._confirmation is not None:
            # A server that was demoted refuses to wait, and has refused the commands too.
            acknowledged = count if isinstance(count := results.pop(), int) else 0
            if acknowledged < self._confirmation.replicas:
                return [r if isinstance(r, Exception) else Unconfirmed(r, acknowledged) for r in results]
        return results


def _is_elsewhere(result: Any) -> bool:
    return isinstance(result, Exception) and is_elsewhere(result)
