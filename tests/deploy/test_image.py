"""The steps of the Dockerfile, executed in a directory instead of a container, and what they install.

Where the tests run as root, the registry runs as the user of the image, which can write only its data directory.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from registry_client import RegistryClient, make_service
from tests.support.processes import run_to_end
from tests.support.redis_process import RedisProcess, free_port
from tests.support.server import ROOT
from tests.support.wheels import environ

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text(encoding="utf-8"))
SECONDS = 120.0

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(600)]


class Image(NamedTuple):
    """An image whose root is a directory."""

    root: Path
    env: dict[str, str]
    command: list[str]
    health_check: list[str]
    user: int | None

    def program(self, command: list[str]) -> list[str]:
        """Return a command with the path of its program, as the container finds it on PATH."""
        found = shutil.which(command[0], path=self.env["PATH"])
        assert found is not None
        return [found, *command[1:]]


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def python_of(user: int) -> tuple[str, int | None]:
    """Return a Python for the image, and the user if this process may run it as that user."""
    for python in (sys.executable, "/usr/bin/python3"):
        check = [python, "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            subprocess.run(check, user=user, check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError):
            continue
        return python, user
    return sys.executable, None


def copy(sources: list[str], target: Path) -> None:
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)


def build(root: Path) -> Image:
    """Execute the instructions; both stages have the same root directory."""
    programs = root / "bin"
    programs.mkdir()
    steps = instructions()
    python, user = python_of(int(dict(steps)["USER"].partition(":")[0]))
    (programs / "python").symlink_to(python)
    directory, env = root, {"PATH": f"{programs}:/usr/bin:/bin"}
    lists: dict[str, list[str]] = {}

    def moved(text: str) -> str:
        return re.sub(r"(?<![\w.])/(opt|var|source)\b", rf"{root}/\1", text)

    for name, rest in steps:
        match name:
            case "WORKDIR":
                directory = Path(moved(rest))
                directory.mkdir()
            case "COPY" if not rest.startswith("--from"):
                *sources, target = rest.split()
                copy(sources, directory / target)
            case "RUN":
                command = moved(rest) if user is not None else re.sub(r"--(owner|group)=\S+", "", moved(rest))
                run_env = environ() | {"PATH": f"{programs}:{os.environ['PATH']}"}
                subprocess.run(command, shell=True, cwd=directory, env=run_env, check=True, stdout=subprocess.DEVNULL)
            case "ENV":
                pairs = (each.partition("=") for each in shlex.split(moved(rest)))
                env |= {key: value.replace("$PATH", env["PATH"]) for key, _, value in pairs}
            case "HEALTHCHECK":
                lists[name] = json.loads(rest.partition(" CMD ")[2])
            case "ENTRYPOINT" | "CMD":
                lists[name] = json.loads(rest)
    shutil.rmtree(root / "source")  # a stage that the image does not contain
    return Image(root, env, lists["ENTRYPOINT"] + lists["CMD"], lists["HEALTHCHECK"], user)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with tempfile.TemporaryDirectory(prefix="ossa-image-") as directory:
        Path(directory).chmod(0o755)
        yield build(Path(directory))


@asynccontextmanager
async def started(image: Image, **settings: str) -> "AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]":
    """Run the image on free ports; yield the process and its environment."""
    ports = {f"OSSA_REGISTRY_{name}__ADDRESS": f"0.0.0.0:{free_port()}" for name in ("GRPC", "HTTP")}
    env = image.env | ports | settings
    process = await asyncio.create_subprocess_exec(
        *image.program(image.command),
        env=env,
        cwd=image.root,
        stderr=asyncio.subprocess.PIPE,
        user=image.user,
        group=image.user,
        extra_groups=None if image.user is None else [],
    )
    lines: list[str] = []
    try:
        assert process.stderr is not None
        async with asyncio.timeout(SECONDS):
            async for line in process.stderr:
                lines.append(line.decode())
                if json.loads(line)["event"] == "ossa-registry serves":
                    break
            else:
                raise AssertionError(lines)
        yield process, env
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(SECONDS):
            await process.communicate()


def client_of(env: dict[str, str]) -> RegistryClient:
    return RegistryClient(env["OSSA_REGISTRY_GRPC__ADDRESS"].replace("0.0.0.0", "127.0.0.1"))


async def test_image_serves_reports_its_health_and_stops(image: Image) -> None:
    assert (await run_to_end(*image.program(["python", "-c", "import opentelemetry.sdk"]), max_seconds=60))[0] == 0
    assert list(image.root.glob("opt/ossa-registry/lib/*/site-packages/pydantic/__pycache__/*.pyc"))
    check = image.program(image.health_check)
    async with started(image, OSSA_REGISTRY_INSECURE="true") as (process, env):
        async with client_of(env) as client:
            await client.register_service(make_service("a", "http://a.test", version="1", health_check="none"))
        assert await run_to_end(*check, max_seconds=60, env=env) == (0, "")
        process.terminate()
        assert await process.wait() == 0
    assert (await run_to_end(*check, max_seconds=60, env=env))[0] == 1
    async with started(image, OSSA_REGISTRY_INSECURE="true") as (_, env), client_of(env) as client:
        assert (await client.get_service("a")).version == "1"


async def test_registries_of_the_compose_file_form_one_registry(image: Image, tmp_path: Path) -> None:
    _, *arguments = COMPOSE["services"]["redis"]["command"]
    variables: dict[str, str] = COMPOSE["x-registry"]["environment"]
    async with RedisProcess(tmp_path, *arguments) as redis:
        settings = {key: value.replace("redis://redis:6379", redis.url) for key, value in variables.items()}
        assert redis.url in settings.values()
        async with (
            started(image, **settings) as (_, first),
            started(image, **settings) as (_, second),
            client_of(first) as writer,
            client_of(second) as reader,
        ):
            await writer.register_service(make_service("a", "http://a.test", version="1", health_check="none"))
            found = await reader.discover_services(consistency="strong")
            assert [service.name for service in found.services] == ["a"]
