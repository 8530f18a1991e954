"""Clients in forked processes, several event loops and several threads."""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry_client import DeadlineExceeded, RegistryClient, SyncRegistryClient, make_service
from registry_client.testing import RegistryProcess

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")

FORKS = """
import asyncio, multiprocessing, os, sys, time
from registry_client import RegistryClient, SyncRegistryClient, make_service

TARGET = sys.argv[1]

def in_child(function):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            print(function.__name__, function(), flush=True)
            status = 0
        except RuntimeError as error:
            print(function.__name__, "raises", error, flush=True)
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            print("child ended with", status, flush=True)
            return
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    print("child hangs", flush=True)
"""


def run_forks(registry: RegistryProcess, program: str) -> list[str]:
    """Run a program that forks; return its lines."""
    command = [sys.executable, "-c", FORKS + textwrap.dedent(program), registry.target]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@forking
def test_open_client_raises_in_a_forked_child(registry: RegistryProcess) -> None:
    lines = run_forks(
        registry,
        """
        client = SyncRegistryClient(TARGET, timeout=10)
        client.get_stats()

        def inherited():
            return client.get_stats()

        def fresh():
            with SyncRegistryClient(TARGET, timeout=10) as other:
                return other.get_stats()

        def fresh_asynchronous():
            async def call():
                async with RegistryClient(TARGET, timeout=10) as other:
                    return await other.get_stats()
            return asyncio.run(call())

        def background():
            async def register():
                async with RegistryClient(TARGET, timeout=10) as other:
                    service = make_service("agent", "http://agent.test", version="1")
                    async with other.registration(service, wait=False):
                        return "registered"
            return asyncio.run(register())

        def closing():
            global client
            client.close()
            del client
            return "closed"

        for function in (inherited, fresh, fresh_asynchronous, background, closing):
            in_child(function)
        print("parent", client.get_stats().total_services)
        """,
    )
    refusals = [line for line in lines if "raises this process was forked while a client" in line]
    assert [line.split()[0] for line in refusals] == ["inherited", "fresh", "fresh_asynchronous", "background"]
    assert lines.count("child ended with 0") == 5
    assert lines[-3:] == ["closing closed", "child ended with 0", "parent 0"]


@forking
def test_clients_opened_after_the_fork_work(registry: RegistryProcess) -> None:
    lines = run_forks(
        registry,
        """
        unused = SyncRegistryClient(TARGET, timeout=30)
        with SyncRegistryClient(TARGET, timeout=30) as closed:
            closed.get_stats()

        def after_fork():
            with SyncRegistryClient(TARGET, timeout=30) as other:
                return other.get_stats().total_services + unused.get_stats().total_services

        in_child(after_fork)
        """,
    )
    assert lines == ["after_fork 0", "child ended with 0"]


@forking
def test_sigterm_of_a_forked_child_ends_only_the_child(registry: RegistryProcess) -> None:
    lines = run_forks(
        registry,
        """
        async def main():
            async with RegistryClient(TARGET, timeout=30) as client:
                service = make_service("agent", "http://agent.test", version="1", health_check="heartbeat")
                async with client.registration(service) as registration:
                    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
                    child.start()
                    child.terminate()
                    await asyncio.to_thread(child.join, 30)
                    await asyncio.sleep(0.1)
                    print("child", child.exitcode, "agent", registration.state, registration.terminated)

        asyncio.run(main())
        """,
    )
    assert lines == ["child -15 agent registered False"]


def test_client_raises_in_another_event_loop(registry: RegistryProcess) -> None:
    client = RegistryClient(registry.target, timeout=30)
    cache = client.cache()

    async def open_cache() -> None:
        async with cache:
            pass

    async def register() -> None:
        async with client.registration(make_service("agent", "http://agent.test", version="1"), wait=False):
            pass

    async def call() -> None:
        await client.get_stats()

    asyncio.run(call())
    for use in (call, open_cache, register):
        with pytest.raises(RuntimeError, match="event loop of its first use"):
            asyncio.run(use())
    asyncio.run(client.close())


async def test_client_raises_in_another_thread_and_stays_usable(registry: RegistryProcess) -> None:
    async with RegistryClient(registry.target, timeout=30) as client:
        await client.get_stats()

        def call() -> None:
            asyncio.run(client.get_registry_health())

        with pytest.raises(RuntimeError, match="event loop of its first use"):
            await asyncio.to_thread(call)
        await client.get_stats()


def test_threads_share_a_synchronous_client(registry: RegistryProcess) -> None:
    with SyncRegistryClient(registry.target, timeout=60) as client, ThreadPoolExecutor(8) as threads:
        counts = threads.map(lambda _: client.get_stats().total_services, range(200))
        assert list(counts) == [0] * 200


def test_call_waits_for_other_threads_within_its_timeout() -> None:
    entered, leave = threading.Event(), threading.Event()

    def token() -> str:
        entered.set()
        leave.wait(60)
        return ""

    client = SyncRegistryClient("127.0.0.1:1", token=token, timeout=5)
    with ThreadPoolExecutor(1) as thread:
        blocked = thread.submit(client.get_stats)
        try:
            assert entered.wait(60)
            with pytest.raises(DeadlineExceeded, match="other threads"):
                client.get_stats(timeout=0.1)
        finally:
            leave.set()
        assert blocked.exception(60)
    client.close()
    client.close()


def test_client_made_outside_a_loop_belongs_to_the_first(registry: RegistryProcess) -> None:
    client = RegistryClient(registry.target, timeout=30)

    async def use() -> None:
        async with client:
            await client.get_stats()

    asyncio.run(use())
