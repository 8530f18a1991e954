"""``Sessions``: what a recheck decides for open streams, without a transport."""

import asyncio
from collections import Counter
from contextlib import ExitStack

import pytest
from structlog.testing import capture_logs

from registry_server.errors import IssuerUnavailable, PermissionDenied, RegistryError, Unauthenticated
from registry_server.security.authenticator import Credentials
from registry_server.security.identity import Identity, Role
from registry_server.security.permissions import HEALTH, READ, Permission
from registry_server.security.sessions import MAX_VERIFY_SECONDS, Session, Sessions
from tests.unit.security.credentials import bearer_credentials

VIEWER = Identity("viewer", Role.VIEWER, "api-key")
NONE_PUBLIC: frozenset[str] = frozenset()


class Call:
    """A call with the credentials of a key."""

    caller_key = ("api-key", "viewer")

    def __init__(self, key: str) -> None:
        self._credentials = bearer_credentials(key)

    def address(self) -> str:
        return "192.0.2.1"

    def credentials(self) -> Credentials:
        return self._credentials


def permit(identity: Identity, permission: Permission) -> None:
    if identity.role < permission.min_role:
        raise PermissionDenied("role")


def outcome(session: Session) -> type[RegistryError] | None:
    """Return the type of the error that ended a session, or ``None``."""
    return type(session.ended.result()) if session.ended.done() else None


async def test_every_stream_of_refused_credentials_ends_and_each_is_verified_once() -> None:
    sessions, verified = Sessions(), Counter[str]()

    async def verify(credentials: Credentials) -> Identity:
        verified[credentials.authorization] += 1
        if "bad" in credentials.authorization:
            raise Unauthenticated
        return VIEWER

    with ExitStack() as opened:
        bad = [opened.enter_context(sessions.open(Call("bad"), VIEWER, READ)) for _ in range(2_000)]
        good = [opened.enter_context(sessions.open(Call(f"good{i}"), VIEWER, READ)) for i in range(200)]
        await sessions.recheck(verify, permit, NONE_PUBLIC)
        assert {outcome(session) for session in bad} == {Unauthenticated}
        assert {outcome(session) for session in good} == {None}
        assert set(verified.values()) == {1}
        assert len(verified) == 201


async def test_recheck_leaves_turns_to_other_work() -> None:
    sessions, turns = Sessions(), 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def refuse(_: Credentials) -> Identity:
        raise Unauthenticated

    with ExitStack() as opened:
        for i in range(2_000):
            opened.enter_context(sessions.open(Call(str(i % 1_000)), VIEWER, READ))
        counting = asyncio.create_task(count_turns())
        await sessions.recheck(refuse, permit, NONE_PUBLIC)
        counting.cancel()
    assert turns >= 2_000 // 50 - 1


@pytest.mark.slow
async def test_issuer_that_hangs_delays_no_other_decision_and_its_streams_end() -> None:
    sessions = Sessions()

    async def verify(credentials: Credentials) -> Identity:
        if "hangs" in credentials.authorization:
            await asyncio.Event().wait()
        raise IssuerUnavailable("issuer")

    with ExitStack() as opened:
        hanging = [opened.enter_context(sessions.open(Call(f"hangs{i}"), VIEWER, READ)) for i in range(100)]
        refused = opened.enter_context(sessions.open(Call("refused"), VIEWER, READ))
        checking = asyncio.create_task(sessions.recheck(verify, permit, NONE_PUBLIC))
        await asyncio.wait_for(asyncio.shield(refused.ended), MAX_VERIFY_SECONDS / 2)
        assert {outcome(session) for session in hanging} == {None}
        await asyncio.wait_for(checking, 10 * MAX_VERIFY_SECONDS)
        assert {outcome(session) for session in hanging} == {Unauthenticated}


async def test_unexpected_error_ends_streams() -> None:
    sessions = Sessions()

    async def fail(_: Credentials) -> Identity:
        raise KeyError

    with sessions.open(Call("key"), VIEWER, READ) as session, capture_logs() as logs:
        await sessions.recheck(fail, permit, NONE_PUBLIC)
        assert outcome(session) is Unauthenticated
    assert [line["event"] for line in logs] == ["stream authorisation recheck failed"]


async def test_lost_role_ends_a_stream_unless_it_is_public() -> None:
    sessions = Sessions()

    async def verify(_: Credentials) -> Identity:
        return Identity("viewer", Role.NONE, "api-key")

    with (
        sessions.open(Call("key"), VIEWER, READ) as read,
        sessions.open(Call("key"), VIEWER, HEALTH) as public,
        sessions.open(Call("key"), VIEWER, READ) as closed,
    ):
        closing = ExitStack()
        gone = closing.enter_context(sessions.open(Call("key"), VIEWER, READ))
        closing.close()
        await sessions.recheck(verify, permit, frozenset({"health"}))
        assert [outcome(session) for session in (read, public, closed, gone)] == [
            PermissionDenied,
            None,
            PermissionDenied,
            None,
        ]
