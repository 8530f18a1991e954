"""Shell completion, by its protocol and in the installed shells."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from registry_cli.main import COMMANDS
from registry_client import SyncRegistryClient, make_service
from tests.cli.program import PROGRAM, TIMEOUT, Program

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def three(program: Program) -> Program:
    """A registry with three services."""
    with SyncRegistryClient(program.target, timeout=60) as client:
        for name in ("translator-1", "translator-2", "summarizer"):
            client.register_service(
                make_service(name, f"http://{name}.test", version="1", capabilities=[f"can-{name}"])
            )
    return program


def completions(program: Program, line: str, expected: list[str], **variables: str) -> list[str]:
    """Return the completions of bash for the last word of a line.

    The registry has one second to respond, which may be too short on a busy machine, so the request is repeated.
    """
    found = _completions(program, line, **variables)
    for _ in range(10):
        if found == expected:
            break
        found = _completions(program, line, **variables)
    return found


def _completions(program: Program, line: str, **variables: str) -> list[str]:
    words = line.split(" ")
    done = program.run(
        _OSSA_REGISTRY_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), **variables
    )
    assert done.err == ""
    return [answer.partition(",")[2] for answer in done.out.splitlines() if answer]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ossa-registry ", list(COMMANDS)),
        ("ossa-registry cap", ["capabilities"]),
        ("ossa-registry get ", ["summarizer", "translator-1", "translator-2"]),
        ("ossa-registry get tr", ["translator-1", "translator-2"]),
        ("ossa-registry get translator-1 tr", ["translator-2"]),
        ("ossa-registry unregister s", ["summarizer"]),
        ("ossa-registry maintenance o", ["on", "off"]),
        ("ossa-registry maintenance on s", ["summarizer"]),
        ("ossa-registry list --capability can-s", ["can-summarizer"]),
        ("ossa-registry list --health un", ["unhealthy", "unknown"]),
        ("ossa-registry get .*", []),
    ],
)
def test_completions_of_the_last_word(three: Program, line: str, expected: list[str]) -> None:
    assert completions(three, line, expected) == expected


def test_target_of_the_command_line_is_used(three: Program) -> None:
    unreachable = "127.0.0.1:1"
    line = f"ossa-registry get --target {three.target} s"
    assert completions(three, line, ["summarizer"], OSSA_REGISTRY_TARGET=unreachable) == ["summarizer"]


def test_unreachable_registry_means_no_completions(program: Program) -> None:
    assert completions(program, "ossa-registry get s", [], OSSA_REGISTRY_TARGET="127.0.0.1:1") == []


SHELLS = {
    # Calls the registered completion function as the shell does.
    "bash": """
        eval "$(ossa-registry completion bash)"
        COMP_WORDS=(ossa-registry get s); COMP_CWORD=2
        _ossa_registry_completion ossa-registry
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        autoload -U compinit && compinit -u
        eval "$(ossa-registry completion zsh)"
        compadd() { print -l -- "${completions[@]}" }  # instead of inserting them into the command line
        words=(ossa-registry get s); CURRENT=3
        _ossa_registry_completion
    """,
    "fish": """
        ossa-registry completion fish | source
        complete -C 'ossa-registry get s'
    """,
}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_script_works_in_its_shell(three: Program, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    environment = three.environment({"PATH": f"{Path(PROGRAM).parent}{os.pathsep}{os.environ['PATH']}"})

    def shell_completions() -> list[str]:
        done = subprocess.run(
            [shell, "-c", SHELLS[shell]],
            env=environment | {"HOME": str(three.directory)},
            capture_output=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split()

    assert any("summarizer" in shell_completions() for _ in range(10))  # see `completions`


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_completion_script(program: Program, shell: str) -> None:
    assert "_OSSA_REGISTRY_COMPLETE" in program.run_ok("completion", shell).out
