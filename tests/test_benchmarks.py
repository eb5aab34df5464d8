"""The benchmarks: their tools on known inputs, and the demo model's AP on a few scenes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from benchmarks import (
    accuracy,
    cgroup,
    detail_costs,
    folder,
    latency,
    listing,
    memory,
    models,
    rendering,
    report,
    serving,
)
from benchmarks import zoo as zoo_benchmark
from segment import load
from segment.bucket import shares
from segment.model import EMBEDDED
from tests.compiled import compiled_once  # noqa: F401
from training.shapes import scene


def test_measured_environment_is_that_of_the_dockerfile() -> None:
    environment = serving.environment()
    assert environment["FUNCTION_TARGET"] == "segment_http"
    assert {name for name in environment if name.startswith("MALLOC_")}


def test_a_photo_has_the_size_asked_for() -> None:
    with Image.open(io.BytesIO(models.photo((1600, 1200)))) as photo:
        assert (photo.format, photo.size) == ("JPEG", (1600, 1200))


def test_calibration_never_sees_what_is_evaluated() -> None:
    assert models.CALIBRATION_SEED > accuracy.SCENES
    assert models.CALIBRATION_SEED >= 3_000_000, "training uses seeds from 1,000,000 and from 2,000,000"


def test_models_of_the_same_shapes_are_measured_once() -> None:
    twins = zoo_benchmark.twins("mask_rcnn_R_50_FPN_3x_dconv_c3-c5")
    assert twins == ["mask_rcnn_R_50_FPN_1x_dconv_c3-c5", "mask_rcnn_R_50_FPN_3x_dconv_c3-c5"]
    assert "lvis_mask_rcnn_R_50_FPN_1x" not in zoo_benchmark.twins("mask_rcnn_R_50_FPN_3x")


def test_a_service_is_measured() -> None:
    """Memory, CPU time and responses are those of the service's process, not of this one."""
    with serving.serving({"SEGMENT_THREADS": "1"}) as server:
        before, spent = server.usage(), server.cpu_seconds()
        with serving.peak(lambda: server.usage().held) as peak:
            answer = server.segment(models.photo((640, 480)), format="json", render_factor=16)
        assert answer.status_code == 200
        assert answer.headers["Segment-Render-Factor"] == "16"
        assert 30 << 20 < before.held < before.rss < 1 << 30
        assert peak[0] >= before.held
        assert server.cpu_seconds() > spent
        assert "Loaded the model shapes" in server.log()
    assert server.process.poll() == 0
    assert server.usage() == serving.Usage(0, 0)


def test_a_service_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="SEGMENT_FIT is 'stretch'"), serving.serving({"SEGMENT_FIT": "stretch"}):
        pass
    with (
        pytest.raises(RuntimeError, match=r"There is no file nowhere\.onnx"),
        serving.serving({"SEGMENT_MODEL": "nowhere.onnx"}),
    ):
        pass


@pytest.mark.skipif(bool(cgroup.missing()), reason=cgroup.missing())
def test_a_group_is_gone_afterwards() -> None:
    with cgroup.group(100 << 20) as group:
        assert group.path.exists()
        assert (group.held(), group.kills()) == (0, 0)
    assert not group.path.exists()


def test_average_precision_of_the_ground_truth_is_100() -> None:
    truth = accuracy.Truth()
    for seed in range(4):
        truth.add(seed, *scene(seed)[1:])
    keys = ("image_id", "category_id", "bbox", "segmentation")
    perfect = [{"score": 0.9, **{key: one[key] for key in keys}} for one in truth.annotations]
    for kind in ("bbox", "segm", "boundary"):
        assert truth.evaluate(perfect, kind)["all"] == pytest.approx(100, abs=0.1)


def test_boundary_is_2_percent_of_the_diagonal_wide() -> None:
    mask = np.zeros((300, 400), np.uint8)  # its diagonal is 500 pixels
    mask[100:200, :120] = 1
    found = masks.decode(accuracy.boundary(masks.encode(np.asfortranarray(mask))))
    expected = mask.copy()
    expected[110:190, 10:110] = 0  # the edge of the image counts as a boundary
    assert np.array_equal(found, expected)


def test_a_mask_with_another_boundary_has_a_lower_boundary_ap() -> None:
    visible = np.zeros((1, 300, 400), bool)
    visible[0, 50:250, 50:350] = True
    truth = accuracy.Truth()
    truth.add(0, visible, np.array([0]))
    other = visible[0].copy()
    other[50:62] = False
    packed = masks.encode(np.asfortranarray(other, np.uint8))
    results: list[accuracy.Record] = [
        {"image_id": 0, "category_id": 0, "score": 0.9, "segmentation": packed, "bbox": [50, 62, 300, 188]}
    ]
    assert truth.evaluate(results, "segm")["all"] > 85
    assert truth.evaluate(results, "boundary")["all"] < 60


