"""A model from segment.load takes a photo and returns detections in the photo's pixel coordinates."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segment
from devtools.server import CACHE
from segment.engine.footprint import Footprint
from segment.errors import ModelError, OptionError, UnsupportedImage
from segment.model import EMBEDDED, from_settings, locate
from segment.modelfile import PREFIX, ModelMetadata, metadata
from segment.options import Options
from segment.service import Service
from segment.settings import Settings
from training.shapes import CLASSES, scene


@pytest.fixture(scope="module")
def model() -> segment.Model:
    return segment.load(threads=1, cache=CACHE)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(scene(50_004, (640, 480))[0])


def test_returns_detections_in_pixels_of_the_photo(model: segment.Model, photo: Image.Image) -> None:
    found = model(photo)
    count = len(found)
    assert count > 0
    assert (found.boxes.shape, found.scores.shape, found.classes.shape) == ((count, 4), (count,), (count,))
    assert len(found.masks) == count
    assert found.size == photo.size
    assert (np.diff(found.scores) <= 0).all(), "scores must be in descending order"
    assert found.scores.min() >= 0.5
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [640, 480, 640, 480]).all()


def test_an_array_gives_the_same_result_as_an_image(model: segment.Model, photo: Image.Image) -> None:
    assert (model(np.asarray(photo)).boxes == model(photo).boxes).all()


def test_a_grey_photo_is_accepted(model: segment.Model, photo: Image.Image) -> None:
    grey = photo.convert("L")
    assert (model(grey).boxes == model(grey.convert("RGB")).boxes).all()


def test_the_render_factor_sets_the_networks_size(model: segment.Model) -> None:
    assert model.network_size((640, 480), 25, "square") == (400, 400)
    width, height = model.network_size((640, 480), 25, "aspect")
    assert width * height <= 400 * 400
    assert width / height == pytest.approx(640 / 480, rel=0.1)


def test_the_photos_size_does_not_matter(model: segment.Model, photo: Image.Image) -> None:
    """Boxes scale with the photo, because the network's input has the same size for both."""
    small, large = model(photo, min_score=0.9), model(photo.resize((2560, 1920), Image.Resampling.BICUBIC))
    assert len(small) > 0
    for box in small.boxes:
        assert np.abs(large.boxes / 4 - box).max(axis=1).min() < 6


def test_min_score_and_max_detections(model: segment.Model, photo: Image.Image) -> None:
    every = model(photo, min_score=0.05)
    assert len(model(photo, min_score=0.05, max_detections=2)) == 2
    assert len(every) >= len(model(photo))
    assert len(model(photo, min_score=1.0)) == 0


@pytest.mark.parametrize("detail", [1, 2])
def test_classes(model: segment.Model, photo: Image.Image, detail: int) -> None:
    options: Any = {"min_score": 0.05, "detail": detail, "render_factor": 12}
    every = model(photo, **options)
    name = every.names[-1]
    chosen = model(photo, classes=[name], **options)
    assert chosen.scores.tolist() == [
        score for score, own in zip(every.scores, every.names, strict=True) if own == name
    ]
    best = model(photo, classes=[name], max_detections=1, **options)
    assert best.names == [name], "the limit applies to the instances of the classes"
    assert best.scores[0] == chosen.scores[0]
    for given in (name, {name}, (one for one in [name])):
        assert model(photo, classes=given, **options).names == chosen.names
    with pytest.raises(OptionError, match=r"The model has no class 'person'\. Its classes: circle, square"):
        model(photo, classes=["person"])


