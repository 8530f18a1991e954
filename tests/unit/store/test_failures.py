import pytest
from redis._parsers import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from registry_server.errors import StoreFault
from registry_server.store.failures import as_unavailable, is_moved

NOT_PRIMARY = "another server of the store is the primary now"
MOVING = "the store is moving its keys to another server"
ELECTING = "the store is electing another server for its keys"
IN_A_SCRIPT = "ERR Error running script (call to f_0a1b): @user_script:51: @user_script: 51: -"  # Redis before 7

# Redis's error and the text for the caller, which must not contain a host or a key.
REFUSALS = {
    "MOVED 866 10.0.0.7:6379": NOT_PRIMARY,
    "READONLY You can't write against a read only replica.": NOT_PRIMARY,
    "READONLY You can't write against a read only replica. script: f_0a1b, on @user_script:48.": NOT_PRIMARY,
    IN_A_SCRIPT + "READONLY You can't write against a read only replica.": NOT_PRIMARY,
    "ASK 866 10.0.0.7:6379": MOVING,
    "TRYAGAIN Multiple keys request during rehashing of slot": MOVING,
    "CLUSTERDOWN The cluster is down": ELECTING,
    "CLUSTERDOWN Hash slot not served": ELECTING,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": ELECTING,
    "NOREPLICAS Not enough good replicas to write.": "the store has too few replicas to accept writes",
    IN_A_SCRIPT + "NOREPLICAS Not enough good replicas to write.": "the store has too few replicas to accept writes",
    "OOM command not allowed when used memory > 'maxmemory'.": "the store is out of memory",
    IN_A_SCRIPT + "OOM command not allowed when used memory > 'maxmemory'.": "the store is out of memory",
    "LOADING Redis is loading the dataset in memory": "the store does not respond",
    "BUSY Redis is busy running a script.": "the store cannot accept commands now",
    "MISCONF Redis is configured to save RDB snapshots": "the store cannot accept commands now",
    "UNBLOCKED force unblock from blocking operation": "the store cannot accept commands now",
    "WRONGPASS invalid username-password pair or user is disabled.": "the store refuses our credentials",
    "NOAUTH Authentication required.": "the store refuses our credentials",
}


def parse_error(text: str) -> Exception:
    error: Exception = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(("text", "expected"), REFUSALS.items())
def test_temporary_redis_error_becomes_store_unavailable(text: str, expected: str) -> None:
    unavailable = as_unavailable(parse_error(text))

    assert str(unavailable) == f"{expected}; try again"
    assert is_moved(parse_error(text)) is (expected == NOT_PRIMARY)


@pytest.mark.parametrize("error", [RedisConnectionError("h:1"), RedisTimeoutError("h:1"), ConnectionResetError("h:1")])
def test_connection_error_is_temporary_and_hides_the_host(error: Exception) -> None:
    assert "h:1" not in str(as_unavailable(error))
    assert not is_moved(error)


# Redis's error, and the code for the caller and the cause for operators.
PERMANENT = {
    "ERR unknown command `XADD`, with args beginning with: `a secret`": ("ERR", "unknown command `XADD`"),
    "WRONGTYPE Operation against a key": ("WRONGTYPE", "WRONGTYPE Operation against a key"),
    "CROSSSLOT Keys in request": ("CROSSSLOT", "CROSSSLOT Keys in request"),
    "NOPERM User secret has no permissions to access a key": (
        "NOPERM",
        "NOPERM this user has no permissions to access a key",
    ),
    IN_A_SCRIPT + "WRONGTYPE Operation against a key": ("WRONGTYPE", "WRONGTYPE Operation against a key"),
    "ERR user_script:20: attempt to compare nil with number script: ab, on @user_script:20.": (
        "ERR",
        "attempt to compare nil with number",
    ),
    "FUTURE an error that no version knows yet": ("FUTURE", "FUTURE an error that no version knows yet"),
}


@pytest.mark.parametrize(("text", "expected"), PERMANENT.items())
def test_other_redis_error_becomes_store_unavailable_with_a_fault(text: str, expected: tuple[str, str]) -> None:
    code, cause = expected
    unavailable = as_unavailable(parse_error(text), "XADD", "ossa:registry:events")

    assert unavailable.fault == StoreFault("XADD", "ossa:registry:events", cause, temporary=False)
    assert str(unavailable) == f"the store refuses XADD ({code}); try again"


@pytest.mark.parametrize(
    "error", [InvalidResponse("h:1"), UnicodeDecodeError("utf-8", b"h:1", 0, 1, ""), KeyError("h:1")]
)
def test_answer_that_cannot_be_decoded_becomes_store_unavailable(error: Exception) -> None:
    unavailable = as_unavailable(error, "MGET")

    assert unavailable.fault is not None
    assert type(error).__name__ in str(unavailable.fault)
    assert "h:1" not in f"{unavailable}{unavailable.fault}"


@pytest.mark.parametrize("text", REFUSALS)
def test_fault_names_no_host(text: str) -> None:
    fault = as_unavailable(parse_error(text), "XADD").fault

    assert fault is not None
    assert fault.temporary
    assert "10.0.0.7" not in str(fault)
