"""Fixtures of the tests of requests."""

from tests.unit.security.conftest import clock, policy

__all__ = ["clock", "policy"]