def test_average_precision_of_the_demo_model_on_some_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "SCENES", 12)
    row = accuracy.measure(EMBEDDED, "fp32")
    assert row.box > 50
    assert row.mask > 50
    assert row.mask50 > row.mask > row.boundary > 20


@pytest.mark.slow
def test_average_precision_is_detectron2s() -> None:
    """AP is within 0.2 of detectron2's with the same weights on the same 200 scenes."""
    row = accuracy.measure(EMBEDDED, "fp32")
    assert row.box == pytest.approx(accuracy.DETECTRON2["box"], abs=0.2)
    assert row.mask == pytest.approx(accuracy.DETECTRON2["mask"], abs=0.2)


@pytest.mark.slow
def test_int8_keeps_the_average_precision(tmp_path: Path) -> None:
    narrow = models.demo("int8", tmp_path)
    assert load(narrow).labels == load().labels
    assert accuracy.measure(narrow, "int8").mask > accuracy.DETECTRON2["mask"] - 1.0


def test_results_are_written_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="charts need requirements-bench.txt")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    rows = [
        memory.Memory(f"{p}, {f}, {n}", p, f, 512, [200] * 3, "4000x3000", 100.0, 100.0 + f, 300.0, 0, n).__dict__
        for p, f, n in memory.LIMITS
    ]
    report.save("memory", rows, 0.5)
    times = [
        latency.Latency(f"{p}, {f}", p, f, 100.0 + f, ms, 1.5, {"network": ms}, 0.2, 15).__dict__
        for p, ms in (("fp32", 180.0), ("int8", 60.0))
        for f in latency.SWEEP
    ]
    report.save("latency", times, 0.5)
    beside = [
        rendering.Rendering(f"{name} fp32", "fp32", 300.0, 280.0, 0.6, 350.0, (1.2, 1.25, 1.3, 1.1)).__dict__
        for name in rendering.NAMES
    ]
    report.save("rendering", beside, 0.5)
    report.write()
    text = (tmp_path / "README.md").read_text()
    assert "| int8, 25, 100 | 512 MiB | 100.0 | 125.0 |" in text
    assert "speed relative to the fp32 network: int8 3.0." in text
    assert "| PointRend fp32 | 300.0 | 280.0 | 0.6 | 350.0 | 1.2 / 1.25 / 1.3 / 1.1 |" in text
    assert (tmp_path / "memory.svg").read_text().startswith("<?xml")
    again = (tmp_path / "latency.svg").read_bytes()
    report.write()
    assert (tmp_path / "latency.svg").read_bytes() == again, "equal figures give an identical chart"


def test_results_that_are_shown_are_those_measured() -> None:
    """Each results file of a section of the page has rows and describes the machine."""
    for path in report.RESULTS.glob("*.json"):
        document = json.loads(path.read_text())
        if path.stem in report.SECTIONS:
            assert document["rows"]
            assert document["machine"]["cpus"] >= 1


def test_a_finished_bucket_costs_three_listings_for_five_thousand_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call lists 5,000 objects, and each photo has two results. A range adds an incomplete page of each listing."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "")
    found = listing.measure(photos=4000, tasks=2, run=2, latency=0)
    assert found.own == 4000
    assert 3 <= found.calls <= 3 + 2 * 2 * shares.RANGES_PER_TASK
    assert found.largest_share < 3000


def test_memory_of_a_folder_is_that_of_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    *_, row = folder.memory(100)
    photos, largest, before = (int(cell.replace(",", "")) for cell in row.split("|")[1:4])
    assert photos == 100
    assert 40 < before <= largest < 400


def test_cost_of_detail_is_the_largest_loss_on_large_shapes() -> None:
    """Losses are computed per model, from large scenes only."""

    def row(model: str, scenes: str, detail: int, box: float, mask: float) -> detail_costs.Row:
        return detail_costs.Row(model, scenes, 25, detail, (box, box - 1), (mask, mask), 8, 2)

    rows = [row("shapes", "large", 1, 70, 80), row("shapes", "large", 2, 69, 80), row("shapes", "large", 3, 70, 77)]
    rows += [row("scales", "large", 1, 50, 50), row("scales", "large", 2, 50, 50), row("scales", "large", 3, 51, 49.6)]
    rows += [row("scales", "small", 1, 50, 50), row("scales", "small", 2, 10, 10)]
    assert max(detail_costs.losses(rows[:3])) == 3
    text = detail_costs.table(rows)
    assert "AP falls by at most 1.0 points with detail 2 and 3.0 points with detail 3" in text
    assert "AP falls by at most 0.0 points with detail 2 and 0.4 points with detail 3" in text
    assert "| large | 25 | 3 | 51.0 / 49.6 | 50.0 / 49.6 | 8.0 | 2.0 | 0.75 |" in text
