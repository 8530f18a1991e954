"""``Visibility``: what a policy lets a caller see, and its join with filters."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.service_pb2 import ServiceFilter
from registry_server.model.filters import EVERYTHING, Filter, compile_filter
from registry_server.model.record import Record
from registry_server.security.identity import UNCHECKED, Identity, Limits, Role
from registry_server.security.patterns import matches
from registry_server.security.policy import Policy, Sees, granted_identity, read_policy
from tests.support.samples import small_service

LIMITS = Limits(1, 1, 1, 1)
HASH = f"sha256:{'a' * 64}"
NAMES = st.sampled_from(["a", "a-1", "b", "b-1", "c/x"])
PATTERNS = st.lists(st.sampled_from(["a*", "b", "*-1", "*", "c/*"]), max_size=2).map(tuple)
VALUES = st.lists(st.sampled_from(["p", "q"]), max_size=2).map(tuple)
SEES = st.builds(
    Sees,
    names=st.none() | PATTERNS,
    groups=st.none() | VALUES,
    environments=st.none() | VALUES,
    labels=st.dictionaries(st.sampled_from("kl"), st.sampled_from("pq"), max_size=1),
)
RECORDS = st.builds(
    lambda name, group, environment, labels, tags: record(
        name, group=group, metadata={"environment": environment, "labels": labels, "tags": tags}
    ),
    NAMES,
    st.sampled_from("pqr"),
    st.sampled_from(["", "p", "r"]),
    st.dictionaries(st.sampled_from("kl"), st.sampled_from("pr"), max_size=2),
    st.lists(st.sampled_from("tu"), max_size=2, unique=True),
)
FILTERS = st.builds(
    ServiceFilter,
    tags=st.lists(st.sampled_from("tu"), max_size=2),
    environment=st.sampled_from(["", "p"]),
    name_pattern=st.sampled_from(["", "a"]),
)


def record(name: str, **fields: Any) -> Record:
    return Record(small_service(name, **{"group": name, "revision": 1, **fields}).SerializeToString())


def compiled(message: ServiceFilter) -> Filter:
    return compile_filter(message, "filter", [])


def identity(sees: Sees, own: tuple[str, ...] = (), role: Role = Role.VIEWER) -> Identity:
    return Identity("someone", role, "api-key", own, LIMITS, visibility=sees.visibility(own))


def expected(sees: Sees, own: tuple[str, ...], seen: Record) -> bool:
    """Return whether a caller sees a service, by the words of docs/security.md."""
    service = seen.message()
    conditions = [service.metadata.labels.get(key) == value for key, value in sees.labels.items()]
    if sees.names is not None:
        conditions.append(any(matches(pattern, service.name) for pattern in sees.names))
    if sees.groups is not None:
        conditions.append(service.group in sees.groups)
    if sees.environments is not None:
        conditions.append(service.metadata.environment in sees.environments)
    return all(conditions) or any(matches(pattern, service.name) for pattern in own)


@given(SEES, PATTERNS, RECORDS, FILTERS)
def test_joined_filter_matches_what_matches_and_is_seen(
    sees: Sees, own: tuple[str, ...], seen: Record, message: ServiceFilter
) -> None:
    caller, filter_ = identity(sees, own), compiled(message)
    joined = caller.restrict(filter_)
    assert caller.sees(seen) == expected(sees, own, seen)
    assert joined.matches(seen) == (filter_.matches(seen) and expected(sees, own, seen))


@given(SEES, SEES, PATTERNS, PATTERNS)
def test_equal_keys_mean_equal_visibility(
    sees: Sees, other: Sees, own: tuple[str, ...], other_own: tuple[str, ...]
) -> None:
    one, two = sees.visibility(own), other.visibility(other_own)
    assert (one == two) == (
        identity(sees, own).restrict(EVERYTHING).key == identity(other, other_own).restrict(EVERYTHING).key
    )
    if one == two and one is not None and two is not None:
        assert one.scope == two.scope


def test_callers_without_a_restriction_keep_their_filter() -> None:
    filter_ = compiled(ServiceFilter(environment="production"))
    assert identity(Sees(), ("a-*",)).restrict(filter_) is filter_
    assert UNCHECKED.restrict(filter_) is filter_
    assert filter_.hides(record("a")) is False


def test_notices_about_services_go_to_owners_and_operators() -> None:
    sees = Sees(environments=("production",))
    assert identity(sees).restrict(EVERYTHING).notices_of == "someone"
    assert identity(sees, role=Role.OPERATOR).restrict(EVERYTHING).notices_of is None


def read(directory: Path, text: str) -> Policy:
    file = directory / "policy.yaml"
    file.write_text(text, encoding="utf-8")
    return read_policy(file)


def test_entry_overrides_what_its_role_sees(tmp_path: Path) -> None:
    policy = read(
        tmp_path,
        f"""
sees:
  viewer: {{environments: [production]}}
api_keys:
  - {{name: dashboard, role: viewer, hashes: [{HASH}]}}
  - {{name: auditor, role: viewer, hashes: [{HASH[:-1] + "b"}], sees: {{}}}}
  - {{name: on-call, role: operator, hashes: [{HASH[:-1] + "c"}]}}
certificates: [{{dns: "*", role: viewer}}]
""",
    )
    seen = [
        granted_identity(grant, "n", "api-key", "n", LIMITS, None).sees(record("a"))
        for grant in (*policy.api_keys, *policy.certificates)
    ]
    assert seen == [False, True, True, False]
    assert policy.restricts()
    assert not read(tmp_path, "sees: {viewer: {environments: [production]}}\n").restricts()


@pytest.mark.parametrize(
    ("sees", "problem"),
    [
        ("{tags: [a]}", "sees.viewer.tags: is not a known key"),
        ("{names: ['{subject}']}", "sees.viewer.names[0]: must be a service name, with * for any text"),
        ("{environments: production}", "sees.viewer.environments: must be a list"),
    ],
)
def test_invalid_sees_is_reported_with_its_place(sees: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=f":1: {problem}".replace("[", r"\[").replace("*", r"\*")):
        read(tmp_path, f"sees: {{viewer: {sees}}}\n")
