"""Files of deploy/: they parse, and what they name of the code, and of each other, exists."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from server.settings import Settings, load_settings
from server.settings_faults import OTHER_VARIABLES
from tests.unit.helm_forms import UnknownFormError, render

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "hyimage"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
IDS = [str(path.relative_to(DEPLOY)) for path in FILES]
VARIABLES = {
    f"HYIMAGE_{section}__{name}".upper()
    for section, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    for name in field.annotation.model_fields
}
OTHER_VALUES: dict[str, Any] = {
    "ingress": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "modelsClaim": "",
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_variable_of_ours_in_a_file_exists(file: Path) -> None:
    named = re.findall(r"\bHYIMAGE_[A-Z_]*[A-Z](?!\w|\.)", file.read_text(encoding="utf-8"))
    assert set(named) - VARIABLES - {*OTHER_VARIABLES, "HYIMAGE_SECTION__SETTING"} == set()


# Compose


def services(*names: str) -> dict[str, dict[str, Any]]:
    """Return the services of Compose files, a later one's keys over an earlier one's."""
    merged: dict[str, dict[str, Any]] = {}
    for name in names or ("compose.yaml",):
        for service, keys in read_yaml(DEPLOY / name)["services"].items():
            merged[service] = {**merged.get(service, {}), **keys}
    return merged


def test_every_service_of_compose_says_when_it_is_healthy() -> None:
    of_the_image = {"server"}  # the Dockerfile's
    checks = {name: service.get("healthcheck") for name, service in services().items()}
    assert {name for name, check in checks.items() if check is None} == of_the_image
    ends = [name for name, check in checks.items() if check == {"disable": True}]
    assert ends == ["bucket"]
    for service in services().values():
        for name, wanted in service.get("depends_on", {}).items():
            condition = "service_completed_successfully" if name in ends else "service_healthy"
            assert wanted == {"condition": condition}


def test_what_compose_mounts_exists_and_every_volume_is_declared() -> None:
    volumes = read_yaml(DEPLOY / "compose.yaml")["volumes"]
    used = set()
    for service in services().values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), mount
            else:
                used.add(source)
    assert used == set(volumes)


def test_compose_opens_ports_on_loopback_alone_and_pins_images() -> None:
    for service in services().values():
        assert [p for p in service.get("ports", ()) if not p.startswith("127.0.0.1:")] == []
        assert re.fullmatch(r"[\w./-]+:v?[\w.]+", service["image"]), service["image"]
        assert not service["image"].endswith(":latest")


def test_secrets_of_compose_come_from_a_file_and_a_missing_one_stops_the_start() -> None:
    text = "".join((DEPLOY / n).read_text("utf-8") for n in ("compose.yaml", "compose.cuda.yaml"))
    example = (DEPLOY / "example.env").read_text(encoding="utf-8")
    offered = set(re.findall(r"^(\w+)=", example, flags=re.M))
    used = dict(re.findall(r"\$\{(\w+)(:[?-])", text))
    assert set(used) == offered
    secrets = {name for name in offered if re.search("PASSWORD|KEYS?$", name)}
    assert secrets
    assert {name for name in secrets if used[name] != ":?"} == set()
    assert re.findall(r"^(\w*(?:PASSWORD|SECRET)\w*)=.+$", example, flags=re.M) == []
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {"deploy/.env", "deploy/server.env"} <= set(ignored)


def test_the_servers_of_compose_have_the_targets_of_the_dockerfile() -> None:
    targets = re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.M)
    for files, target in (
        (("compose.yaml",), "cpu"),
        (("compose.yaml", "compose.cuda.yaml"), "cuda"),
    ):
        found = services(*files)
        assert found["server"]["build"]["target"] == target
        assert found["server"]["image"] == found["bucket"]["image"] == f"hyimage:{target}"
        assert target in targets


def test_prometheus_and_grafana_find_each_other_and_the_alerts_job() -> None:
    prometheus = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    assert job["job_name"] == "hyimage"
    assert job["static_configs"][0]["targets"] == ["server:8000"]
    mounted = " ".join(m for s in services().values() for m in s.get("volumes", ()))
    for rules in prometheus["rule_files"]:
        assert f":/etc/prometheus/{rules}:ro" in mounted
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read_yaml(provisioning / "dashboards" / "hyimage.yml")["providers"]
    assert f":{provider['options']['path']}/hyimage.json:ro" in mounted


# Helm


def chart_values(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    values: dict[str, Any] = read_yaml(CHART / "values.yaml")
    for name, change in (changes or {}).items():
        values[name] = {**values[name], **change} if isinstance(change, dict) else change
    return values


def rendered(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the chart's manifests by their kind."""
    manifests = [
        yaml.safe_load(render(path.read_text(encoding="utf-8"), chart_values(changes), "here"))
        for path in sorted((CHART / "templates").iterdir())
    ]
    return {manifest["kind"]: manifest for manifest in manifests if manifest}


