"""The image is built from the Dockerfile and run under Cloud Run's limits, without a container engine.

buildah builds it in a chroot. A Debian made by mmdebstrap replaces the base image, so that no registry is needed. The
image is run with its own environment, user and command, in a memory cgroup of 512 MiB, the limit set in terraform/.
The model is a Mask R-CNN R50-FPN in int8 of the zoo's exact shape, with random weights. The demo model, which is in the
image too, is used to check the detections.

Run with `make image-test`, as root on Debian 12 with buildah and mmdebstrap; it takes about four minutes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from benchmarks import cgroup, models
from benchmarks.cgroup import Group, group
from devtools.server import free_port
from segment.modelfile import ModelMetadata
from tests import mirror as mirrors
from training.shapes import CLASSES, scene

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
LIMIT = 512 * MIB
LARGEST_MIB = 500
BASE_MIB = 130
"""Size of python:3.11-slim-bookworm, unpacked; the stand-in is larger, because Debian's Python has more files."""
STAND_IN = "localhost/stand-in"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def missing() -> str:
    """The reason why the image cannot be built on this machine; empty if it can."""
    if reason := cgroup.missing():
        return reason
    with contextlib.suppress(OSError):
        if "VERSION_CODENAME=bookworm" in Path("/etc/os-release").read_text():
            tools = [tool for tool in ("buildah", "mmdebstrap", "unshare") if not shutil.which(tool)]
            return f"needs {' and '.join(tools)}: apt-get install buildah mmdebstrap" if tools else ""
    return "needs Debian 12, whose Python is the base image's"


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


# Build.


@dataclass(frozen=True)
class Built:
    """An image's root folder, its configuration, and the size of its base in MiB."""

    root: Path
    config: Mapping[str, Any]
    base_mib: float

    def environment(self) -> dict[str, str]:
        return dict(variable.split("=", 1) for variable in self.config["Env"])


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return its standard output; a failure shows the output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mask R-CNN R50-FPN in int8, 80 classes, with random weights."""
    return models.full_size("int8", tmp_path_factory.mktemp("model"))


@dataclass(frozen=True)
class Buildah:
    """buildah with its storage in `folder`, which has the stand-in for the base image, of `base_mib` MiB."""

    folder: Path
    driver: str
    base_mib: float = 0.0

    def __call__(self, *arguments: str | Path) -> str:
        """Run buildah with these arguments and return its standard output."""
        store = [f"--root={self.folder / 'store'}", f"--runroot={self.folder / 'run'}"]
        return run("buildah", *store, f"--storage-driver={self.driver}", *arguments).strip()

    def build(self, target: str, context: Path, model: str, *arguments: str) -> None:
        """Build a stage of the Dockerfile with the build argument MODEL; the image has the name of the stage."""
        configuration = self.folder / "pip.conf"
        configuration.write_text(pip_configuration())
        self(
            *("build", "--isolation", "chroot", "--pull-never", "--format", "docker", "--layers", "--target", target),
            *("--build-arg", f"BASE={STAND_IN}", "--build-arg", f"MODEL={model}", *arguments),
            *("--volume", f"{configuration}:/etc/pip.conf:ro", "--volume", f"{certificates()}:{CERTIFICATES}:ro"),
            *(f"--volume={path}:{path}:ro" for path in sorted(pip_files())),
            *("--tag", target, context),
        )

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Mount an image; yield its root folder and its configuration."""
        container = self("from", image)
        config = json.loads(self("inspect", container))["Docker"]["config"]
        try:
            yield Path(self("mount", container)), config
        finally:
            self("umount", container)


@pytest.fixture(scope="session")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """buildah, with the stand-in for the base image."""
    folder = tmp_path_factory.mktemp("image")
    tool = Buildah(folder, storage_driver(folder))
    stand_in(folder / "base.tar")
    base = tool("from", "scratch")
    tool("add", "--quiet", base, folder / "base.tar", "/")
    tool("commit", "--quiet", base, STAND_IN)
    base_mib = mib(Path(tool("mount", base)))
    tool("rm", base)
    yield Buildah(folder, tool.driver, base_mib)
    tool("rm", "--all")
    run("sh", "-c", 'umount --recursive "$1" || true', "sh", folder / "store" / "overlay")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def context(buildah: Buildah) -> Path:
    """A copy of this repository as the build context."""
    folder = buildah.folder / "context"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    shutil.copy(ROOT / ".dockerignore", folder)
    return folder


@pytest.fixture(scope="session")
def image(buildah: Buildah, context: Path, model: Path) -> Iterator[Built]:
    """The image of this repository with `model` in it, mounted."""
    shutil.copy(model, context)
    buildah.build("serving", context, model.name)
    with buildah.mounted("serving") as (root, config):
        yield Built(root, config, buildah.base_mib)


def storage_driver(folder: Path) -> str:
    """overlay, which shares files between layers, where the kernel allows it; otherwise vfs, which copies them."""
    places = [f"--root={folder / 'probe'}", f"--runroot={folder / 'probe-run'}"]
    probe = ["buildah", *places, "--storage-driver=overlay", "info"]
    done = subprocess.run(probe, capture_output=True, timeout=600, check=False)
    return "overlay" if done.returncode == 0 else "vfs"


