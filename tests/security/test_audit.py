"""The identity of callers in the audit log and in the request log."""

import aiohttp
import grpc
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.support.auditing import audit_lines
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import running


async def test_changes_and_denials_are_audited_with_the_identity(redis: RedisProcess, policy: Policy) -> None:
    with capture_logs() as logs, audit_lines() as changes:
        async with running(redis.url, security=policy.section) as server, aiohttp.ClientSession() as http:
            request = pb.RegisterServiceRequest(service=small_service("fleet-1"))
            await server.stub.RegisterService(request, metadata=policy.metadata("agent"))
            denied = pb.UnregisterServiceRequest(name="fleet-1")
            code = await server.stub.UnregisterService(denied, metadata=policy.metadata("other")).code()
            assert code is grpc.StatusCode.PERMISSION_DENIED
            async with http.get(f"{server.http}/metrics", headers=policy.headers("viewer")) as response:
                assert 'ossa_registry_commits_total{outcome="refused"} 1.0' in await response.text()
            url = f"{server.http}/api/v1/registry/services/fleet-1"
            async with http.delete(url, headers=policy.headers("operator")) as response:
                assert response.status == 200
    audited = [(line["identity"], line["operation"], line["outcome"]) for line in changes]
    assert audited == [
        ("agent", "register", "ok"),
        ("other", "unregister", "PERMISSION_DENIED"),
        ("operator", "unregister", "ok"),
    ]
    for secret in policy.keys.values():
        assert secret not in str(logs) + str(changes)


async def test_request_log_names_the_identity_that_was_refused(redis: RedisProcess, policy: Policy) -> None:
    with capture_logs() as logs:
        async with running(redis.url, security=policy.section) as server, aiohttp.ClientSession() as http:
            request = pb.RegisterServiceRequest(service=small_service("fleet-1"))
            code = await server.stub.RegisterService(request, metadata=policy.metadata("viewer")).code()
            assert code is grpc.StatusCode.PERMISSION_DENIED
            for key, status in (("viewer", 403), ("expired", 401)):  # on one connection
                url = f"{server.http}/api/v1/registry/cleanup"
                async with http.post(url, headers=policy.headers(key)) as response:
                    assert response.status == status
    # The client may receive the status of an RPC before the server logs it, so the transports are compared separately.
    identities: dict[str, list[str | None]] = {"grpc": [], "http": []}
    for line in logs:
        if line["event"] == "request":
            identities[line["transport"]].append(line.get("identity"))
    assert identities == {"grpc": ["viewer"], "http": ["viewer", None]}
