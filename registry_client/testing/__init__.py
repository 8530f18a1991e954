"""A real registry for users' own tests: a context manager, and pytest fixtures in ``registry_client.testing.fixtures``.

The server is started as a process, with an embedded Redis and a directory of its own. It is that of the same
installation (``python -m registry_server``), which the distribution ``ossa-registry-client`` does not have.
"""

from registry_client.testing.process import RegistryProcess

__all__ = ["RegistryProcess"]
