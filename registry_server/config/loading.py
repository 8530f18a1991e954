"""Reads the settings of a server from all places and tells all that is wrong with them at once."""

import os
from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from registry_server.config.addresses import redact
from registry_server.config.settings import Settings
from registry_server.config.sources import EnvironmentSource, FlagSource, SettingPath, TomlSource
from registry_server.errors import ConfigurationError

_LONGEST_VALUE = 80

# What to say where pydantic's words are for programmers; its own are "Input should be ...".
_WORDS = {
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
    """Reads the settings: flags win over the environment, that over the TOML file, that over the defaults.

    Args:
        args: Command line after ``serve``. ``--config FILE`` names the TOML file.
        environ: Environment variables; ``None`` takes those of this process. ``OSSA_REGISTRY_CONFIG`` names the TOML
            file where no flag does.

    Returns:
        The settings, all of them valid.

    Raises:
        ConfigurationError: Something is unknown or bad. The message has one line a problem, each starts with the name
            of the setting as the user wrote it, and none holds a password.
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
    what = _WORDS.get(detail["type"]) or detail["msg"].replace("Input should be", "must be")
    what = what.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    if other := context.get("other"):
        what = what.replace(other, names.get(tuple(other.split(".")), other))
    name = names.get(path, f"{'.'.join(path)} (default)")
    if path == ("redis", "url"):
        return f"{name}: {what}"
    shown = "a table" if isinstance(detail["input"], dict) else redact(repr(detail["input"]))
    if len(shown) > _LONGEST_VALUE:
        shown = shown[: _LONGEST_VALUE - 3] + "..."
    return f"{name}: {what}, not {shown}"
