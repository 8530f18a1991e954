"""Several processes that serve one port: a supervisor that starts workers, replaces those that die, and drains all."""

from registry_server.workers.supervisor import run_workers

__all__ = ["run_workers"]
