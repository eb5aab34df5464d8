"""The option `detail`: detections, planned sizes and memory, and refusals, through the service and the planner."""

from __future__ import annotations

import io
import itertools
import json

import pytest
from PIL import Image

from devtools.server import CACHE, ROOT
from segment.engine.footprint import Footprint
from segment.errors import TooLarge
from segment.image import read_header
from segment.options import Options
from segment.plan import Constraints, plan
from segment.resize import fitted_size
from segment.service import Result, Service
from segment.settings import Settings
from tests.compiled import compiled_once  # noqa: F401
from tests.conftest import limit_with
from training.shapes import scene

MIB = 1 << 20


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(Settings(memory=limit_with(900 * MIB), threads=1, cache=str(CACHE)))


@pytest.fixture(scope="module")
def photo() -> bytes:
    """Four scenes in one photo, so that their shapes are small."""
    sheet = Image.new("RGB", (1280, 960))
    for seed, corner in enumerate([(0, 0), (640, 0), (0, 480), (640, 480)], 50_000):
        sheet.paste(Image.fromarray(scene(seed, (640, 480))[0]), corner)
    return jpeg(sheet)


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def segment(service: Service, photo: bytes, **words: str) -> Result:
    options = Options.parse({"render_factor": "12", "format": "json"} | words, service.settings)
    return service.segment(photo, options)


def test_detail_finds_more(service: Service, photo: bytes) -> None:
    plain, fine = segment(service, photo), segment(service, photo, detail="2")
    assert (plain.detail, fine.detail) == (1, 2)
    assert fine.network_size == plain.network_size
    assert fine.instances > plain.instances


def test_max_detections_applies_after_merging(service: Service) -> None:
    """Of the coins photograph, the best are returned, each as without the option."""
    coins, found = (ROOT / "docs" / "coins.jpg").read_bytes(), []
    for count in ("20", "100"):
        words = {"detail": "2", "render_factor": "25", "min_score": "0.1", "max_detections": count}
        (file,) = segment(service, coins, **words).files
        found.append([(a["category_id"], a["score"], *a["bbox"]) for a in json.loads(file.body)["annotations"]])
    assert len(found[0]) == 20
    assert found[0] == found[1][:20]


def test_classes_are_selected_after_merging(service: Service, photo: bytes) -> None:
    every = segment(service, photo, detail="2").instances
    some = segment(service, photo, detail="2", classes="circle,ring").instances
    assert 0 < some < every


def test_auto_detail_respects_the_pixel_limit(photo: bytes) -> None:
    little, much = (
        Service(
            Settings(
                memory=limit_with(900 * MIB), threads=1, detail=None, detail_megapixels=megapixels, cache=str(CACHE)
            )
        )
        for megapixels in (0.0, 1000.0)
    )
    assert segment(little, photo).detail == 1
    assert segment(much, photo).detail == 4


def test_lower_min_score_keeps_all_instances(service: Service, photo: bytes) -> None:
    found = {}
    for score in ("0.01", "0.05", "0.3", "0.6", "0.9"):
        (file,) = segment(service, photo, detail="2", min_score=score).files
        found[score] = {(a["category_id"], a["score"], *a["bbox"]) for a in json.loads(file.body)["annotations"]}
    scores = list(found)
    assert all(found[higher] <= found[lower] for lower, higher in itertools.pairwise(scores))
    assert found["0.9"]


def test_a_result_says_its_detail(service: Service, photo: bytes) -> None:
    (file,) = segment(service, photo, detail="3").files
    assert b'"detail":3' in file.body


# The plan


def planned(size: tuple[int, int], detail: str, capacity: int = 1000 * MIB) -> tuple[int, tuple[int, int], int, int]:
    constraints = Constraints(capacity, Footprint(0, 400.0), fitted_size)
    options = Options.parse({"detail": detail, "format": "json"}, Settings())
    made = plan(read_header(jpeg(Image.new("RGB", size))), options, ("json",), constraints)
    return made.detail, made.detect_size, made.detect_bytes, made.network_bytes


def test_detail_decodes_enough_pixels_for_tiles() -> None:
    (_, look, own, run), (_, fine_look, fine_own, fine_run) = planned((4000, 3000), "1"), planned((4000, 3000), "2")
    assert look == (448, 352)
    assert fine_look == (726, 571)  # a tile is 1 / 1.8 of the photo, and may be enlarged by a tenth
    assert fine_own > own
    assert fine_run == run  # the network's memory does not grow


@pytest.mark.parametrize(
    ("size", "detail"),
    [((400, 300), 1), ((500, 400), 2), ((1000, 750), 3), ((4000, 3000), 4)],
)
def test_auto_detail_does_not_exceed_the_photos_pixels(size: tuple[int, int], detail: int) -> None:
    assert planned(size, "auto")[0] == detail


def test_auto_detail_fits_the_memory() -> None:
    _, _, own, run = planned((4000, 3000), "2")
    assert planned((4000, 3000), "auto", own + run)[0] == 2


def test_too_large_detail_is_refused_with_a_valid_value() -> None:
    _, _, own, run = planned((4000, 3000), "1")
    with pytest.raises(TooLarge, match=r"at detail 4 .* or reduce detail"):
        planned((4000, 3000), "4", own + run)
