"""Deployment files pass the linters and schemas of their tools, and match the registry's settings."""

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


def manifest_of(kind: str, name: str = "ossa-registry") -> dict[str, Any]:
    (manifest,) = [each for each in MANIFESTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return manifest


# Docker.


def test_hadolint_accepts_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_image_runs_as_non_root_and_receives_signals() -> None:
    assert re.search(r"^USER (\d+)", DOCKERFILE, re.MULTILINE)
    assert 'ENTRYPOINT ["ossa-registry"]' in DOCKERFILE, "use the exec form: a shell does not forward SIGTERM"


def test_image_copies_all_that_the_build_context_has() -> None:
    copied = {
        source for each in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for source in each.split()
    }
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert copied == set(re.findall(r"^!(\S+)$", kept, re.MULTILINE))


def test_variables_of_the_image_are_settings() -> None:
    assert set(re.findall(r"\b(OSSA_REGISTRY_\w+)=", DOCKERFILE)) <= VARIABLES


# Compose.


def test_compose_file_matches_the_specification() -> None:
    # safe_load has resolved YAML merge keys, which compose_spec does not support.
    composed = PyCompose.from_yaml(yaml.safe_dump(COMPOSE))
    assert sorted(composed.service_names()) == ["grafana", "prometheus", "redis", "registry-1", "registry-2"]


def test_compose_file_mounts_existing_files_and_binds_to_loopback() -> None:
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
def test_manifest_matches_the_schema_of_its_kind(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_invalid_manifest_is_rejected() -> None:
    invalid = manifest_of("Deployment") | {"spec": {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(invalid, "1.37", strict=True)


def test_kustomization_lists_every_manifest() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {file.name for file in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files


def test_manifests_are_consistent() -> None:
    deployment = manifest_of("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 50051, "http": 3002}
    assert container["readinessProbe"]["grpc"]["port"] == ports["grpc"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        manifest_of("Service")["spec"]["selector"],
        manifest_of("Service", "ossa-registry-http")["spec"]["selector"],
        manifest_of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifest_of("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    scaled = manifest_of("HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["minReplicas"] > manifest_of("PodDisruptionBudget")["spec"]["minAvailable"]


def test_manifest_variables_are_settings_and_shutdown_fits_the_grace() -> None:
    pod = manifest_of("Deployment")["spec"]["template"]["spec"]
    settings = manifest_of("ConfigMap")["data"]
    assert settings.keys() | {each["name"] for each in pod["containers"][0]["env"]} <= VARIABLES
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = int(settings["OSSA_REGISTRY_SHUTDOWN__GRACE_SECONDS"])
    assert pause + grace < pod["terminationGracePeriodSeconds"]


# systemd.


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd" / "ossa-registry.service").read_text(encoding="utf-8")
    program = shlex.split(re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0])[0]
    file = tmp_path / "ossa-registry.service"
    file.write_text(unit.replace(program, sys.executable), encoding="utf-8")  # the program is not installed here
    result = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert set(re.findall(r"\b(OSSA_REGISTRY_\w+)=", unit)) <= VARIABLES
