"""Who is alive: leases (and, once there, probes)."""

from registry_server.health.leases import LeaseSweeper

__all__ = ["LeaseSweeper"]
