"""What cannot be run here is held against the tools and schemas of its kind, and against the registry itself."""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from registry_server.config.sources import SETTINGS
from tests.support.redis_process import RedisProcess
from tests.support.server import ServerProcess

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
MANIFESTS: list[dict[str, Any]] = [
    document
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    if file.name != "kustomization.yaml"
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
]
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text(encoding="utf-8"))
VARIABLES = {setting.variable for setting in SETTINGS}


def found(kind: str, name: str = "ossa-registry") -> dict[str, Any]:
    (manifest,) = [each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return manifest


# Docker.


def test_hadolint_finds_no_fault() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_image_is_not_run_as_root_and_stops_by_a_signal() -> None:
    assert re.search(r"^USER (\d+)", DOCKERFILE, re.MULTILINE)
    assert 'ENTRYPOINT ["ossa-registry"]' in DOCKERFILE, "the exec form: a shell would keep SIGTERM to itself"


def test_the_image_is_built_of_files_that_make_a_wheel(tmp_path: Path) -> None:
    stage = DOCKERFILE.partition("RUN python -m venv")[0]
    for sources, target in re.findall(r"^COPY (.+) (\S+)$", stage, re.MULTILINE):
        for source in sources.split():
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == set(re.findall(r"^!(\S+)$", kept, re.MULTILINE))
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    assert len(list((tmp_path / "dist").glob("*.whl"))) == 1


async def test_the_health_check_tells_the_living_from_the_dead(redis: RedisProcess) -> None:
    command = json.loads(re.findall(r"HEALTHCHECK [^\[]*(\[.*\])", DOCKERFILE)[0])
    assert command[0] == "python"
    async with ServerProcess(f"--redis.url={redis.url}") as server:
        check = [sys.executable, *command[1:-1], command[-1].replace("127.0.0.1:3002", server.http_address)]
        assert check[-1] != command[-1]
        assert await exit_code(check) == 0
        await server.kill()
        assert await exit_code(check) != 0


async def exit_code(command: list[str]) -> int:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


def test_the_variables_of_the_image_are_settings() -> None:
    assert set(re.findall(r"\b(OSSA_REGISTRY_\w+)=", DOCKERFILE)) <= VARIABLES


# Compose.


def test_the_compose_file_keeps_to_the_specification() -> None:
    # The merge key is YAML's, and resolved by then.
    composed = PyCompose.from_yaml(yaml.safe_dump(COMPOSE))
    assert sorted(composed.service_names()) == ["grafana", "prometheus", "redis", "registry-1", "registry-2"]


def test_the_compose_file_mounts_what_there_is_and_opens_ports_to_this_machine_alone() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), f"{name}: {source}"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    for name in ("registry-1", "registry-2"):
        assert COMPOSE["services"][name]["environment"].keys() <= VARIABLES
    assert (DEPLOY / COMPOSE["x-registry"]["build"]["context"] / COMPOSE["x-registry"]["build"]["dockerfile"]).exists()


def test_prometheus_scrapes_each_registry_of_the_compose_file() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    targets = {target for group in job["static_configs"] for target in group["targets"]}
    assert targets == {f"{name}:3002" for name in COMPOSE["services"] if name.startswith("registry-")}


# Kubernetes.


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_a_manifest_keeps_to_the_schema_of_its_kind(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_manifest_that_is_wrong_would_be_noticed() -> None:
    wrong = found("Deployment") | {"spec": {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_the_kustomization_names_every_manifest() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {file.name for file in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files


def test_the_manifests_fit_each_other() -> None:
    deployment = found("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 50051, "http": 3002}
    assert container["readinessProbe"]["grpc"]["port"] == ports["grpc"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        found("Service")["spec"]["selector"],
        found("Service", "ossa-registry-http")["spec"]["selector"],
        found("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        found("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    scaled = found("HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["minReplicas"] > found("PodDisruptionBudget")["spec"]["minAvailable"]


def test_the_settings_of_the_manifests_are_settings_and_the_drain_has_its_time() -> None:
    pod = found("Deployment")["spec"]["template"]["spec"]
    settings = found("ConfigMap")["data"]
    assert settings.keys() | {each["name"] for each in pod["containers"][0]["env"]} <= VARIABLES
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = int(settings["OSSA_REGISTRY_SHUTDOWN__GRACE_SECONDS"])
    assert pause + grace < pod["terminationGracePeriodSeconds"]


# systemd.


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "ossa-registry.service").read_text(encoding="utf-8")
    program = shlex.split(re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0])[0]
    file = tmp_path / "ossa-registry.service"
    file.write_text(unit.replace(program, sys.executable), encoding="utf-8")  # it is not installed here
    result = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert set(re.findall(r"\b(OSSA_REGISTRY_\w+)=", unit)) <= VARIABLES
