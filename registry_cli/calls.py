"""Shared parts of the commands that call a registry: connection options, output options, execution."""

import asyncio
import functools
import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import click

from registry_cli.errors import failure_from_error
from registry_cli.exits import Exit, Failure
from registry_cli.output import Format, Output
from registry_client import Backoff, RegistryClient, RegistryError, Tls, Unauthenticated
from registry_client.client import DEFAULT_TIMEOUT
from registry_client.targets import is_loopback, parse_target

TOKEN_VARIABLE: Final = "OSSA_REGISTRY_TOKEN"  # noqa: S105 - the name of a variable
DEFAULT_TARGET: Final = "localhost:50051"
DATA_FORMATS: Final[tuple[Format, ...]] = ("table", "json", "yaml")
DATA_AND_NAME_FORMATS: Final[tuple[Format, ...]] = ("table", "json", "yaml", "name")
ALL_FORMATS: Final[tuple[Format, ...]] = ("table", "wide", "json", "yaml", "name")
_MAX_TIMEOUT_SECONDS: Final = 86_400.0
_FILE_PATH: Final = click.Path(dir_okay=False, path_type=Path)
OUTPUT_FLAGS: Final = ("-o", "--output")


class NoRetry(Backoff):
    """Tries each target once, so that an unreachable registry is reported immediately."""

    def delay(self, failures: int, at_least: float = 0.0) -> float:
        """Return infinity, which exceeds every deadline."""
        del failures, at_least
        return math.inf


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection options of a command."""

    targets: Sequence[str]
    timeout: float
    retry: bool
    tls: Tls | None
    token_file: Path | None
    proxy: bool

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Build the options from the parameters of a command; parameters that were not set may be missing."""
        files = {name: parameters.get(f"{name}_file") for name in ("ca", "cert", "key")}
        server_name = parameters.get("server_name") or ""
        secure = parameters.get("tls") or any(files.values()) or server_name
        if bool(files["cert"]) != bool(files["key"]):
            raise click.UsageError("--cert-file and --key-file belong together: set both, or neither")
        return cls(
            targets=parameters.get("targets") or (DEFAULT_TARGET,),
            timeout=parameters.get("timeout") or DEFAULT_TIMEOUT,
            retry=bool(parameters.get("retry")),
            tls=Tls(files["ca"], files["cert"], files["key"], server_name) if secure else None,
            token_file=parameters.get("token_file"),
            proxy=not parameters.get("no_proxy"),
        )

    def create_client(self, *, retry: bool | None = None) -> RegistryClient:
        """Return a client that has not connected yet."""
        retries = self.retry if retry is None else retry
        return RegistryClient(
            self.targets,
            tls=self.tls,
            token=self._read_token if self.has_token else None,
            timeout=self.timeout,
            backoff=None if retries else NoRetry(),
            proxy=self.proxy,
        )

    @property
    def has_token(self) -> bool:
        """Whether calls carry a token."""
        return self.token_file is not None or TOKEN_VARIABLE in os.environ

    @property
    def sends_token_unencrypted(self) -> bool:
        """Whether the token is sent unencrypted over a network."""
        return self.has_token and self.tls is None and not all(map(is_loopback, self.targets))

    def _read_token(self) -> str:
        """Return the current token: its file may be replaced during a watch."""
        if self.token_file is None:
            return os.environ[TOKEN_VARIABLE].strip()
        try:
            return self.token_file.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unauthenticated(f"cannot read the token from {self.token_file}: {error}") from None


@dataclass(frozen=True, slots=True)
class CommandContext:
    """The connection, client and output of a command."""

    connection: Connection
    client: RegistryClient
    out: Output

    async def registry_time(self) -> datetime:
        """Return the time by the clock of the registry, which sets the times of leases; the local one may differ."""
        return (await self.client.get_registry_health()).checked_at.ToDatetime(UTC)

    def failure(self, error: RegistryError) -> Failure:
        """Convert an error of the registry into a failure of the command."""
        return failure_from_error(error, self.client.target)


class RegistryCommand(click.Command):
    """A command whose help lists its own options separately from the common options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two sections."""
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                (common if parameter.name in _COMMON_NAMES else own).append(record)
        for title, records in (("Options", own), ("Connection and output", common)):
            with formatter.section(title):
                formatter.write_dl(records)


Command: TypeAlias = Callable[..., Awaitable[int | None]]
"""Receives a ``CommandContext`` and the parameters of the command; returns the exit code, or None for 0."""


