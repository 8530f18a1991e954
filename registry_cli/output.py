"""Output of the commands: tables for people, JSON and YAML for programs."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import click

from registry_cli.exits import Failure
from registry_cli.text import column_width, cut, escape, escape_json

Format = Literal["table", "wide", "json", "yaml", "name"]

_STATUS_COLORS: Final = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "red",
    "unknown": "bright_black",
    "maintenance": "blue",
}
_COLUMN_GAP: Final = 3
_MIN_CUT_COLUMNS: Final = 8
"""Columns that remain of a cell that is cut to fit the terminal; narrower columns are not cut."""
_YAML_WIDTH: Final = 1_000_000
"""Large enough to prevent line breaks within values."""
_EMPTY_CELL: Final = "-"
_AGE_UNITS: Final = ((365 * 86_400, "y"), (86_400, "d"), (3_600, "h"), (60, "m"))


class Cell(NamedTuple):
    """A table cell."""

    text: str
    color: str | None = None


class Output:
    """Prints results to standard output, and notices and errors to standard error.

    Args:
        format: Format of the results.
        color: Whether tables have colours; None = if standard output is a terminal and ``NO_COLOR`` is not set.
        quiet: Whether to suppress notices. Results and errors are always printed.
    """

    def __init__(self, format: Format, *, color: bool | None, quiet: bool) -> None:  # noqa: A002 - the name of the flag
        self.format = format
        self.quiet = quiet
        self.color = _color_by_default() if color is None else color

    @property
    def is_table(self) -> bool:
        """Whether the format is for people."""
        return self.format in {"table", "wide"}

    @property
    def wide(self) -> bool:
        """Whether to print all columns."""
        return self.format == "wide"

    def print_document(self, value: Any) -> None:
        """Print one JSON or YAML document."""
        self._print(escape_json(_json(value, indent=2)) if self.format == "json" else yaml_text(value).rstrip("\n"))

    def print_documents(self, values: Sequence[Any], *, single: bool) -> None:
        """Print an array or, if ``single``, only its item; nothing if it then has none."""
        if not single:
            self.print_document(list(values))
        elif values:
            self.print_document(values[0])

    def print_record(self, value: Any) -> None:
        """Print one document of a stream: a line of JSON, or a YAML document."""
        self._print(escape_json(_json(value)) if self.format == "json" else f"---\n{yaml_text(value)}".rstrip("\n"))

    def print_lines(self, lines: Iterable[str]) -> None:
        """Print lines."""
        for line in lines:
            self.print_line(line)

    def print_table(self, headers: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> None:
        """Print a table without borders. Columns are as wide as their longest cell, or narrower to fit a terminal."""
        self.print_rows([[Cell(header, "bold") for header in headers], *rows])

    def print_rows(self, rows: Iterable[Sequence[str | Cell]]) -> None:
        """Print rows without headers, such as names and values, with the widths of ``print_table``."""
        cells = [[_cell(value) for value in row] for row in rows]
        widths = [max(column_width(cell.text) for cell in column) for column in zip(*cells, strict=True)]
        widths = fit_columns(widths, self._columns)
        for row in cells:
            fitting = [cell._replace(text=cut(cell.text, width)) for cell, width in zip(row, widths, strict=True)]
            self._print(self._format_row(fitting, [width + _COLUMN_GAP for width in widths]))

    def print_row(self, cells: Sequence[tuple[str | Cell, int]]) -> None:
        """Print one row of a table with fixed column widths, for tables of unknown length."""
        self._print(
            self._format_row([_cell(value) for value, _ in cells], [columns + _COLUMN_GAP for _, columns in cells])
        )

    def print_line(self, text: str) -> None:
        """Print a line."""
        self._print(escape(text))

    def print_notice(self, text: str) -> None:
        """Print an informational message to standard error, unless ``quiet`` is set."""
        if not self.quiet:
            self.print_error(text)

    def print_error(self, text: str) -> None:
        """Print an error to standard error; the command continues."""
        Failure(text).show()

    @property
    def _columns(self) -> int | None:
        """Width of the terminal; None where nothing may be cut: in ``wide``, in files and in pipes."""
        return None if self.wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns

    def _format_row(self, cells: Sequence[Cell], widths: Sequence[int]) -> str:
        row, used, limit = "", 0, self._columns
        for cell, columns in zip(cells, widths, strict=True):
            shown = cell if limit is None else cell._replace(text=cut(cell.text, limit - used))
            padding = max(columns - column_width(shown.text), 1)
            row += self._style(shown) + " " * padding
            used += column_width(shown.text) + padding
        return row.rstrip()

    def _style(self, cell: Cell) -> str:
        if not self.color or cell.color is None:
            return cell.text
        return click.style(cell.text, bold=True) if cell.color == "bold" else click.style(cell.text, fg=cell.color)

    def _print(self, text: str) -> None:
        click.echo(text, color=self.color)


def fit_columns(widths: Sequence[int], limit: int | None) -> list[int]:
    """Return the widths of columns with which a table fits ``limit``: the widest are reduced, the first one last."""
    fitting = list(widths)
    excess = 0 if limit is None else sum(widths) + _COLUMN_GAP * (len(widths) - 1) - limit
    for candidates in (range(1, len(fitting)), range(1)):
        while excess > 0 and (widest := max(candidates, key=fitting.__getitem__, default=-1)) >= 0:
            if fitting[widest] <= _MIN_CUT_COLUMNS:
                break
            fitting[widest] -= 1
            excess -= 1
    return fitting


def status_cell(status: str) -> Cell:
    """Return a cell with a status in its colour."""
    return Cell(status, _STATUS_COLORS.get(status))


def format_age(since: datetime, now: datetime | None = None) -> str:
    """Return the time since a moment in one or two units: ``12s``, ``5m``, ``3h20m``, ``12d``."""
    seconds = max(0, int(((now or datetime.now(UTC)) - since).total_seconds()))
    for index, (size, unit) in enumerate(_AGE_UNITS):
        if seconds >= size:
            next_size, next_unit = _AGE_UNITS[index + 1] if index + 1 < len(_AGE_UNITS) else (1, "s")
            remainder = seconds % size // next_size
            return f"{seconds // size}{unit}" + (f"{remainder}{next_unit}" if remainder and seconds < 10 * size else "")
    return f"{seconds}s"


def shorten_list(items: Sequence[str], limit: int) -> str:
    """Return the first items and the number of the others, such as ``a,b +3``; a ``limit`` of 0 returns all."""
    if not limit or len(items) <= limit:
        return ",".join(items)
    return f"{','.join(items[:limit])} +{len(items) - limit}"


def _cell(value: str | Cell) -> Cell:
    cell = value if isinstance(value, Cell) else Cell(value)
    return cell._replace(text=escape(cell.text) or _EMPTY_CELL)


def _json(value: Any, indent: int | None = None) -> str:
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(value, ensure_ascii=not _stdout_is_utf8(), indent=indent, separators=separators)


def yaml_text(value: Any) -> str:
    """Return a value as YAML without unprintable characters."""
    import yaml  # noqa: PLC0415 - costs 20 ms and is not needed for tables

    # PyYAML escapes only characters that YAML cannot contain; bidirectional control characters are not among them.
    safe = _stdout_is_utf8() and all(map(str.isprintable, _texts(value)))
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, but missing in some builds
    text: str = yaml.dump(value, Dumper=dumper, allow_unicode=safe, sort_keys=False, width=_YAML_WIDTH)
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


def _stdout_is_utf8() -> bool:
    """Return whether standard output can encode all characters; otherwise JSON and YAML use their own escapes."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _color_by_default() -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty() or os.environ.get("FORCE_COLOR", "0") not in {"", "0"}
