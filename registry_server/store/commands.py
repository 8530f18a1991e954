"""``Commands``: the pipeline through which the tasks of this process send commands to Redis."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.tracing import TRACE_ID, Tracer
from registry_server.store.batches import Batches
from registry_server.store.counters import StoreCounters
from registry_server.store.failures import is_moved, translate_errors
from registry_server.store.keys import Keys
from registry_server.store.limits import DEFAULT_LIMITS, StoreLimits
from registry_server.store.lua import Scripts
from registry_server.store.refusals import Refusals
from registry_server.store.values import Unconfirmed

# A round trip that takes longer than this makes further commands fail fast instead of waiting for it.
_STALL_SECONDS: Final = 1.0
# The limit after a failed round trip: one command tests whether Redis is back, the others fail fast.
_STALL_AFTER_FAILURE_SECONDS: Final = 0.1
_UNTRACED: Final = nullcontext()

Command = tuple[Any, ...]
"""Name and arguments, as for redis-cli."""


class Confirmation(NamedTuple):
    """Arguments of the ``WAIT`` that ends every round trip."""

    replicas: int
    """Number of replicas that must acknowledge the writes."""
    timeout_ms: int


class Commands(Batches[Command]):
    """Pipelines the commands of many tasks over one connection, in the order in which they arrive.

    It repeats no command that may have been executed, because only the caller knows whether a repetition is safe.
    """

    def __init__(
        self,
        client: Redis,
        scripts: Scripts,
        keys: Keys,
        counters: StoreCounters,
        refusals: Refusals,
        *,
        confirmation: Confirmation | None = None,
        tracer: Tracer | None = None,
        limits: StoreLimits = DEFAULT_LIMITS,
    ) -> None:
        """Create an empty pipeline.

        Args:
            client: Client to send the commands with.
            scripts: Scripts that ``run_script`` runs.
            keys: Keys of the registry.
            counters: Counters of script calls.
            refusals: Names the commands that Redis refuses.
            confirmation: Replicas to wait for after each round trip. If too few acknowledge in time, answers are
                ``Unconfirmed``.
            tracer: Records spans of scripts that traced calls wait for.
            limits: Number of commands in a round trip.
        """
        super().__init__("store-commands", limits.commands_batch)
        self._counters = counters
        self._refusals = refusals
        self._client = client
        self._confirmation = confirmation
        self._scripts = scripts
        self._shared_keys = keys.shared
        self._tracer = tracer
        self._sent_at = 0.0  # event loop time
        self._failed = False  # whether the last round trip failed
        self._confirmation_seconds = 0.0 if confirmation is None else confirmation.timeout_ms / 1000

    async def run_command(self, *command: Any) -> Any:
        """Run one command and return its answer.

        Args:
            command: Name and arguments, as for redis-cli.

        Raises:
            StoreUnavailable: Redis did not answer, and the command may or may not have been executed; or it refused the
                command.
        """
        self.raise_if_stalled()
        if self._sender is None:
            self._sent_at = asyncio.get_running_loop().time()
        return await self.submit(command)

    async def run_script(self, name: str, *args: Any, keys: Sequence[str] = ()) -> Any:
        """Run a Lua script by its name and return its answer; errors as in ``run_command``.

        Args:
            name: File name of the script.
            args: Arguments of the script.
            keys: Keys that the script takes after those that all scripts share.
        """
        began, outcome = time.perf_counter(), "failed"
        try:
            with self.trace_script(name):
                keys = (*self._shared_keys, *keys)
                answer = await self.run_command("EVALSHA", self._scripts.digests[name], len(keys), *keys, *args)
            outcome = "ok"
        finally:
            self._counters.scripts[name].count(outcome, time.perf_counter() - began)
        return answer

    def trace_script(self, name: str) -> AbstractContextManager[None]:
        """Return a context that records a script's span in the trace of the current call, if there is one."""
        return _UNTRACED if self._tracer is None or not TRACE_ID.get() else self._tracer.trace_script(name)

    async def load_scripts(self) -> None:
        """Load the scripts into Redis, which forgets them at each restart."""
        with translate_errors("SCRIPT LOAD"):
            pipeline = self._client.pipeline(transaction=False)
            for source in self._scripts.sources.values():
                pipeline.script_load(source)
            for result in await pipeline.execute(raise_on_error=False):
                if isinstance(result, Exception):
                    raise result

    def raise_if_stalled(self) -> None:
        """Fail fast while Redis does not answer: further commands would hold memory and time out.

        Raises:
            StoreUnavailable: The current round trip takes too long.
        """
        if self._sender is None:
            return
        limit = self._confirmation_seconds + (_STALL_AFTER_FAILURE_SECONDS if self._failed else _STALL_SECONDS)
        if asyncio.get_running_loop().time() - self._sent_at > limit:
            raise StoreUnavailable("the store takes too long to answer earlier commands")

    async def _send(self, batch: list[Command]) -> list[Any]:
        self._sent_at = asyncio.get_running_loop().time()
        try:
            results = await self._round_trip(batch)
            self._failed = False
            # These commands were not executed, so it is safe to repeat them.
            missing = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
            moved = [i for i, result in enumerate(results) if isinstance(result, Exception) and is_moved(result)]
            if moved:
                await self._client.connection_pool.disconnect(inuse_connections=False)
            if missing or moved:  # Redis was restarted, or another server became the primary
                refused = sorted(missing + moved)
                for i, result in zip(refused, await self._repeat([batch[i] for i in refused]), strict=True):
                    results[i] = result
        except (StoreUnavailable, RedisError, OSError) as error:
            self._failed = True
            raise self._refusals.convert_error(error, batch[0]) from error
        for i, result in enumerate(results):
            if isinstance(result, Exception):
                results[i] = self._refusals.convert_error(result, batch[i])
        return results

    async def _repeat(self, commands: list[Command]) -> Sequence[Any]:
        """Load the scripts and send commands again that were not executed."""
        try:
            await self.load_scripts()
            return await self._round_trip(commands)
        except (StoreUnavailable, RedisError, OSError) as error:  # not that of the commands that were executed
            return [error] * len(commands)

    async def _round_trip(self, commands: list[Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        if self._confirmation is not None:
            pipeline.execute_command("WAIT", *self._confirmation)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        if self._confirmation is not None:
            # A server that was demoted answers WAIT with an error, and it has refused the writes, too.
            acknowledged = count if isinstance(count := results.pop(), int) else 0
            if acknowledged < self._confirmation.replicas:
                return [r if isinstance(r, Exception) else Unconfirmed(r, acknowledged) for r in results]
        return results
