"""The help text of ``serve``, generated from the settings."""

import os
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final, get_args

from registry_server.config.fields import Metavar
from registry_server.config.settings import Settings
from registry_server.config.sources import CONFIG_FLAG, CONFIG_VARIABLE, SETTINGS, Setting

# Replaces a space at which a line must not be broken. textwrap does not treat it as white space.
_NO_BREAK: Final = "\N{WORD JOINER}"
_INTRODUCTION = """
Run a registry until SIGTERM or SIGINT.

Each setting is a flag, an environment variable and a key in a TOML file. In the file, names have underscores, and
--grpc.address is `address = "..."` in the table `[grpc]`. A flag overrides the variable, the variable overrides the
file, and the file overrides the default. Unknown names are errors.
"""


def usage(program: str, width: int = 100) -> str:
    """Return the help text: every setting with its meaning, default, range and environment variable.

    Args:
        program: The command, for the first line.
        width: Maximum length of a line, in characters.
    """
    paragraphs = [f"Usage: {program} [FLAG]...", *_INTRODUCTION.strip().split("\n\n")]
    lines = "\n\n".join(textwrap.fill(_one_line(text), width) for text in paragraphs).splitlines()
    lines += ["", "General:"]
    lines += _entry(f"{CONFIG_FLAG} FILE", "TOML file with settings.", f"Environment: {CONFIG_VARIABLE}", width)
    lines += _entry(
        "--check", "Verify the settings, their files and Redis, then exit: 0 if a server can start, else 2.", "", width
    )
    lines += _entry("--version", "Show the version and exit.", "", width)
    lines += _entry("-h, --help", "Show this help and exit.", "", width)
    for group, settings in groupby(SETTINGS, key=lambda setting: setting.path[:-1]):
        if group:
            lines += ["", f"{_heading(group[0])}:"]
        for setting in settings:
            details = f"Default: {_default(setting)}{_range(setting)}. Environment:{_NO_BREAK}{setting.variable}"
            lines += _entry(f"{setting.flag} {_metavar(setting)}", setting.field.description or "", details, width)
    return "\n".join(lines) + "\n"


def _entry(head: str, description: str, details: str, width: int) -> Iterator[str]:
    yield f"  {head}"
    for text in filter(None, (description, details)):
        for line in textwrap.wrap(
            _one_line(text), width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
        ):
            yield line.replace(_NO_BREAK, " ")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _heading(group: str) -> str:
    annotation: Any = Settings.model_fields[group].annotation
    return str(annotation.__doc__).removesuffix(".")


def _metavar(setting: Setting) -> str:
    for metavar in setting.field.metadata:
        if isinstance(metavar, Metavar):
            return metavar.text
    if setting.field.annotation is bool:
        return "[true|false]"
    if choices := get_args(setting.field.annotation):
        return "|".join(choices)
    return "NUMBER" if setting.field.annotation is int else "TEXT"


def _default(setting: Setting) -> str:
    value = setting.field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() fails if there is none
    return str(value).replace(f"{home}/", "~/", 1) if isinstance(value, Path) else str(value)


def _range(setting: Setting) -> str:
    limits = {
        name: getattr(limit, name) for limit in setting.field.metadata for name in ("ge", "le") if hasattr(limit, name)
    }
    minimum, maximum = limits.get("ge"), limits.get("le")
    if minimum is None:
        return ""
    return f" ({minimum} to {maximum})" if maximum is not None else f" (at least {minimum})"
