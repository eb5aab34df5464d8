"""Tests of Service: segmenting an image in each format, with each option, within the memory limit."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from devtools.server import CACHE
from segment import container, image
from segment.engine.footprint import Footprint
from segment.errors import Cancelled, CorruptImage, ModelError, OptionError, TooLarge, UnsupportedImage
from segment.formats import Format
from segment.loading import Batch
from segment.model import from_settings
from segment.options import Options
from segment.service import Result, Service
from segment.settings import Settings
from tests.compiled import compiled_once  # noqa: F401
from tests.conftest import limit_with
from tests.test_engine_yolo import Truth
from training.shapes import CLASSES, scene

MIB = 1 << 20
SCENE = 50_004
ALL: tuple[Format, ...] = ("png", "jpeg", "webp", "json", "ids", "cutouts")


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(Settings(memory=limit_with(900 * MIB), threads=1, cache=str(CACHE)))


def encoded(size: tuple[int, int], kind: str = "JPEG", **save: Any) -> bytes:
    body = io.BytesIO()
    Image.fromarray(scene(SCENE, (640, 480))[0]).resize(size, Image.Resampling.BICUBIC).save(body, kind, **save)
    return body.getvalue()


@pytest.fixture(scope="module")
def photo() -> bytes:
    return encoded((640, 480), quality=95)


def segment(service: Service, data: bytes, *formats: Format, **words: str) -> Result:
    return service.segment(data, Options.parse(words, service.settings), formats or ("json",))


def document(result: Result) -> dict[str, Any]:
    (file,) = (file for file in result.files if file.name == "detections.json")
    found: dict[str, Any] = json.loads(file.body)
    return found


@pytest.mark.parametrize("detail", [1, 3])
def test_work_is_cancelled_at_the_next_stage_or_tile_when_the_client_disconnects(
    service: Service, photo: bytes, detail: int
) -> None:
    options = Options.parse({"detail": str(detail), "render_factor": "4"}, service.settings)
    asked = 0

    def counted(last: int) -> bool:
        nonlocal asked
        asked += 1
        return asked > last

    service.segment(photo, options, ("json",), cancelled=lambda: counted(1_000))
    questions, counts = asked, list[int]()
    assert questions >= 4 + detail * detail * (detail > 1), "cancelled() must be called before each stage and each tile"
    for last in range(questions):
        asked = 0
        with pytest.raises(Cancelled):
            service.segment(photo, options, ("json",), cancelled=lambda last=last: counted(last))  # type: ignore[misc]
        counts.append(asked)
    assert counts == list(range(1, questions + 1)), "cancelled() must not be called again after it returned True"


def test_nothing_is_loaded_before_it_is_needed() -> None:
    service = Service(Settings(threads=1, cache=str(CACHE)))
    assert not service.ready
    service.load()
    assert service.ready
    assert (service.labels, service.model_name) == (CLASSES, "shapes")


PRODUCTS = """
import os, time
import numpy as np
from segment.service import Service
from segment.settings import Settings

Service(Settings(threads=1, cache=os.environ["SEGMENT_CACHE"])).load()
grid = np.ones((600, 28), np.float32)
own, all = time.thread_time(), time.process_time()
for _ in range(300):
    np.matmul(grid, grid.T)
