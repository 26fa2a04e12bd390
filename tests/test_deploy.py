"""The Compose file, the images' recipes and the dashboard: read as the tools read them, held against the code.

No Docker runs here: what is checked is that they are well-formed, and that the settings, files, ports and metrics they
speak of exist.
"""

import inspect
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards import dashboards, expressions
from fastapi.testclient import TestClient
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from samples import tone, write_sound

from export import cli
from export.profiles import DECODERS, UNETS
from export.repository import TARGETS
from export.tensorrt import PACKAGE, TRITON_IMAGE
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / ".env.example"
CONSTRAINTS = ROOT / "deploy/export.constraints.txt"
RECIPES = sorted((ROOT / "deploy").glob("*.Dockerfile"))

# Triton's, where there is a GPU: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
GPU_METRICS = {
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
    "nv_energy_consumption",
}

needs_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="needs docker-compose (Debian's package of that name)"
)


def compose(env_file: Path, *more: Path) -> subprocess.CompletedProcess[str]:
    files = [word for file in (COMPOSE, *more) for word in ("-f", file)]
    command = ["docker-compose", *files, "--env-file", env_file, "--profile", "export", "config"]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"PATH": "/usr/local/bin:/usr/bin:/bin"}
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """As docker-compose understands the file with the example's values."""
    done = compose(EXAMPLE)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found


@needs_compose
def test_the_compose_file_is_valid_with_the_example(services: dict[str, Any]) -> None:
    assert set(services) == {"triton", "gateway", "prometheus", "grafana", "export"}


