"""``Refusals``: names the command, the key and the cause when Redis refuses a command, as problems of the process."""

from collections.abc import Sequence
from typing import Any, Final

from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.problems import Problems
from registry_server.store.failures import NO_ANSWER, NO_CONNECTION, as_unavailable
from registry_server.store.keys import Keys
from registry_server.store.lua import Scripts

_SHOWN_SECONDS: Final = 15.0
"""How long a refusal remains a problem. A success does not end it: the next call of a script may be refused again."""


class Refusals:
    """Commands and scripts that Redis refused in the last seconds.

    An unreachable Redis is not their problem: the follower reports it once for all.
    """

    def __init__(self, problems: Problems, scripts: Scripts, keys: Keys) -> None:
        self._problems = problems
        self._scripts = scripts
        self._keys = keys

    def convert_error(self, error: BaseException, command: Sequence[Any]) -> StoreUnavailable:
        """Convert what a command raised, and report it as a problem if Redis refused the command."""
        script = self._script_of(command)
        if script:
            inner, variable = self._scripts.find_call(script, str(error))
            name, key = f"{inner or 'EVALSHA'} in {script}.lua", self._keys.of_variable(variable)
        else:
            name, key = (str(part) for part in (*command, "")[:2])
        unavailable = as_unavailable(error, name, key)
        fault = unavailable.fault
        if fault is not None and fault.cause not in {NO_ANSWER, NO_CONNECTION}:
            self._problems.report(f"store_{script or name.lower()}", str(fault), seconds=_SHOWN_SECONDS)
        return unavailable

    def _script_of(self, command: Sequence[Any]) -> str:
        return self._scripts.names.get(command[1], "") if command[0] == "EVALSHA" else ""
