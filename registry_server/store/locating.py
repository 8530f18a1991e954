"""Which server takes the writes now: what Sentinels, or the nodes of a cluster, say about it.

Those who are asked may be away, hang, or know only what was true before the last failover. So all are asked at once, a
majority is waited for, and the answer of the highest configuration epoch counts: the number by which Sentinels and
cluster nodes themselves decide which of two answers is the newer. If only a minority answers, it is believed unless it
is behind what was known already.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from registry_server.config.addresses import HostPort
from registry_server.runtime.tasks import cancel

ClientOf = Callable[[HostPort], Redis]
"""Makes a client of the server at an address."""


class Locator(Protocol):
    """Finds the server that takes the writes."""

    checks_role: bool
    """Whether a server that was found is still to be asked whether it takes writes at all."""

    async def locate(self) -> HostPort:
        """Gives its address.

        Raises:
            redis.exceptions.ConnectionError: Nobody knows.
        """

    async def close(self) -> None:
        """Closes all connections."""


class _Claim(NamedTuple):
    """What one of those who were asked says."""

    epoch: int
    address: HostPort
    shard: tuple[HostPort, ...] = ()
    """All servers that hold the same keys."""


class Sentinels:
    """Asks Sentinels for the primary that they watch under a name."""

    checks_role = True  # one that was just demoted, or not told yet, may be at the address

    def __init__(self, sentinels: Sequence[HostPort], service: str, client_of: ClientOf) -> None:
        self._service = service
        self._epoch = 0
        self._clients = [client_of(sentinel) for sentinel in sentinels]

    async def locate(self) -> HostPort:
        """Gives the primary's address; errors as for ``Locator``."""
        nobody = f"no Sentinel tells where {self._service!r} is"
        claim = await _newest([self._ask(client) for client in self._clients], self._epoch, nobody)
        self._epoch = claim.epoch
        return claim.address

    async def close(self) -> None:
        """Closes all connections."""
        for client in self._clients:
            await client.aclose()

    async def _ask(self, client: Redis) -> _Claim:
        state: Any = await client.sentinel_master(self._service, return_responses=True)
        # During a failover this one names the new primary seconds before the state above does. Asked second: an older
        # epoch beside a newer address does no harm.
        found: Any = await client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._service)  # type: ignore[no-untyped-call]
        if not found:
            raise RedisConnectionError(f"it does not know {self._service!r}")
        host, port = found
        return _Claim(int(state["config-epoch"]), HostPort(_text(host), int(port)))


class SlotOwner:
    """Asks the nodes of a cluster who owns the slot of a key: those of the URL, and those that hold the slot."""

    checks_role = False  # whoever does not own the slot says MOVED to every command

    def __init__(self, seeds: Sequence[HostPort], key: str, client_of: ClientOf) -> None:
        self._seeds = tuple(seeds)
        self._slot = key_slot(key.encode())
        self._client_of = client_of
        self._epoch = 0
        self._shard: tuple[HostPort, ...] = ()
        self._clients: dict[HostPort, Redis] = {}

    async def locate(self) -> HostPort:
        """Gives the owner's address; errors as for ``Locator``."""
        asked = dict.fromkeys((*self._seeds, *self._shard))
        for address in asked:
            if address not in self._clients:
                self._clients[address] = self._client_of(address)
        nobody = f"no node of the cluster tells who owns slot {self._slot}"
        questions = [self._ask(address, self._clients[address]) for address in asked]
        claim = await _newest(questions, self._epoch, nobody)
        self._epoch, self._shard = claim.epoch, claim.shard
        for address in self._clients.keys() - {*self._seeds, *self._shard}:
            await self._clients.pop(address).aclose()
        return claim.address

    async def close(self) -> None:
        """Closes all connections."""
        for client in self._clients.values():
            await client.aclose()

    async def _ask(self, asked: HostPort, client: Redis) -> _Claim:
        nodes: dict[str, Any] = await client.cluster("NODES")
        for owner, node in nodes.items():
            if any(int(first) <= self._slot <= int(last) for first, last in _ranges(node)):
                replicas = (_address(name, other, asked) for name, other in nodes.items() if _follows(other, node))
                address = _address(owner, node, asked)
                return _Claim(int(node["epoch"]), address, (address, *replicas))
        raise RedisConnectionError(f"nobody owns slot {self._slot}")


def _ranges(node: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each[0], each[-1]) for each in node["slots"]]  # one slot alone stands there once


def _follows(node: dict[str, Any], owner: dict[str, Any]) -> bool:
    return bool(node["master_id"] == owner["node_id"] and "noaddr" not in node["flags"])


def _address(name: str, node: dict[str, Any], asked: HostPort) -> HostPort:
    host, _, port = name.rpartition(":")
    # A node that was never met by another does not know its own address.
    return HostPort(node["hostname"] or host or asked.host, int(port))


async def _newest(questions: Sequence[Coroutine[Any, Any, _Claim]], known: int, nobody: str) -> _Claim:
    """Asks all at once; gives the newest answer of a majority, or of as many as answer at all.

    Args:
        questions: What to ask; each may fail or hang.
        known: Epoch of the answer before. A majority may be behind it, if the epochs were reset.
        nobody: What to say if there is no answer.
    """
    tasks = [asyncio.create_task(_answer(question)) for question in questions]
    claims: list[_Claim] = []
    refusals: set[str] = set()
    try:
        for task in asyncio.as_completed(tasks):
            answer = await task
            if isinstance(answer, _Claim):
                claims.append(answer)
            else:
                refused = isinstance(answer, AuthenticationError)  # which redis-py words as advice to a programmer
                refusals.add("our credentials are refused" if refused else str(answer))
            if len(claims) > len(tasks) // 2:
                return max(claims, key=lambda claim: claim.epoch)
    finally:
        await cancel(tasks)  # those that hang
    newest = max(claims, key=lambda claim: claim.epoch, default=None)
    if newest is not None and newest.epoch >= known:
        return newest
    if newest is not None:
        refusals.add("those that answer are behind")
    raise RedisConnectionError(f"{nobody}: {'; '.join(sorted(refusals))}")


async def _answer(question: Coroutine[Any, Any, _Claim]) -> _Claim | Exception:
    try:
        return await question
    except (RedisError, OSError, LookupError, ValueError) as error:  # the latter two: whoever answers is none of those
        return error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
