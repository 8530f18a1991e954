"""Several processes on the same ports: a supervisor that starts, replaces, restarts and drains workers."""

from registry_server.workers.supervisor import run_workers

__all__ = ["run_workers"]
