"""Arguments as dictionaries with the keys of OSSA's types, for programs that move over from the TypeScript registry."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from google.protobuf.field_mask_pb2 import FieldMask

from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from registry_server.gateway.bodies import parse_registration, parse_update
from registry_server.gateway.parameters import FILTERS, LABEL, Query

Document: TypeAlias = Mapping[str, Any]
"""JSON values; times may also be ``datetime`` with a time zone."""

_PARAMETERS: Final = {"namePattern": "name", "healthStatus": "health"}
"""Names of query parameters for the members of OSSA's filter that are called otherwise."""


def read_registration(document: Document) -> Service:
    """Return the service of a registration.

    Raises:
        InvalidRequest: The document is not valid.
    """
    return parse_registration(_plain(document))


def read_update(document: Document, name: str) -> tuple[Service, FieldMask]:
    """Return the service and the mask of an update: each member is replaced, ``None`` clears it.

    Raises:
        InvalidRequest: The document is not valid.
    """
    return parse_update(_plain(document), name)


def read_filter(document: Document) -> ServiceFilter:
    """Return the filter; a member that is ``None`` is ignored.

    Raises:
        InvalidRequest: The document is not valid.
    """
    parameters: dict[str, str] = {}
    for key, value in document.items():
        if key == "labels" and isinstance(value, Mapping):
            parameters |= {f"{LABEL}{label}": str(text) for label, text in value.items()}
        elif isinstance(value, bool):
            parameters[key] = str(value).lower()
        elif value is not None and value != []:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            parameters[_PARAMETERS.get(key, key)] = text
    query = Query(parameters, FILTERS, labels=True)
    filter_ = query.filter()
    query.check()
    return filter_


def _plain(document: Document) -> Any:
    return json.loads(json.dumps(dict(document), default=_time_text))


def _time_text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
