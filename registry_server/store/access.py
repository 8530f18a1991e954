"""What makes a start on this Redis impossible, in one sentence that says what to change.

``access.lua`` verifies permissions and types of keys at start: otherwise the first write, sweep or repair that needs
them would find that they are missing.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from redis.exceptions import AuthenticationError

from registry_server import __version__
from registry_server.errors import ConfigurationError, StoreFault, StoreUnavailable
from registry_server.store.failures import readable
from registry_server.store.keys import DATA_FORMAT, Keys

_DENIED_KEYS: Final = re.compile(r"access (?:a key|(?:one|at least one|any) of the keys|the '.*' key)", re.IGNORECASE)
_DENIED: Final = re.compile(r"NOPERM|ACL failure|(?:can't run|no permissions to run) (?:this|the)", re.IGNORECASE)
_UNKNOWN: Final = re.compile(r"unknown (?:redis )?(?:sub)?command", re.IGNORECASE)
_NAMED: Final = re.compile(r"(?:permissions to run the|unknown command) ['`]([\w|-]+)['`]", re.IGNORECASE)
"""The command in a text of Redis; it may be one that redis-py sends when it connects."""
_DAMAGED: Final = re.compile(r"WRONGTYPE|DAMAGED|decode", re.IGNORECASE)
_REMEDIES: Final = (
    (_DENIED_KEYS, "grant the Redis user of the registry the keys ~{pattern}"),
    (_DENIED, "grant the Redis user of the registry {rights}"),
    (_UNKNOWN, "remove the rename-command for it from the configuration of Redis, or use Redis 6.2 or newer"),
    (_DAMAGED, "restore the keys {pattern} from a backup, or delete them to start with an empty registry"),
    (re.compile(r"CROSSSLOT"), "in a cluster, redis.key_prefix needs a hash tag, such as {{ossa}}:services"),
    (re.compile(r"AUTH|WRONGPASS|password|credentials"), "correct the user and the password in redis.url"),
)
_MAX_FORMAT_DIGITS: Final = 18
"""Longer numbers were not written by any version, and ``int`` refuses the longest."""


@contextmanager
def starting_with(keys: Keys) -> Iterator[None]:
    """Within the block, raise what an operator must correct as ``ConfigurationError``; propagate temporary errors.

    Refused credentials prevent a start, although a registry that already serves waits for them to be accepted again.
    """
    try:
        yield
    except StoreUnavailable as error:
        fault = error.fault
        if isinstance(error.__cause__, AuthenticationError):
            fault = StoreFault("AUTH", "", fault.cause if fault else str(error.__cause__), temporary=False)
        if fault is None or fault.temporary:
            raise
        raise ConfigurationError(explain_faults([fault], keys)) from error


def is_newer_format(stored: bytes) -> bool:
    """Return whether data of a format can be misread or damaged by this version."""
    return stored.isdigit() and (len(stored) > _MAX_FORMAT_DIGITS or int(stored) > DATA_FORMAT)


def explain_format(stored: bytes, keys: Keys) -> str:
    """Return one sentence about data of a newer format."""
    number = stored[:_MAX_FORMAT_DIGITS].decode()
    return (
        f"redis.url: {keys.format} is {number}: a newer version of ossa-registry wrote this data, and version "
        f"{__version__} reads format {DATA_FORMAT}; install the newer version, or restore a backup of this version"
    )


def find_faults(answer: Sequence[Sequence[bytes]]) -> list[StoreFault]:
    """Return the failures of ``access.lua`` that are not errors about its arguments."""
    faults = []
    for command, key, error in answer:
        cause = readable(error.decode(errors="replace")).removeprefix("ERR ")
        if any(pattern.search(cause) for pattern in (_DENIED_KEYS, _DENIED, _UNKNOWN, _DAMAGED)):
            faults.append(StoreFault(command.decode(), key.decode(), cause, temporary=False))
    return faults


def explain_faults(faults: Sequence[StoreFault], keys: Keys) -> str:
    """Return one sentence: the first command that failed, its key, the cause, and what to change for all of them."""
    first = faults[0]
    command = _command_of(first)
    on_key = f" on {first.key}" if first.key and command == first.command else ""
    return f"redis.url: Redis refuses {command or 'a command'}{on_key}: {first.cause}; {_remedy(faults, keys)}"


def _command_of(fault: StoreFault) -> str:
    named = _NAMED.search(fault.cause)
    return named[1].upper().replace("|", " ") if named else fault.command


def _remedy(faults: Sequence[StoreFault], keys: Keys) -> str:
    commands = dict.fromkeys(_command_of(fault) for fault in faults)
    rights = " ".join(f"+{command.lower().replace(' ', '|')}" for command in commands)
    pattern = keys.document_prefix.removesuffix("services:") + "*"
    for cause, remedy in _REMEDIES:
        if cause.search(faults[0].cause) and (cause is not _DAMAGED or faults[0].key):
            return remedy.format(rights=rights, pattern=pattern)
    return "correct redis.url or the configuration of Redis"
