"""Write the tables of the documents that follow from the protos and the code: ``make docs``.

A table is between ``<!-- table: NAME -->`` and ``<!-- end -->``; ``TABLES`` has a function for each name.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from registry_server.gateway.routes import ROUTES
from registry_server.rpc.builtin import HEALTH_SERVICE, REFLECTION_NAMES, REFLECTION_SERVICE, HealthRpc, ReflectionRpc
from registry_server.rpc.methods import declarations
from registry_server.rpc.service import RPCS
from registry_server.security.identity import Role
from registry_server.security.permissions import Permission

ROOT: Final = Path(__file__).resolve().parents[1]
DOCUMENTS: Final = tuple(ROOT / "docs" / name for name in ("reference/api.md", "grpcurl.md", "security.md"))
"""The documents with such tables."""

_PROTOS: Final = ROOT / "protos" / "ossa" / "registry" / "v1"
_RPC: Final = re.compile(r"((?:  // .*\n)+)  rpc (\w+)\(")
_FIELD: Final = re.compile(r"((?:  // .*\n)+)  .* (\w+) = [0-9]+;")
_TABLE: Final = re.compile(r"(?<=^<!-- table: )(\w+)( -->\n\n).*?(?=\n<!-- end -->$)", re.MULTILINE | re.DOTALL)
_OTHER_RPCS: Final = {
    f"{full_name}/{name}": declared
    for full_name, service, servicer in (
        (HEALTH_SERVICE.full_name, HEALTH_SERVICE, HealthRpc),
        *((full_name, REFLECTION_SERVICE, ReflectionRpc) for full_name in REFLECTION_NAMES),
    )
    for name, declared in declarations(service, servicer, complete=False).items()
}
_CREATED: Final = ("POST", "/api/v1/registry/services")
"""The route that answers with 201 instead of 200."""


def main() -> None:
    """Update the tables of all documents."""
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """Return a document with the current content of its tables."""
    return _TABLE.sub(lambda match: match[1] + match[2] + "\n".join(TABLES[match[1]]()) + "\n", text)


def rpcs() -> Iterator[str]:
    """Yield the table of all RPCs."""
    yield from _head("RPC", "What it does")
    yield from _commented(_RPC, (_PROTOS / "registry_service.proto").read_text(encoding="utf-8"))


def filters() -> Iterator[str]:
    """Yield the table of the fields of a filter."""
    yield from _head("Field", "Condition")
    _, _, fields = (_PROTOS / "service.proto").read_text(encoding="utf-8").partition("message ServiceFilter {\n")
    yield from _commented(_FIELD, fields.partition("\n}")[0])


def permissions() -> Iterator[str]:
    """Yield the table of the answers of each call to each kind of caller."""
    yield from _head(
        "Call",
        "no credential",
        "bad credential",
        "viewer",
        "agent, own service",
        "agent, another's",
        "operator",
        "admin",
    )
    for rpc, declared in {**RPCS, **_OTHER_RPCS}.items():
        yield _row(f"`{rpc}`", *_answers(declared.permission, "OK", "UNAUTHENTICATED", "PERMISSION_DENIED"))
    for route in ROUTES:
        success = "201" if (route.method, route.path) == _CREATED else "200"
        yield _row(f"`{route.method} {route.path}`", *_answers(route.permission, success, "401", "403"))


TABLES: Final[Mapping[str, Callable[[], Iterator[str]]]] = {
    "rpcs": rpcs,
    "filters": filters,
    "permissions": permissions,
}


def _commented(definition: re.Pattern[str], proto: str) -> Iterator[str]:
    """Yield a row for each definition in a proto file: its name and its comment, up to the errors."""
    for comment, name in definition.findall(proto):
        text, _, _ = re.sub(r"\s*// ", " ", comment).partition(" Errors: ")
        yield _row(f"`{name}`", text.strip().replace("|", "\\|"))


def _answers(permission: Permission, success: str, unauthenticated: str, denied: str) -> Sequence[str]:
    """Return the answers to the callers of the table, in the order of its columns."""
    without = f"{success} / {unauthenticated}" if permission.part else unauthenticated
    own = success if permission.min_role <= Role.AGENT else denied
    others = denied if permission.min_role is Role.AGENT else own
    viewer = success if permission.min_role is Role.VIEWER else denied
    return without, without, viewer, own, others, success, success


def _head(*titles: str) -> tuple[str, str]:
    return _row(*titles), "|" + "---|" * len(titles)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
