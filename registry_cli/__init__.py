"""The ``ossa-registry`` command-line interface."""
