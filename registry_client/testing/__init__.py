"""A real registry for the tests of SDK users: a context manager, and pytest fixtures in the module ``fixtures``.

The server runs as a separate process with an embedded Redis and a temporary directory. It is started with
``python -m registry_server``, which requires the distribution ``ossa-registry``; ``ossa-registry-client`` does not
contain the server.
"""

from registry_client.testing.process import RegistryProcess

__all__ = ["RegistryProcess"]
