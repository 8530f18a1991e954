"""Names of the keys in Redis; docs/redis.md describes their contents."""

from typing import Final, NamedTuple

DATA_FORMAT: Final = 1
"""Format of the data that this version reads and writes; a server refuses a newer one.

It increases only when older versions would misread or damage the data. A release reads a format before the next one
writes it, so that each serves one store together with its predecessor (docs/stability.md).
"""


class Keys(NamedTuple):
    """All keys of one registry. Several registries can share a Redis if no prefix begins with another."""

    document_prefix: str
    """``{prefix}:``; followed by a service's name, its JSON document (string, expires with the lease)."""
    revision: str
    """string: revision of the newest change; each change increments it by one."""
    epoch: str
    """string: random name of this history of revisions; replaced when the history cannot continue."""
    records: str
    """hash: name to serialised ``Service``, whose last field is its revision."""
    leases: str
    """zset: names scored by the end of the lease, ms by Redis ``TIME``; ``+inf`` for permanent services."""
    ttls: str
    """hash: name to the length of its lease in ms; 0 for permanent services."""
    events: str
    """stream: one entry per revision, id ``<revision>-0``."""
    checks: str
    """hash: name to the newest serialised ``Health``; not part of the service's revision."""
    sweep: str
    """string: time of the latest sweep, ms by Redis ``TIME``."""
    bare: str
    """set: names whose document expired before their lease was renewed; each sweep reports them until rewritten."""
    owners: str
    """hash: name to the identity that owns the service; services without an owner are absent."""
    owned: str
    """hash: identity to the number of services it owns."""
    members: str
    """zset: id of each live process, scored by its latest announcement, ms by Redis ``TIME``."""
    loads: str
    """stream: loads of services, which processes exchange; each entry has up to 1,000 of one process."""
    repair: str
    """hash: the repair in progress (process, deadline, state that was found); deleted when the repair ends."""
    merged: str
    """hash: epoch merged into another one to the newest common revision, and the newest revision that was merged."""
    secret: str
    """string: random bytes that authenticate page tokens."""
    format: str
    """string: number of the format of the data; see ``DATA_FORMAT``."""

    @classmethod
    def under(cls, prefix: str) -> "Keys":
        """Derive all names from the setting ``redis.key_prefix``.

        For ``ossa:services`` they are ``ossa:services:{name}`` and ``ossa:registry:*``. A service's name contains no
        colon, so documents and registry keys never collide, whatever the prefix.
        """
        own = prefix.removesuffix(":services") + ":registry:"
        return cls(prefix + ":", *(own + field for field in cls._fields[1:]))

    def of_variable(self, name: str) -> str:
        """Return the key that the scripts hold in a variable, the pattern of all documents, or an empty string."""
        if name == "document":
            return self.document_prefix + "*"
        return str(getattr(self, name.lower())) if name.lower() in self._fields else ""

    @property
    def shared(self) -> tuple[str, ...]:
        """The keys that every script takes first, as ``lib.lua`` names them: from ``revision`` to ``owned``."""
        return self[1 : self.index(self.owned) + 1]
