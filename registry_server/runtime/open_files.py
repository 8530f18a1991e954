"""The limit of this process on open files, of which each connection needs one."""

import resource


def raise_open_files_limit() -> None:
    """Open as many files as the hard limit allows. The usual soft limit, 1,024, is for programs that use ``select``."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
