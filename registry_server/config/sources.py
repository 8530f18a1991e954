"""The sources of settings: flags, environment variables and a TOML file.

Each collects its values and errors under the names that the user wrote, so that all errors are reported at once in the
user's terms.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from registry_server.config.addresses import redact
from registry_server.config.settings import Settings

SettingPath = tuple[str, ...]
"""Field names that lead to a setting, such as ``("grpc", "address")``."""

_ENVIRONMENT_PREFIX = "OSSA_REGISTRY_"
CONFIG_FLAG = "--config"
CONFIG_VARIABLE = f"{_ENVIRONMENT_PREFIX}CONFIG"
CLIENT_VARIABLES = frozenset(
    _ENVIRONMENT_PREFIX + name
    for name in ("TARGET", "TIMEOUT", "TOKEN", "TOKEN_FILE", "USE_TLS", "CA_FILE", "CERT_FILE", "KEY_FILE")
)
"""Variables of the command line client. They are not settings, but may be set in the same environment."""

_SERVICE_LINK = re.compile(r"_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, with its name in each source."""

    path: SettingPath
    field: FieldInfo

    @property
    def key(self) -> str:
        """Key in a TOML file, also the name of a setting that was not given: ``grpc.address``."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """Flag on the command line: ``--grpc.address``."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """Environment variable: ``OSSA_REGISTRY_GRPC__ADDRESS``."""
        return _ENVIRONMENT_PREFIX + "__".join(self.path).upper()


def all_settings(model: type[BaseModel] = Settings, path: SettingPath = ()) -> Iterator[Setting]:
    """Yield the settings of a model in the order of its fields."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from all_settings(info.annotation, (*path, name))
        else:
            yield Setting((*path, name), info)


SETTINGS = tuple(all_settings())


class Given(NamedTuple):
    """A value and the name that the user wrote, for error messages."""

    value: object
    name: str


@dataclass
class Source:
    """Contents of one source: the values, and the errors in their names."""

    given: dict[SettingPath, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    config_file: Given | None = None
    """The TOML file that the source names."""


def read_flags(args: Sequence[str]) -> Source:
    """Read the command line: ``--name VALUE`` or ``--name=VALUE``. The last of several equal flags wins.

    A boolean flag without a value means true.
    """
    source = Source()
    known = {setting.flag: setting for setting in SETTINGS}
    rest = list(args)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("-"):
            source.problems.append(f"{_shown(name + equals + value)}: unexpected argument")
            continue
        if not equals and rest and not rest[0].startswith("--"):
            equals, value = "=", rest.pop(0)
        setting = known.get(name)
        if setting is None and name != CONFIG_FLAG:
            source.problems.append(f"{_shown(name)}: unknown flag{_suggest(name, (*known, CONFIG_FLAG), '--')}")
        elif not equals and (setting is None or setting.field.annotation is not bool):
            source.problems.append(f"{name}: needs a value")
        elif setting is None:
            source.config_file = Given(value, name)
        else:
            source.given[setting.path] = Given(value if equals else "true", name)
    return source


def read_environment(environ: Mapping[str, str]) -> Source:
    """Read the variables that start with ``OSSA_REGISTRY_``."""
    source = Source()
    known = {setting.variable: setting for setting in SETTINGS}
    for name, value in environ.items():
        if name == CONFIG_VARIABLE:
            source.config_file = Given(value, name)
        elif name in known:
            source.given[known[name].path] = Given(value, name)
        elif (
            name.startswith(_ENVIRONMENT_PREFIX)
            and name not in CLIENT_VARIABLES
            and not _is_service_link(name, environ)
        ):
            suggestion = _suggest(name, (*known, CONFIG_VARIABLE), _ENVIRONMENT_PREFIX)
            source.problems.append(f"{_shown(name)}: unknown variable{suggestion}")
    return source


def read_file(file: Given | None) -> Source:
    """Read a TOML file with one table for each group of settings."""
    source = Source()
    if file is None:
        return source
    path = str(file.value)
    if not path:
        source.problems.append(f"{file.name}: must be the path of a TOML file, not ''")
        return source
    try:
        _read_table(tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8-sig")), (), path, source)
    except (OSError, RuntimeError) as error:  # RuntimeError: '~' of an unknown user
        reason = error.strerror if isinstance(error, OSError) else error
        source.problems.append(f"{file.name}: cannot read {path!r}: {reason}")
    except UnicodeDecodeError as error:
        source.problems.append(f"{file.name}: {path!r} is not UTF-8 text: {error.reason} at byte {error.start}")
    except tomllib.TOMLDecodeError as error:
        source.problems.append(f"{file.name}: {path!r} is not a TOML file: {error}")
    return source


def _read_table(table: Mapping[str, object], path: SettingPath, file: str, source: Source) -> None:
    settings = [setting.path for setting in SETTINGS]
    for key, value in table.items():
        here = (*path, key)
        name = f"{'.'.join(map(_toml_key, here))} in {file}"
        if here in settings:
            source.given[here] = Given(value, name)
        elif not any(setting[: len(here)] == here for setting in settings):
            # Includes groups, for a table whose name is misspelt.
            known = {".".join(setting[:depth]) for setting in settings for depth in (len(here), len(setting))}
            source.problems.append(f"{name}: unknown setting{_suggest('.'.join(here), sorted(known))}")
        elif isinstance(value, dict):
            _read_table(value, here, file, source)
        else:
            source.problems.append(f"{name}: must be a table")


def _suggest(name: str, known: Sequence[str], prefix: str = "") -> str:
    # A common prefix would make all names similar.
    wanted = name.removeprefix(prefix).casefold()
    by_rest = {candidate.removeprefix(prefix).casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(wanted, by_rest, n=1, cutoff=0.7)
    return f"; did you mean {by_rest[close[0]]}?" if close else ""


def _is_service_link(name: str, environ: Mapping[str, str]) -> bool:
    """Return whether Kubernetes set the variable for one of its Services.

    A Service whose name starts with ``ossa-registry`` adds variables such as ``OSSA_REGISTRY_SERVICE_HOST`` and
    ``OSSA_REGISTRY_PORT_50051_TCP_ADDR`` to every pod of its namespace
    (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables). They are not settings.
    """
    services = (host.removesuffix("_SERVICE_HOST") for host in environ if host.endswith("_SERVICE_HOST"))
    return any(
        f"{service}_SERVICE_PORT" in environ and _SERVICE_LINK.fullmatch(name.removeprefix(service))
        for service in services
    )


def _toml_key(part: str) -> str:
    return part if _BARE_KEY.fullmatch(part) else redact(json.dumps(part))


def _shown(text: str) -> str:
    return redact(text if text.isprintable() else repr(text))
