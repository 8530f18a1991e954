"""No secret is in logs, errors, metrics or the text of an object, whatever goes wrong."""

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
    """What of a secret must be nowhere: itself, and its parts that cannot be guessed."""
    return [secret, *(part for part in secret.split(".") if len(part) > 20)]


async def test_nothing_that_the_server_says_has_a_secret_in_it(redis: RedisProcess, policy: Policy) -> None:
    tokens = {
        "good": token("one", roles=["viewer"]),
        "expired": token("one", roles=["viewer"], exp=1),
        "audience": token("one", roles=["viewer"], aud="x"),
        "forged": token("one", roles=["viewer"])[:-6] + "AAAAAA",
    }
    keys = {**policy.keys, "unknown": "ossa_this-key-is-in-no-file-8392"}
    secrets = [part for secret in (*keys.values(), *tokens.values()) for part in parts_of(secret)]
    # The header of a token is the same for all of its kind.
    secrets = [part for part in secrets if part != tokens["good"].partition(".")[0]]
    said: list[str] = []
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
                        said += [str(await call.code()), str(await call.details()), str(await call.trailing_metadata())]
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
                        async with session.request(method, f"{BASE}/{path}", headers=headers) as answer:
                            said += [str(answer.headers), await answer.text()]
            async with session.get("/metrics") as answer:
                said.append(await answer.text())
        # A file in which somebody has put a key in the place of its hash.
        policy.document["api_keys"][0]["hashes"] = [keys["viewer"]]
        policy.write()
        server.signal(signal.SIGHUP)
        await server.logged("the policy was not read again; the old one stays")
        said += [json.dumps(line) for line in server.log]
    said += [json.dumps(line) for line in server.log]
    whole = "\n".join(said)
    assert "credential refused" in whole
    assert [secret for secret in secrets if secret in whole] == []
    encoded = [base64.b64encode(secret.encode()).decode() for secret in secrets]
    assert [secret for secret in encoded if secret in whole] == []


async def test_the_text_of_no_object_has_a_secret_in_it(policy: Policy, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.files("server")
    section = {"cert_file": certificate, "key_file": key}
    whole = settings(f"rediss://registry:{REDIS_PASSWORD}@127.0.0.1:1", security=policy.section, tls=section)
    certificates = Certificates(whole.tls)
    read = read_policy(policy.file)
    checks = Authenticator(read, Limits(1, 1, 1, 1))
    presented = [Credentials(authorization=f"Bearer {policy.keys['admin']}"), Credentials(api_key=policy.keys["agent"])]
    for each in presented:
        await checks.verify(each)
    guard = Guard(SecuritySettings(policy_file=policy.file), LimitSettings())
    objects: list[object] = [whole, whole.redis, whole.redis.url, certificates, certificates.current(), read, checks]
    objects += [vars(checks), presented, guard, vars(guard)]
    said = "\n".join(f"{each!r}\n{each}" for each in objects)
    said += whole.model_dump_json() + str(whole.model_dump())
    secrets = [*policy.keys.values(), REDIS_PASSWORD, *key.read_text().splitlines()[1:-1]]
    assert [secret for secret in secrets if secret in said] == []


def test_a_password_of_redis_is_in_no_error_about_settings() -> None:
    problems = []
    for url in (f"rediss://u:{REDIS_PASSWORD}@", f"redis://u:{REDIS_PASSWORD}@h:1:2", f"rediss://{REDIS_PASSWORD}/x@h"):
        for flags in ([f"--redis.url={url}"], [f"--grpc.address={url}"], [f"--tls.cert-file={url}"], [url]):
            try:
                load_settings(flags, {})
            except Exception as error:  # noqa: BLE001 - whatever it is
                problems.append(str(error))
    assert len(problems) == 12
    assert REDIS_PASSWORD not in "\n".join(problems)