def test_defaults_are_those_of_the_service() -> None:
    parameters = inspect.signature(segment.Model.__call__).parameters
    given = {name: value.default for name, value in parameters.items() if value.default is not inspect.Parameter.empty}
    defaults = Options.defaults(Settings())
    assert given == {name: getattr(defaults, name) for name in given}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("render_factor", 3),
        ("render_factor", 25.5),
        ("fit", "stretch"),
        ("min_score", 1.5),
        ("min_score", float("nan")),
        ("max_detections", 0),
        ("detail", 0),
        ("detail", 5),
    ],
)
def test_an_invalid_option_is_refused(model: segment.Model, photo: Image.Image, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{name} is '{value}'; it must be "):
        model(photo, **{name: value})


def test_numbers_of_numpy_are_valid_options(model: segment.Model, photo: Image.Image) -> None:
    options: Any = {"render_factor": np.int64(25), "min_score": np.float32(0.5), "max_detections": 1000}
    assert len(model(photo, **options)) == len(model(photo))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((48, 64, 3), np.float32),
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
        np.zeros((3, 48, 64), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
    ],
    ids=["float", "grey", "alpha", "channels first", "empty"],
)
def test_an_array_that_is_not_rgb_is_refused(model: segment.Model, array: Any) -> None:
    with pytest.raises(UnsupportedImage, match=r"must be \(height, width, 3\) uint8"):
        model(array)


def test_other_types_are_refused(model: segment.Model) -> None:
    other: Any = [[0, 0, 0]]
    with pytest.raises(UnsupportedImage, match="not list"):
        model(other)


def test_released_memory_is_allocated_again(model: segment.Model, photo: Image.Image) -> None:
    before = model(photo)
    model.release()
    after = model(photo)
    assert (before.boxes == after.boxes).all()
    assert (before.scores == after.scores).all()


def test_a_compiled_model_is_kept(tmp_path: Path, photo: Image.Image) -> None:
    first = segment.load(cache=tmp_path)
    assert list(tmp_path.iterdir())
    assert (segment.load(cache=tmp_path)(photo).boxes == first(photo).boxes).all()


