"""``python -m registry_server``: the same as ``ossa-registry serve``."""

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence

from registry_server import __version__
from registry_server.config import Settings, load_settings, usage
from registry_server.errors import ConfigurationError, StoreUnavailable

_CHECK_FLAG = "--check"
_MAX_HELP_WIDTH = 100
_EXIT_BAD_CONFIGURATION = 2


def serve(args: Sequence[str], program: str = "python -m registry_server") -> int:
    """Run a server until SIGTERM or SIGINT.

    Args:
        args: Flags for ``load_settings``, or ``--help``, ``--version``, ``--check``.
        program: The command, for the help text.

    Returns:
        Exit code of the process: 0, or 2 if the server cannot start with its configuration.
    """
    if not {"-h", "--help"}.isdisjoint(args):
        columns = shutil.get_terminal_size(fallback=(_MAX_HELP_WIDTH, 24)).columns
        sys.stdout.write(usage(program, min(columns, _MAX_HELP_WIDTH)))
        return 0
    if "--version" in args:
        sys.stdout.write(f"ossa-registry, version {__version__}\n")
        return 0
    try:
        settings = load_settings([arg for arg in args if arg != _CHECK_FLAG])
        # gRPC would write its own lines to standard error, among the log. It also raises every error that it logs.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        if _CHECK_FLAG in args:
            return _check(settings)
        # Imported here, so that --help and configuration errors need not wait until gRPC is loaded.
        if settings.workers > 1:
            from registry_server.workers import run_workers  # noqa: PLC0415

            run_workers(settings)
        else:
            from registry_server.process import run  # noqa: PLC0415

            run(settings)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"ossa-registry: {line}\n")
        return _EXIT_BAD_CONFIGURATION
    return 0


def _check(settings: Settings) -> int:
    from registry_server.app import check  # noqa: PLC0415 - as above
    from registry_server.instrumentation.logs import configure_logging  # noqa: PLC0415

    configure_logging("error", settings.log.format, "off")
    try:
        redis = asyncio.run(check(settings))
    except (StoreUnavailable, OSError) as error:
        raise ConfigurationError(f"redis.url: {settings.redis.safe_url}: {error.__cause__ or error}") from error
    sys.stdout.write(f"ossa-registry: the configuration is valid; Redis: {redis}\n")
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
