"""``Visibility``: the services that a caller sees, as the policy restricts them with ``sees``."""

import hashlib
from dataclasses import replace
from typing import Final

from registry_server.model.filters import Filter
from registry_server.model.record import Record
from registry_server.security.patterns import matches

_DIGEST_BYTES: Final = 8

Terms = tuple[tuple[str, ...], ...]


class Visibility:
    """The services that a caller sees: those that match a filter over static fields, and those that it may own.

    It is joined to the filter of every read. Equal visibilities have the same ``scope``, so their callers share kept
    queries and cached answers.
    """

    __slots__ = ("_any_of", "_names", "_own", "scope")

    def __init__(self, names: tuple[str, ...] | None, any_of: Terms, own: tuple[str, ...] = ()) -> None:
        """Compile a visibility.

        Args:
            names: Name patterns of which one must match; ``None`` = any name.
            any_of: Groups of index terms of which a service must have one each.
            own: Name patterns of services that the caller sees in any case.
        """
        self._names, self._any_of, self._own = names, any_of, own
        self.scope: str = hashlib.blake2b(repr((names, any_of, own)).encode(), digest_size=_DIGEST_BYTES).hexdigest()
        """Identifies it in the keys of cached answers, page tokens and cursors."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Visibility) and other.scope == self.scope

    def __hash__(self) -> int:
        return hash(self.scope)

    def includes(self, record: Record) -> bool:
        """Return whether the caller sees a service in this state; takes about 1 µs."""
        name, terms = record.name, record.terms
        for pattern in self._own:
            if matches(pattern, name):
                return True
        for group in self._any_of:
            for term in group:
                if term in terms:
                    break
            else:
                return False
        return self._names is None or any(matches(pattern, name) for pattern in self._names)

    def join(self, filter_: Filter, notices_of: str | None) -> Filter:
        """Return a filter that matches only services that the caller sees.

        Args:
            filter_: The filter of the request.
            notices_of: Owner whose notices about services the caller receives; ``None`` = those of all.
        """
        return replace(
            filter_,
            key=self.scope.encode() + b":" + filter_.key,
            # The caller's own services need not have the terms.
            any_of=filter_.any_of if self._own else filter_.any_of + self._any_of,
            visible=self.includes,
            scope=self.scope,
            notices_of=notices_of,
        )
