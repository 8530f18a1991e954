"""The command line ``ossa-registry``."""
