"""Shared parts of the commands that work on the data of a registry instead of calling one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from registry_cli.exits import Exit, Failure

SETTINGS: Final = click.argument("settings", metavar="[SETTING]...", nargs=-1, type=click.UNPROCESSED)
"""Settings of the registry, as flags of ``serve``."""


def run_on_data(function: str, settings: Sequence[str], file: str, **options: Any) -> Any:
    """Call a function of ``registry_server.store.backup`` with the settings of the registry.

    Raises:
        Failure: The settings or the file are invalid, or Redis does not answer.
    """
    # Imported here, because the other commands, and the help, must not load the server.
    import asyncio  # noqa: PLC0415

    from registry_server.config import load_settings  # noqa: PLC0415
    from registry_server.errors import ConfigurationError, StoreUnavailable  # noqa: PLC0415
    from registry_server.instrumentation.logs import configure_logging  # noqa: PLC0415
    from registry_server.store import backup  # noqa: PLC0415

    try:
        loaded = load_settings(settings)
        configure_logging("warning", "console", "off")
        return asyncio.run(getattr(backup, function)(loaded, Path(file), **options))
    except ConfigurationError as error:
        raise Failure(str(error), Exit.USAGE) from error
    except StoreUnavailable as error:
        raise Failure(f"redis.url: {error.__cause__ or error}", Exit.UNAVAILABLE) from error


def summary_line(summary: Any, what: str) -> str:
    """Return a line about what was done."""
    return f"{summary.services} services of revision {summary.revision} {what}"
