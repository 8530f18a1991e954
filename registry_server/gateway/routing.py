"""``Router``: finds what handles the requests of a path, in a few dictionary look-ups."""

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

Resource = TypeVar("Resource")
"""What handles the requests of one path."""

_NAME: Final = "{name}"


class Router(Generic[Resource]):
    """Finds the resource of a path. Paths with a name differ only in what follows the name."""

    def __init__(self, resources: Iterable[tuple[str, Resource]]) -> None:
        """Add the resources with their paths, given as template."""
        self._resources: dict[str, Resource] = {}
        self._suffixes: dict[str, Resource] = {}
        self._prefix = ""
        for path, resource in resources:
            prefix, name, suffix = path.partition(_NAME)
            if name:
                self._suffixes[suffix] = resource
                self._prefix = prefix
            else:
                self._resources[path] = resource

    def find(self, path: str) -> tuple[Resource | None, str]:
        """Return the resource of a path, and the name in it.

        Args:
            path: The path, decoded except for ``%2F`` and ``%25``.
        """
        resource = self._resources.get(path)
        if resource is not None or not path.startswith(self._prefix):
            return resource, ""
        name, slash, rest = path[len(self._prefix) :].partition("/")
        if not name:
            return None, ""
        return self._suffixes.get(slash + rest), name.replace("%2F", "/").replace("%25", "%") if "%" in name else name
