"""The Compose file, the images' recipes and the dashboard: read as the tools read them, held against the code.

No Docker runs here: what is checked is that they are well-formed, and that the settings, files, ports and metrics they
speak of exist.
"""

import inspect
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterator
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
from export.gate import HEADROOM
from export.profiles import DECODERS, UNETS
from export.repository import TARGETS
from export.tensorrt import PACKAGE, TAKEN_FROM, TENSORRT_VERSION, TRITON_IMAGE
from gateway.shared_memory import FOLDER, KEPT_FREE, SLOT_BYTES
from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / ".env.example"
CONSTRAINTS = ROOT / "deploy/export.constraints.txt"
RECIPES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
NVENC, PORTS = ROOT / "deploy/nvenc.yml", ROOT / "deploy/triton-ports.yml"
EXPORT_RECIPE = ROOT / "deploy/export.Dockerfile"
LIBRARIES, ENTRYPOINT = ROOT / "deploy/tensorrt-libraries.sh", ROOT / "deploy/export-entrypoint.sh"

# Triton's, where there is a GPU: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/metrics.md
GPU_METRICS = {
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
    "nv_energy_consumption",
}

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (Debian's gcc)")
needs_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="needs docker-compose (Debian's package of that name)"
)


def compose(env_file: Path, *more: Path) -> subprocess.CompletedProcess[str]:
    files = [word for file in (COMPOSE, *more) for word in ("-f", file)]
    command = ["docker-compose", *files, "--env-file", env_file, "--profile", "export", "config"]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"PATH": "/usr/local/bin:/usr/bin:/bin"}
    )


def understood(*more: Path, env_file: Path = EXAMPLE) -> dict[str, Any]:
    """As docker-compose understands the file, and more, with the example's values."""
    done = compose(env_file, *more)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return understood()


