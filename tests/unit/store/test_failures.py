import pytest
from redis._parsers import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from registry_server.store.failures import as_unavailable, is_moved

ELSEWHERE = "another server of the store is the primary now"
MOVING = "the store is moving its keys to another server"
CHOOSING = "the store is electing another server for its keys"
IN_A_SCRIPT = "ERR Error running script (call to f_0a1b): @user_script:51: @user_script: 51: -"  # Redis before 7

# What Redis says, and what the caller is told; nothing of it names a host or a key.
REFUSALS = {
    "MOVED 866 10.0.0.7:6379": ELSEWHERE,
    "READONLY You can't write against a read only replica.": ELSEWHERE,
    "READONLY You can't write against a read only replica. script: f_0a1b, on @user_script:48.": ELSEWHERE,
    IN_A_SCRIPT + "READONLY You can't write against a read only replica.": ELSEWHERE,
    "ASK 866 10.0.0.7:6379": MOVING,
    "TRYAGAIN Multiple keys request during rehashing of slot": MOVING,
    "CLUSTERDOWN The cluster is down": CHOOSING,
    "CLUSTERDOWN Hash slot not served": CHOOSING,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": CHOOSING,
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


def said(text: str) -> Exception:
    error: Exception = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(("text", "told"), REFUSALS.items())
def test_what_means_not_now_is_told_in_plain_words(text: str, told: str) -> None:
    unavailable = as_unavailable(said(text))

    assert str(unavailable) == f"{told}; try again"
    assert is_moved(said(text)) is (told == ELSEWHERE)


@pytest.mark.parametrize("error", [RedisConnectionError("h:1"), RedisTimeoutError("h:1"), ConnectionResetError("h:1")])
def test_a_connection_that_fails_means_not_now_and_names_nobody(error: Exception) -> None:
    assert "h:1" not in str(as_unavailable(error))
    assert not is_moved(error)


@pytest.mark.parametrize(
    "text", ["ERR unknown command", "WRONGTYPE Operation against a key", "CROSSSLOT Keys in request"]
)
def test_what_redis_does_not_understand_is_a_bug_of_ours(text: str) -> None:
    error = said(text)

    assert isinstance(error, ResponseError)
    assert as_unavailable(error) is None
