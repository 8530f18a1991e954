"""Log configuration: one format for the registry's lines and those of libraries."""

import asyncio
import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import structlog

from registry_server.config import LogSettings
from registry_server.errors import ConfigurationError
from registry_server.instrumentation.audit import Audit, batch_log_lines
from registry_server.instrumentation.logs import configure_logging

ESCAPE = "\x1b["


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def captured_logs(settings: LogSettings, stream: io.StringIO | None = None) -> Iterator[io.StringIO]:
    """Configure logging for a block, then restore the configuration of pytest."""
    stream = stream or io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # configure_logging() closes the handlers that it replaces
    try:
        with redirect_stderr(stream):
            configure_logging(settings.level, settings.format, settings.audit)
            yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("audit").propagate = True
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail(secret: str) -> None:
    raise ValueError("inner" if secret else "")


def test_json_line_starts_with_time_level_logger_and_event() -> None:
    with captured_logs(LogSettings(format="json")) as stream:
        structlog.get_logger("registry.test").warning("lease expired", service="a", count=2)
    (line,) = parsed(stream)
    assert list(line) == ["timestamp", "level", "logger", "event", "service", "count"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {
        "level": "warning",
        "logger": "registry.test",
        "event": "lease expired",
        "service": "a",
        "count": 2,
    }


@pytest.mark.parametrize("name", ["grpc._cython.cygrpc", "aiohttp.access", "asyncio", "redis"])
def test_lines_of_libraries_have_the_same_format(name: str) -> None:
    with captured_logs(LogSettings(format="json")) as stream:
        logging.getLogger(name).error("lost %s\nof %d", "one", 2, extra={"peer": "h:1"})
    (line,) = parsed(stream)
    assert list(line) == ["timestamp", "level", "logger", "event", "peer"]
    assert (line["level"], line["logger"], line["event"], line["peer"]) == ("error", name, "lost one\nof 2", "h:1")


def test_python_warnings_are_logged() -> None:
    with captured_logs(LogSettings(format="json")) as stream, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = parsed(stream)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "DeprecationWarning: old" in line["event"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_only_lines_at_or_above_the_level_are_written(level: str, expected: list[str]) -> None:
    with captured_logs(LogSettings.model_validate({"level": level, "format": "json"})) as stream:
        for log in (structlog.get_logger("ours"), logging.getLogger("theirs")):
            for method in ("debug", "info", "warning", "error"):
                getattr(log, method)("x")
    got = [(line["logger"], line["level"]) for line in parsed(stream)]
    assert got == [("ours", name) for name in expected] + [("theirs", name) for name in expected]


def test_exception_is_structured_without_local_variables() -> None:
    with captured_logs(LogSettings(format="json")) as stream:
        for log in (structlog.get_logger("ours"), logging.getLogger("theirs")):
            try:
                try:
                    fail("hunter2")
                except ValueError as error:
                    raise RuntimeError("outer") from error
            except RuntimeError:
                log.exception("failed")
    assert "hunter2" not in stream.getvalue()
    lines = parsed(stream)
    assert [line["logger"] for line in lines] == ["ours", "theirs"]
    for line in lines:
        assert line["level"] == "error"
        outer, inner = line["exception"]
        assert (outer["exc_type"], outer["exc_value"]) == ("RuntimeError", "outer")
        assert (inner["exc_type"], inner["exc_value"]) == ("ValueError", "inner")
        assert inner["frames"][-1]["name"] == "fail"


def test_value_that_json_cannot_represent_is_written_as_text() -> None:
    with captured_logs(LogSettings(format="json")) as stream:
        structlog.get_logger("x").info("odd", value={1j}, text="é\udc80\n")
    (line,) = parsed(stream)
    assert (line["value"], line["text"]) == ("{1j}", "é\udc80\n")
    assert stream.getvalue().isascii()


def test_bound_context_is_in_every_line() -> None:
    with captured_logs(LogSettings(format="json")) as stream, structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("ours").info("x")
        logging.getLogger("theirs").info("x")
    assert [line["request_id"] for line in parsed(stream)] == ["r1", "r1"]


def test_configuring_again_replaces_the_configuration() -> None:
    with captured_logs(LogSettings(format="console")) as stream:
        configure_logging("info", "json")
        logging.getLogger("x").info("once")
    assert [line["event"] for line in parsed(stream)] == ["once"]


@pytest.mark.parametrize(
    ("format_", "stream", "no_color", "is_json", "has_color"),
    [
        ("auto", io.StringIO, "", True, False),
        ("auto", Terminal, "", False, True),
        ("auto", Terminal, "1", False, False),
        ("json", Terminal, "", True, False),
        ("console", Terminal, "", False, True),
        ("console", Terminal, "1", False, False),
        ("console", io.StringIO, "", False, False),
    ],
)
def test_format_and_colours_follow_the_terminal(
    format_: str,
    stream: type[io.StringIO],
    no_color: str,
    is_json: bool,  # noqa: FBT001 - a column of the table
    has_color: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    with captured_logs(LogSettings.model_validate({"format": format_}), stream()) as written:
        structlog.get_logger("registry.test").info("started", port=1)
    text = written.getvalue()
    assert text.startswith("{") == is_json
    assert (ESCAPE in text) == has_color
    assert "started" in text


def test_console_shows_tracebacks_without_local_variables() -> None:
    with captured_logs(LogSettings(format="console")) as stream:
        try:
            fail("hunter2"[:])
        except ValueError:
            structlog.get_logger("x").exception("failed")
    text = stream.getvalue()
    assert "ValueError: inner" in text
    assert text.count("hunter2") == 1, "only the source line"
    assert ESCAPE not in text


def test_nothing_is_written_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with captured_logs(LogSettings(format="json")):
        structlog.get_logger("x").info("y")
        sys.stderr.flush()
    assert capsys.readouterr().out == ""


def test_text_from_clients_cannot_add_lines_or_colours_to_the_console() -> None:
    with captured_logs(LogSettings(format="console")) as stream:
        structlog.get_logger("registry.test").info("refused", name="a\nb\x1b[31m\u2028\x9b", count=2)
    (line,) = stream.getvalue().splitlines()
    assert r"a\nb\x1b[31m\u2028\x9b" in line
    assert ESCAPE not in line


def test_audit_is_complete_at_every_log_level() -> None:
    with captured_logs(LogSettings(format="json", level="error")) as stream:
        structlog.get_logger("registry.test").info("suppressed")
        Audit().record_removals("cleanup", ["a"])
    (line,) = parsed(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert list(line.items()) == [
        *(("level", "info"), ("logger", "audit"), ("event", "change"), ("operation", "cleanup"), ("service", "a")),
        *(("outcome", "ok"), ("identity", "anonymous"), ("revision_before", None), ("revision_after", None)),
    ]


def test_name_cannot_add_lines_or_colours_to_the_audit() -> None:
    with captured_logs(LogSettings(format="console")) as stream:
        Audit().record_removals("cleanup", ["a\nb\x1b[31m"])
    (line,) = stream.getvalue().splitlines()
    assert r"a\nb\x1b[31m" in line
    assert ESCAPE not in line


def test_logger_at_warning_level_receives_no_audit(caplog: pytest.LogCaptureFixture) -> None:
    audit = logging.getLogger("audit")
    level = audit.level
    try:
        for wanted, lines in ((logging.WARNING, 0), (logging.INFO, 1)):
            audit.setLevel(wanted)
            Audit().record_removals("cleanup", ["a"])
            assert len(caplog.records) == lines
    finally:
        audit.setLevel(level)


def test_audit_file_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"log\.audit: cannot write to .*: No such file or directory"),
        captured_logs(LogSettings(audit=str(tmp_path / "nowhere" / "audit.log"))),
    ):
        pass


async def test_batched_lines_are_written_in_one_call_and_in_order() -> None:
    class Counting(Terminal):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            return super().write(text)

    stream = Counting()
    log = logging.getLogger("audit")
    with captured_logs(LogSettings(format="json"), stream):
        with batch_log_lines():
            for i in range(100):
                log.info(str(i))
            assert not stream.getvalue()
            await asyncio.sleep(0)
            assert stream.writes == 1
            log.info("100")
        log.info("101")
        assert stream.writes == 2
        with batch_log_lines():
            await asyncio.to_thread(log.info, "102")
            assert stream.writes == 3
            log.info("103")
        logging.getLogger().handlers[0].close()  # as at the end of the process
    assert [line["event"] for line in parsed(stream)] == [str(i) for i in range(104)]


def test_audit_line_with_unicode_line_breaks_is_ascii() -> None:
    with captured_logs(LogSettings(format="json")) as stream:
        Audit().record_removals("expire", ["a\u2028b", "c\x85d", "\udc80"])
    assert stream.getvalue().isascii()
    assert [line["service"] for line in parsed(stream)] == ["a\u2028b", "c\x85d", "\udc80"]
