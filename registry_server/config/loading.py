"""Loads the settings of a server from all sources and reports all errors at once."""

import os
from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from registry_server.config.addresses import redact
from registry_server.config.settings import Settings
from registry_server.config.sources import EnvironmentSource, FlagSource, SettingPath, TomlSource
from registry_server.errors import ConfigurationError

_MAX_SHOWN_LENGTH = 80

# Replacements for messages of pydantic that use terms of Python.
_MESSAGES = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "path_type": "must be the path of a directory",
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
    flags = FlagSource(args)
    environment = EnvironmentSource(os.environ if environ is None else environ)
    file = TomlSource(flags.config_file or environment.config_file)
    sources = (flags, environment, file)
    problems = [problem for source in sources for problem in source.problems]
    try:
        settings = Settings.from_sources(sources)
    except ValidationError as error:
        names = {path: given.name for source in reversed(sources) for path, given in source.given.items()}
        problems += [_describe(detail, names) for detail in error.errors(include_url=False)]
    else:
        if not problems:
            return settings
    raise ConfigurationError("\n".join(problems)) from None


def _describe(detail: ErrorDetails, names: Mapping[SettingPath, str]) -> str:
    path = tuple(map(str, detail["loc"]))
    context = detail.get("ctx", {})
    rule = _MESSAGES.get(detail["type"]) or detail["msg"].replace("Input should be", "must be")
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
