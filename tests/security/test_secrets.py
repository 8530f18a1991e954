"""No secret appears in logs, errors, metrics or the text of an object."""

import base64
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_server.config import LimitSettings, SecuritySettings, load_settings
from registry_server.security.authenticator import Authenticator, Credentials
from registry_server.security.guard import Guard
from registry_server.security.identity import Limits
from registry_server.security.policy import read_policy
from registry_server.security.tls import Certificates
from tests.support.certificates import Authority
from tests.support.redis_process import RedisProcess
from tests.support.security import Policy, bearer, token
from tests.support.server import ServerProcess, settings

BASE = "/api/v1/registry"
REDIS_PASSWORD = "pass-of-redis-92837"


def parts_of(secret: str) -> list[str]:
    """Return a secret and its long dot-separated parts, none of which may appear anywhere."""
    return [secret, *(part for part in secret.split(".") if len(part) > 20)]


async def test_output_of_the_server_contains_no_secret(redis: RedisProcess, policy: Policy) -> None:
    tokens = {
        "good": token("one", roles=["viewer"]),
        "expired": token("one", roles=["viewer"], exp=1),
        "audience": token("one", roles=["viewer"], aud="x"),
        "forged": token("one", roles=["viewer"])[:-6] + "AAAAAA",
    }
    keys = {**policy.keys, "unknown": "ossa_this-key-is-in-no-file-8392"}
    secrets = [part for secret in (*keys.values(), *tokens.values()) for part in parts_of(secret)]
    # The header of a token is no secret: tokens of one algorithm share it.
    secrets = [part for part in secrets if part != tokens["good"].partition(".")[0]]
    output: list[str] = []
    async with ServerProcess(
        f"--redis.url={redis.url}",
        f"--security.policy-file={policy.file}",
        "--security.public=health,metrics",
        "--log.level=debug",
    ) as server:
        async with grpc.aio.insecure_channel(server.grpc_address) as channel:
            stub: Any = RegistryServiceStub(channel)
            for secret in (*keys.values(), *tokens.values()):
                for metadata in (bearer(secret), (("x-api-key", secret),), (*bearer(secret), ("x-api-key", secret))):
                    for call in (
                        stub.GetStats(pb.GetStatsRequest(), metadata=metadata),
                        stub.RegisterService(pb.RegisterServiceRequest(), metadata=metadata),
                        stub.Cleanup(pb.CleanupRequest(), metadata=metadata),
                    ):
                        output += [
                            str(await call.code()),
                            str(await call.details()),
                            str(await call.trailing_metadata()),
                        ]
        async with aiohttp.ClientSession(f"http://{server.http_address}") as session:
            for secret in (*keys.values(), *tokens.values()):
                for headers in (
                    {"Authorization": f"Bearer {secret}"},
                    {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"},
                    {"Authorization": secret},
                    {"X-Api-Key": secret},
                    {"Authorization": f"Bearer {secret}", "X-Api-Key": secret},
                ):
                    for method, path in (
                        ("GET", "stats"),
                        ("POST", "services"),
                        ("GET", "nowhere"),
                        ("GET", "events?x=1"),
                    ):
                        async with session.request(method, f"{BASE}/{path}", headers=headers) as response:
                            output += [str(response.headers), await response.text()]
            async with session.get("/metrics") as response:
                output.append(await response.text())
        # A policy file with a key in place of its hash.
        policy.document["api_keys"][0]["hashes"] = [keys["viewer"]]
        policy.write()
        server.signal(signal.SIGHUP)
        await server.logged("policy reload failed")
        output += [json.dumps(line) for line in server.log]
    output += [json.dumps(line) for line in server.log]
    everything = "\n".join(output)
    assert "credential refused" in everything
    assert [secret for secret in secrets if secret in everything] == []
    encoded = [base64.b64encode(secret.encode()).decode() for secret in secrets]
    assert [secret for secret in encoded if secret in everything] == []


async def test_repr_of_objects_contains_no_secret(policy: Policy, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.files("server")
    section = {"cert_file": certificate, "key_file": key}
    configured = settings(f"rediss://registry:{REDIS_PASSWORD}@127.0.0.1:1", security=policy.section, tls=section)
    certificates = Certificates(configured.tls)
    parsed = read_policy(policy.file)
    authenticator = Authenticator(parsed, Limits(1, 1, 1, 1))
    credentials = [
        Credentials(authorization=f"Bearer {policy.keys['admin']}"),
        Credentials(api_key=policy.keys["agent"]),
    ]
    for each in credentials:
        await authenticator.verify(each)
    guard = Guard(SecuritySettings(policy_file=policy.file), LimitSettings())
    objects: list[object] = [
        configured,
        configured.redis,
        configured.redis.url,
        certificates,
        certificates.current(),
        parsed,
        authenticator,
    ]
    objects += [vars(authenticator), credentials, guard, vars(guard)]
    output = "\n".join(f"{each!r}\n{each}" for each in objects)
    output += configured.model_dump_json() + str(configured.model_dump())
    secrets = [*policy.keys.values(), REDIS_PASSWORD, *key.read_text().splitlines()[1:-1]]
    assert [secret for secret in secrets if secret in output] == []


def test_redis_password_is_in_no_settings_error() -> None:
    problems = []
    for url in (f"rediss://u:{REDIS_PASSWORD}@", f"redis://u:{REDIS_PASSWORD}@h:1:2", f"rediss://{REDIS_PASSWORD}/x@h"):
        for flags in ([f"--redis.url={url}"], [f"--grpc.address={url}"], [f"--tls.cert-file={url}"], [url]):
            try:
                load_settings(flags, {})
            except Exception as error:  # noqa: BLE001 - any error
                problems.append(str(error))
    assert len(problems) == 12
    assert REDIS_PASSWORD not in "\n".join(problems)
