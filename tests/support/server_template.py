"""The modules that a server imports, for the process that ``forked.py`` forks: only that process imports this one."""

import os

# As the server does before it imports gRPC.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import registry_server.process
import registry_server.workers  # noqa: F401 - imported by servers with workers
