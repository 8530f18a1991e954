"""The program exits with code 2 and an explanation if its security settings are not valid."""

import asyncio
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grpc.address=0.0.0.0:0"], "grpc.address: other machines can reach 0.0.0.0:0"),
        (["--security.policy-file=/nowhere/policy.yaml"], "cannot read '/nowhere/policy.yaml'"),
        (["--tls.cert-file=/nowhere/tls.crt", "--tls.key-file=/nowhere/tls.key"], "cannot read '/nowhere/tls.crt'"),
        (["--tls.cert-file=/nowhere/tls.crt"], "tls.key_file (default): must be given together with --tls.cert-file"),
        (["--tls.client-ca-file=/nowhere/ca.pem"], "--tls.client-ca-file: needs tls.cert_file"),
        (["--security.public=health,everything"], "--security.public: must be some of health, metrics, docs"),
    ],
)
async def test_bad_security_setting_exits_with_2_and_is_named(flags: list[str], message: str, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "registry_server", f"--data-dir={tmp_path}", "--http.address=127.0.0.1:0"),
        *("--grpc.address=127.0.0.1:0", *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    _, output = await process.communicate()
    assert process.returncode == 2
    assert message in output.decode()
    assert "Traceback" not in output.decode()