def test_labels_can_be_given(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("Kreis\nQuadrat\n\nDreieck\nStern\nRing\n", encoding="utf-8")
    assert segment.load(labels=names, threads=1, cache=CACHE).labels == ("Kreis", "Quadrat", "Dreieck", "Stern", "Ring")
    assert segment.load(labels=["a", "b", "c", "d", "e"], threads=1, cache=CACHE).labels == ("a", "b", "c", "d", "e")
    with pytest.raises(ModelError, match="the model has 5 classes, and 2 labels were given"):
        segment.load(labels=["a", "b"], cache=CACHE)
    names.write_text("one\ntwo\n")
    with pytest.raises(ModelError, match="2"):
        segment.load(labels=names, threads=1, cache=CACHE)
    with pytest.raises(ModelError, match="cannot be read"):
        segment.load(labels=tmp_path / "nowhere.txt")


def test_where_a_model_is_found() -> None:
    assert locate(Settings()) == EMBEDDED
    assert locate(Settings(model="some/file.onnx")) == Path("some/file.onnx")
    assert EMBEDDED.stat().st_size < 15e6


@pytest.mark.parametrize(
    "content", [b"", b"no model", b"\x08\x07\x12\x04test\x3a\x10"], ids=["empty", "text", "cut off"]
)
def test_file_that_is_not_a_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        segment.load(path)


def test_a_missing_file_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        segment.load("nowhere.onnx")
    with pytest.raises(ModelError, match="segment models"):
        segment.load("no_such_model")


@pytest.mark.parametrize("name", ["missing.pth", "training/shapes.pkl", "model_final.PT"])
def test_a_checkpoint_is_refused_with_the_command_that_converts_it(name: str) -> None:
    with pytest.raises(ModelError, match=f"{Path(name).name} is a checkpoint.* python -m segment convert CONFIG"):
        segment.load(name)


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_an_invalid_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(OptionError, match=f"threads is '{threads}'; it must be a whole number from 1 to 64"):
        segment.load(threads=threads)


def test_a_model_cannot_be_pickled_and_results_can(model: segment.Model, photo: Image.Image) -> None:
    with pytest.raises(TypeError, match=r"segment\.load in each process"):
        pickle.dumps(model)
    found = model(photo)
    back = pickle.loads(pickle.dumps(found))
    assert (back.names, repr(back)) == (found.names, repr(found))
    assert (back.masks[0].probabilities == found.masks[0].probabilities).all()


def test_a_url_is_refused(model: segment.Model) -> None:
    with pytest.raises(segment.SegmentError, match=r"example\.com/a\.jpg is a URL; .* Download it"):
        model("https://example.com/a.jpg")


def test_a_model_is_shown_with_its_name(model: segment.Model) -> None:
    assert repr(model) == "<Model: shapes, 5 classes>"


def test_settings_can_give_the_memory() -> None:
    model = from_settings(Settings(bytes_per_pixel=123.0, threads=1, cache=str(CACHE)))
    assert model.footprint.bytes_per_pixel == 123.0
    assert model.labels == CLASSES


def test_each_memory_setting_can_be_given_alone() -> None:
    def footprint(**given: Any) -> Footprint:
        return from_settings(Settings(threads=1, cache=str(CACHE), **given)).footprint

    own = footprint()
    assert own.fixed_bytes > 0
    assert own.bytes_per_instance > 0
    assert footprint(bytes_per_pixel=123.0) == replace(own, bytes_per_pixel=123.0)
    assert footprint(fixed_bytes=5 << 20) == replace(own, fixed_bytes=5 << 20)
    both = footprint(fixed_bytes=5 << 20, bytes_per_pixel=123.0)
    assert both == replace(own, fixed_bytes=5 << 20, bytes_per_pixel=123.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("labels", value) for value in ("5", '"cat"', "[]", "[1, 2]", "null", '[""]', '{"a": 1}')),
        *(("stride", value) for value in ("0", "-32", "1.5", '"32"', "true", "NaN", "1e9", "null")),
        *(
            (name, value)
            for name in ("fixed_bytes", "bytes_per_pixel", "bytes_per_instance")
            for value in ("-1", "NaN", "Infinity", '"many"', "[]", "1e300", "true")
        ),
        *(("render_factor", value) for value in ("0", '"25"', "NaN")),
        *(("source", value) for value in ("5", "[]")),
        ("precision", "8"),
        ("labels", "{"),
        ("labels", "[" * 100_000),
    ],
)
def test_invalid_metadata_is_refused(name: str, value: str) -> None:
    """Requests are admitted by the memory figures in the metadata, so invalid metadata must be refused."""
    described = metadata(EMBEDDED) | {f"{PREFIX}{name}": value}
    with pytest.raises(ModelError, match=r"metadata of the model file"):
        ModelMetadata.from_metadata(described)
    described.pop(f"{PREFIX}{name}")
    with pytest.raises(ModelError, match=f"lacks {name}"):
        ModelMetadata.from_metadata(described)


@pytest.mark.parametrize(("name", "value"), [("kept_bytes", "-1"), ("kept_bytes", "NaN"), ("square", "0.5")])
def test_metadata_that_earlier_versions_lack(name: str, value: str) -> None:
    described = metadata(EMBEDDED)
    for added in ("square", "kept_bytes"):
        described.pop(PREFIX + added, None)
    facts = ModelMetadata.from_metadata(described)
    assert facts is not None
    assert (facts.square, facts.kept_bytes) == (0, facts.fixed_bytes)
    with pytest.raises(ModelError, match=rf"{name} in the metadata of the model file is {value}"):
        ModelMetadata.from_metadata(described | {f"{PREFIX}{name}": value})


SIZES = """
import os
import numpy as np
from segment import container, model, process

process.configure_malloc()
network = model.load(cache=os.environ["SEGMENT_CACHE"])
sizes = [(height, width) for height in range(32, 320, 64) for width in range(32, 320, 64)]

def held_after(sizes):
    for size in sizes:
        network.engine(np.zeros((*size, 3), np.uint8), 1.0, 1)
    network.release()
    return container.anonymous()

first = held_after(sizes[::6])
print((held_after(sizes) - first) >> 20)
"""


