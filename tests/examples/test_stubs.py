"""Clients that are generated from ``protos/`` alone compile and start, with the commands of docs/stubs.md."""

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from registry_client import RegistryClient
from registry_client.testing import RegistryProcess
from tests.examples.programs import BUILD_TIMEOUT, NETWORK_ERRORS, ROOT, TIMEOUT, run_command
from tests.support.console import blocks

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(2 * BUILD_TIMEOUT)]


def commands_of(tool: str) -> list[str]:
    """Return the commands of the block that begins with a tool."""
    found = [[command.text for command in block.commands] for block in blocks((ROOT / "docs/stubs.md").read_text())]
    return next(commands for commands in found if commands and commands[0].startswith(tool))


def copy_project(language: str, directory: Path) -> Path:
    """Copy a project and the protos, with the same relative paths as in the checkout; return its folder."""
    ignored = shutil.ignore_patterns("node_modules", "gen", "out", "target")
    shutil.copytree(ROOT / "examples/stubs" / language, directory / "examples/stubs" / language, ignore=ignored)
    shutil.copytree(ROOT / "protos", directory / "protos")
    protoc = directory / "bin" / "protoc"
    protoc.parent.mkdir()
    protoc.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grpc_tools.protoc "$@"\n')
    protoc.chmod(0o755)
    return directory / "examples/stubs" / language


async def run_all(commands: Sequence[str], project: Path, target: str, **environment: str) -> str:
    """Run commands; skip the test where packages cannot be downloaded, except in CI. Return their output."""
    environment |= {"REGISTRY": target, "PATH": f"{project.parents[2] / 'bin'}:{os.environ['PATH']}"}
    output = ""
    for command in commands:
        code, printed = await asyncio.to_thread(run_command, command, project, environment)
        if code and NETWORK_ERRORS.search(printed) and not os.environ.get("CI"):
            pytest.skip(f"packages cannot be downloaded: {printed}")
        assert code == 0, f"{command}: {printed}"
        output += printed
    return output


def require(*tools: str) -> None:
    """Skip the test if a tool is not installed."""
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")


async def test_typescript_clients_compile_and_register(tmp_path: Path) -> None:
    require("node", "npm")
    project = copy_project("typescript", tmp_path)
    with RegistryProcess() as registry:
        printed = await run_all(commands_of("npm"), project, registry.target)
        async with RegistryClient(registry.target, timeout=TIMEOUT) as client:
            services = await client.find_services()
    names = ["from-proto-loader", "from-protobuf-es", "from-ts-proto"]
    assert [service.name for service in services] == names
    for service in services:
        assert dict(service.capabilities[0].inputs) == {"type": "object"}
        assert f'{service.name} {{"type":"object"}}' in printed


async def test_plain_object_that_proto_loader_would_drop_is_converted(tmp_path: Path) -> None:
    require("node")
    schema = '{ a: [1, null, true, { b: "c" }], d: {}, e: [] }'
    script = (
        f'import {{ fromStruct, toStruct }} from "./struct.js";\nimport assert from "node:assert";\n'
        f"const schema = {schema};\nassert.deepStrictEqual(fromStruct(toStruct(schema)), schema);\n"
    )
    project = copy_project("typescript", tmp_path)
    (project / "check.js").write_text(script)
    await run_all(["node check.js"], project, "")


async def test_rust_client_compiles_and_registers(tmp_path: Path) -> None:
    require("cargo")
    project = copy_project("rust", tmp_path)
    cache = ROOT / "build" / "stubs"  # later runs compile only this project
    with RegistryProcess() as registry:
        printed = await run_all(commands_of("cargo"), project, registry.target, CARGO_TARGET_DIR=str(cache))
        async with RegistryClient(registry.target, timeout=TIMEOUT) as client:
            (service,) = await client.find_services()
    assert "from-tonic" in printed
    assert dict(service.capabilities[0].inputs) == {"type": "object"}
