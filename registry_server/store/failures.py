"""Conversion of redis-py's errors to ``StoreUnavailable``, each with a ``StoreFault`` for operators."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from redis import exceptions as redis_errors

from registry_server.errors import StoreFault, StoreUnavailable

_COMMAND_ERRORS: Final = (redis_errors.RedisError, OSError, ValueError, TypeError, LookupError)
"""What a command may raise: the errors of redis-py and of connections, and those of decoding an answer."""

NO_ANSWER: Final = "no answer in time"
NO_CONNECTION: Final = "no connection"

_MAX_CAUSE_LENGTH: Final = 300
_REFUSAL_CODES = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOSCRIPT", "UNBLOCKED")
# redis-py removes some codes from the text. Redis before version 7 wraps errors within a script:
# "Error running script (call to f_0a1b): @user_script:51: @user_script: 51: -OOM command not allowed".
_CODE = re.compile(r"(?:Error running script .*: -?)?([A-Z]+) ")
# What is not permitted within a script has no code.
_NOT_PERMITTED_IN_SCRIPT = "The user executing the script can't"
# Positions in scripts, and arguments, which may come from clients.
_DETAILS = re.compile(
    r"Error running script \(call to \w+\): |@?user_script: ?\d+: ?|,? ?script: \w+, on @user_script:\d+\.?"
    r"|,? with args beginning with:.*"
)
_USER = re.compile(r"\b[Uu]ser \S+ has")


def as_unavailable(error: BaseException, command: str = "", key: str = "") -> StoreUnavailable:
    """Convert what a command raised into an error for the caller, without host names or keys.

    Args:
        error: An error of redis-py or of the connection, or one of decoding the answer.
        command: Name of the command.
        key: Key that it concerns.
    """
    match error:
        case StoreUnavailable():
            return error
        case redis_errors.TimeoutError() | TimeoutError():
            reason, cause, temporary = "the store did not answer in time", NO_ANSWER, True
        case redis_errors.AuthenticationError():
            reason, cause, temporary = "the store refuses our credentials", _cause(error), True
        case redis_errors.ResponseError():
            reason = _temporary_refusal(error)
            temporary = bool(reason)
            # The texts of MOVED and ASK contain a host.
            cause = reason if isinstance(error, redis_errors.AskError) else _cause(error)
            reason = reason or f"the store refuses {command or 'a command'} ({_code(error) or 'ERR'})"
        case redis_errors.ConnectionError() | OSError():  # the first includes BusyLoadingError
            reason, cause, temporary = "the store does not respond", NO_CONNECTION, True
        case _:  # InvalidResponse, or the answer cannot be decoded
            reason = "the store answers with invalid data"
            cause, temporary = f"the answer cannot be decoded ({type(error).__name__})", False
    unavailable = StoreUnavailable(reason, StoreFault(command, key, cause, temporary))
    unavailable.__cause__ = error
    return unavailable


def _temporary_refusal(error: redis_errors.ResponseError) -> str:
    """Return the reason of a temporary refusal; empty for all others."""
    code = _code(error)
    if is_moved(error):
        return "another server of the store is the primary now"
    if code == "OOM":
        return "the store is out of memory"
    if code == "NOREPLICAS":
        return "the store has too few replicas to accept writes"
    if isinstance(error, redis_errors.ClusterDownError):  # includes MasterDownError
        return "the store is electing another server for its keys"
    if isinstance(error, redis_errors.AskError | redis_errors.TryAgainError):
        return "the store is moving its keys to another server"
    return "the store cannot accept commands now" if code in _REFUSAL_CODES else ""


def _code(error: redis_errors.RedisError) -> str:
    if error.status_code not in {None, "ERR"}:
        return str(error.status_code)
    if _NOT_PERMITTED_IN_SCRIPT in str(error):
        return "NOPERM"
    match = _CODE.match(str(error))
    return match[1] if match else ""


def _cause(error: redis_errors.RedisError) -> str:
    text, code = readable(str(error)), _code(error)
    return f"{code} {text}" if code and not text.startswith(code) else text


def readable(text: str) -> str:
    """Return a text of Redis in one line, without the name of our user, arguments and positions in scripts."""
    text = _USER.sub("this user has", _DETAILS.sub("", text)).lstrip("-")
    return " ".join(text.split())[:_MAX_CAUSE_LENGTH]


def is_moved(error: BaseException) -> bool:
    """Return whether a server refused a command, without executing it, because another server accepts the writes.

    A demoted primary answers READONLY, a cluster node MOVED.
    """
    if isinstance(error, redis_errors.MovedError | redis_errors.ReadOnlyError):
        return True
    return isinstance(error, redis_errors.ResponseError) and _code(error) == "READONLY"


@contextmanager
def translate_errors(command: str = "", key: str = "") -> Iterator[None]:
    """Convert what a command raises within the block to ``StoreUnavailable``; arguments as of ``as_unavailable``."""
    try:
        yield
    except _COMMAND_ERRORS as error:
        raise as_unavailable(error, command, key) from error
