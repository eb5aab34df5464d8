"""Serving a model by name, file or URL: the server listens and reports progress while the model is prepared."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import expect

from devtools.server import ROOT, Server, serve
from segment.__main__ import main
from segment.engine.footprint import Footprint
from segment.errors import ModelError, Starting
from segment.modelfile import ModelMetadata
from segment.preparation import resolve
from segment.progress import Progress
from segment.service import Service
from segment.settings import Settings
from segment.web.startup import Startup
from tests import mirror as mirrors
from tests.browser import browser, chromium
from tests.mirror import Mirror
from tests.test_web import check_problem

SERVE = (sys.executable, "-m", "segment", "serve")
LINGERING = """
import os, time
from pathlib import Path
from segment.__main__ import run
from segment.web import server

class Time:
    def sleep(self, seconds):
        assert seconds >= 2, "the page asks for the progress every 0.5 s"
        while not Path(os.environ["MAY_END"]).exists():
            time.sleep(0.05)

server.time = Time()
run()
"""
"""The command `segment`, whose server ends after a failed preparation when the file MAY_END exists, not after 3 s."""

UNMEASURED = """
from segment.__main__ import run
from segment.engine import footprint

footprint.measure = lambda path, threads: footprint.Footprint(1 << 20, 1.0)
run()
"""
"""The command `segment` without the measurement of a model's memory, which takes seconds of CPU time."""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A mirror with a small model and its config. Its gate is closed, so downloads do not finish."""
    with mirrors.run() as running:
        checkpoint, config = mirrors.narrow_model()
        running.files = {"/narrow.pkl": checkpoint, "/config.yaml": config}
        running.gate.clear()
        yield running


@contextlib.contextmanager
def preparing(
    mirror: Mirror, cache: Path, target: str = "segment_http", command: Sequence[str] = SERVE, **settings: str
) -> Iterator[Server]:
    """`segment serve --model` with the URL of the mirror's model."""
    settings |= {"XDG_CACHE_HOME": str(cache), "SEGMENT_CACHE": str(cache / "compiled")}
    with serve(target, (*command, "--model", mirror.url + "narrow.pkl"), **settings) as server:
        yield server


@contextlib.contextmanager
def failing(mirror: Mirror, cache: Path) -> Iterator[tuple[Server, Path]]:
    """The same, and a file: after a failed preparation, the server ends when this file exists."""
    may_end = cache / "may end"
    command = (sys.executable, "-c", LINGERING, "serve")
    with preparing(mirror, cache, command=command, MAY_END=str(may_end)) as server:
        try:
            yield server, may_end
        finally:
            may_end.touch()