class Strict(yaml.SafeLoader):
    """Refuses a key that is there twice, as Compose 2 does; YAML's own loader and Compose 1 take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("file", [COMPOSE, *sorted((ROOT / "deploy").rglob("*.yml"))], ids=lambda file: file.name)
def test_no_key_is_there_twice(file: Path) -> None:
    yaml.load(file.read_text(), Strict)


def test_a_key_that_is_there_twice_is_noticed() -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match=r"twice: \['b'\]"):
        yaml.load("a: {b: 1, c: 2, b: 1}", Strict)
    yaml.load("x: &x {b: 1}\na: {<<: *x, b: 2}", Strict)


@needs_compose
def test_tritons_ports_open_on_this_machine_only_and_only_if_asked_for() -> None:
    done = compose(EXAMPLE, ROOT / "deploy/triton-ports.yml")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["services"]
    assert found["triton"]["ports"] == ["127.0.0.1:8001:8001/tcp", "127.0.0.1:8002:8002/tcp"]
    assert found["triton"]["image"] == TRITON_IMAGE


def test_the_documented_triton_can_be_measured() -> None:
    """perf_analyzer asks port 8001, and benchmarks/ensemble.py the metrics of port 8002."""
    for file in ("docs/gpu.md", "README.md"):
        text = (ROOT / file).read_text()
        assert "benchmarks/ensemble.py --url localhost:8001" in text and "deploy/triton-ports.yml" in text, file
        assert "export.served --url localhost:8001" in text, file
    assert "-p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002" in (ROOT / "docs/gpu.md").read_text()


def test_the_exports_image_has_versions_that_pyproject_allows() -> None:
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))
    assert pins.keys() >= {"diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "torch"}
    assert f"-c {CONSTRAINTS.name.removeprefix('export.')} " in (ROOT / "deploy/export.Dockerfile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for name, version in pins.items():
        for asked in re.findall(rf'"{name}([<>=~!][^"]*)"', project):
            assert Version(version) in SpecifierSet(asked), name


@needs_compose
@pytest.mark.parametrize("name", ["LIPSERVE_PROFILE", "TRITON_TARGET", "GRAFANA_ADMIN_PASSWORD"])
def test_what_must_be_set_is_asked_for(name: str, tmp_path: Path) -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if not line.startswith(f"{name}=")]
    assert len(lines) == len(EXAMPLE.read_text().splitlines()) - 1
    (tmp_path / "env").write_text("\n".join(lines))
    done = compose(tmp_path / "env")
    assert done.returncode != 0
    message = re.findall(rf"\$\{{{name}:\?(.+?)\}}", COMPOSE.read_text())[0]
    assert message in done.stderr


@needs_compose
def test_the_gateway_gets_settings_that_are_settings(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = services["gateway"]["environment"] | written_in(ROOT / "deploy/gateway.Dockerfile")
    ours = {name: value for name, value in given.items() if name.startswith("LIPSERVE_")}
    assert {name.removeprefix("LIPSERVE_").lower() for name in ours} <= set(Settings.model_fields)
    for name, value in ours.items():
        if value is not None:
            monkeypatch.setenv(name, str(value))
    settings = Settings()
    assert (settings.host, settings.port, settings.triton_url) == ("0.0.0.0", 8080, "triton:8001")
    assert settings.triton_metrics_url == "http://triton:8002/metrics"
    mounts = {target(volume) for volume in services["gateway"]["volumes"]}
    folders = {settings.avatars_dir, settings.work_dir, settings.storage_dir, settings.models_dir / settings.profile}
    assert {str(folder) for folder in folders} == mounts
    for folder in (settings.avatars_dir, settings.work_dir, settings.storage_dir):  # volumes take its owner
        assert re.search(rf"install -d -o lipserve -g lipserve .*{folder}\b", recipe_of(services["gateway"]))


def written_in(recipe: Path) -> dict[str, str]:
    """The ENV of a Dockerfile."""
    return dict(re.findall(r"^(?:ENV| {4})\s*([A-Z_]+)=(\S+)", recipe.read_text(), re.MULTILINE))


def target(volume: Any) -> str:
    """Where it is mounted; in the short or the long form."""
    return str(volume["target"] if isinstance(volume, dict) else volume.split(":")[1])


def test_every_variable_is_in_the_example_and_every_setting_there_has_its_default() -> None:
    text = COMPOSE.read_text()
    asked = set(re.findall(r"\$\{([A-Z_]+)", text)) | set(re.findall(r"^ +(LIPSERVE_[A-Z_]+):$", text, re.MULTILINE))
    shown = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))
    assert asked == set(shown)
    for name, value in shown.items():
        if name.startswith("LIPSERVE_") and name != "LIPSERVE_PROFILE":
            default = Settings.model_fields[name.removeprefix("LIPSERVE_").lower()].default
            assert value == ("" if default is None else str(default)), name


def test_every_setting_is_passed_to_the_gateway_or_has_no_place_there() -> None:
    embedded = {"model_repository", "lazy_load", "unload_idle_seconds"} | {
        f"triton_{port}_port" for port in ("http", "grpc", "metrics")
    }
    not_there = {"media_dir", "video_encoder"}  # nothing is mounted, and the GPU is Triton's
    text = COMPOSE.read_text() + (ROOT / "deploy/gateway.Dockerfile").read_text()
    passed = {name.lower() for name in re.findall(r"LIPSERVE_([A-Z_]+)[:=]", text)}
    assert passed == set(Settings.model_fields) - embedded - not_there


def test_the_gateway_image_has_the_voice_of_text_scripts() -> None:
    assert Settings.model_fields["tts"].default == "espeak"
    assert re.search(r"apt-get install .*\bespeak-ng\b", (ROOT / "deploy/gateway.Dockerfile").read_text())


@needs_compose
def test_services_come_back_have_a_health_check_and_listen_on_this_machine_only(services: dict[str, Any]) -> None:
    for name, service in services.items():
        once = name == "export"
        assert service["restart"] == ("no" if once else "unless-stopped"), name
        healthy = "healthcheck" in service or "HEALTHCHECK" in recipe_of(service)
        assert healthy != once, name
        for port in service.get("ports", []):
            address = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
            assert address == "127.0.0.1", name
    assert "ports" not in services["triton"]
    assert "/health/ready" in recipe_of(services["gateway"])
    assert services["gateway"]["read_only"] is True
    assert services["gateway"]["tmpfs"]


def recipe_of(service: dict[str, Any]) -> str:
    return (ROOT / service["build"]["dockerfile"]).read_text() if "build" in service else ""


@needs_compose
def test_images_are_pinned_and_the_export_builds_for_the_triton_that_serves(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+[\w.-]*$", service["image"]), name
    assert services["export"]["build"]["args"]["TRITON_IMAGE"] == services["triton"]["image"]
    for recipe in RECIPES:
        for image in re.findall(r"^FROM (\S+)", recipe.read_text(), re.MULTILINE):
            assert image == "${TRITON_IMAGE}" or re.search(r":\d+\.\d+", image), recipe


@needs_compose
def test_the_export_is_called_with_what_it_takes(services: dict[str, Any]) -> None:
    command = services["export"]["command"]
    given = dict(zip(command[::2], command[1::2], strict=True))
    assert given.keys() == {"--target", "--profile", "--decoder"}
    assert given["--target"] in TARGETS and given["--profile"] in UNETS and given["--decoder"] in DECODERS
    mounts = {target(volume) for volume in services["export"]["volumes"]}
    defaults = inspect.signature(cli.main).parameters
    folders = {str(Path("/srv/lipserve") / defaults[name].default) for name in ("models_dir", "model_repository")}
    assert mounts == folders and "WORKDIR /srv/lipserve\n" in recipe_of(services["export"])


def test_one_triton_is_named_everywhere() -> None:
    """Engines run on the TensorRT that built them, and the export refuses any other than this image's."""
    for file in ("docker-compose.yml", "docs/gpu.md"):
        assert set(re.findall(r"nvcr\.io/\S+", (ROOT / file).read_text())) == {TRITON_IMAGE}, file
    for file in ("docs/gpu.md", "benchmarks/gpu.py"):
        assert set(re.findall(r"tensorrt-cu12==\S+", (ROOT / file).read_text())) == {PACKAGE}, file