def test_photos_of_all_sizes_leak_no_memory() -> None:
    """The runtime's cache per input size, which is disabled, would keep 89 MiB for the 25 sizes run here."""
    grown = subprocess.run([sys.executable, "-c", SIZES], capture_output=True, text=True, check=True)
    assert int(grown.stdout) <= 8


STREAMS = """
import os
import random
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from segment import container, process
from segment.engine.measurement import highest
from segment.model import from_settings
from segment.settings import Settings

process.configure_malloc()
network = from_settings(Settings(threads=2, cache=os.environ["SEGMENT_CACHE"]), streams=lambda memory: 2)
held, run = container.anonymous(), network.footprint
dice = random.Random(0)
noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
sizes = [(height, width) for height in range(96, 641, 64) for width in range(96, 641, 64) if height * width <= 320**2]

def find(_):
    height, width = dice.choice(sizes)
    network.engine(np.ascontiguousarray(noise[:height, :width]), 0.0, 100)

with highest() as peak, ThreadPoolExecutor(4) as pool:
    list(pool.map(find, range(80)))
planned = 2 * run.run_bytes(320**2, 100)
print((peak[0] - held) / planned)
"""


def test_runs_side_by_side_take_no_more_than_planned() -> None:
    """Two streams on inputs of many sizes take no more than twice the memory of a run on the largest of them."""
    share = subprocess.run([sys.executable, "-c", STREAMS], capture_output=True, text=True, check=True)
    assert 0.3 < float(share.stdout) <= 1


def test_all_types_of_photos_give_the_same_result(model: segment.Model, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(scene(50_004, (320, 240))[0]).save(path)
    with Image.open(path) as opened:
        pillow = opened.convert("RGB")
    found = [model(given) for given in (path, str(path), path.read_bytes(), pillow, np.asarray(pillow))]
    assert len(found[0]) > 0
    for other in found[1:]:
        assert np.array_equal(found[0].boxes, other.boxes)
        assert np.array_equal(found[0].scores, other.scores)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(Settings(threads=1, cache=str(CACHE)))


@pytest.mark.parametrize("detail", [1, 2])
def test_a_file_gives_the_same_result_as_from_the_service(
    model: segment.Model, service: Service, photo: Image.Image, tmp_path: Path, detail: int
) -> None:
    """Also a JPEG that is decoded at half its size, whose pixels differ a little from those of a reduced photo."""
    path = tmp_path / "photo.jpg"
    photo.resize((1600, 1200)).save(path, quality=90)
    options = Options.parse({"format": "json", "detail": str(detail), "min_score": "0.1"}, service.settings)
    (file,) = service.segment(path.read_bytes(), options).files
    found = model(path, detail=detail, min_score=0.1).to_coco()
    assert found
    assert found == json.loads(file.body)["annotations"]


def test_results_can_be_drawn(model: segment.Model, service: Service, photo: Image.Image, tmp_path: Path) -> None:
    """On a copy of the photo, given as for the model, and of any size; the same picture as from the service."""
    path, before = tmp_path / "photo.png", photo.tobytes()
    photo.save(path)
    (file,) = service.segment(path.read_bytes(), Options.defaults(service.settings)).files
    found = model(photo)
    with Image.open(io.BytesIO(file.body)) as expected:
        for given in (photo, path, np.asarray(photo)):
            assert found.draw(given).tobytes() == expected.tobytes()
    assert photo.tobytes() == before
    assert found.draw(photo.resize((320, 240))).size == (320, 240)
    assert found.draw(photo, masks=False, boxes=False, labels=False).tobytes() == before
    other: Any = "rainbow"
    with pytest.raises(OptionError, match="colours is 'rainbow'"):
        found.draw(photo, colours=other)
