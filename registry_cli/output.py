"""What commands print: tables for people, JSON and YAML for programs."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import click

from registry_cli.text import plain, plain_json, width

Format = Literal["table", "wide", "json", "yaml", "name"]

_COLORS: Final = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "red",
    "unknown": "bright_black",
    "maintenance": "blue",
}
_GAP: Final = 3
_NO_WRAPPING: Final = 1_000_000
_NONE: Final = "-"
_AGES: Final = ((365 * 86_400, "y"), (86_400, "d"), (3_600, "h"), (60, "m"))
_TWO: Final = 2


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    color: str | None = None


class Output:
    """Where a command prints to.

    Args:
        format: How results are shown.
        color: Whether tables have colours; None = if a person looks at a terminal and ``NO_COLOR`` is not set.
        quiet: Whether remarks are left out. Results and errors are told all the same.
    """

    def __init__(self, format: Format, *, color: bool | None, quiet: bool) -> None:  # noqa: A002 - the flag's name
        self.format = format
        self.quiet = quiet
        self.color = _wants_color() if color is None else color

    @property
    def is_table(self) -> bool:
        """Whether people read it."""
        return self.format in {"table", "wide"}

    @property
    def wide(self) -> bool:
        """Whether tables have all columns."""
        return self.format == "wide"

    def data(self, value: Any) -> None:
        """Prints one document of JSON or YAML."""
        self._print(plain_json(_json(value, indent=2)) if self.format == "json" else yaml_text(value).rstrip("\n"))

    def record(self, value: Any) -> None:
        """Prints one of a stream of documents: a line of JSON, or a document of YAML."""
        self._print(plain_json(_json(value)) if self.format == "json" else f"---\n{yaml_text(value)}".rstrip("\n"))

    def names(self, names: Iterable[str]) -> None:
        """Prints names, one a line."""
        for name in names:
            self.line(name)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> None:
        """Prints a table without lines, whose columns are as wide as what is in them."""
        cells = [[_cell(value) for value in row] for row in rows]
        widths = [
            max(map(width, (header, *(row[at].text for row in cells)))) + _GAP for at, header in enumerate(headers)
        ]
        self._print(self._row([Cell(header, "bold") for header in headers], widths))
        for row in cells:
            self._print(self._row(row, widths))

    def facts(self, facts: Iterable[tuple[str, str | Cell]]) -> None:
        """Prints names and values, one a line."""
        known = [(name, _cell(value)) for name, value in facts]
        widths = [max(width(name) for name, _ in known) + _GAP, 0]
        for name, value in known:
            self._print(self._row([Cell(name), value], widths))

    def columns(self, cells: Sequence[tuple[str | Cell, int]]) -> None:
        """Prints one line of a table whose end is not known, with widths that are given."""
        self._print(self._row([_cell(value) for value, _ in cells], [columns + _GAP for _, columns in cells]))

    def line(self, text: str) -> None:
        """Prints a line."""
        self._print(plain(text))

    def remark(self, text: str) -> None:
        """Tells something beside the result, on standard error, unless it is to be quiet."""
        if not self.quiet:
            self.error(text)

    def error(self, text: str) -> None:
        """Tells on standard error what went wrong; the command goes on."""
        for line in text.splitlines():
            click.echo(f"ossa-registry: {plain(line)}", err=True)

    def _row(self, cells: Sequence[Cell], widths: Sequence[int]) -> str:
        return "".join(
            self._painted(cell) + " " * max(columns - width(cell.text), 1)
            for cell, columns in zip(cells, widths, strict=True)
        ).rstrip()

    def _painted(self, cell: Cell) -> str:
        if not self.color or cell.color is None:
            return cell.text
        return click.style(cell.text, bold=True) if cell.color == "bold" else click.style(cell.text, fg=cell.color)

    def _print(self, text: str) -> None:
        click.echo(text, color=self.color)


def status(word: str) -> Cell:
    """A status in its colour."""
    return Cell(word, _COLORS.get(word))


def age(since: datetime, now: datetime | None = None) -> str:
    """How long ago something was, in one or two units: ``12s``, ``5m``, ``3h20m``, ``12d``."""
    seconds = max(0, int(((now or datetime.now(UTC)) - since).total_seconds()))
    for at, (size, unit) in enumerate(_AGES):
        if seconds >= size:
            rest = _AGES[at + 1] if at + 1 < len(_AGES) else (1, "s")
            more = seconds % size // rest[0]
            return f"{seconds // size}{unit}" + (f"{more}{rest[1]}" if more and seconds < 10 * size else "")
    return f"{seconds}s"


def several(items: Sequence[str], shown: int) -> str:
    """The first items, and how many more there are; all with ``shown`` 0."""
    if not shown or len(items) <= shown:
        return ",".join(items)
    return f"{','.join(items[:shown])} +{len(items) - shown}"


def _cell(value: str | Cell) -> Cell:
    cell = value if isinstance(value, Cell) else Cell(value)
    return cell._replace(text=plain(cell.text) or _NONE)


def _json(value: Any, indent: int | None = None) -> str:
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(value, ensure_ascii=not _speaks_unicode(), indent=indent, separators=separators)


def yaml_text(value: Any) -> str:
    """YAML that reads back as the value and sends nothing to a terminal that is not printed as itself."""
    import yaml  # noqa: PLC0415 - 20 ms, and tables do not need it

    # YAML escapes only what it cannot hold; marks that change the direction of writing it can.
    safe = _speaks_unicode() and all(map(str.isprintable, _texts(value)))
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, where the build has it
    text: str = yaml.dump(value, Dumper=dumper, allow_unicode=safe, sort_keys=False, width=_NO_WRAPPING)
    return text


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _speaks_unicode() -> bool:
    """Whether all characters can be printed as they are; JSON and YAML have escapes of their own for the others."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _wants_color() -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty() or os.environ.get("FORCE_COLOR", "0") not in {"", "0"}