@needs_compose
def test_what_is_mounted_out_of_the_repository_is_there(services: dict[str, Any]) -> None:
    found = []
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("/"):
                assert Path(source).is_dir(), source
                found.append(Path(source).relative_to(ROOT).as_posix())
    assert sorted(found) == ["deploy/grafana/dashboards", "deploy/grafana/provisioning", "deploy/prometheus"]
    repository = {Path(v["source"]).parent.name for v in services["triton"]["volumes"]}
    assert repository == {"model_repository"}


def test_prometheus_and_grafana_look_where_compose_puts_things() -> None:
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped}
    assert targets == {"gateway": ["gateway:8080"], "triton": ["triton:8002"]}
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/lipserve.yml").read_text())[
        "providers"
    ]
    assert f":{provider['options']['path']}:ro" in COMPOSE.read_text()
    for dashboard in dashboards():
        for panel in dashboard["panels"]:
            assert panel["type"] == "row" or panel["datasource"]["uid"] == source["uid"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_what_an_image_copies_is_there_and_let_through(recipe: Path) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", recipe.read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert names <= allowed
    assert all((ROOT / name).exists() for name in names)


def test_the_gateway_image_has_no_torch_and_no_root() -> None:
    text = (ROOT / "deploy/gateway.Dockerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) ", text, re.MULTILINE)
    assert "export" not in text.split("FROM")[1]
    assert "USER lipserve" in text
    assert written_in(ROOT / "deploy/gateway.Dockerfile")["ORT_DISABLE_TELEMETRY"] == "1"
    assert instructions.index("USER") < instructions.index("CMD")


def names(expression: str) -> set[str]:
    """The metrics in a PromQL expression."""
    without_labels = re.sub(r"\{[^}]*\}|\[[^\]]*\]|(by|on) \([^)]*\)", "", expression)
    return set(re.findall(r"\b(?:lipserve|nv|process)_\w+", without_labels))


def exported(text: str) -> set[str]:
    return set(re.findall(r"^(\w+)(?:\{| )", text, re.MULTILINE))


def test_every_metric_asked_for_is_exported(
    client: TestClient, lisa: str, triton: EmbeddedTriton, tmp_path: Path
) -> None:
    sound = write_sound(tmp_path / "a.wav", tone(0.4), 16000)
    with sound.open("rb") as handle:
        assert client.post("/lip_sync", data={"avatar_id": lisa}, files={"audio": handle}).status_code == 200
    with urllib.request.urlopen(triton.metrics_url) as answer:
        there = exported(answer.read().decode()) | exported(client.get("/metrics").text) | GPU_METRICS
    asked = {name for expression in expressions() for name in names(expression)}
    assert len(asked) > 20
    assert asked <= there


def test_the_dashboard_shows_what_it_should() -> None:
    asked = {name for expression in expressions() for name in names(expression)}
    assert asked >= {
        "nv_inference_queue_duration_us",
        "nv_inference_exec_count",
        "lipserve_render_frames_per_second_bucket",
        "lipserve_stage_seconds_bucket",
        "nv_gpu_utilization",
        "nv_gpu_memory_used_bytes",
        "lipserve_errors_total",
    }
    for dashboard in dashboards():
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        places = [panel["gridPos"] for panel in panels]
        for i, a in enumerate(places):
            assert a["x"] + a["w"] <= 24
            for b in places[i + 1 :]:
                apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
                assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