own, all = time.thread_time() - own, time.process_time() - all
print((all - own) / own)
"""


def test_matrix_products_use_one_thread() -> None:
    """OpenBLAS must not start threads: they wait in a loop and take at least as much CPU time as the calling thread."""
    own = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", PRODUCTS], env=own, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1, "CPU time of other threads, relative to that of the calling thread"


def test_concurrent_requests_load_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = list[int]()

    def counted(settings: Settings) -> Any:
        loads.append(1)
        return from_settings(settings)

    monkeypatch.setattr("segment.loading.from_settings", counted)
    service, start = Service(Settings(threads=1, cache=str(CACHE))), threading.Barrier(8)

    def ask(_: int) -> str:
        start.wait()
        return service.model_name

    with ThreadPoolExecutor(8) as crowd:
        assert set(crowd.map(ask, range(8))) == {"shapes"}
    assert loads == [1]


def test_finds_the_shapes(service: Service) -> None:
    """At least 80 % of the detections with a score of 0.8 or more match a shape in class and mask (IoU > 0.6)."""
    sure = right = 0
    for seed in range(4):
        pixels, masks, classes = scene(seed)
        body = io.BytesIO()
        Image.fromarray(pixels).save(body, "PNG")
        for one in document(segment(service, body.getvalue(), min_score="0.8"))["annotations"]:
            drawn = coco.decode(one["segmentation"]).astype(bool)
            sure += 1
            right += any(
                one["category_name"] == CLASSES[kind] and (mask & drawn).sum() > 0.6 * (mask | drawn).sum()
                for kind, mask in zip(classes, masks, strict=True)
            )
    assert sure > 8
    assert right > 0.8 * sure


def test_every_format_at_once_agrees(service: Service, photo: bytes) -> None:
    result = segment(service, photo, *ALL)
    assert [file.content_type.partition("/")[2] for file in result.files] == [
        "png",
        "jpeg",
        "webp",
        "json",
        "png",
        "zip",
    ]
    png, jpeg, webp, _, ids, cutouts = result.files
    for file in (png, jpeg, webp, ids):
        with Image.open(io.BytesIO(file.body)) as picture:
            assert picture.size == (640, 480)
    annotations = document(result)["annotations"]
    assert len(annotations) == result.instances > 0
    with Image.open(io.BytesIO(ids.body)) as numbers:
        assert set(np.unique(np.asarray(numbers))) - {0} <= {one["id"] for one in annotations}
    with zipfile.ZipFile(io.BytesIO(cutouts.body)) as archive:
        assert 0 < len(archive.namelist()) <= result.instances


@pytest.mark.parametrize("kind", ALL)
def test_a_format_alone_is_the_same_as_among_others(service: Service, photo: bytes, kind: Format) -> None:
    (alone,) = segment(service, photo, kind).files
    among = dict(zip(ALL, segment(service, photo, *ALL).files, strict=True))
    assert alone == among[kind]


def test_reports_sizes_and_options(service: Service, photo: bytes) -> None:
    result = segment(service, photo, "png", render_factor="16", fit="square")
    assert (result.photo_size, result.network_size, result.picture_size) == ((640, 480), (256, 256), (640, 480))
    assert (result.render_factor, result.detail) == (16, 1)
    assert list(result.timings)[:3] == ["wait", "decode", "network"]
    assert set(result.timings) == {"wait", "decode", "network", "draw", "encode"}
    assert all(milliseconds >= 0 for milliseconds in result.timings.values())


def test_classes_are_selected_before_max_detections(service: Service, photo: bytes) -> None:
    everything = document(segment(service, photo, min_score="0.05"))["annotations"]
    name = everything[-1]["category_name"]
    chosen = document(segment(service, photo, min_score="0.05", classes=name))["annotations"]
    assert [one["score"] for one in chosen] == [one["score"] for one in everything if one["category_name"] == name]
    (best,) = document(segment(service, photo, min_score="0.05", classes=name, max_detections="1"))["annotations"]
    assert best["score"] == chosen[0]["score"]


def test_an_unknown_class_is_refused_with_the_known_ones(service: Service, photo: bytes) -> None:
    with pytest.raises(
        OptionError, match=r"no class 'dog'\. Its classes: circle, square, triangle, star, ring\."
    ) as refusal:
        segment(service, photo, classes="circle,dog")
    assert refusal.value.name == "classes"


def test_a_photo_without_anything(service: Service) -> None:
    body = io.BytesIO()
    Image.new("RGB", (300, 200), "navy").save(body, "PNG")
    result = segment(service, body.getvalue(), *ALL, min_score="0.9")
    assert result.instances == 0
    assert document(result)["annotations"] == []


@pytest.fixture(scope="module")
def of_png(service: Service) -> dict[str, Any]:
    return document(segment(service, encoded((320, 240), "PNG")))


@pytest.mark.parametrize(("kind", "save"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("BMP", {})])
def test_the_same_pixels_give_the_same_answer_in_any_format(
    service: Service, of_png: dict[str, Any], kind: str, save: dict[str, Any]
) -> None:
    assert document(segment(service, encoded((320, 240), kind, **save))) == of_png


def test_a_rotated_photo_is_returned_upright(service: Service) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = io.BytesIO()
    upright = Image.fromarray(scene(SCENE, (640, 480))[0])
    upright.transpose(Image.Transpose.ROTATE_90).save(body, "PNG", exif=exif)
    turned, plain = (
        segment(service, body.getvalue(), "json", "png"),
        segment(service, encoded((640, 480), "PNG"), "json"),
    )
    assert turned.photo_size == turned.picture_size == (640, 480)
    assert document(turned) == document(plain)


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"no photo", UnsupportedImage), (b"", UnsupportedImage), (encoded((64, 64))[:300], CorruptImage)],
    ids=["text", "nothing", "cut off"],
)
def test_a_file_that_is_not_a_photo_is_refused(service: Service, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        segment(service, data)


@pytest.mark.parametrize(("kind", "longest"), [("webp", 16_383), ("jpeg", 65_500), ("png", 66_000)])
def test_photo_larger_than_a_format_allows_is_reduced(service: Service, kind: Format, longest: int) -> None:
    body = io.BytesIO()
    Image.new("L", (2, 66_000), 200).save(body, "PNG")
    result = service.segment(body.getvalue(), Options.defaults(service.settings), (kind,))
    assert result.picture_size == (min(2, max(1, round(2 * longest / 66_000))), longest)
    with Image.open(io.BytesIO(result.files[0].body)) as picture:
        assert picture.size == result.picture_size


def test_a_failure_releases_its_memory(service: Service, photo: bytes) -> None:
    broken = photo[: len(photo) // 2]
    for _ in range(20):
        with pytest.raises(CorruptImage):
            segment(service, broken, "png")
    budget = service._load().budget
    assert (budget._own, budget._runs._admitted) == (0, [])


def test_pieces_hold_their_memory_until_they_are_sent(service: Service, photo: bytes) -> None:
    budget, options = service._load().budget, Options.parse({}, service.settings)
    with ExitStack() as until:
        pieces = service.annotate(photo, options, lambda found: [b"x" * 1000] * len(found), until)
        assert pieces
        assert (budget._own, budget._runs._admitted) == (1000 * len(pieces), [])
    assert budget._own == 0


def test_pieces_that_cannot_fit_are_refused(service: Service, photo: bytes) -> None:
    budget, options = service._load().budget, Options.parse({}, service.settings)
    with ExitStack() as until, pytest.raises(TooLarge, match="of memory; this instance has"):
        service.annotate(photo, options, lambda found: itertools.repeat(bytes(16 * MIB)), until)
    assert (budget._own, budget._runs._admitted) == (0, [])


def test_concurrent_requests_return_the_same_as_single_ones(service: Service, photo: bytes) -> None:
    alone = segment(service, photo, "png", "json", render_factor="8").files
    with ThreadPoolExecutor(8) as crowd:
        answers = list(crowd.map(lambda _: segment(service, photo, "png", "json", render_factor="8").files, range(16)))
    assert all(answer == alone for answer in answers)


def test_photos_of_a_batch_return_the_same(service: Service) -> None:
    """Runs side by side, on photos of different sizes, change no byte of the results."""
    sizes = ((320, 240), (240, 320), (160, 120), (300, 300), (350, 100))
    photos = [encoded(size, quality=90) for size in sizes]
    settings = Settings(memory=limit_with(900 * MIB), threads=2, cache=str(CACHE))
    batch = Service(settings, Batch(Options.defaults(settings), jobs=4))
    alone = [segment(service, photo, *ALL).files for photo in photos]
    with ThreadPoolExecutor(4) as crowd:
        answers = list(crowd.map(lambda photo: segment(batch, photo, *ALL).files, photos * 2))
    assert answers == alone * 2


@pytest.mark.parametrize(
    ("threads", "mib", "options", "jobs", "streams"),
    [
        pytest.param(1, 4096, {}, 2, 1, id="one CPU"),
        pytest.param(2, 4096, {}, 3, 2, id="two CPUs"),
        pytest.param(8, 4096, {}, 9, 8, id="eight CPUs"),
        pytest.param(8, 4096, {}, 1, 1, id="one photo at a time"),
        pytest.param(8, 4096, {}, 3, 2, id="equal shares of the threads"),
        pytest.param(8, 800, {}, 9, 4, id="less memory"),
        pytest.param(8, 200, {}, 9, 1, id="little memory"),
        pytest.param(8, 4096, {"render_factor": "100"}, 9, 2, id="a large input"),
        pytest.param(8, 4096, {"render_factor": "auto"}, 9, 1, id="an input of any size"),
        pytest.param(8, 4096, {"detail": "2"}, 9, 1, id="several runs per photo"),
    ],
)
def test_streams_of_a_batch(threads: int, mib: int, options: dict[str, str], jobs: int, streams: int) -> None:
    batch = Batch(Options.parse(options, Settings()), jobs)
    run = Footprint(20 * MIB, bytes_per_pixel=500, bytes_per_instance=100_000)
    assert batch.streams(threads, mib * MIB, 100, run) == streams


@pytest.fixture(scope="module")
def tight() -> Service:
    return Service(Settings(memory=limit_with(165 * MIB), threads=1, cache=str(CACHE)))


class TestLittleMemory:
    def test_large_photo_is_reduced_and_reports_its_size(self, tight: Service) -> None:
        result = segment(tight, encoded((9000, 6000), quality=60), "jpeg")
        assert result.photo_size == (9000, 6000)
        assert result.picture_size[0] < 9000
        with Image.open(io.BytesIO(result.files[0].body)) as picture:
            assert picture.size == result.picture_size

    def test_its_data_are_at_full_size(self, tight: Service) -> None:
        found = document(segment(tight, encoded((6000, 4000), quality=60), "json"))
        assert (found["image"]["width"], found["image"]["height"]) == (6000, 4000)
        assert max(one["bbox"][0] + one["bbox"][2] for one in found["annotations"]) > 1000

    def test_a_request_larger_than_the_memory_is_refused(self, tight: Service, photo: bytes) -> None:
        with pytest.raises(TooLarge, match="The largest render factor for this photo is"):
            segment(tight, photo, render_factor="256")

    def test_auto_takes_what_fits(self, tight: Service, photo: bytes) -> None:
        assert 4 <= (segment(tight, photo, render_factor="auto").render_factor or 0) <= 40


def test_auto_is_the_same_in_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen render factor and detail do not depend on the memory in use after the model was loaded."""
    photos = [encoded(size) for size in ((200, 150), (640, 480), (3000, 2000))]
    answers = set()
    for held in (70, 106):
        monkeypatch.setattr(container, "held", lambda held=held: held * MIB)
        one = Service(Settings(memory=256 * MIB, render_factor=None, detail=None, threads=1, cache=str(CACHE)))
        chosen = [segment(one, photo, "json", max_detections="20") for photo in photos]
        answers.add(tuple((result.render_factor, result.detail) for result in chosen))
    assert len(answers) == 1
    assert len({factor for factor, _ in answers.pop()}) > 1


