"""The commands, through the entry point of the command line."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import segment
from devtools.server import CACHE, ROOT
from segment import extras
from segment.__main__ import main
from segment.engine.footprint import Footprint
from segment.model import EMBEDDED
from tests.compiled import compiled_once  # noqa: F401
from training.shapes import CLASSES, scene


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a photo, another photo in a subfolder, and a text file."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    Image.fromarray(scene(0)[0]).save(folder / "a.jpg")
    Image.fromarray(scene(1)[0]).save(folder / "deeper" / "b.PNG")
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but the cache, without which each command compiles the model."""
    for name in [name for name in os.environ if name.startswith("SEGMENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SEGMENT_CACHE", str(CACHE))


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def results(folder: Path) -> set[str]:
    """Relative paths of the results in the folder."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found - {".segment.sqlite"}


class TestImage:
    def test_every_photo_of_a_folder(self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "new" / "results"
        assert run("image", photos, "-o", out, "-f", "png,json", "--set", "render_factor=16") == 0
        assert results(out) == {
            f"{name}.{file}" for name in ("a", "deeper/b") for file in ("overlay.png", "detections.json")
        }
        assert json.loads((out / "a.detections.json").read_text())["image"]["render_factor"] == 16
        with Image.open(out / "deeper" / "b.overlay.png") as picture:
            assert picture.size == (268, 274)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert all(line.endswith(" ms") for line in lines)

    def test_one_photo_in_another_format(self, photos: Path, tmp_path: Path) -> None:
        assert run("image", photos / "a.jpg", "-o", tmp_path, "-f", "cutouts") == 0
        with zipfile.ZipFile(tmp_path / "a.cutouts.zip") as archive:
            assert archive.namelist()

    def test_a_failed_photo_does_not_stop_the_others(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        body = io.BytesIO()
        Image.fromarray(scene(2)[0]).save(body, "JPEG")
        (photos / "_broken.jpg").write_bytes(body.getvalue()[:1000])
        assert run("image", photos, photos / "nowhere.jpg", "-o", tmp_path / "out", "-f", "json") == 1
        assert results(tmp_path / "out") == {"a.detections.json", "deeper/b.detections.json", "errors.csv"}
        errors = capsys.readouterr().err
        assert "_broken.jpg: This JPEG is truncated" in errors
        assert "nowhere.jpg" in errors

    def test_photos_with_the_same_name_do_not_overwrite_results(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (photos / "a.png").write_bytes((photos / "a.jpg").read_bytes())
        out = tmp_path / "out"
        assert run("image", photos, photos / "a.jpg", "-o", out, "-f", "json") == 0
        assert {"a.jpg.detections.json", "a.png.detections.json"} < results(out)
        (photos / "more").mkdir()
        (photos / "more" / "a.jpg").write_bytes((photos / "a.jpg").read_bytes())
        assert run("image", photos, "-o", out, "-f", "json") == 0
        assert {"a.jpg.detections.json", "more/a.detections.json"} < results(out)
        assert run("image", photos / "a.jpg", photos / "more" / "a.jpg", "-o", tmp_path / "none", "-f", "json") == 1
        assert "There is more than one a.jpg. Use a separate output folder for each" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["-s", "render_factor=300"], "render_factor is '300'; it must be"),
            (["-s", "colour=red"], "Unknown option 'colour'"),
            (["-s", "render_factor"], "'render_factor' is not an option; use OPTION=VALUE"),
            (["-s", "format=json"], "Give their formats with -f"),
            (["-f", "gif"], "--format is 'gif'; it must be one or more of png"),
            (["-s", "classes=circle", "-s", "classes=ring"], "-s classes=... is given twice."),
            (["--label-config", __file__], "--label-config is for Label Studio; add -d label-studio, or omit it."),
            (["--image-root", "gs://photos/", "-d", "coco"], "--image-root is for Label Studio; add -d label-studio"),
        ],
    )
    def test_invalid_option_is_refused(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
    ) -> None:
        assert run("image", photos, "-o", tmp_path / "out", *arguments) == 1
        assert words in capsys.readouterr().err

    def test_a_folder_without_photos_is_explained(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.txt").write_text("no photo")
        assert run("image", tmp_path / "notes", "-o", tmp_path / "out") == 0
        assert "There are no photos to segment. In a folder, they are files that end in" in capsys.readouterr().err

    def test_a_url_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("image", "https://example.com/a.jpg", "-o", tmp_path / "out") == 1
        assert "a.jpg is given by a URL. Download it first" in capsys.readouterr().err
        assert run("image", "gs://photos/a.jpg", "-o", tmp_path / "out") == 1
        assert "a.jpg is in a bucket. `segment backfill` and" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [("", "-o", "out"), ("a.jpg", "-o", "")])
    def test_an_empty_path_is_refused(self, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
        """That of an unset variable is not the current folder."""
        with pytest.raises(SystemExit) as ended:
            run("image", *arguments)
        assert ended.value.code == 2
        assert "the path is empty" in capsys.readouterr().err

    def test_an_output_whose_name_is_not_text(self, photos: Path, tmp_path: Path) -> None:
        """In the usual locales, Python's standard output refuses the bytes of such a name."""
        out = tmp_path / os.fsdecode(b"out\xff")
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "segment",
            "image",
            photos / "deeper",
            "-o",
            out,
            "-d",
            "coco",
        ]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert ran.stdout.endswith(b"/out\\udcff/instances.json\n")

    def test_invalid_setting_is_refused(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SEGMENT_FIT", "stretch")
        assert run("image", photos, "-o", tmp_path / "out") == 1
        assert capsys.readouterr().err.startswith("segment: SEGMENT_FIT is 'stretch'")


class TestConvert:
    def test_demo_model_is_the_converted_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The converted checkpoint and the embedded model find identical boxes and scores.

        A missing folder must not fail the command after the conversion, which takes minutes for a large model. A real
        measurement takes 8 s of CPU time; it is in tests/test_zoo.py, with a smaller model.
        """
        from segment import load

        measured = Footprint(1 << 24, 99.5, 2048.5, 1 << 20)
        monkeypatch.setattr("segment.engine.footprint.measure", lambda path, threads: measured)

        out, training = tmp_path / "new" / "folder" / "demo.onnx", ROOT / "training"
        labels = tmp_path / "names.txt"
        labels.write_text("\n".join(CLASSES))
        assert run("convert", training / "shapes.yaml", training / "shapes.pkl", "-o", out, "--labels", labels) == 0
        new, shipped = load(out, threads=1), load(threads=1, cache=CACHE)
        assert new.footprint == measured
        assert new.labels == shipped.labels
        ours, theirs = new(scene(0)[0]), shipped(scene(0)[0])
        assert (ours.boxes == theirs.boxes).all()
        assert (ours.scores == theirs.scores).all()

    def test_a_calibration_without_photos_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        training = ROOT / "training"
        arguments = (training / "shapes.yaml", training / "shapes.pkl", "-o", tmp_path / "demo.onnx", "--int8")
        assert run("convert", *arguments, "--calibrate", tmp_path) == 1
        assert "there are no photos in this folder" in capsys.readouterr().err
        assert not (tmp_path / "demo.onnx").exists()

    @pytest.mark.parametrize(
        ("number", "said"),
        [
            ("1" + "0" * 400, "1 to 100,000"),
            ("0x" + "f" * 6000, "is a number of thousands of digits; it must be a whole number from 1 to 100,000"),
            ("9" * 6000, "is not valid YAML"),
            (".nan", "1 to 100,000"),
        ],
        ids=["400 digits", "hexadecimal", "6000 digits", "nan"],
    )
    def test_a_number_of_any_length_gives_a_short_message(
        self, number: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config, weights = tmp_path / "config.yaml", ROOT / "training" / "shapes.pkl"
        config.write_text(f"_BASE_: {ROOT}/training/shapes.yaml\nMODEL: {{ROI_HEADS: {{NUM_CLASSES: {number}}}}}")
        assert run("convert", config, weights, "-o", tmp_path / "demo.onnx") == 1
        message = capsys.readouterr().err
        assert said in message
        assert len(message) < 600

    @pytest.mark.parametrize("missing", ["config", "weights"])
    def test_a_missing_file_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
        files = {"config": ROOT / "training/shapes.yaml", "weights": ROOT / "training/shapes.pkl"}
        files[missing] = tmp_path / "nowhere.file"
        assert run("convert", files["config"], files["weights"], "-o", tmp_path / "demo.onnx") == 1
        assert "nowhere.file" in capsys.readouterr().err

    def test_the_checkpoint_in_place_of_the_config(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("convert", "model.pth", "config.yaml", "-o", tmp_path / "model.onnx") == 1
        assert "model.pth is a checkpoint; the config comes first: convert CONFIG WEIGHTS." in capsys.readouterr().err

    def test_an_output_that_cannot_be_written_is_refused_first(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("not a folder")
        for output, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "demo.onnx", "exists")):
            for command in (("convert", "missing.yaml", "missing.pkl"), ("quantise", "missing.onnx")):
                assert run(*command, "-o", output) == 1
                shown = capsys.readouterr().err
                assert f"The model file {output} cannot be written: " in shown
                assert reason in shown

    def test_output_without_onnx_is_refused_first(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for command in (("convert", "missing.yaml", "missing.pkl"), ("quantise", "missing.onnx")):
            assert run(*command, "-o", tmp_path / "balloon") == 1
            assert "balloon would not be recognised as a model file" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "command",
        [
            ("convert", "c.yaml", "w.pkl"),
            ("quantise", "m.onnx"),
            ("fetch", "mask_rcnn_R_50_FPN_3x"),
            ("fetch", "w.pkl"),
        ],
    )
    def test_a_wrong_number_of_proposals_is_refused_first(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
    ) -> None:
        assert run(*command, "-o", tmp_path / "out.onnx", "--proposals", "0") == 1
        assert "--proposals is 0; it must be at least 1." in capsys.readouterr().err

    def test_quantising_something_else_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "other.onnx").write_bytes(b"no model")
        arguments = (tmp_path / "other.onnx", "-o", tmp_path / "int8.onnx", "--calibrate", tmp_path)
        assert run("quantise", *arguments) == 1
        assert "other.onnx is not an ONNX file, or it is truncated." in capsys.readouterr().err


class TestOthers:
    def test_info_of_the_demo(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("info") == 0
        rows = {line[:22].strip(): line[22:].strip() for line in capsys.readouterr().out.splitlines()}
        assert "5: circle, square, triangle, star, ring" in rows["classes"]
        assert "fp32" in " ".join(rows.values())
        assert int(rows["largest render factor"]) >= 4

    def test_info_of_no_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("info", tmp_path / "nowhere.onnx") == 1
        assert "nowhere.onnx" in capsys.readouterr().err

    def test_models(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("models") == 0
        assert "mask_rcnn_R_50_FPN_3x" in capsys.readouterr().out

    def test_fetching_an_unknown_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("fetch", "no_such_model") == 1
        assert "no_such_model" in capsys.readouterr().err
        assert run("fetch", "mask_rcnn_R50_FPN_3x") == 1
        assert "Similar names: mask_rcnn_R_50_FPN_3x, " in capsys.readouterr().err

    def test_warm_fills_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SEGMENT_CACHE", str(tmp_path))
        assert run("warm") == 0
        assert list(tmp_path.iterdir())

    def test_a_cache_that_cannot_be_created_is_named(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SEGMENT_CACHE", "/proc/cache")
        assert run("warm") == 1
        assert "The folder for compiled models, /proc/cache, cannot be created" in capsys.readouterr().err

    def test_backfill_of_a_folder(self, photos: Path, tmp_path: Path) -> None:
        assert run("backfill", photos, tmp_path / "out") == 0
        assert len(list((tmp_path / "out").rglob("overlay.png"))) == 2


class TestDoor:
    def test_help_names_every_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            run("--help")
        assert end.value.code == 0
        shown = capsys.readouterr().out
        for command in ("image", "convert", "quantise", "info", "models", "fetch", "backfill", "warm"):
            assert f"\n    {command} " in shown

    def test_without_a_command_all_are_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 2
        assert "segment photos and videos" in capsys.readouterr().err

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out == f"segment-serverless {segment.__version__}\n"

    def test_unknown_command_exits_with_2(self) -> None:
        with pytest.raises(SystemExit) as end:
            run("segmentise")
        assert end.value.code == 2

    def test_unknown_option_shows_the_usage_of_the_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            run("info", "--verbose")
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith("usage: segment info ")

    def test_a_closed_output_pipe_is_no_error(self) -> None:
        """`segment models | head -1`"""
        process = subprocess.Popen(
            [sys.executable, "-m", "segment", "models"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0

    def test_models_are_copied_freely(self, tmp_path: Path) -> None:
        """A model file works without any other file."""
        from segment import load

        assert load(shutil.copy(EMBEDDED, tmp_path / "mine.onnx")).name == "mine"


class TestPrepare:
    def test_an_existing_file(self) -> None:
        assert main(["prepare", str(EMBEDDED)]) == 0

    @pytest.mark.parametrize("name", ["missing.onnx", "mask_rcnn_R_51"])
    def test_a_missing_checkpoint_or_name_is_explained(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prepare", name]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line

    def test_a_file_of_another_kind_is_not_taken_for_a_name(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "model.safetensors").touch()
        assert run("prepare", tmp_path / "model.safetensors") == 1
        assert "model.safetensors is not a model: the name of a model file ends in .onnx" in capsys.readouterr().err

    @pytest.mark.parametrize("command", ["fetch", "prepare"])
    def test_a_calibration_without_photos_is_refused_before_the_download(
        self, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SEGMENT_ZOO_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert main([command, "mask_rcnn_R_50_FPN_3x", "--int8", "--calibrate", str(tmp_path)]) == 1
        assert "no photos" in capsys.readouterr().err

    def test_a_missing_converter_is_one_sentence_before_the_download(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SEGMENT_ZOO_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert main(["prepare", "mask_rcnn_R_50_FPN_3x"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(extras.command("convert"))


def test_a_missing_beam_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("apache_beam"):
        pytest.skip("apache-beam is installed, see requirements-beam.txt")
    assert main(["beam", "--input", "photos", "--output", "out", "--region=x"]) == 1
    assert extras.command("beam") in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["image", "photos", "-o", "out", "--region=x"])
