"""Field types that several groups of settings share, and the base class of the groups."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from registry_server.config.addresses import bad_setting

KIB = 1024
MIB = 1024 * KIB
# A longer time is probably a mistake in the unit. The limit also keeps values within the 32 bits that gRPC allows.
DAY_MS = 24 * 60 * 60 * 1000


class Metavar(NamedTuple):
    """Placeholder for the value of a setting in the help text."""

    text: str


def _reject_bool(value: object) -> object:
    # Pydantic would convert a `true` in a TOML file to 1.
    if isinstance(value, bool):
        raise bad_setting("must be a whole number")
    return value


def parse_directory(value: object) -> object:
    """Convert text to the path of a directory; ``~`` is expanded."""
    return _parse_path(value, "must be the path of a directory")


def _parse_file(value: object) -> object:
    return None if value == "none" else _parse_path(value, "must be the path of a file, or 'none'")


def _parse_path(value: object, rule: str) -> object:
    if not isinstance(value, str):
        return value
    # An empty path would mean the working directory. No shell expands '~' in a variable or a file.
    with suppress(RuntimeError):  # '~' of an unknown user
        if value:
            return Path(value).expanduser()
    raise bad_setting(rule)


Number = Annotated[int, BeforeValidator(_reject_bool)]
OptionalFile = Annotated[Path | None, BeforeValidator(_parse_file), Metavar("FILE")]
Milliseconds = Annotated[Number, Field(ge=1, le=DAY_MS)]


class SettingsGroup(BaseModel):
    """A group of settings; its docstring is its heading in the help, and the docstring of a field is its help text."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,  # a default may conflict with another setting that was given
    )