def test_the_chart_has_a_server_a_service_and_settings_that_fit_together() -> None:
    found = rendered()
    assert set(found) == {"ConfigMap", "Deployment", "PodDisruptionBudget", "Service"}
    pod = found["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (server,) = pod["spec"]["containers"]
    assert {mount["name"] for mount in server["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }
    (settings,) = (v for v in pod["spec"]["volumes"] if v["name"] == "settings")
    assert settings["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert server["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert server["startupProbe"]["failureThreshold"] == 60
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_chart_renders_with_other_values() -> None:
    found = rendered(OTHER_VALUES)
    assert set(found) >= {"Ingress", "ServiceMonitor"}
    assert found["ServiceMonitor"]["spec"]["jobLabel"] in found["Service"]["metadata"]["labels"]
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert "models" not in {volume["name"] for volume in pod["volumes"]}


def test_the_settings_of_the_chart_load_and_leave_time_to_drain(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(rendered()["ConfigMap"]["data"]["settings.toml"], encoding="utf-8")
    settings = load_settings(file)
    assert settings.tasks.is_shared
    pod = rendered()["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > settings.server.drain_s + 20
    gpus = pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == settings.worker.num_ranks


@pytest.mark.parametrize(
    "template",
    ["{{ .Values.gone }}", "{{ include \"x\" . }}", "{{ .Values.replicas | upper }}",
     "{{- if .Values.replicas }}"],
)  # fmt: skip
def test_a_form_that_the_renderer_does_not_know_is_an_error(template: str) -> None:
    with pytest.raises(UnknownFormError):
        render(template, chart_values(), "here")


# KubeRay, systemd


def test_kuberay_serves_the_application_of_the_configuration_that_is_tested() -> None:
    service = read_yaml(DEPLOY / "kuberay" / "rayservice.yaml")["spec"]
    ours = read_yaml(ROOT / "configs" / "ray_serve.yaml")
    theirs = yaml.safe_load(service["serveConfigV2"])
    for application in (ours["applications"][0], theirs["applications"][0]):
        assert application.pop("args")["config"].endswith("/cluster.toml")
    assert theirs == ours
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={service['rayClusterConfig']['rayVersion']}" in constraints
    (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
    gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    cluster = load_settings(ROOT / "configs" / "cluster.toml")
    assert gpus == cluster.worker.num_ranks
    assert (group["minReplicas"], group["maxReplicas"]) == (
        cluster.cluster.engines,
        cluster.cluster.max_engines,
    )


UNIT = DEPLOY / "systemd" / "hyimage.service"


def test_the_unit_gives_the_server_time_to_drain_and_signals_it_alone() -> None:
    unit = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(encoding="utf-8"), flags=re.M))
    settings = Settings()
    assert unit["KillMode"] == "mixed"
    assert float(unit["TimeoutStopSec"]) > settings.server.drain_s + 20
    assert unit["RestartPreventExitStatus"] == "2"
    assert unit["User"] not in ("", "root")


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    text = UNIT.read_text(encoding="utf-8")
    unit = tmp_path / UNIT.name
    # The command is not installed here, and systemd looks for it.
    unit.write_text(text.replace("/opt/hyimage/.venv/bin/hyimage", "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (
        0,
        [],
    )
