"""``ETag``, ``If-Match`` and ``If-None-Match`` (RFC 9110, 8.8.3 and 13.1): a service's tag is its revision."""

import re
from typing import Final

from aiohttp import web

from ossa_common.violations import Violation
from registry_server.errors import InvalidRequest, RevisionMismatch
from registry_server.registry import ServiceRegistry

_TAG: Final = re.compile(r'(?P<weak>W/)?"(?P<opaque>[\x21\x23-\x7e\x80-\uffff]*)"')
_LIST: Final = re.compile(rf"\s*(?:{_TAG.pattern}\s*(?:,\s*|$))+".replace("?P<weak>", "").replace("?P<opaque>", ""))
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")


def etag(revision: int) -> str:
    """Return the tag of a revision."""
    return f'"{revision}"'


async def expected_revision(request: web.BaseRequest, registry: ServiceRegistry, name: str) -> int:
    """Return the revision that ``If-Match`` requires; 0 = any.

    Args:
        request: The request.
        registry: Used to find the current revision among several tags.
        name: Name of the service.

    Raises:
        InvalidRequest: The header is not a list of tags.
        RevisionMismatch: None of the tags is the current one.
        ServiceNotFound: The service is not registered.
    """
    header = _header(request, "If-Match")
    if header is None or header.strip() == "*":
        return 0
    # Weak tags never match (RFC 9110, 13.1.1), nor do tags that are not revisions.
    revisions = [int(opaque) for weak, opaque in _tags(header, "If-Match") if not weak and _NUMBER.fullmatch(opaque)]
    if len(revisions) == 1:
        return revisions[0]
    current = (await registry.get(name)).revision
    if current in revisions:
        return current
    raise RevisionMismatch(name, max(revisions, default=0), current)


def is_current(request: web.BaseRequest, revision: int) -> bool:
    """Return whether ``If-None-Match`` names this revision: the client already has it.

    Raises:
        InvalidRequest: The header is not a list of tags.
    """
    header = _header(request, "If-None-Match")
    if header is None:
        return False
    return header.strip() == "*" or any(opaque == str(revision) for _, opaque in _tags(header, "If-None-Match"))


def _header(request: web.BaseRequest, name: str) -> str | None:
    # A repeated header is one list (RFC 9110, 5.3).
    return ", ".join(request.headers.getall(name)) if name in request.headers else None


def _tags(header: str, name: str) -> list[tuple[str, str]]:
    if not _LIST.fullmatch(header):
        raise InvalidRequest([Violation(name, 'is neither * nor a list of entity tags such as "42"')])
    return [(match["weak"] or "", match["opaque"]) for match in _TAG.finditer(header)]
