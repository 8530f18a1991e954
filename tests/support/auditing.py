"""Access to the audit log of registries that run in this process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from registry_server.instrumentation.audit import FIELDS, LOGGER


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})


@contextmanager
def audit_lines() -> Iterator[list[dict[str, Any]]]:
    """Collect the fields of every audit record within the block."""
    audit, collector = logging.getLogger(LOGGER), _Collector()
    level = audit.level
    audit.addHandler(collector)
    audit.setLevel(logging.INFO)
    try:
        yield collector.lines
    finally:
        audit.removeHandler(collector)
        audit.setLevel(level)