def stand_in(archive: Path) -> None:
    """Make a Debian with the packages of the base image: Python as `python`, pip, certificates."""
    packages = "python3,python3-pip,ca-certificates"
    link = 'ln -s /usr/bin/python3 "$1/usr/local/bin/python"'
    run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={packages}",
        f"--customize-hook={link}",
        "bookworm",
        archive,
    )


def certificates() -> Path:
    """The certificates that this machine trusts, because the build may need to go through a proxy with its own."""
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        if Path(os.environ.get(name, "/nowhere")).is_file():
            return Path(os.environ[name]).resolve()
    return Path(CERTIFICATES).resolve()


def pip_settings() -> dict[str, list[str]]:
    """This machine's pip settings by name, from its files and its environment; each value as a list of words."""
    settings = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = ast.literal_eval(value).split()
    return settings | {"cert": [CERTIFICATES]}


def pip_configuration() -> str:
    """This machine's pip settings as one file."""
    separator = "\n    "
    return "[global]\n" + "".join(f"{name} = {separator.join(words)}\n" for name, words in pip_settings().items())


def pip_files() -> set[Path]:
    """The files and folders of this machine that its pip settings name, such as a local index."""
    words = {word for name, words in pip_settings().items() if name != "cert" for word in words}
    named = {Path(word) for word in words if word.startswith("/")}
    indexes = {Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")}
    return {path for path in named | indexes if path.exists()}


def mib(root: Path) -> float:
    """The disk usage of a tree in MiB, with each file counted once."""
    return int(run("du", "--summarize", "--one-file-system", "--block-size=1K", root).split()[0]) / 1024


# Run.


@dataclass
class Container:
    """A running container."""

    url: str
    process: subprocess.Popen[str]
    group: Group
    ready_seconds: float

    def segment(self, body: bytes, **options: str) -> requests.Response:
        return requests.post(
            f"{self.url}/segment", params=options, data=body, headers={"content-type": "image/jpeg"}, timeout=600
        )


START = """
set -e
root=$1 user=$2; shift 2
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
exec chroot --userspec="$user:$user" "$root" env -i "$@"
"""
"""Mount the system folders, change root and user to the image's, and run the command. The mounts are in a namespace of
their own and end with the process."""


def inside(image: Built, command: list[str], **environment: str) -> list[str]:
    """The arguments that run `command` with the image's files, user, folder and environment, and `environment`."""
    variables = [f"{name}={value}" for name, value in {**image.environment(), **environment}.items()]
    here = ["sh", "-c", f'cd {image.config["WorkingDir"]} && exec "$@"', "sh", *command]
    return ["unshare", "--mount", "sh", "-c", START, "sh", str(image.root), image.config["User"], *variables, *here]


def run_inside(image: Built, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    argv = inside(image, command, **environment)
    return subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)


@contextlib.contextmanager
def started(image: Built, **environment: str) -> Iterator[Container]:
    """Run the image's command as a container engine would, and wait until /ready returns 200."""
    port = free_port()
    environment = {"SEGMENT_MEMORY": str(LIMIT), **environment, "PORT": str(port)}
    command = inside(image, image.config["Cmd"], **environment)
    with group(LIMIT) as limited:
        begun = time.monotonic()
        process = subprocess.Popen(
            limited.command(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while reason := not_ready(url):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() - begun < 60, reason
                time.sleep(0.05)
            yield Container(url, process, limited, time.monotonic() - begun)
        finally:
            process.kill()
            process.communicate()


def not_ready(url: str) -> str:
    """The reason why the service is not ready; empty if it is."""
    try:
        answer = requests.get(f"{url}/ready", timeout=60)
    except requests.RequestException as error:
        return str(error)
    return "" if answer.status_code == 200 else answer.text


# Test.


def test_image_is_small(image: Built) -> None:
    """At most 500 MiB with the real base, the R50 int8 model and its compiled form."""
    added = mib(image.root) - image.base_mib
    print(f"{added:.0f} MiB over the base")
    assert BASE_MIB + added <= LARGEST_MIB


def test_image_contains_only_serving_packages(image: Built) -> None:
    (packages,) = image.root.glob("venv/lib/python3*/site-packages")
    assert not [
        name
        for name in ("torch", "onnx", "onnxruntime", "detectron2", "pip", "setuptools")
        if (packages / name).exists()
    ]
    assert not [path.name for path in packages.glob("openvino/libs/*") if "gpu" in path.name or "npu" in path.name]
    for name in ("gcc", "cc", "g++", "git"):
        assert not (image.root / "usr/bin" / name).exists()
    assert not (image.root / "root/.cache").exists()
    assert not [path.name for path in (image.root / "app").iterdir() if path.name in {"tests", "terraform", ".git"}]


def test_image_metadata_has_port_user_and_command(image: Built) -> None:
    environment = image.environment()
    assert image.config["User"] == "10001"
    assert image.config["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    assert environment["THREADS"] == "8"
    assert environment["SEGMENT_MODEL"] == "/app/model/model.onnx"


def test_compiled_model_is_in_the_image(image: Built) -> None:
    """The image's user loads the model that was compiled during the build, with any number of threads."""
    program = (
        "import pathlib; from segment.engine.openvino import compile_network as load;"
        "network = load(pathlib.Path('/app/model/model.onnx'), {threads}, pathlib.Path('/app/cache'));"
        "print(network.get_property('LOADED_FROM_CACHE'))"
    )
    for threads in (1, 2):
        done = run_inside(image, ["python", "-c", program.format(threads=threads)])
        assert done.stdout.strip() == "True", done.stderr


def test_photo_is_segmented_under_the_limit(image: Built) -> None:
    """The demo model finds the shapes of a scene."""
    with started(image, SEGMENT_MODEL="", SEGMENT_CACHE="") as container:
        answer = container.segment(models.photo((640, 480)), format="json")
        assert answer.status_code == 200, answer.text
        names = {found["category_name"] for found in answer.json()["annotations"]}
        assert names == {CLASSES[number] for number in scene(0, (640, 480))[2]}
        assert container.group.kills() == 0


def test_full_size_model_serves_under_the_limit(image: Built) -> None:
    with started(image) as container:
        print(f"ready after {container.ready_seconds:.1f} s")
        for size in ((1280, 960), (4000, 3000)):
            answer = container.segment(models.photo(size))
            assert answer.status_code == 200, answer.text
            assert Image.open(io.BytesIO(answer.content)).size == size
        port = container.url.rpartition(":")[2]
        assert run_inside(image, image.config["Healthcheck"]["Test"][1:], PORT=port).returncode == 0
        print(f"{container.group.held() / MIB:.0f} MiB held")
        assert container.group.kills() == 0
        assert container.group.held() < LIMIT


def test_request_at_sigterm_is_answered(image: Built) -> None:
    """After SIGTERM during a request, the response is sent and the process ends within Cloud Run's 10 s."""
    with started(image) as container:
        body = models.photo((4000, 3000))
        got: list[requests.Response] = []
        request = threading.Thread(target=lambda: got.append(container.segment(body)))
        request.start()
        time.sleep(0.3)
        assert not got, "the request should still be running"
        container.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert container.process.wait(timeout=15) == 0
        took = time.monotonic() - begun
        request.join(timeout=5)
        print(f"ended {took:.1f} s after SIGTERM")
        assert [answer.status_code for answer in got] == [200]
        assert took < 10


def test_user_cannot_change_the_image(image: Built) -> None:
    for path in ("/app/main.py", "/app/cache/new", "/venv/new", "/usr/new"):
        done = run_inside(image, ["python", "-c", f"open('{path}', 'w')"])
        assert "PermissionError" in done.stderr, path


def test_bad_setting_stops_the_start_with_its_name(image: Built) -> None:
    done = run_inside(image, image.config["Cmd"], SEGMENT_FIT="stretch")
    assert done.returncode != 0
    assert "SEGMENT_FIT is 'stretch'" in done.stdout + done.stderr


def test_build_argument_model_takes_a_url(buildah: Buildah, context: Path) -> None:
    """MODEL is a checkpoint URL, with INT8: the stage `model` installs the converter and runs `segment fetch`."""
    checkpoint, config = mirrors.narrow_model()
    with mirrors.run() as mirror:
        mirror.files = {"/narrow.pkl": checkpoint, "/config.yaml": config}
        buildah.build("model", context, mirror.url + "narrow.pkl", "--build-arg", "INT8=1")
        assert sorted(mirror.paths) == ["/config.yaml", "/narrow.pkl"]
    assert built_model(buildah).precision == "int8"


def test_build_argument_model_takes_a_name_of_the_zoo(buildah: Buildah, context: Path) -> None:
    """MODEL is a name, and SEGMENT_ZOO_URL is a mirror with the full-size checkpoint."""
    name = "mask_rcnn_R_50_FPN_3x"
    with mirrors.run() as mirror:
        mirror.files = mirrors.zoo_file(name)
        buildah.build("model", context, name, "--build-arg", f"SEGMENT_ZOO_URL={mirror.url}")
        assert mirror.paths == list(mirror.files)
    facts = built_model(buildah)
    assert name in facts.source
    assert len(facts.labels) == 80


def built_model(buildah: Buildah) -> ModelMetadata:
    """The metadata of the model file from the stage `model`, which must be the only file in its folder."""
    with buildah.mounted("model") as (root, _):
        assert [path.name for path in (root / "model").iterdir()] == ["model.onnx"]
        facts = ModelMetadata.read(root / "model/model.onnx")
    assert facts
    assert facts.bytes_per_pixel > 0
    return facts


def test_no_bytecode_is_compiled_at_start(image: Built) -> None:
    """The image has the bytecode of every module: a container cannot write it and would compile at each start."""
    modules = [*image.root.glob("venv/lib/python3*/site-packages/**/*.py"), *image.root.glob("app/**/*.py")]
    tag = "cpython-311"
    assert not [str(path) for path in modules if not (path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc").exists()]
