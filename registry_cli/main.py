"""``ossa-registry``: the commands, each of which is loaded when it is called."""

import difflib
import importlib
import io
import os
import sys
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import click

from registry_cli.exits import Exit, Failure

_COMPLETE_VARIABLE: Final = "_OSSA_REGISTRY_COMPLETE"

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "serve": ("serve", "Run a registry server; `serve --help` lists its settings."),
    "register": ("register", "Register services, from flags or files."),
    "list": ("list", "List the services that match."),
    "get": ("get", "Show services by name."),
    "health": ("health", "Show the health of services, or of the registry."),
    "check": ("check", "Let the registry probe services now."),
    "heartbeat": ("heartbeat", "Renew the leases of services."),
    "watch": ("watch", "Show every change as it happens, until Ctrl-C."),
    "unregister": ("unregister", "Remove services."),
    "capabilities": ("capabilities", "List what services can do."),
    "stats": ("stats", "Count what is registered."),
    "maintenance": ("maintenance", "Take services out, or back in."),
    "cleanup": ("cleanup", "Remove services whose lease has ended."),
    "keys": ("keys", "Make API keys for agents and people."),
    "completion": ("completion", "Print the script that completes commands in a shell."),
    "version": ("version", "Show the versions of this program and of what it runs on."),
}
"""Module in ``registry_cli.commands`` and summary of each command, in the order in which they are told."""


class Program(click.Group):
    """The group of all commands. Nothing is loaded for its help; any failure becomes a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Loads a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"registry_cli.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command, and says which one was perhaps meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the summaries without loading the commands."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs the program and ends the process."""
        return super().main(*args, **{"complete_var": _COMPLETE_VARIABLE, "prog_name": "ossa-registry", **extra})

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command. Whatever goes wrong is told in one line, unless ``--debug`` asks for more."""
        _prepare()
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except (click.ClickException, click.exceptions.Exit, SystemExit) as error:
            if ctx.params.get("debug") and error.__cause__ is not None:
                raise error.__cause__ from None
            raise
        except KeyboardInterrupt:
            _end(Exit.INTERRUPTED)
        except BrokenPipeError:
            # What is still buffered would fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _end(Exit.BROKEN_PIPE)
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(f"cannot go on: {error.strerror or error}") from error
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            what = f"{type(error).__name__}: {error}"
            raise Failure(f"this is a bug: {what}; --debug before the command tells where") from error


def _prepare() -> None:
    # gRPC writes lines of its own to standard error; what it has to say it also raises.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal does not know is no reason to fail


def _end(code: Exit) -> NoReturn:
    raise click.exceptions.Exit(code)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ossa-registry")
@click.option("--debug", is_flag=True, help="Show the traceback of what goes wrong.")
def main(debug: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Service registry for fleets of AI agents."""
    del debug  # Program.invoke looks at it
