"""Options before the command, and the help of all commands."""

import click
import pytest

from registry_cli.calls import COMMON_FLAGS
from registry_cli.main import COMMANDS, _after_command, main


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("list -o json", "list -o json"),
        ("-o json list --strong", "list -o json --strong"),
        ("--output=json -q list", "list --output=json -q"),
        ("-ojson -thost:1 --debug list a", "--debug list -ojson -thost:1 a"),
        ("-t a -t b get -t c", "get -t a -t b -t c"),
        ("--nope list", "--nope list"),
        ("-o json", ""),
        ("--help", "--help"),
        ("-- list", "-- list"),
    ],
)
def test_options_before_the_command_are_moved_behind_it(args: str, expected: str) -> None:
    assert _after_command(args.split()) == expected.split()


def test_every_option_of_a_connection_may_precede_the_command() -> None:
    assert {"--target", "--timeout", "--token-file", "--color", "--output", "-o", "-t", "-q"} <= COMMON_FLAGS.keys()
    assert not COMMON_FLAGS["--quiet"]
    assert COMMON_FLAGS["--ca-file"]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
@pytest.mark.parametrize("columns", [40, 100])
def test_help_shows_examples_as_written(name: str, columns: int) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    text = command.get_help(click.Context(command, terminal_width=columns))
    assert "\b" not in text
    assert "\\b" not in text
    for line in (command.help or "").splitlines():
        if line.strip().startswith("ossa-registry "):
            assert f"  {line.strip()}\n" in text
