"""Clients of several kinds, which record their requests and the responses."""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from tests.faults.suite.history import Account, Call, FinalState, Kind, Removal
from tests.faults.suite.stage import PROCESSES
from tests.faults.suite.watcher import observed
from tests.support.samples import small_service

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from tests.faults.suite.load import Load

_OWN_NAMES, _SHARED_NAMES, _LEASES = 4, 4, 3
TTL_SECONDS = 5.0
"""Length of leases in seconds; the minimum that the registry accepts."""
_HEARTBEAT_SECONDS = 0.4
_DEADLINE_SECONDS = 8.0
_EVENTS_PAGE_SIZE = 70
_REFUSED = {"ALREADY_EXISTS", "NOT_FOUND", "ABORTED"}
"""Codes of calls without an effect."""


class Client:
    """A client with a connection to each process, which switches between processes."""

    def __init__(self, load: "Load", name: str) -> None:
        self.load, self.name = load, name
        self.rng = random.Random(load.rng.random())
        self.process = self.rng.randrange(PROCESSES)
        channels = [load.channel(process) for process in range(PROCESSES)]
        self._channels = channels
        self.stubs: list[RegistryServiceAsyncStub] = [RegistryServiceStub(channel) for channel in channels]

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    def call(self, kind: Kind, name: str, process: int | None = None, **request: Any) -> Call:
        """Record a call before it is made."""
        at = self.process if process is None else process
        call = Call(self.name, at, kind, name, time.time(), **request)
        self.load.history.calls.append(call)
        return call

    async def complete(self, call: Call, rpc: Awaitable[Any]) -> Any:
        """Wait for the response, record it and return it, or return ``None`` after an error."""
        try:
            answer = await rpc
        except grpc.aio.AioRpcError as error:
            call.code = code_of(error)
            if error.code().name in _REFUSED:
                call.outcome = "refused"
                call.end = time.time()
            else:
                self.process = self.rng.randrange(PROCESSES)  # as a client with several targets does
            return None
        call.end = time.time()
        call.outcome = "ok"
        return answer

    async def register(
        self,
        name: str,
        process: int | None = None,
        *,
        create: bool = False,
        ttl: float = 0,
        size: int = 0,
        deadline: float = _DEADLINE_SECONDS,
    ) -> Call:
        """Register a service with unique content."""
        call = self.call("create" if create else "register", name, process, version=self.load.version(), ttl=ttl)
        service = small_service(name, version=call.version)
        service.ttl.FromMilliseconds(round(ttl * 1000) or 3_600_000)
        if size:
            service.capabilities.add(name="large", version="1.0.0").inputs.update({"text": "x" * size})
        request = pb.RegisterServiceRequest(service=service, create_only=create)
        self._record_write(
            call, await self.complete(call, self.stubs[call.process].RegisterService(request, timeout=deadline))
        )
        return call

    async def update(self, name: str, expected: int = 0) -> Call:
        """Change the version of a service."""
        call = self.call("update", name, version=self.load.version(), expected=expected)
        request = pb.UpdateServiceRequest(
            service=small_service(name, version=call.version),
            update_mask=FieldMask(paths=["version"]),
            expected_revision=expected,
        )
        self._record_write(
            call, await self.complete(call, self.stubs[call.process].UpdateService(request, timeout=_DEADLINE_SECONDS))
        )
        return call

    async def unregister(self, name: str, expected: int = 0) -> Call:
        """Unregister a service."""
        call = self.call("unregister", name, expected=expected)
        request = pb.UnregisterServiceRequest(name=name, expected_revision=expected)
        self._record_write(
            call,
            await self.complete(call, self.stubs[call.process].UnregisterService(request, timeout=_DEADLINE_SECONDS)),
        )
        return call

    async def get(self, name: str, min_revision: int = 0) -> Call:
        """Read a service."""
        call = self.call("get", name, min_revision=min_revision)
        request = pb.GetServiceRequest(name=name, min_revision=min_revision)
        self._record_read(
            call, await self.complete(call, self.stubs[call.process].GetService(request, timeout=_DEADLINE_SECONDS))
        )
        return call

    async def read_all(self, *, min_revision: int = 0, strong: bool = False) -> Call:
        """Read all services."""
        call = self.call("list", "", min_revision=min_revision, strong=strong)
        consistency = pb.Consistency.CONSISTENCY_STRONG if strong else pb.Consistency.CONSISTENCY_UNSPECIFIED
        request = pb.DiscoverServicesRequest(page_size=1000, min_revision=min_revision, consistency=consistency)
        while True:
            answer = await self.complete(
                call, self.stubs[call.process].DiscoverServices(request, timeout=_DEADLINE_SECONDS)
            )
            if answer is None:
                return call
            if request.page_token and answer.revision != call.revision:
                call.outcome = "unknown"  # the pages show the states at different revisions
                return call
            call.revision = answer.revision
            call.states.update({service.name: (service.version, service.revision) for service in answer.services})
            request.page_token = answer.next_page_token
            if not request.page_token:
                return call

    async def search(self) -> None:
        """Let the index of the process exist while services change."""
        with suppress(grpc.aio.AioRpcError):
            await self.stubs[self.process].SearchServices(
                pb.SearchServicesRequest(query="any"), timeout=_DEADLINE_SECONDS
            )

    async def beat(self, names: Sequence[str]) -> list[str]:
        """Renew leases and return the unknown names."""
        calls = [self.call("heartbeat", name) for name in names]
        request = pb.HeartbeatRequest(names=names)
        answer = await self.complete(calls[0], self.stubs[self.process].Heartbeat(request, timeout=_DEADLINE_SECONDS))
        unknown = [] if answer is None else list(answer.unknown_names)
        for call in calls:
            call.end, call.outcome, call.code = calls[0].end, calls[0].outcome, calls[0].code
            call.seen = "known" if answer is not None and call.name not in unknown else ""
        return unknown

    async def final_state(self, process: int, redis: FinalState) -> FinalState:
        """Return the state of a process; retry until it responds."""
        self.process = process
        while (call := await self.read_all(strong=True)).outcome != "ok":
            await asyncio.sleep(0.05)
        # Responses do not contain the epoch; if it differs, the messages of watchers show that.
        return FinalState(f"process {process}", redis.epoch, call.revision, call.states)

    async def account(self, process: int, state: FinalState) -> Account:
        """Return what the process of a final state returns about the past; retry until it responds."""
        self.process = process
        names = {call.name for call in self.load.history.calls if call.name} - state.states.keys()
        while True:
            try:
                request = pb.ListEventsRequest(page_size=_EVENTS_PAGE_SIZE)
                pages = [await self._stub.ListEvents(request, timeout=_DEADLINE_SECONDS)]
                while token := pages[-1].next_page_token:
                    request.page_token = token
                    pages.append(await self._stub.ListEvents(request, timeout=_DEADLINE_SECONDS))
                removals = {name: await self._removal(name) for name in sorted(names)}
                for name in sorted(names | state.states.keys()):
                    await self._check_search(name, state)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
                continue
            events = [observed(event) for page in pages for event in page.events]
            oldest = pages[-1].oldest_revision
            return Account(state.owner, state.epoch, state.revision, oldest, events, removals)

    @property
    def _stub(self) -> "RegistryServiceAsyncStub":
        return self.stubs[self.process]

    async def _check_search(self, name: str, state: FinalState) -> None:
        """Record a problem unless a search for a name finds the services that are registered."""
        answer = await self._stub.SearchServices(
            pb.SearchServicesRequest(query=name, limit=100), timeout=_DEADLINE_SECONDS
        )
        found = {result.service.name: result.service.revision for result in answer.results}
        known = {each: revision for each, (_, revision) in state.states.items() if each in found}
        if answer.revision == state.revision and (found != known or (name in found) != (name in state.states)):
            self.load.history.problems.append(f"{state.owner} finds {found} for {name}, registered are {state.states}")

    async def _removal(self, name: str) -> Removal:
        answer = await self._stub.ExplainDiscovery(pb.ExplainDiscoveryRequest(name=name), timeout=_DEADLINE_SECONDS)
        found: dict[str, str] = {}
        try:
            await self._stub.GetService(pb.GetServiceRequest(name=name), timeout=_DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            found = dict(_error_info(error).metadata)
        revision, reason = int(found.get("removedRevision", 0)), found.get("removedReason", "")
        return Removal(revision, reason, answer.last_event.revision, answer.summary)

    def _record_write(self, call: Call, answer: Any) -> None:
        if answer is not None:
            call.revision, call.seen = answer.service.revision, answer.service.version
            self.load.acknowledged += 1
            self.load.newest = max(self.load.newest, (call.revision, call.name))

    @staticmethod
    def _record_read(call: Call, answer: Any) -> None:
        if answer is not None:
            call.revision, call.seen = answer.service.revision, answer.service.version
        elif call.outcome == "refused" and call.code.startswith("NOT_FOUND"):
            call.outcome = "ok"  # the service does not exist, which is a valid result


class Worker(Client, ABC):
    """A client that makes one call after another."""

    async def run(self) -> None:
        """Make calls until the load stops."""
        try:
            while self.load.running:
                if self.rng.random() < 0.1:
                    self.process = self.rng.randrange(PROCESSES)
                await self.step()
                await self.load.pause()
        finally:
            await self.close()

    @abstractmethod
    async def step(self) -> None:
        """Make one or more calls."""


class Owner(Worker):
    """Writes and reads names that no other client writes."""

    def __init__(self, load: "Load", name: str) -> None:
        super().__init__(load, name)
        self._names = [f"{name}-{i}" for i in range(_OWN_NAMES)]
        load.names += self._names
        self._last: dict[str, int] = {}

    async def step(self) -> None:
        name = self.rng.choice(self._names)
        match self.rng.random():
            case x if x < 0.35:
                call = await self.register(name)
            case x if x < 0.55:
                call = await self.update(name, self._last.get(name, 0) if self.rng.random() < 0.5 else 0)
            case x if x < 0.68:
                call = await self.unregister(name)
            case x if x < 0.76:
                call = await self.register(name, create=True)
            case _:
                await self.get(name)
                await self.get(name, self._last.get(name, 0))
                return
        self._last[name] = call.revision if call.outcome == "ok" else 0


class Sharer(Worker):
    """Writes names that other clients also write, with and without an expected revision."""

    async def step(self) -> None:
        name = f"shared-{self.rng.randrange(_SHARED_NAMES)}"
        read = await self.get(name)
        match self.rng.random():
            case x if x < 0.4:
                await self.update(name, read.revision)
            case x if x < 0.6:
                await self.register(name)
            case x if x < 0.8:
                await self.register(name, create=True)
            case _:
                await self.unregister(name, read.revision if self.rng.random() < 0.5 else 0)


class Reader(Worker):
    """Reads names of other clients, through any process."""

    async def step(self) -> None:
        self.process = self.rng.randrange(PROCESSES)
        name = self.rng.choice([*self.load.names, "shared-0", "shared-1"])
        match self.rng.random():
            case x if x < 0.2:
                await self.get(name, self.load.newest[0])
            case x if x < 0.5:
                revision, newest = self.load.newest
                await self.get(newest, revision)
            case x if x < 0.75:
                await self.get(name)
            case x if x < 0.87:
                await self.read_all(strong=True)
            case _:
                await self.read_all()
                await self.search()


class Heartbeater(Worker):
    """Renews short leases through any process, and registers unknown names again."""

    def __init__(self, load: "Load", name: str) -> None:
        super().__init__(load, name)
        self._names = [f"{name}-{i}" for i in range(_LEASES)]
        self._unknown = set(self._names)

    async def step(self) -> None:
        for name in sorted(self._unknown):
            if (await self.register(name, ttl=TTL_SECONDS)).outcome == "ok":
                self._unknown.discard(name)
        self._unknown.update(await self.beat(self._names))
        await self.load.pause(_HEARTBEAT_SECONDS)


def code_of(error: grpc.aio.AioRpcError) -> str:
    """Return code and reason of an error."""
    return f"{error.code().name} {_error_info(error).reason}".rstrip()


def _error_info(error: grpc.aio.AioRpcError) -> ErrorInfo:
    trailers = dict(error.trailing_metadata() or ())
    info = ErrorInfo()
    details = Status.FromString(bytes(trailers.get("grpc-status-details-bin", b""))).details
    if details:
        details[0].Unpack(info)
    return info
