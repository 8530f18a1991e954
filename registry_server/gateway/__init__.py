"""HTTP transport: the REST API, the event stream, health, metrics and documentation."""

from registry_server.gateway.mounting import rest_application
from registry_server.gateway.server import HttpServer

__all__ = ["HttpServer", "rest_application"]
