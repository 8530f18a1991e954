"""Entry point of ``ossa-registry``; each command module is loaded only when the command is used."""

import difflib
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from registry_cli.exits import Exit, Failure

_COMPLETE_VARIABLE: Final = "_OSSA_REGISTRY_COMPLETE"
_OWN_FLAGS: Final = frozenset({"--version", "--debug", "-h", "--help"})

COMMANDS: Final[Mapping[str, str]] = {
    "serve": "Run a registry server; `serve --help` lists its settings.",
    "healthcheck": "Check the registry of this container; needs no credential.",
    "register": "Register services from flags or files.",
    "run": "Run a program as an agent: registered while it runs.",
    "import": "Register the services in the Redis of another registry.",
    "list": "List services that match a filter.",
    "get": "Show services by name.",
    "events": "Show past events of a service, or of all.",
    "search": "Find services by words in their descriptions.",
    "explain": "Explain why a filter or a name finds nothing.",
    "describe": "Show a service with its lease, check, owner and events.",
    "health": "Show the health of services or of the registry.",
    "check": "Probe services now.",
    "heartbeat": "Renew the leases of services.",
    "watch": "Show every change as it happens, until Ctrl-C.",
    "unregister": "Unregister services.",
    "capabilities": "List the capabilities of all services.",
    "stats": "Show counts of services, capabilities, versions and tags.",
    "maintenance": "Start or end maintenance of services.",
    "whoami": "Show how the registry identifies the caller.",
    "cleanup": "Remove services whose lease has expired.",
    "backup": "Write all services of a registry to a file.",
    "restore": "Store the services of a backup in a Redis, embedded or not.",
    "keys": "Create and hash API keys.",
    "completion": "Print a shell completion script.",
    "version": "Show the versions of ossa-registry, Python and grpcio.",
}
"""Summary of each command, in the order of the help; the modules in ``registry_cli.commands`` have the same names."""


class Program(click.Group):
    """The group of all commands. It shows help without loading commands, and turns exceptions into exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Accept the connection and output options before the command too."""
        return super().parse_args(ctx, _after_command(args))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the help."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"registry_cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for an unknown one, suggest a similar name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries without loading the commands."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program and end the process."""
        return super().main(*args, **{"complete_var": _COMPLETE_VARIABLE, "prog_name": "ossa-registry", **extra})

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; print failures in one line, or with a traceback if ``--debug`` is set."""
        _configure_process()
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
            raise click.exceptions.Exit(Exit.INTERRUPTED) from None
        except BrokenPipeError:
            # Otherwise Python would fail again when it flushes the remaining buffer at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(Exit.BROKEN_PIPE) from None
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(f"input/output error: {error.strerror or error}") from error
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            description = f"{type(error).__name__}: {error}"
            raise Failure(f"internal error: {description}; run `ossa-registry --debug COMMAND` for details") from error


def _after_command(args: Sequence[str]) -> list[str]:
    """Return arguments in which the options that all commands have follow the command."""
    own, moved, rest = [], [], list(args)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        flag = rest.pop(0)
        if flag in _OWN_FLAGS:
            own.append(flag)
            continue
        from registry_cli.calls import COMMON_FLAGS  # noqa: PLC0415 - loads the client, which the help does not need

        name = flag.partition("=")[0] if flag.startswith("--") else flag[:2]
        if name not in COMMON_FLAGS:
            own.append(flag)
            break
        moved.append(flag)
        if COMMON_FLAGS[name] and name == flag and rest:
            moved.append(rest.pop(0))
    return [*own, *rest[:1], *moved, *rest[1:]] if rest else own


def _configure_process() -> None:
    # gRPC also logs to standard error the errors that it raises.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # unencodable characters must not fail the command


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ossa-registry")
@click.option("--debug", is_flag=True, help="Show a traceback for errors.")
def main(debug: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Service registry for fleets of AI agents."""
    del debug  # evaluated by Program.invoke
