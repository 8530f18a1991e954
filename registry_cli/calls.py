"""What every command that talks to a registry has: where it is, how long to wait, and how to print."""

import asyncio
import functools
import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import click

from registry_cli.errors import failure
from registry_cli.exits import Exit, Failure
from registry_cli.output import Format, Output
from registry_client import Backoff, RegistryClient, RegistryError, Tls, Unauthenticated

TOKEN_VARIABLE: Final = "OSSA_REGISTRY_TOKEN"  # noqa: S105 - its name
DEFAULT_TARGET: Final = "localhost:50051"
DATA: Final[tuple[Format, ...]] = ("table", "json", "yaml")
NAMED: Final[tuple[Format, ...]] = ("table", "json", "yaml", "name")
ALL: Final[tuple[Format, ...]] = ("table", "wide", "json", "yaml", "name")
_FOREVER: Final = 86_400.0
_FILE: Final = click.Path(dir_okay=False, path_type=Path)


class Once(Backoff):
    """Each target is tried once: a person sees at once that nobody is there."""

    def delay(self, failures: int, at_least: float = 0.0) -> float:
        """Longer than any deadline."""
        del failures, at_least
        return math.inf


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the registry is and how to talk to it."""

    targets: Sequence[str]
    timeout: float
    retry: bool
    tls: Tls | None
    token_file: Path | None

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Self:
        """From the flags of a command; those that were not given may be missing."""
        files = {name: parameters.get(f"{name}_file") for name in ("ca", "cert", "key")}
        server_name = parameters.get("server_name") or ""
        secure = parameters.get("tls") or any(files.values()) or server_name
        return cls(
            targets=parameters.get("targets") or (DEFAULT_TARGET,),
            timeout=parameters.get("timeout") or _DEFAULT_TIMEOUT,
            retry=bool(parameters.get("retry")),
            tls=Tls(files["ca"], files["cert"], files["key"], server_name) if secure else None,
            token_file=parameters.get("token_file"),
        )

    def client(self, *, retry: bool | None = None) -> RegistryClient:
        """A client that is not open yet."""
        again = self.retry if retry is None else retry
        return RegistryClient(
            self.targets,
            tls=self.tls,
            token=self._token if self.token_file or TOKEN_VARIABLE in os.environ else None,
            timeout=self.timeout,
            backoff=None if again else Once(),
        )

    @property
    def tells_token_openly(self) -> bool:
        """Whether the token goes over a network as it is."""
        local = ("localhost:", "127.0.0.1:", "[::1]:", "unix:")
        known = self.token_file is not None or TOKEN_VARIABLE in os.environ
        return known and self.tls is None and not all(target.startswith(local) for target in self.targets)

    def _token(self) -> str:
        """The token that is valid now: files are replaced while a watch lasts."""
        if self.token_file is None:
            return os.environ[TOKEN_VARIABLE].strip()
        try:
            return self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unauthenticated(f"the token cannot be read from {self.token_file}: {error}") from None


@dataclass(frozen=True, slots=True)
class Call:
    """What a command works with."""

    connection: Connection
    client: RegistryClient
    out: Output

    def failure(self, error: RegistryError) -> Failure:
        """What to tell of an error of the registry."""
        return failure(error, self.client.target)


class RegistryCommand(click.Command):
    """A command whose help tells the flags that all of them have apart from its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes two sections."""
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                (common if parameter.name in _NAMES else own).append(record)
        for title, records in (("Options", own), ("Connection and output", common)):
            with formatter.section(title):
                formatter.write_dl(records)


Command: TypeAlias = Callable[..., Awaitable[Exit | None]]
"""Takes a ``Call`` and the parameters of the command; gives the exit code, none for 0."""


def talks(*formats: Format) -> Callable[[Command], Callable[..., None]]:
    """Makes a command of a coroutine function that takes a ``Call`` and the parameters of the command.

    Args:
        *formats: What ``-o`` may be, the default first.
    """

    def decorate(command: Command) -> Callable[..., None]:
        @click.pass_context
        @functools.wraps(command)
        def run(context: click.Context, /, **parameters: Any) -> None:
            connection = Connection.of(parameters)
            out = Output(parameters["output"], color=_color(parameters), quiet=parameters["quiet"])
            rest = {name: value for name, value in parameters.items() if name not in _NAMES}
            context.exit(asyncio.run(_run(command, connection, out, rest)) or Exit.OK)

        output = click.option(
            "-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="How to print."
        )
        options: Sequence[Callable[[Any], Any]] = (output, *_OPTIONS)
        return functools.reduce(lambda function, option: option(function), reversed(options), run)

    return decorate


async def _run(command: Callable[..., Awaitable[Any]], connection: Connection, out: Output, parameters: Any) -> Any:
    if connection.tells_token_openly:
        out.remark("the token is sent unencrypted; see --tls")
    client = connection.client()
    try:
        async with client:
            return await command(Call(connection, client, out), **parameters)
    except RegistryError as error:
        raise failure(error, client.target) from error
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not error.filename:
            raise
        raise Failure(f"{error.filename}: cannot be read: {error.strerror}", Exit.USAGE) from error


def _color(parameters: Mapping[str, Any]) -> bool | None:
    return {"always": True, "never": False}.get("never" if parameters["no_color"] else parameters["color"])


def _targets(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(target for value in values for target in re.split(r"[,\s]+", value) if target)


_DEFAULT_TIMEOUT: Final = 10.0

_OPTIONS: Final = (
    click.option(
        *("-t", "--target", "targets"),
        metavar="HOST:PORT",
        multiple=True,
        callback=_targets,
        envvar="OSSA_REGISTRY_TARGET",
        show_envvar=True,
        help=f"Where the registry is; several are tried in turn.  [default: {DEFAULT_TARGET}]",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0, _FOREVER, min_open=True),
        metavar="SECONDS",
        default=_DEFAULT_TIMEOUT,
        envvar="OSSA_REGISTRY_TIMEOUT",
        show_envvar=True,
        show_default=True,
        help="Longest time for a call.",
    ),
    click.option("--retry", is_flag=True, help="While nobody answers, try again until --timeout."),
    click.option(
        "--tls", is_flag=True, envvar="OSSA_REGISTRY_USE_TLS", show_envvar=True, help="Secure the connection."
    ),
    click.option(
        "--ca-file",
        type=_FILE,
        envvar="OSSA_REGISTRY_CA_FILE",
        show_envvar=True,
        help="Certificates of authorities to trust, PEM; with --tls.",
    ),
    click.option(
        "--cert-file",
        type=_FILE,
        envvar="OSSA_REGISTRY_CERT_FILE",
        show_envvar=True,
        help="Certificate of the client, PEM.",
    ),
    click.option(
        "--key-file", type=_FILE, envvar="OSSA_REGISTRY_KEY_FILE", show_envvar=True, help="Its private key, PEM."
    ),
    click.option("--server-name", help="Name in the certificate of the registry, if it is not that of the target."),
    click.option(
        "--token-file",
        type=_FILE,
        envvar="OSSA_REGISTRY_TOKEN_FILE",
        show_envvar=True,
        help=f"File with the bearer token; the token itself may be in {TOKEN_VARIABLE}.",
    ),
    click.option(
        "--color",
        type=click.Choice(("auto", "always", "never")),
        default="auto",
        help="Colours; auto: on a terminal, and not if NO_COLOR is set.",
    ),
    click.option("--no-color", is_flag=True, help="The same as --color never."),
    click.option("-q", "--quiet", is_flag=True, help="No remarks; errors are told all the same."),
)
_NAMES: Final = frozenset(
    {"targets", "timeout", "retry", "tls", "ca_file", "cert_file", "key_file", "server_name", "token_file"}
    | {"color", "no_color", "quiet", "output"}
)
