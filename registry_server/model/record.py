"""``Record``: the form in which the catalog holds a registered service."""

from functools import lru_cache
from typing import Final

from ossa.registry.v1.service_pb2 import Service
from registry_server.model.wire import bytes_field

SEPARATOR: Final = "\0"
"""Separator of the parts of a compound term; validated text never contains it."""
_MAX_SHARED_TEXTS: Final = 16_384
"""Each costs about 250 bytes. A fleet has few terms that many services share; those are used often and stay."""


@lru_cache(_MAX_SHARED_TEXTS)
def shared(text: str) -> str:
    """Return one object for equal texts, so that records share the memory of their terms.

    Not ``sys.intern``: Python 3.12 never frees an interned string, so each new name or tag would leak.
    """
    return text


def capability_term(name: str) -> str:
    """Return the term of services with this capability."""
    return "c:" + name


def capability_version_term(name: str, version: str) -> str:
    """Return the term of services with exactly this version of this capability."""
    return f"k:{name}{SEPARATOR}{version}"


def tag_term(tag: str) -> str:
    """Return the term of services with this tag."""
    return "t:" + tag


def environment_term(environment: str) -> str:
    """Return the term of services in this environment."""
    return "e:" + environment


def group_term(group: str) -> str:
    """Return the term of services in this group."""
    return "g:" + group


def version_term(version: str) -> str:
    """Return the term of services with exactly this version."""
    return "v:" + version


def health_term(status: int) -> str:
    """Return the term of services with this ``HealthStatus``."""
    return f"h:{status}"


def label_term(key: str, value: str) -> str:
    """Return the term of services with this label."""
    return f"l:{key}={value}"


class Record:
    """One service at one revision: its wire bytes, framed for responses, and its index terms. Immutable.

    The parsed message is not kept: it takes several times the memory of its bytes, and parsing takes about 5 µs, of the
    largest services several milliseconds.
    """

    __slots__ = ("draining", "framed", "in_maintenance", "instance_id", "name", "revision", "status", "terms")

    framed: bytes
    """The service as field 1 (tag, length, bytes) of ``GetServiceResponse`` and ``DiscoverServicesResponse``."""
    name: str
    revision: int
    status: int
    """``HealthStatus``."""
    instance_id: str
    """The instance that owns the name; empty if it registered without one."""
    draining: bool
    in_maintenance: bool
    """Whether an operator keeps the service in maintenance."""
    terms: tuple[str, ...]
    """Distinct index terms; records share equal ones."""

    def __init__(self, wire: bytes) -> None:
        """Parse a record.

        Args:
            wire: A complete, valid ``Service`` in wire format, including its revision.

        Raises:
            google.protobuf.message.DecodeError: ``wire`` is not a ``Service``.
        """
        service = Service.FromString(wire)
        self.framed = bytes_field(1, wire)
        self.name = shared(service.name)
        self.revision = service.revision
        self.status = service.health.status
        self.instance_id = service.instance_id
        self.draining = service.draining
        self.in_maintenance = service.HasField("maintenance")
        self.terms = _terms(service)

    @property
    def wire(self) -> bytes:
        """The ``Service`` in wire format."""
        start = 2
        while self.framed[start - 1] & 0x80:
            start += 1
        return self.framed[start:]

    def framed_as(self, tag: bytes) -> bytes:
        """Return the service as another length-delimited field with a one-byte ``tag``."""
        return tag + self.framed[1:]

    def message(self) -> Service:
        """Parse the service; the caller owns the message."""
        return Service.FromString(self.wire)

    def version(self) -> str:
        """Return the version of the service."""
        return next(term[2:] for term in self.terms if term.startswith("v:"))

    def capability_versions(self, capability: str) -> list[str]:
        """Return the versions of a capability that the service has."""
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
    return tuple(dict.fromkeys(map(shared, terms)))
