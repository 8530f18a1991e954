"""The sources of settings: flags, environment variables and a TOML file.

The parsers of pydantic-settings stop at the first error and report it in terms of the model. These sources therefore
parse their input themselves and collect errors under the names that the user wrote. Precedence and validation are left
to pydantic-settings.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from registry_server.config.addresses import redact
from registry_server.config.settings import Settings

SettingPath = tuple[str, ...]
"""Field names that lead to a setting, such as ``("grpc", "address")``."""

CONFIG_FLAG = "--config"
CONFIG_VARIABLE = f"{Settings.model_config['env_prefix']}CONFIG"
CLIENT_VARIABLES = frozenset(
    f"{Settings.model_config['env_prefix']}{name}"
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
        config = Settings.model_config
        return f"{config['env_prefix']}{str(config['env_nested_delimiter']).join(self.path)}".upper()


def all_settings(model: type[BaseModel] = Settings, path: SettingPath = ()) -> Iterator[Setting]:
    """Yield the settings of a model in the order of its fields."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_settings(field.annotation, (*path, name))
        else:
            yield Setting((*path, name), field)


SETTINGS = tuple(all_settings())


class Given(NamedTuple):
    """A value and the name that the user wrote, for error messages."""

    value: object
    name: str


class Source(PydanticBaseSettingsSource):
    """A source of settings: the values it contains, and the errors in their names."""

    def __init__(self) -> None:
        super().__init__(Settings)
        self.given: dict[SettingPath, Given] = {}
        self.problems: list[str] = []

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Raise ``NotImplementedError``: the base class requires this method, but ``__call__`` returns all fields."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Return the values, nested like the model."""
        values: dict[str, Any] = {}
        for path, given in self.given.items():
            group = values
            for name in path[:-1]:
                group = group.setdefault(name, {})
            group[path[-1]] = given.value
        return values


class FlagSource(Source):
    """The command line: ``--name VALUE`` or ``--name=VALUE``. The last of several equal flags wins.

    A boolean flag without a value means true.
    """

    config_file: Given | None = None

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__()
        known = {setting.flag: setting for setting in SETTINGS}
        rest = list(args)
        while rest:
            name, equals, value = rest.pop(0).partition("=")
            if not name.startswith("-"):
                self.problems.append(f"{_shown(name + equals + value)}: unexpected argument")
                continue
            if not equals and rest and not rest[0].startswith("--"):
                equals, value = "=", rest.pop(0)
            setting = known.get(name)
            if setting is None and name != CONFIG_FLAG:
                self.problems.append(f"{_shown(name)}: unknown flag{_suggest(name, (*known, CONFIG_FLAG), '--')}")
            elif not equals and (setting is None or setting.field.annotation is not bool):
                self.problems.append(f"{name}: needs a value")
            elif setting is None:
                self.config_file = Given(value, name)
            else:
                self.given[setting.path] = Given(value if equals else "true", name)


class EnvironmentSource(Source):
    """Variables that start with ``OSSA_REGISTRY_``."""

    config_file: Given | None = None

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__()
        known = {setting.variable: setting for setting in SETTINGS}
        prefix = str(Settings.model_config["env_prefix"])
        for name, value in environ.items():
            if name == CONFIG_VARIABLE:
                self.config_file = Given(value, name)
            elif name in known:
                self.given[known[name].path] = Given(value, name)
            elif name.startswith(prefix) and name not in CLIENT_VARIABLES and not _is_service_link(name, environ):
                suggestion = _suggest(name, (*known, CONFIG_VARIABLE), prefix)
                self.problems.append(f"{_shown(name)}: unknown variable{suggestion}")


class TomlSource(Source):
    """A TOML file with one table for each group of settings."""

    def __init__(self, file: Given | None) -> None:
        super().__init__()
        if file is None:
            return
        self._file = str(file.value)
        if not self._file:
            self.problems.append(f"{file.name}: must be the path of a TOML file, not ''")
            return
        self._known = {setting.path: setting for setting in SETTINGS}
        try:
            self._read(tomllib.loads(Path(self._file).expanduser().read_text(encoding="utf-8")), ())
        except (OSError, RuntimeError) as error:  # RuntimeError: '~' of an unknown user
            reason = error.strerror if isinstance(error, OSError) else error
            self.problems.append(f"{file.name}: cannot read {self._file!r}: {reason}")
        except UnicodeDecodeError as error:
            self.problems.append(f"{file.name}: {self._file!r} is not UTF-8 text: {error.reason} at byte {error.start}")
        except tomllib.TOMLDecodeError as error:
            self.problems.append(f"{file.name}: {self._file!r} is not a TOML file: {error}")

    def _read(self, table: Mapping[str, object], path: SettingPath) -> None:
        for key, value in table.items():
            here = (*path, key)
            name = f"{'.'.join(map(_toml_key, here))} in {self._file}"
            if here in self._known:
                self.given[here] = Given(value, name)
            elif not any(setting[: len(here)] == here for setting in self._known):
                # Includes groups, for a table whose name is misspelt.
                known = {".".join(setting[:depth]) for setting in self._known for depth in (len(here), len(setting))}
                self.problems.append(f"{name}: unknown setting{_suggest('.'.join(here), sorted(known))}")
            elif isinstance(value, dict):
                self._read(value, here)
            else:
                self.problems.append(f"{name}: must be a table")


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
