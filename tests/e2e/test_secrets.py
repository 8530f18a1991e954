"""The Redis password never appears in a log line, metric, span or response."""

import aiohttp
import grpc
import pytest
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import ServerProcess, connected

PASSWORD, OTHER_PASSWORD = "hunter2-hunter2", "swordfish-swordfish"


@pytest.mark.own_redis
async def test_redis_password_never_leaves_the_process(redis: RedisProcess) -> None:
    async with Redis.from_url(redis.url) as admin:
        await admin.config_set("requirepass", PASSWORD)
        url = redis.url.replace("redis://", f"redis://:{PASSWORD}@")
        flags = ("--log.requests=all", "--log.level=debug", "--trace.enabled=true")
        env = {"OSSA_REGISTRY_REDIS__URL": url, "OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "50"}
        async with ServerProcess(*flags, env=env) as server, connected(server.grpc_address) as (_, stub):
            await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
            await admin.config_set("requirepass", OTHER_PASSWORD)
            await admin.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("b")))
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert (await server.logged("store disconnected"))["reason"]
            async with aiohttp.ClientSession() as client, client.get(f"http://{server.http_address}/metrics") as answer:
                metrics = await answer.text()
            assert await server.stop() == 0
        assert any("redis commit" in str(line) for line in server.log), "spans were exported"
        for output in (metrics, str(server.log), str(caught.value)):
            assert PASSWORD not in output
            assert OTHER_PASSWORD not in output
