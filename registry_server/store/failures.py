"""Which failures of Redis mean "not now", and which mean a bug."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from registry_server.errors import StoreUnavailable

_AWAY = (redis_errors.ConnectionError, OSError)  # the first is also BusyLoadingError
_REFUSALS = (redis_errors.NoScriptError,)  # lost again, right after it was loaded
_REFUSAL_CODES = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "UNBLOCKED")
# redis-py makes a class of some codes and cuts them off. What a script meets, Redis before 7 puts into a text of its
# own, such as "Error running script (call to f_0a1b): @user_script:51: @user_script: 51: -OOM command not allowed".
_CODE = re.compile(r"(?:Error running script .*: -)?([A-Z]+) ")


def as_unavailable(error: BaseException) -> StoreUnavailable | None:
    """Turns an error of redis-py that means "not now" into what the caller is told: no host names, no keys."""
    match error:
        case redis_errors.TimeoutError() | TimeoutError():
            return StoreUnavailable("the store did not answer in time")
        case redis_errors.AuthenticationError():
            return StoreUnavailable("the store refuses our credentials")
        case redis_errors.ResponseError():
            return _refusal(error)
        case _ if isinstance(error, _AWAY):
            return StoreUnavailable()
    return None


def _refusal(error: redis_errors.ResponseError) -> StoreUnavailable | None:
    code = _code(error)
    why = ""
    if is_elsewhere(error):
        why = "another server of the store takes the writes now"
    elif isinstance(error, redis_errors.OutOfMemoryError) or code == "OOM":
        why = "the store is out of memory"
    elif code == "NOREPLICAS":
        why = "the store has too few replicas to take writes"
    elif isinstance(error, redis_errors.ClusterDownError):  # also MasterDownError
        why = "the store is choosing another server for its keys"
    elif isinstance(error, redis_errors.AskError | redis_errors.TryAgainError):
        why = "the store is moving its keys to another server"
    elif isinstance(error, _REFUSALS) or code in _REFUSAL_CODES:
        why = "the store cannot take commands now"
    return StoreUnavailable(why) if why else None


def _code(error: redis_errors.ResponseError) -> str:
    match = _CODE.match(str(error))
    return match[1] if match else ""


def is_elsewhere(error: BaseException) -> bool:
    """Whether a server refused a command because another one takes the writes; it was not carried out.

    A demoted primary says READONLY, a cluster node MOVED.
    """
    if isinstance(error, redis_errors.MovedError | redis_errors.ReadOnlyError):
        return True
    return isinstance(error, redis_errors.ResponseError) and _code(error) == "READONLY"


@contextmanager
def translated() -> Iterator[None]:
    """Raises ``StoreUnavailable`` from what redis-py raises while the store is away; lets all else through."""
    try:
        yield
    except (redis_errors.RedisError, OSError) as error:
        if (away := as_unavailable(error)) is not None:
            raise away from error
        raise
