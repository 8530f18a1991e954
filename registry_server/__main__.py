"""``python -m registry_server``: the same as ``ossa-registry serve``."""

import os
import shutil
import sys
from collections.abc import Sequence

from registry_server.config import load_settings, usage
from registry_server.errors import ConfigurationError

_WIDEST_HELP = 100
_BAD_CONFIGURATION = 2


def serve(args: Sequence[str], program: str = "python -m registry_server") -> int:
    """Runs a server until it is told to stop.

    Args:
        args: Flags, as ``load_settings`` takes them, or ``--help``.
        program: How the command is called, for the help.

    Returns:
        Exit code of the process: 0, or 2 if the server cannot start as it is configured.
    """
    if not {"-h", "--help"}.isdisjoint(args):
        columns = shutil.get_terminal_size(fallback=(_WIDEST_HELP, 24)).columns
        sys.stdout.write(usage(program, min(columns, _WIDEST_HELP)))
        return 0
    try:
        settings = load_settings(args)
        # gRPC writes lines of its own to standard error, among ours; what it has to say it also raises.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # Late, so that help and wrong settings are told before gRPC and all the rest are loaded.
        if settings.workers > 1:
            from registry_server.workers import run_workers  # noqa: PLC0415

            run_workers(settings)
        else:
            from registry_server.process import run  # noqa: PLC0415

            run(settings)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"ossa-registry: {line}\n")
        return _BAD_CONFIGURATION
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