def progress(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(server.url + "/progress", timeout=60).json()
    return found


def stages_until(server: Server, last: str) -> list[str]:
    """The stages reported until `last`, without repetitions."""
    seen: list[str] = []
    end = time.monotonic() + 600
    while time.monotonic() < end:
        stage = progress(server)["stage"]
        seen += [stage] if stage not in seen else []
        if stage == last:
            return seen
        time.sleep(0.2)  # asking more often takes as much CPU time as the preparation
    raise AssertionError(f"{last} was not reached: {seen}\n{server.log()}")


def test_listens_before_the_model_is_ready_and_reports_progress(mirror: Mirror, tmp_path: Path, photo: bytes) -> None:
    with preparing(mirror, tmp_path) as server:
        while not (now := progress(server))["done"]:
            time.sleep(0.02)
        assert now["stage"] == "download"
        assert now["text"].startswith("Downloading narrow.pkl from 127.0.0.1")
        assert 0 < now["done"] < now["total"] == len(mirror.files["/narrow.pkl"])
        for path in ("/segment", "/ready", "/model"):
            method = requests.post if path == "/segment" else requests.get
            answer = method(server.url + path, data=photo, timeout=10)
            check_problem(answer, 503, "The model is being prepared. Downloading narrow.pkl", " MB.")
            assert answer.json()["title"] == "Starting"
            assert answer.headers["Retry-After"] == "5"
        for path in ("/", "/docs", "/openapi.json", "/health"):
            assert requests.get(server.url + path, timeout=60).ok
        mirror.gate.set()
        seen = stages_until(server, "ready")
        order = ["start", "download", "convert", "measure", "load", "ready"]
        assert seen == [stage for stage in order if stage in seen]
        assert requests.get(server.url + "/ready", timeout=60).ok
        answer = requests.post(server.url + "/segment?format=json&min_score=0", data=photo, timeout=60)
        assert answer.ok
        assert len(answer.json()["categories"]) == 8
        assert server.stop() == 0
    asked = len(mirror.ranges)
    with preparing(mirror, tmp_path) as server:  # the second start uses the cached model
        assert progress(server)["stage"] in ("load", "ready")
        assert requests.post(server.url + "/segment", data=photo, timeout=60).ok
    assert len(mirror.ranges) == asked


def test_requests_wait_while_the_prepared_model_is_loaded() -> None:
    """The same as for a model without preparation; the page relies on it."""
    startup = Startup(Service(Settings()), ["true"], lambda: None)
    assert isinstance(startup.refusal(), Starting)
    startup.progress = Progress("load", "Loading the model.")
    assert startup.refusal() is None
    startup.progress = Progress("failed", "There is no network.")
    assert isinstance(startup.refusal(), ModelError)


def test_output_of_libraries_is_ignored() -> None:
    """NNCF prints progress bars to standard output during quantisation."""
    step = Progress("convert", "Converting.").to_json()
    command = [sys.executable, "-c", f"print('Statistics collection 100 %'); print({step!r}); print('null')"]
    startup = Startup(Service(Settings()), command, lambda: pytest.fail(startup.progress.text))
    startup.start()
    end = time.monotonic() + 60
    while startup.progress.stage != "ready" and time.monotonic() < end:
        time.sleep(0.02)
    assert startup.progress.stage == "ready"


@pytest.mark.slow
def test_int8_is_prepared_and_served(mirror: Mirror, tmp_path: Path, photo: bytes) -> None:
    mirror.gate.set()
    command = (*SERVE, "--model", mirror.url + "narrow.pkl", "--int8")
    with serve("segment_http", command, XDG_CACHE_HOME=str(tmp_path)) as server:
        assert "quantise" in stages_until(server, "ready")
        assert requests.post(server.url + "/segment", data=photo, timeout=60).ok


def test_bucket_events_are_refused_until_it_is_ready(mirror: Mirror, tmp_path: Path) -> None:
    with preparing(mirror, tmp_path, "segment_object", SEGMENT_OUTPUT_BUCKET="out") as server:
        check_problem(requests.post(server.url, json={}, timeout=60), 503, "being prepared")
        assert progress(server)["stage"] in ("start", "download")
        start = time.monotonic()
        assert server.stop() == 0  # SIGTERM must also end the preparation, whose download does not finish
        assert time.monotonic() - start < 10


def test_a_failed_preparation_is_reported_and_ends_the_process(mirror: Mirror, tmp_path: Path, photo: bytes) -> None:
    mirror.gate.set()
    del mirror.files["/narrow.pkl"]
    with failing(mirror, tmp_path) as (server, may_end):
        assert stages_until(server, "failed")
        assert "narrow.pkl could not be downloaded" in progress(server)["text"]
        check_problem(requests.post(server.url + "/segment", data=photo, timeout=60), 503, "404 Not Found")
        may_end.touch()
        assert server.process.wait(60) == 1
        assert "segment: narrow.pkl could not be downloaded" in server.log()
        assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "mask_rcnn_R_51"], "no model called 'mask_rcnn_R_51'"),
        (["--model", "missing.onnx"], "There is no file missing.onnx."),
        (["--model", "training/shapes.pkl"], "needs its detectron2 config: give --config FILE"),
        (["--model", "training/shapes.pkl", "--config", "no.yaml"], "There is no file no.yaml."),
        (["--model", "segment/models/shapes.onnx", "--int8", "--calibrate", "docs"], "`python -m segment quantise`"),
        (["--model", "mask_rcnn_R_50_FPN_3x", "--int8", "--calibrate", "segment/zoo"], "there are no photos"),
        (["--model", "mask_rcnn_R_50_FPN_3x", "--calibrate", "docs"], "--calibrate is for int8; add --int8"),
        (["--model", "mask_rcnn_R_50_FPN_3x", "--labels", "README.md"], "mask_rcnn_R_50_FPN_3x is a model of the zoo"),
        (["--model", "segment/models/shapes.onnx", "--config", "training/shapes.yaml"], "which needs none"),
        (["--int8"], "--int8 is for a model of your choice; name it with --model"),
        (["--config", "training/shapes.yaml"], "--config is for a model of your choice"),
        (["--port", "80a"], "--port is '80a'; it must be a whole number from 1 to 65535."),
    ],
)
def test_invalid_arguments_stop_the_start_before_it_listens(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segment.web.server.run", lambda *_: pytest.fail("it listens"))
    monkeypatch.chdir(ROOT)
    assert main(["serve", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("arguments", [["--port", "1234", "--host", "::1"], []])
def test_address_of_the_command_line_and_of_the_environment(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST", "::1" if not arguments else "127.0.0.1")
    monkeypatch.setenv("PORT", "1234" if not arguments else "invalid, but not used")
    monkeypatch.setattr("segment.web.server.run", lambda host, port, *_: 0 if (host, port) == ("::1", 1234) else 1)
    assert main(["serve", *arguments]) == 0


def test_empty_variables_of_the_framework_mean_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "PORT", "THREADS", "FUNCTION_TARGET"):
        monkeypatch.setenv(name, "")
    expected = "0.0.0.0 8080 8 None segment_http []"
    monkeypatch.setattr("segment.web.server.run", lambda *given: int(" ".join(map(str, given)) != expected))
    assert main(["serve"]) == 0


def test_a_model_of_detectron2_is_served_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--model must reach the engine; --int8 would have no effect."""
    monkeypatch.setenv("SEGMENT_ENGINE", "detectron2")
    monkeypatch.setenv("SEGMENT_MODEL", "")
    monkeypatch.setattr("segment.web.server.run", lambda *_: int(os.environ["SEGMENT_MODEL"] != str(tmp_path)))
    assert main(["serve", "--model", str(tmp_path)]) == 0
    assert main(["serve", "--model", str(tmp_path), "--int8"]) == 1


def test_a_model_depends_on_the_configs_that_its_config_builds_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights, base = tmp_path / "model_final.pkl", tmp_path / "base.yaml"
    weights.write_bytes(b"")
    base.write_text("MODEL: {}")
    (tmp_path / "config.yaml").write_text("_BASE_: base.yaml")
    path = resolve(str(weights)).path
    assert resolve(str(weights)).path == path
    base.write_text("MODEL: {MASK_ON: true}")
    assert resolve(str(weights)).path != path


def test_a_checkpoint_is_converted_with_the_config_and_labels_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("segment.engine.footprint.measure", lambda path, threads: Footprint(1 << 20, 1.0, 0.0, 0))
    checkpoint, config = mirrors.narrow_model()
    weights = tmp_path / "model_final.pkl"
    weights.write_bytes(checkpoint)
    (tmp_path / "config.yaml").write_bytes(config)
    (tmp_path / "labels.txt").write_text("\n".join("abcdefgh"))
    first = resolve(str(weights))
    seen: list[str] = []
    path = first.prepare(lambda progress: seen.append(progress.stage))
    assert seen == ["convert", "measure"]
    facts = ModelMetadata.read(path)
    assert facts
    assert facts.labels == tuple("abcdefgh")
    assert resolve(str(weights)).prepare() == path
    weights.write_bytes(checkpoint)  # the same name with another modification time, as after further training
    again = resolve(str(weights))
    assert not again.ready
    assert again.path != path


def test_a_local_checkpoint_with_a_config_and_labels_at_urls(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("segment.engine.footprint.measure", lambda path, threads: Footprint(1 << 20, 1.0, 0.0, 0))
    mirror.gate.set()
    mirror.files["/labels.txt"] = "\n".join("abcdefgh").encode()
    weights = tmp_path / "model_final.pkl"
    weights.write_bytes(mirror.files["/narrow.pkl"])
    path = resolve(str(weights), config=mirror.url + "config.yaml", labels=mirror.url + "labels.txt").prepare()
    facts = ModelMetadata.read(path)
    assert facts
    assert facts.labels == tuple("abcdefgh")


@contextlib.contextmanager
def prepare(mirror: Mirror, cache: Path) -> Iterator[tuple[subprocess.Popen[str], Progress]]:
    """A `segment prepare` process for the mirror's model, and the first progress that it reports."""
    command = [sys.executable, "-c", UNMEASURED, "prepare", "--progress", mirror.url + "narrow.pkl"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    with subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield process, Progress.from_json(process.stdout.readline())


def test_two_processes_prepare_a_model_once(mirror: Mirror, tmp_path: Path) -> None:
    with prepare(mirror, tmp_path) as (first, download), prepare(mirror, tmp_path) as (second, wait):
        assert download.stage == "download"
        assert wait.stage == "wait"
        assert wait.text.startswith("Waiting for another process that is preparing the same model")
        mirror.gate.set()
        assert first.wait(120) == 0
        assert second.wait(120) == 0
    assert sorted(mirror.paths) == ["/config.yaml", "/narrow.pkl"]
    assert len(list(tmp_path.rglob("*.onnx"))) == 1


def test_a_killed_preparation_does_not_block_others(mirror: Mirror, tmp_path: Path) -> None:
    with prepare(mirror, tmp_path) as (first, _), prepare(mirror, tmp_path) as (second, wait):
        assert wait.stage == "wait"
        first.kill()
        assert second.stdout
        assert Progress.from_json(second.stdout.readline()).stage == "download"
        second.kill()


def test_a_preparation_interrupted_while_measuring_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start must not serve a file whose memory footprint was not measured."""

    def interrupt(_path: Path, **_: object) -> Footprint:
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("segment.engine.footprint.measure", interrupt)
    checkpoint, config = mirrors.narrow_model()
    (tmp_path / "model_final.pkl").write_bytes(checkpoint)
    (tmp_path / "config.yaml").write_bytes(config)
    preparation = resolve(str(tmp_path / "model_final.pkl"))
    with pytest.raises(KeyboardInterrupt):
        preparation.prepare()
    assert not preparation.ready
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.skipif(chromium() is None, reason="needs Chromium (apt-get install chromium)")
def test_the_page_shows_progress_and_the_reason_of_a_failure(mirror: Mirror, tmp_path: Path, photo: bytes) -> None:
    """The page after the model is ready is tested in tests/test_first_use.py."""
    with failing(mirror, tmp_path) as (server, may_end), browser() as chrome:
        page = chrome.new_page()
        page.goto(server.url)
        expect(page.locator("#loading-text")).to_contain_text("Downloading narrow.pkl")
        total = round(len(mirror.files["/narrow.pkl"]) / 1e6)
        expect(page.locator("#loading-amount")).to_have_text(f"0 of {total} MB")
        expect(page.locator("#loading-bar")).to_have_attribute("value", re.compile(r"0\.0*[1-9]"))
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": photo})
        expect(page.locator("#photos .state")).to_have_text("Waiting")
        mirror.breaks, mirror.statuses = True, [404] * 3
        mirror.gate.set()
        expect(page.locator("#problem")).to_contain_text("The model could not be prepared")
        expect(page.locator("#problem")).to_contain_text("404")
        may_end.touch()
        assert server.process.wait(60) == 1
        expect(page.locator("#problem")).to_contain_text("404")
