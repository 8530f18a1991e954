"""``Record``: a registered service as the catalog holds it."""

import sys
from typing import Final

from ossa.registry.v1.service_pb2 import Service
from registry_server.model.wire import bytes_field

SEPARATOR: Final = "\0"
"""Stands between the parts of a compound term; no validated text contains it."""


def capability_term(name: str) -> str:
    """Term of services that have this capability."""
    return "c:" + name


def capability_version_term(name: str, version: str) -> str:
    """Term of services that have this capability in exactly this version."""
    return f"k:{name}{SEPARATOR}{version}"


def tag_term(tag: str) -> str:
    """Term of services with this tag."""
    return "t:" + tag


def environment_term(environment: str) -> str:
    """Term of services in this environment."""
    return "e:" + environment


def group_term(group: str) -> str:
    """Term of the services of this group."""
    return "g:" + group


def version_term(version: str) -> str:
    """Term of services of exactly this version."""
    return "v:" + version


def health_term(status: int) -> str:
    """Term of services with this ``HealthStatus``."""
    return f"h:{status}"


def label_term(key: str, value: str) -> str:
    """Term of services with this label."""
    return f"l:{key}={value}"


class Record:
    """One service at one revision: its wire bytes, framed for answers, and its index terms. Never changed once made.

    The message itself is not kept: parsed it takes several times the memory of its bytes, and parsing again takes about
    5 µs where it is needed.
    """

    __slots__ = ("framed", "name", "revision", "status", "terms")

    framed: bytes
    """The service as field 1 (tag, length, bytes), like in ``GetServiceResponse`` and ``DiscoverServicesResponse``."""
    name: str
    revision: int
    status: int
    """``HealthStatus``."""
    terms: tuple[str, ...]
    """Index terms, each once, interned: equal terms of many records are one object."""

    def __init__(self, wire: bytes) -> None:
        """Reads a record.

        Args:
            wire: A serialised ``Service``, complete and valid, revision included.

        Raises:
            google.protobuf.message.DecodeError: ``wire`` is not a ``Service``.
        """
        service = Service.FromString(wire)
        self.framed = bytes_field(1, wire)
        self.name = sys.intern(service.name)
        self.revision = service.revision
        self.status = service.health.status
        self.terms = _terms(service)

    @property
    def wire(self) -> bytes:
        """The serialised ``Service``."""
        start = 2
        while self.framed[start - 1] & 0x80:
            start += 1
        return self.framed[start:]

    def framed_as(self, tag: bytes) -> bytes:
        """The service as another length-delimited field, with that field's one-byte ``tag``."""
        return tag + self.framed[1:]

    def message(self) -> Service:
        """Parses the service: a message of the caller's own."""
        return Service.FromString(self.wire)

    def version(self) -> str:
        """Version of the service."""
        return next(term[2:] for term in self.terms if term.startswith("v:"))

    def capability_versions(self, capability: str) -> list[str]:
        """Versions in which the service has this capability."""
        prefix = capability_version_term(capability, "")
        return [term[len(prefix) :] for term in self.terms if term.startswith(prefix)]

    def __repr__(self) -> str:
        return f"Record({self.name!r}, revision={self.revision})"


def _terms(service: Service) -> tuple[str, ...]:
    metadata = service.metadata
    terms = [
        health_term(service.health.status),
        version_term(service.version),
        group_term(service.group),
        *(tag_term(tag) for tag in metadata.tags),
        *(label_term(key, value) for key, value in metadata.labels.items()),
    ]
    if metadata.environment:
        terms.append(environment_term(metadata.environment))
    for capability in service.capabilities:
        terms.append(capability_term(capability.name))
        terms.append(capability_version_term(capability.name, capability.version))
    return tuple(dict.fromkeys(map(sys.intern, terms)))
