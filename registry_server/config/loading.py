"""Loads the settings of a server from all sources and reports all errors at once."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from registry_server.config.addresses import redact
from registry_server.config.settings import Settings
from registry_server.config.sources import Given, SettingPath, read_environment, read_file, read_flags
from registry_server.errors import ConfigurationError

_MAX_SHOWN_LENGTH = 80

# Replacements for messages of pydantic that use terms of Python, by the type in the first word of their identifier.
_MESSAGES = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "string": "must be text",
    "path": "must be the path of a directory",
}


def load_settings(args: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Settings:
    """Load and validate the settings.

    Flags override the environment, the environment overrides the TOML file, and the file overrides the defaults.

    Args:
        args: Command line after ``serve``. ``--config FILE`` names the TOML file.
        environ: Environment variables; by default those of this process. ``OSSA_REGISTRY_CONFIG`` names the TOML file
            if no flag does.

    Raises:
        ConfigurationError: Settings are unknown or not valid. The message has one line for each of them, which starts
            with the name that the user wrote. Passwords are masked.
    """
    flags = read_flags(args)
    environment = read_environment(os.environ if environ is None else environ)
    file = read_file(flags.config_file or environment.config_file)
    problems = [*flags.problems, *environment.problems, *file.problems]
    given = file.given | environment.given | flags.given
    try:
        settings = Settings.model_validate(_nested(given))
    except ValidationError as error:
        # A default that depends on a setting with an error is not an error of its own.
        details = [each for each in error.errors(include_url=False) if each["type"] != "default_factory_not_called"]
        problems += [_describe(detail, given) for detail in details]
    else:
        if not problems:
            return settings
    raise ConfigurationError("\n".join(problems)) from None


def _nested(given: Mapping[SettingPath, Given]) -> dict[str, Any]:
    """Return the values, nested like the model."""
    values: dict[str, Any] = {}
    for path, each in given.items():
        group = values
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = each.value
    return values


def _describe(detail: ErrorDetails, given: Mapping[SettingPath, Given]) -> str:
    names = {path: each.name for path, each in given.items()}
    path = tuple(map(str, detail["loc"]))
    context = detail.get("ctx", {})
    rule = _MESSAGES.get(detail["type"].partition("_")[0]) or detail["msg"].replace("Input should be", "must be")
    rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if other := context.get("other"):
        rule = rule.replace(other, names.get(tuple(other.split(".")), other))
    name = names.get(path, f"{'.'.join(path)} (default)")
    if path == ("redis", "url"):
        return f"{name}: {rule}"
    shown = "a table" if isinstance(detail["input"], dict) else redact(repr(detail["input"]))
    if len(shown) > _MAX_SHOWN_LENGTH:
        shown = shown[: _MAX_SHOWN_LENGTH - 3] + "..."
    return f"{name}: {rule}, not {shown}"
