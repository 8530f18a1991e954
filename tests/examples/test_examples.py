"""The agents and subscribers of ``examples/`` behave alike in every language, also across registry failures."""

import asyncio
import json
import re
import shutil
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from registry_client import HealthStatus, RegistryClient, RegistryError, Service, make_service
from registry_client.testing import RegistryProcess
from tests.examples.programs import BUILD_TIMEOUT, ROOT, TIMEOUT, Example, Language, set_up

LANGUAGES = (
    pytest.param(Language("python"), id="python"),
    *(
        pytest.param(Language(name, tools), id=name, marks=pytest.mark.interop)
        for name, tools in {"node": ("node", "npm"), "go": ("go",), "java": ("java", "javac", "mvn")}.items()
    ),
)
CHANGES, BATCH = 1_500, 100
"""Changes of 16 KiB each, more than HTTP/2 windows and TCP buffers hold."""
PROBED = ("--health-check.enabled=true", "--health-check.interval-ms=1000")

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT + 5 * TIMEOUT)


@pytest.fixture(params=LANGUAGES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """An example after set-up."""
    base = tmp_path_factory.getbasetemp()
    # Each pytest-xdist worker has its own directory within that of the test run.
    return set_up(request.param, base.parent if hasattr(request.config, "workerinput") else base)


async def test_agent_and_subscriber_survive_a_killed_registry(example: Example, tmp_path: Path) -> None:
    name = f"greeter-{example.language.name}"
    with RegistryProcess(*PROBED) as registry:
        async with (
            RegistryClient(registry.target, timeout=TIMEOUT) as client,
            example.agent(tmp_path / "agent", REGISTRY=registry.target) as agent,
        ):
            endpoint = (await agent.wait_for_line(rf"registered {name} at (http://127\.0\.0\.1:\d+)"))[1]
            await wait_until_healthy(client, name)
            await register(client, "before")
            first = (await client.get_service("before")).revision
            async with example.subscriber(tmp_path / "subscriber", REGISTRY=registry.target) as subscriber:
                await subscriber.wait_for_line(rf"\d+ SNAPSHOT {name} HEALTHY {endpoint} UNSPECIFIED")
                await subscriber.wait_for_line(rf"{first} SNAPSHOT before HEALTHY http://before\.test UNSPECIFIED")
                await register(client, "live")
                await subscriber.wait_for_line(rf"{first + 1} REGISTERED live HEALTHY http://live\.test CLIENT_REQUEST")

                (service,) = await client.find_services(capability="greet", capability_version="^1")
                assert service.name == name
                assert service.metadata.labels["language"] == example.language.name
                assert await call_greeter(service) == "hello, world\n"

                await register(client, *(f"killed-{i}" for i in range(20)))
                await asyncio.to_thread(registry.kill)
                await asyncio.to_thread(registry.start)
                await register(client, *(f"restarted-{i}" for i in range(20)))
                await subscriber.wait_for_line(r"\d+ REGISTERED restarted-19 .*")
                assert (await client.get_service(name)).health.status == HealthStatus.HEALTH_STATUS_HEALTHY

                # An agent that the registry has lost registers again with its next heartbeat.
                await client.unregister_service(name)
                await subscriber.wait_for_line(rf"\d+ UNREGISTERED {name} HEALTHY {endpoint} CLIENT_REQUEST")
                await subscriber.wait_for_line(rf"\d+ REGISTERED {name} UNKNOWN {endpoint} CLIENT_REQUEST")
                await wait_until_healthy(client, name)

                agent.process.send_signal(signal.SIGTERM)
                assert await agent.wait_for_exit() == 0, agent.errors()
                assert agent.lines()[-1] == f"unregistered {name}"
                last = await client.register_service(permanent_service("last"))
                await subscriber.wait_for_line(rf"{last.revision} REGISTERED last .*")
                events = [line.split() for line in subscriber.lines()]
                assert [kind for _, kind, *rest in events if rest[0] == name].count("UNREGISTERED") == 2
                # Every change of the registry is an event, and the subscriber has printed each of them once, in order.
                changes = [int(revision) for revision, kind, *_ in events if kind != "SNAPSHOT"]
                assert changes == list(range(first + 1, last.revision + 1))


async def test_subscriber_starts_again_when_its_cursor_has_expired(example: Example, tmp_path: Path) -> None:
    name = f"greeter-{example.language.name}"
    with RegistryProcess() as registry:
        async with (
            RegistryClient(registry.target, timeout=TIMEOUT) as client,
            example.agent(tmp_path / "agent", REGISTRY=registry.target) as agent,
            example.subscriber(tmp_path / "subscriber", REGISTRY=registry.target) as subscriber,
        ):
            await agent.wait_for_line(rf"registered {name} at .*")
            await register(client, "relic")
            await subscriber.wait_for_line(r"\d+ (REGISTERED|SNAPSHOT) relic .*")
            await asyncio.to_thread(registry.kill)
            delete_data(registry)
            await asyncio.to_thread(registry.start)
            await subscriber.wait_for_line(r"\d+ UNREGISTERED relic HEALTHY http://relic\.test RESYNC")
            await wait_until_registered(client, name)
            await register(client, "new")
            await subscriber.wait_for_line(r"\d+ (REGISTERED|SNAPSHOT|UPDATED) new .*")
            agent.process.send_signal(signal.SIGINT)
            assert await agent.wait_for_exit() == 0, agent.errors()
            await subscriber.wait_for_line(rf"\d+ UNREGISTERED {name} .* CLIENT_REQUEST")


async def test_slow_subscriber_resumes(example: Example, tmp_path: Path) -> None:
    with RegistryProcess("--watch.buffer-events=10") as registry:
        async with (
            RegistryClient(registry.target, timeout=TIMEOUT) as client,
            example.subscriber(tmp_path / "subscriber", REGISTRY=registry.target) as subscriber,
        ):
            await register(client, "before")
            await subscriber.wait_for_line(r"\d+ (REGISTERED|SNAPSHOT) before .*")
            subscriber.process.send_signal(signal.SIGSTOP)
            for start in range(0, CHANGES, BATCH):
                results = await client.batch_register_services(map(large_service, range(start, start + BATCH)))
                assert not any(isinstance(result, RegistryError) for result in results)
            subscriber.process.send_signal(signal.SIGCONT)
            await subscriber.wait_for_line(rf"\d+ REGISTERED large-{CHANGES - 1} .*")
            names = [name for line in subscriber.lines() if (name := line.split()[2]).startswith("large-")]
            assert names == [f"large-{i}" for i in range(CHANGES)]
            if example.language.name != "python":  # the SDK resumes without a message
                assert "the watcher fell behind" in subscriber.errors()


async def test_token_is_sent_and_a_rejection_ends_the_programs(example: Example, tmp_path: Path) -> None:
    async with rejecting_server() as (target, tokens):
        for program in (
            example.agent(tmp_path / "agent", REGISTRY=target, OSSA_REGISTRY_TOKEN="s3cret"),
            example.subscriber(tmp_path / "subscriber", REGISTRY=target, OSSA_REGISTRY_TOKEN="s3cret"),
        ):
            async with program:
                assert await program.wait_for_exit() == 1, program.errors()
                assert "refused:" in program.errors()
                assert "invalid token" in program.errors()
                assert "s3cret" not in program.errors()
    assert set(tokens) == {"Bearer s3cret"}


@pytest.mark.parametrize("example", LANGUAGES[:1], indirect=True, ids=["python"])
async def test_agent_ends_when_another_process_registers_its_name(example: Example, tmp_path: Path) -> None:
    with RegistryProcess() as registry:
        async with (
            RegistryClient(registry.target, timeout=TIMEOUT) as client,
            example.agent(tmp_path / "first", REGISTRY=registry.target) as first,
        ):
            await first.wait_for_line("registered greeter-python at .*")
            async with example.agent(tmp_path / "second", REGISTRY=registry.target) as second:
                endpoint = (await second.wait_for_line("registered greeter-python at (.*)"))[1]
                assert await first.wait_for_exit() == 1
                assert "superseded: another process has registered greeter-python" in first.errors()
                assert (await client.get_service("greeter-python")).endpoint == endpoint


def test_node_packages_are_pinned_without_a_private_mirror() -> None:
    lock = json.loads((ROOT / "examples" / "node" / "package-lock.json").read_text(encoding="utf-8"))
    packages = [package for path, package in lock["packages"].items() if path]
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages)
    public = "https://registry.npmjs.org/"
    assert all(package.get("resolved", public).startswith(public) for package in packages)


