"""Names of the keys in Redis (docs/adr and the README tell what is in each)."""

from typing import NamedTuple


class Keys(NamedTuple):
    """All keys of one registry; several can share a Redis if no prefix begins with another."""

    document_prefix: str
    """``{prefix}:``; followed by a service's name, its JSON document (string, expires with the lease)."""
    revision: str
    """string: revision of the newest change; grows by one with each."""
    epoch: str
    """string: random name of this history of revisions; a new one where the history could not be continued."""
    records: str
    """hash: name to serialised ``Service``, whose last field is its revision."""
    leases: str
    """zset: name scored by the end of its lease, ms by Redis ``TIME``; ``+inf`` for permanent services."""
    ttls: str
    """hash: name to the length of its lease in ms; 0 for permanent services."""
    events: str
    """stream: one entry a revision, id ``<revision>-0``."""
    checks: str
    """hash: name to the newest serialised ``Health``; soft data without a revision."""
    sweep: str
    """string: when leases were last swept, ms by Redis ``TIME``."""
    members: str
    """zset: id of each live process, scored by when it last said so, ms by Redis ``TIME``."""
    owners: str
    """hash: name to the identity that owns the service; those without an owner are not in it."""
    owned: str
    """hash: identity to how many services it owns."""
    bare: str
    """set: names whose document Redis dropped before their lease went on; the next sweep has it written again."""
    repair: str
    """hash: the repair that is under way: whose turn it is, until when, and what was found; gone when it has ended."""
    merged: str
    """hash: epoch whose services were put back under another one to how far it agreed with the store, and its end."""

    @classmethod
    def under(cls, prefix: str) -> "Keys":
        """Derives all names from the setting ``redis.key_prefix``.

        ``ossa:services`` gives ``ossa:services:{name}`` and ``ossa:registry:*``. A service's name has no colon, so the
        two never meet, whatever the prefix.
        """
        own = prefix.removesuffix(":services") + ":registry:"
        return cls(
            document_prefix=prefix + ":",
            revision=own + "revision",
            epoch=own + "epoch",
            records=own + "records",
            leases=own + "leases",
            ttls=own + "ttls",
            events=own + "events",
            checks=own + "checks",
            sweep=own + "sweep",
            members=own + "members",
            owners=own + "owners",
            owned=own + "owned",
            bare=own + "bare",
            repair=own + "repair",
            merged=own + "merged",
        )
