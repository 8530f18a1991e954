"""The modules that a command loads, which determine its start-up time."""

import json
import subprocess
import sys

import pytest

from registry_cli.main import COMMANDS
from tests.cli.program import TIMEOUT

SERVER = {"registry_server", "aiohttp", "redis", "pydantic", "re2", "structlog"}
CLIENT = {"registry_client", "grpc", "google", "yaml", "asyncio"}


def loaded_modules(code: str) -> set[str]:
    """Return the top-level modules that a program has loaded."""
    program = f"import json, sys\n{code}\nprint(json.dumps([*{{name.partition('.')[0] for name in sys.modules}}]))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=TIMEOUT, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_no_command() -> None:
    found = loaded_modules("from registry_cli.main import main\nmain(['--help'], standalone_mode=False)")
    assert "click" in found
    assert found & (SERVER | CLIENT) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_command_loads_only_the_modules_it_needs(name: str) -> None:
    found = loaded_modules(f"from registry_cli.main import main\nmain.get_command(None, {name!r})")
    assert found & SERVER == set()
    if name in {"backup", "restore", "serve", "healthcheck", "keys", "completion", "version"}:
        assert found & CLIENT == set()
    else:
        assert CLIENT - {"yaml"} <= found
        assert ("yaml" in found) == (name in {"register", "run", "import"})