def test_headers_are_read_one_at_a_time(service: Service, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    real = image.read_header
    reading: list[None] = []
    most: list[int] = []

    def slow(data: bytes) -> image.Header:
        reading.append(None)
        most.append(len(reading))
        time.sleep(0.02)
        reading.pop()
        return real(data)

    monkeypatch.setattr("segment.image.read_header", slow)
    with ThreadPoolExecutor(4) as crowd:
        list(crowd.map(lambda _: service.segment(photo, Options.defaults(service.settings), ("json",)), range(8)))
    assert len(most) == 8
    assert max(most) == 1


def test_default_limit_refuses_requests_of_8_gib(monkeypatch: pytest.MonkeyPatch, photo: bytes) -> None:
    body = io.BytesIO()
    Image.new("1", (1, 1)).save(body, "PNG")
    bomb = bytearray(body.getvalue())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # IHDR
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    used = []
    for machine in (16 << 30, 64 << 30):
        monkeypatch.setattr("segment.container._values", lambda *_: iter(()))
        monkeypatch.setattr("segment.container.machine_memory", lambda machine=machine: machine)
        unlimited = Service(Settings(render_factor=None, detail=None, threads=1, cache=str(CACHE)))
        with pytest.raises(TooLarge, match="60000 x 60000"):
            unlimited.segment(bytes(bomb), Options.defaults(unlimited.settings))
        result = unlimited.segment(photo, Options.defaults(unlimited.settings), ("json",))
        used.append((result.render_factor, result.detail))
    assert used[0] == used[1], "auto must depend on the limit only, not on the machine's memory"


def test_model_too_large_for_the_memory_fails_each_request() -> None:
    service = Service(Settings(memory=20 * MIB, threads=1, cache=str(CACHE)))
    for _ in range(2):
        with pytest.raises(ModelError, match="too little for the smallest render factor"):
            service.load()
    assert not service.ready


def test_model_with_a_fixed_size_omits_ignored_options(tmp_path: Path, photo: bytes) -> None:
    truth = Truth((96, 64), 96 * 64 // 64 + 96 * 64 // 256 + 96 * 64 // 1024, 3)
    path = str(truth.save(tmp_path / "m.onnx"))
    fixed = Service(Settings(model=path, memory=limit_with(900 * MIB), fixed_bytes=MIB, bytes_per_pixel=100))
    result = segment(fixed, photo, render_factor="40", fit="square")
    assert result.render_factor is None
    about = document(result)["image"]
    assert about == {"width": 640, "height": 480, "model": "m", "detail": 1}
    assert fixed.describe()["largest_render_factor"] is None


def test_a_file_of_any_size_says_what_was_used(service: Service, photo: bytes) -> None:
    about = document(segment(service, photo, render_factor="16", fit="square"))["image"]
    assert (about["render_factor"], about["fit"]) == (16, "square")
    assert isinstance(service.describe()["largest_render_factor"], int)