def permanent_service(name: str) -> Service:
    """Return a permanent service without probes."""
    return make_service(
        name,
        f"http://{name}.test",
        version="1.0.0",
        capabilities=["other"],
        health_check="heartbeat",
        ttl=0,
    )


def large_service(number: int) -> Service:
    service = permanent_service(f"large-{number}")
    for i in range(64):
        service.metadata.labels[f"label-{i}"] = "x" * 256
    return service


async def register(client: RegistryClient, *names: str) -> None:
    for name in names:
        await client.register_service(permanent_service(name))


async def wait_until_registered(client: RegistryClient, name: str) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not await client.find_services(name_pattern=f"^{re.escape(name)}$"):
            await asyncio.sleep(0.05)


async def wait_until_healthy(client: RegistryClient, name: str) -> None:
    """Wait until a probe of the registry has succeeded."""
    async with asyncio.timeout(TIMEOUT):
        while not await client.find_services(name_pattern=f"^{re.escape(name)}$", health="healthy"):
            await asyncio.sleep(0.05)
    health, _ = await client.get_service_health(name)
    assert health.HasField("response_time")


async def call_greeter(service: Service) -> str:
    def get() -> str:
        with urllib.request.urlopen(f"{service.endpoint}/greet?name=world", timeout=TIMEOUT) as answer:
            body: bytes = answer.read()
        return body.decode()

    return await asyncio.to_thread(get)


def delete_data(registry: RegistryProcess) -> None:
    """Delete the data of a killed registry, whose Redis may still be removing its socket."""
    data = Path(registry._directory.name) / "data"
    while data.exists():
        shutil.rmtree(data, ignore_errors=True)


@asynccontextmanager
async def rejecting_server() -> AsyncIterator[tuple[str, list[str]]]:
    """Run a gRPC server that rejects all calls; yield its address and the list of received authorizations."""
    authorizations: list[str] = []

    class Guard(grpc.aio.ServerInterceptor):
        async def intercept_service(
            self, _: object, details: grpc.HandlerCallDetails
        ) -> "grpc.RpcMethodHandler[Any, Any]":
            authorizations.append(str(dict(details.invocation_metadata or ()).get("authorization")))

            async def refuse(_: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "invalid token")

            if details.method.endswith("/KeepAlive"):
                return grpc.stream_stream_rpc_method_handler(refuse)
            if details.method.endswith("/WatchEvents"):
                return grpc.unary_stream_rpc_method_handler(refuse)
            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.aio.server(interceptors=[Guard()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", authorizations
    finally:
        await server.stop(0)
