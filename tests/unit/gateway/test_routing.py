"""Paths of requests."""

import pytest

from registry_server.gateway.routing import Router

_PATHS = ("/services", "/services/", "/health", "/services/{name}", "/services/{name}/", "/services/{name}/health")


@pytest.mark.parametrize(
    ("path", "resource", "name"),
    [
        ("/services", "/services", ""),
        ("/services/", "/services/", ""),
        ("/health", "/health", ""),
        ("/services/a", "/services/{name}", "a"),
        ("/services/a/", "/services/{name}/", "a"),
        ("/services/a%2Fb%25", "/services/{name}", "a/b%"),
        ("/services/a%252Fb", "/services/{name}", "a%2Fb"),
        ("/services/health/health", "/services/{name}/health", "health"),
        ("/services//health", None, ""),
        ("/services/a/b/health", None, "a"),
        ("/servicesa", None, ""),
        ("", None, ""),
        ("*", None, ""),
    ],
)
def test_path_has_at_most_one_resource(path: str, resource: str | None, name: str) -> None:
    assert Router((each, each) for each in _PATHS).find(path) == (resource, name)
