"""The vocabulary of the registry, version 1, generated from ``protos/ossa/registry/v1`` by ``make proto``."""
