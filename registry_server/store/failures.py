"""Classification of Redis errors: temporary unavailability, or a bug."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from registry_server.errors import StoreUnavailable

_REFUSAL_CODES = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "UNBLOCKED")
# redis-py maps some codes to exception classes and strips them. Redis before version 7 wraps errors within a script:
# "Error running script (call to f_0a1b): @user_script:51: @user_script: 51: -OOM command not allowed".
_CODE = re.compile(r"(?:Error running script .*: -)?([A-Z]+) ")


def as_unavailable(error: BaseException) -> StoreUnavailable | None:
    """Convert a temporary redis-py error into one for the caller, without host names or keys; ``None`` for others."""
    match error:
        case redis_errors.TimeoutError() | TimeoutError():
            return StoreUnavailable("the store did not answer in time")
        case redis_errors.AuthenticationError():
            return StoreUnavailable("the store refuses our credentials")
        case redis_errors.ResponseError():
            return _refusal(error)
        case redis_errors.ConnectionError() | OSError():  # the first includes BusyLoadingError
            return StoreUnavailable()
    return None


def _refusal(error: redis_errors.ResponseError) -> StoreUnavailable | None:
    code = _code(error)
    reason = ""
    if is_moved(error):
        reason = "another server of the store is the primary now"
    elif isinstance(error, redis_errors.OutOfMemoryError) or code == "OOM":
        reason = "the store is out of memory"
    elif code == "NOREPLICAS":
        reason = "the store has too few replicas to accept writes"
    elif isinstance(error, redis_errors.ClusterDownError):  # includes MasterDownError
        reason = "the store is electing another server for its keys"
    elif isinstance(error, redis_errors.AskError | redis_errors.TryAgainError):
        reason = "the store is moving its keys to another server"
    # NoScriptError: the script was lost again, right after it was loaded.
    elif isinstance(error, redis_errors.NoScriptError) or code in _REFUSAL_CODES:
        reason = "the store cannot accept commands now"
    return StoreUnavailable(reason) if reason else None


def _code(error: redis_errors.ResponseError) -> str:
    match = _CODE.match(str(error))
    return match[1] if match else ""


def is_moved(error: BaseException) -> bool:
    """Return whether a server refused a command, without executing it, because another server accepts the writes.

    A demoted primary answers READONLY, a cluster node MOVED.
    """
    if isinstance(error, redis_errors.MovedError | redis_errors.ReadOnlyError):
        return True
    return isinstance(error, redis_errors.ResponseError) and _code(error) == "READONLY"


@contextmanager
def translate_errors() -> Iterator[None]:
    """Convert temporary redis-py errors within the block to ``StoreUnavailable``; propagate all others."""
    try:
        yield
    except (redis_errors.RedisError, OSError) as error:
        if (unavailable := as_unavailable(error)) is not None:
            raise unavailable from error
        raise