def registry_command(*formats: Format, **attributes: Any) -> Callable[[Command], click.Command]:
    """Return a decorator that turns a coroutine function with its own options into a command with all options.

    Args:
        *formats: The values that ``-o`` accepts, the default first; a single one makes no option.
        **attributes: Arguments of ``click.Command``.
    """

    def decorate(command: Command) -> click.Command:
        @click.pass_context
        @functools.wraps(command)
        def run(context: click.Context, /, **parameters: Any) -> None:
            connection = Connection.from_parameters(parameters)
            out = Output(parameters.get("output", formats[0]), color=_color(parameters), quiet=parameters["quiet"])
            own_parameters = {name: value for name, value in parameters.items() if name not in _COMMON_NAMES}
            context.exit(asyncio.run(_run(command, connection, out, own_parameters)) or Exit.OK)

        output = click.Option(
            OUTPUT_FLAGS, type=click.Choice(formats), default=formats[0], show_default=True, help="Output format."
        )
        options = _COMMON_OPTIONS if len(formats) == 1 else (output, *_COMMON_OPTIONS)
        return click.command(cls=RegistryCommand, params=list(options), **attributes)(run)

    return decorate


async def _run(command: Callable[..., Awaitable[Any]], connection: Connection, out: Output, parameters: Any) -> Any:
    if connection.sends_token_unencrypted:
        out.print_notice("the token is sent unencrypted; see --tls")
    client = connection.create_client()
    try:
        async with client:
            return await command(CommandContext(connection, client, out), **parameters)
    except RegistryError as error:
        raise failure_from_error(error, client.target) from error
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not error.filename:
            raise
        raise Failure(f"cannot read {error.filename}: {error.strerror}", Exit.USAGE) from error


def _color(parameters: Mapping[str, Any]) -> bool | None:
    return {"always": True, "never": False}.get("never" if parameters["no_color"] else parameters["color"])


def _show_traceback(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - a callback
    if value:
        context.find_root().params["debug"] = True


def _split_targets(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(parse_target(target) for value in values for target in re.split(r"[,\s]+", value) if target)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _file_option(flag: str, help_: str) -> click.Option:
    variable = "OSSA_REGISTRY" + flag.upper().replace("--", "_").replace("-", "_")
    return click.Option((flag,), type=_FILE_PATH, envvar=variable, show_envvar=True, help=help_)


_COMMON_OPTIONS: Final = (
    click.Option(
        ("-t", "--target", "targets"),
        metavar="HOST:PORT",
        multiple=True,
        callback=_split_targets,
        envvar="OSSA_REGISTRY_TARGET",
        show_envvar=True,
        help=f"Address of the registry; several are tried in order.  [default: {DEFAULT_TARGET}]",
    ),
    click.Option(
        ("--timeout",),
        type=click.FloatRange(0, _MAX_TIMEOUT_SECONDS, min_open=True),
        metavar="SECONDS",
        default=DEFAULT_TIMEOUT,
        envvar="OSSA_REGISTRY_TIMEOUT",
        show_envvar=True,
        show_default=True,
        help="Timeout of a call.",
    ),
    click.Option(("--retry",), is_flag=True, help="Retry until --timeout while the registry is unavailable."),
    click.Option(
        ("--tls",),
        is_flag=True,
        envvar="OSSA_REGISTRY_USE_TLS",
        show_envvar=True,
        help="Encrypt the connection with TLS.",
    ),
    _file_option("--ca-file", "Certificate authorities to trust, PEM; implies --tls."),
    _file_option("--cert-file", "Client certificate, PEM."),
    _file_option("--key-file", "Private key of the client certificate, PEM."),
    click.Option(("--server-name",), help="Host name in the server certificate, if it differs from --target."),
    click.Option(("--no-proxy",), is_flag=True, help="Ignore http_proxy and similar variables."),
    _file_option("--token-file", f"File with the bearer token; {TOKEN_VARIABLE} may hold the token itself."),
    click.Option(
        ("--color",),
        type=click.Choice(("auto", "always", "never")),
        default="auto",
        help="When to use colours; auto: on a terminal, unless NO_COLOR is set.",
    ),
    click.Option(("--no-color",), is_flag=True, help="Same as --color never."),
    click.Option(("-q", "--quiet"), is_flag=True, help="Suppress informational messages; errors are still printed."),
    click.Option(
        ("--debug",), is_flag=True, expose_value=False, callback=_show_traceback, help="Show a traceback for errors."
    ),
)
_COMMON_NAMES: Final = frozenset({"output"} | {option.name for option in _COMMON_OPTIONS})
COMMON_FLAGS: Final[Mapping[str, bool]] = dict.fromkeys(OUTPUT_FLAGS, True) | {
    flag: not option.is_flag for option in _COMMON_OPTIONS for flag in option.opts
}
"""Whether a value follows each flag that all commands have."""
