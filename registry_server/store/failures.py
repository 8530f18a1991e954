"""Which failures of Redis mean "not now", and which mean a bug."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from registry_server.errors import StoreUnavailable

_AWAY = (
    redis_errors.ConnectionError,  # also BusyLoadingError
    redis_errors.ClusterDownError,
    redis_errors.MasterDownError,
    redis_errors.ReadOnlyError,
    OSError,
)
_AWAY_PREFIXES = ("MISCONF", "NOREPLICAS", "BUSY ", "LOADING", "CLUSTERDOWN", "MASTERDOWN")


def as_unavailable(error: BaseException) -> StoreUnavailable | None:
    """Turns an error of redis-py that means "not now" into what the caller is told: no host names, no keys."""
    match error:
        case redis_errors.TimeoutError() | TimeoutError():
            return StoreUnavailable("the store did not answer in time")
        case redis_errors.OutOfMemoryError():
            return StoreUnavailable("the store is out of memory")
        case redis_errors.AuthenticationError():
            return StoreUnavailable("the store refuses our credentials")
        case redis_errors.ResponseError() if str(error).startswith(_AWAY_PREFIXES):
            return StoreUnavailable("the store cannot take commands now")
        case _ if isinstance(error, _AWAY):
            return StoreUnavailable()
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Raises ``StoreUnavailable`` from what redis-py raises while the store is away; lets all else through."""
    try:
        yield
    except (redis_errors.RedisError, OSError) as error:
        if (away := as_unavailable(error)) is not None:
            raise away from error
        raise
