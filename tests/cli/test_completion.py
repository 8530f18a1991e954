"""Shell completion, as the shells ask for it, and in the shells that are there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from registry_cli.main import COMMANDS
from registry_client import SyncRegistryClient, make_service
from tests.cli.program import PATIENCE, PROGRAM, Program

# Many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def three(program: Program) -> Program:
    """Services with names to complete."""
    with SyncRegistryClient(program.target, timeout=60) as client:
        for name in ("translator-1", "translator-2", "summarizer"):
            client.register_service(
                make_service(name, f"http://{name}.test", version="1", capabilities=[f"can-{name}"])
            )
    return program


def offered(program: Program, line: str, expected: list[str], **variables: str) -> list[str]:
    """What bash would be offered for the last word of a line.

    A registry has a second to answer, which on a busy machine is not always enough: then TAB is pressed again.
    """
    offers = _offered(program, line, **variables)
    for _ in range(10):
        if offers == expected:
            break
        offers = _offered(program, line, **variables)
    return offers


def _offered(program: Program, line: str, **variables: str) -> list[str]:
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
def test_what_is_offered(three: Program, line: str, expected: list[str]) -> None:
    assert offered(three, line, expected) == expected


def test_the_target_on_the_line_is_asked(three: Program) -> None:
    nobody = "127.0.0.1:1"
    line = f"ossa-registry get --target {three.target} s"
    assert offered(three, line, ["summarizer"], OSSA_REGISTRY_TARGET=nobody) == ["summarizer"]


def test_a_registry_that_is_away_has_nothing_to_offer(program: Program) -> None:
    assert offered(program, "ossa-registry get s", [], OSSA_REGISTRY_TARGET="127.0.0.1:1") == []


SHELLS = {
    # The function that the script has registered is called as the shell would.
    "bash": """
        eval "$(ossa-registry completion bash)"
        COMP_WORDS=(ossa-registry get s); COMP_CWORD=2
        _ossa_registry_completion ossa-registry
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        autoload -U compinit && compinit -u
        eval "$(ossa-registry completion zsh)"
        compadd() { print -l -- "${completions[@]}" }  # where the real one would put them into the line
        words=(ossa-registry get s); CURRENT=3
        _ossa_registry_completion
    """,
    "fish": """
        ossa-registry completion fish | source
        complete -C 'ossa-registry get s'
    """,
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_works_in_its_shell(three: Program, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    environment = three.environment({"PATH": f"{Path(PROGRAM).parent}{os.pathsep}{os.environ['PATH']}"})

    def offers() -> list[str]:
        done = subprocess.run(
            [shell, "-c", SHELLS[shell]],
            env=environment | {"HOME": str(three.directory)},
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split()

    assert any("summarizer" in offers() for _ in range(10))  # see `offered`


@pytest.mark.parametrize("shell", SHELLS)
def test_there_is_a_script_for_each(program: Program, shell: str) -> None:
    assert "_OSSA_REGISTRY_COMPLETE" in program.good("completion", shell).out