@pytest.fixture(scope="module")
def services(whole: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = whole["services"]
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
@pytest.mark.parametrize("more", [(PORTS,), (NVENC, PORTS)], ids=["ports", "ports and nvenc"])
def test_tritons_ports_open_on_this_machine_only_and_only_if_asked_for(more: tuple[Path, ...]) -> None:
    found = understood(*more)
    triton = found["services"]["triton"]
    assert triton["ports"] == ["127.0.0.1:8001:8001/tcp", "127.0.0.1:8002:8002/tcp"]
    assert triton["image"] == TRITON_IMAGE
    # Docker opens no port of a container that is on internal networks alone.
    assert sorted(triton["networks"]) == ["inference", "measuring"]
    assert not (found["networks"]["measuring"] or {}).get("internal")
    assert set(found["services"]["export"]["networks"]) == {"default", "measuring"}  # asks it as triton:8001


@needs_compose
def test_triton_is_alone_with_the_gateway_and_prometheus(whole: dict[str, Any]) -> None:
    networks = {name: set(service.get("networks", {"default"})) for name, service in whole["services"].items()}
    assert networks["triton"] == {"inference"} and whole["networks"]["inference"]["internal"] is True
    assert {name for name, there in networks.items() if "inference" in there} == {"triton", "gateway", "prometheus"}
    assert not (whole["networks"]["outside"] or {}).get("internal")
    for name, service in whole["services"].items():  # a port is opened, and a name found, where both are
        assert "ports" not in service or "outside" in networks[name], name
    assert networks["grafana"] & networks["prometheus"] and networks["prometheus"] & networks["gateway"]


@needs_compose
def test_batches_can_lie_in_memory_that_triton_and_the_gateway_see(whole: dict[str, Any]) -> None:
    for name in ("triton", "gateway"):
        service = whole["services"][name]
        (volume,) = [volume for volume in service["volumes"] if target(volume) == str(FOLDER)]
        assert volume["source"] == "shared-memory" and volume["volume"]["nocopy"] is True
        assert "shm_size" not in service and "ipc" not in service
        assert service["user"] == "10001:10001"  # a region is its owner's alone
    assert "--uid 10001" in recipe_of(whole["services"]["gateway"])
    options = whole["volumes"]["shared-memory"]["driver_opts"]
    assert options == {"type": "tmpfs", "device": "tmpfs", "o": "size=1g,mode=1777"}
    settings = Settings()
    slots = settings.max_concurrent_syncs * (settings.batches_in_flight + 1)
    assert slots * SLOT_BYTES + KEPT_FREE < 2**30 // 4  # and eight times as many calls at once


@needs_compose
def test_the_gpus_encoder_is_the_gateways_with_one_more_file() -> None:
    gateway = understood(NVENC)["services"]["gateway"]
    (device,) = gateway["deploy"]["resources"]["reservations"]["devices"]
    # Docker gives a container the driver's libraries of the capabilities that are named: NVENC opens libcuda, too.
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu", "compute", "video"]}
    assert gateway["environment"]["LIPSERVE_VIDEO_ENCODER"] == "h264_nvenc"
    assert gateway["environment"]["LIPSERVE_TRITON_URL"] == "triton:8001"
    assert "deploy" not in understood()["services"]["gateway"]


def test_the_gateways_ffmpeg_has_the_gpus_encoder() -> None:
    import av

    assert "h264_nvenc" in av.codec.codecs_available


def test_the_documented_triton_can_be_measured() -> None:
    """perf_analyzer asks port 8001, and benchmarks/ensemble.py the metrics of port 8002."""
    for file in ("docs/gpu.md", "README.md"):
        text = (ROOT / file).read_text()
        assert "benchmarks/ensemble.py --url localhost:8001" in text and "deploy/triton-ports.yml" in text, file
        assert "python -m export.served --url triton:8001" in text, file
    assert "export.served --url localhost:8001" in (ROOT / "docs/gpu.md").read_text()
    assert "-p 127.0.0.1:8001:8001 -p 127.0.0.1:8002:8002" in (ROOT / "docs/gpu.md").read_text()


@needs_compose
@pytest.mark.parametrize("file", ["README.md", "docs/gpu.md"])
def test_the_documented_compose_commands_name_files_and_services_that_there_are(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", " ")
    commands = [
        line.split("#")[0].split("|")[0].split() for line in text.splitlines() if line.startswith("docker compose ")
    ]
    assert len(commands) >= 7
    for words in commands:
        options = [word for word in words[2:] if word.startswith("-")]
        files = [ROOT / words[index + 1] for index, word in enumerate(words) if word == "-f"]
        assert set(options) <= {"-f", "-d", "-m", "--profile", "--rm", "--url", "--quiet"}, words
        known = understood(*[path for path in files if path != COMPOSE])["services"].keys()
        (verb,) = {"build", "config", "run", "up", "logs", "exec", "stop", "restart"} & set(words[2:])
        given = [word for word in words[words.index(verb) + 1 :] if not word.startswith("-")]
        assert set(given[:1]) <= known, words
        assert verb != "run" or "--profile export" in " ".join(words), words


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
    assert {str(folder) for folder in folders} | {str(FOLDER)} == mounts
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
    asked = set(re.findall(r"\$\{([A-Z_]+)", text)) | set(
        re.findall(r"^ +((?:LIPSERVE|HF)_[A-Z_]+):$", text, re.MULTILINE)
    )
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
    not_there = {"media_dir"}  # nothing is mounted
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
            assert image in ("${TRITON_IMAGE}", "python:3.11.15-slim-bookworm"), recipe


@needs_compose
def test_the_export_is_called_with_what_it_takes(services: dict[str, Any]) -> None:
    given = dict(word.split("=") for word in services["export"]["command"])
    assert given.keys() == {"--target", "--profile", "--decoder", "--headroom"}
    assert given["--target"] in TARGETS and given["--profile"] in UNETS and given["--decoder"] in DECODERS
    assert float(given["--headroom"]) == HEADROOM
    mounts = {target(volume) for volume in services["export"]["volumes"]}
    defaults = inspect.signature(cli.main).parameters
    folders = {str(Path("/srv/lipserve") / defaults[name].default) for name in ("models_dir", "model_repository")}
    assert mounts == folders and "WORKDIR /srv/lipserve\n" in recipe_of(services["export"])


@needs_compose
def test_what_the_export_writes_is_not_roots(services: dict[str, Any], tmp_path: Path) -> None:
    assert services["export"]["user"] == "1000:1000"
    (tmp_path / "env").write_text(EXAMPLE.read_text() + "\nEXPORT_USER=1234:99\n")
    assert understood(env_file=tmp_path / "env")["services"]["export"]["user"] == "1234:99"
    text = EXPORT_RECIPE.read_text()
    assert "USER 1000:1000\n" in text
    # Of a user that the image does not know, torch asks the name, and numba and others the home.
    assert written_in(EXPORT_RECIPE) | {"USER": "export", "HOME": "/tmp", "NUMBA_CACHE_DIR": "/tmp/numba"} == (
        written_in(EXPORT_RECIPE)
    )


def entered(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The export image's entry point in `folder`, as nobody, with commands that say how they were called."""
    (folder / "bin").mkdir()
    for name in ("python", "lipserve"):
        (folder / "bin" / name).write_text('#!/bin/sh\necho "$(basename "$0")" "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    folder.chmod(0o755)
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin"}
    as_nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    return subprocess.run(
        ["/bin/sh", "-s", "--", *words],
        input=ENTRYPOINT.read_text(),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        **as_nobody,  # type: ignore[call-overload]
    )


@pytest.fixture
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the image's folders are, writable; any user may look into it, as into no folder of pytest's."""
    with tempfile.TemporaryDirectory(prefix="lipserve-entry-") as name:
        for folder in ("models", "model_repository"):
            (Path(name) / folder).mkdir()
            (Path(name) / folder).chmod(0o777)
        yield Path(name)


@pytest.mark.parametrize(
    ("words", "ran"),
    [
        (("--target=onnx", "--profile=musetalk-v15"), "python -m export --target=onnx --profile=musetalk-v15"),
        ((), "python -m export"),
        (("lipserve", "models", "fetch", "taesd"), "lipserve models fetch taesd"),
        (("python", "-m", "export.memory"), "python -m export.memory"),
    ],
)
def test_the_export_image_runs_the_export_or_a_command(words: tuple[str, ...], ran: str, mounted: Path) -> None:
    done = entered(mounted, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ran}\n", "")


def test_a_folder_of_somebody_elses_is_refused_in_a_sentence(mounted: Path) -> None:
    (mounted / "models").chmod(0o555)
    done = entered(mounted, "--target=onnx")
    assert done.returncode == 1 and done.stdout == ""
    owner, group = os.getuid(), os.getgid()
    assert f"may not write to models, which belongs to {owner}:{group}: set EXPORT_USER in .env" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def triton_image(tmp_path: Path) -> Path:
    """Libraries as a Triton image has them, of the names and with the links that matter, by the C compiler."""
    system, cuda = tmp_path / "system", tmp_path / "cuda"
    for folder in (system, cuda / "lib64"):
        folder.mkdir(parents=True)
    for name in ("libcudart.so.12", "libcublas.so.12", "libcuda.so.1"):
        compiled(cuda / "lib64" / name, f"int {name.split('.')[0]}() {{ return 1; }}")
    (cuda / "lib64/libcudart.so.12").rename(cuda / "lib64/libcudart.so.12.6.77")
    (cuda / "lib64/libcudart.so.12").symlink_to("libcudart.so.12.6.77")
    called = "int libcublas(); int libcuda(); int all() { return libcublas() + libcuda(); }"
    for name in ("libnvinfer", "libnvinfer_plugin", "libnvinfer_builder_resource", "libnvonnxparser"):
        compiled(system / f"{name}.so.10.5.0", called, cuda / "lib64/libcublas.so.12", cuda / "lib64/libcuda.so.1")
        (system / f"{name}.so.10").symlink_to(f"{name}.so.10.5.0")
    (system / "libc10.so").touch()
    return tmp_path


def compiled(library: Path, source: str, *linked: Path) -> None:
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", f"-Wl,-soname,{library.name}", "-o", library]
    subprocess.run([*command, *linked], input=source, text=True, check=True, capture_output=True)


def taken(root: Path, image: str = TRITON_IMAGE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LIBRARIES, image, root / "taken", root / "system", root / "cuda"],
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(root / "cuda/lib64")},
        capture_output=True,
        text=True,
    )


@needs_cc
def test_the_image_takes_tensorrt_and_its_version_out_of_tritons(triton_image: Path) -> None:
    done = taken(triton_image)
    assert done.returncode == 0, done.stderr
    libraries = ("libnvinfer", "libnvinfer_plugin", "libnvinfer_builder_resource", "libnvonnxparser")
    found = {path.name: path.is_symlink() for path in (triton_image / "taken").iterdir()}
    assert found == {f"{name}.so.10": True for name in libraries} | {
        f"{name}.so.10.5.0": False for name in libraries
    } | {
        "libcudart.so.12": False,
        "libcublas.so.12": False,  # linked with; and libcuda is the host's driver's
        "triton-image": False,
        "bindings": False,
    }
    assert (triton_image / "taken/triton-image").read_text() == f"{TRITON_IMAGE} {TENSORRT_VERSION}\n"
    assert (triton_image / "taken/bindings").read_text() == f"tensorrt-cu12-bindings=={TENSORRT_VERSION}.*\n"


@needs_cc
@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("system/libnvonnxparser.so.10.5.0", "has not one libnvonnxparser.so with a whole version"),
        ("cuda/lib64/libcudart.so.12", "has no libcudart.so"),
    ],
)
def test_an_image_without_a_library_ends_the_build(triton_image: Path, gone: str, said: str) -> None:
    (triton_image / gone).unlink()
    (triton_image / "cuda/lib64/libcudart.so.12.6.77").unlink()
    done = taken(triton_image)
    assert done.returncode == 1 and not (triton_image / "taken").exists()
    assert done.stderr.startswith(f"no TensorRT can be taken out of {TRITON_IMAGE}: ") and said in done.stderr


def test_the_exports_recipe_takes_torch_for_the_cpu_and_tensorrt_by_name() -> None:
    text = EXPORT_RECIPE.read_text()
    (index,) = re.findall(r"^ARG TORCH_INDEX=(\S+)$", text, re.MULTILINE)
    assert index == "https://download.pytorch.org/whl/cpu"
    assert "torch==2.13.0+cpu" in CONSTRAINTS.read_text().splitlines()
    first, second = re.findall(r"^RUN pip install (.*)$", text, re.MULTILINE)
    assert first == '--no-deps --index-url "${TORCH_INDEX}" "$(grep \'^torch==\' constraints.txt)"'
    assert second == "-c constraints.txt '.[export,models,tensorrt]' \"$(cat /opt/tensorrt/bindings)\""
    assert str(TAKEN_FROM.parent) in text and "echo /opt/tensorrt > /etc/ld.so.conf.d/" in text
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [word for word in extras["tensorrt"] if "tensorrt" in word] == []  # not PyPI's, which download on their own


def test_one_triton_is_named_everywhere() -> None:
    """Engines run on the TensorRT that built them, and the export refuses any other than this image's."""
    for file in ("docker-compose.yml", "docs/gpu.md"):
        assert set(re.findall(r"nvcr\.io/nvidia/tritonserver\S+", (ROOT / file).read_text())) == {TRITON_IMAGE}, file
    wanted = {f"tensorrt-cu12-{half}=={TENSORRT_VERSION}" for half in ("bindings", "libs")}
    assert set(re.findall(r"tensorrt\S*==\S+", PACKAGE)) == wanted
    for file in ("docs/gpu.md", "benchmarks/gpu.py"):
        assert set(re.findall(r"tensorrt\S*==[\d.]+", (ROOT / file).read_text())) == wanted, file


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
    repository = {Path(v["source"]).parent.name for v in services["triton"]["volumes"] if v["type"] == "bind"}
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
