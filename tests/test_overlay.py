"""The overlay: which pixels are drawn, and which stay unchanged."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from segment.errors import OptionError
from segment.mask import Box, Mask
from segment.output import overlay as module
from segment.output.colours import PALETTE, by_instance
from segment.output.font import BESIDE, SIZES, Font, font_for, open_font
from segment.output.overlay import at_pixel_size, draw, without_specks
from tests.strategies import detections, empty, frames, masks, ring, solid

SIZE = (320, 240)
LABELS = ("ring", "a rather long name for a thing")
GREY = (128, 128, 128)


def drawn(found: list[Mask], size: tuple[int, int] = SIZE, classes: list[int] | None = None, **options: Any) -> Any:
    photo = Image.new("RGB", size, GREY)
    draw(photo, detections(found, size, classes), LABELS, **options)
    return np.asarray(photo)


def colour(found: list[Mask], index: int = 0, size: tuple[int, int] = SIZE) -> Any:
    """The colour in which one of the masks is drawn on grey."""
    return by_instance(Image.new("RGB", size, GREY), detections(found, size))[index].colour


def changed(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((pixels != GREY).any(axis=2))


ONLY_MASKS: dict[str, Any] = {"boxes": False, "text": False}
ONLY_BOXES: dict[str, Any] = {"masks": False, "text": False}
ONLY_TEXT: dict[str, Any] = {"masks": False, "boxes": False}


def test_each_part_can_be_turned_off() -> None:
    mask = ring(60, 60, 260, 220)
    assert not changed(drawn([mask], masks=False, boxes=False, text=False)).any()
    assert changed(drawn([mask], **ONLY_BOXES))[60:220, 60].all()
    assert not changed(drawn([mask], **ONLY_BOXES))[100, 100]
    assert changed(drawn([mask], **ONLY_TEXT))[:60].any()
    assert not changed(drawn([mask], **ONLY_TEXT))[60:].any()


def test_mask_is_filled_with_contour_and_hole() -> None:
    found = [ring(60, 60, 260, 220)]
    pixels, paint = drawn(found, **ONLY_MASKS), colour(found)
    filled = tuple(round(128 + module.FILL * (value - 128)) for value in paint)
    assert np.abs(pixels[80, 160].astype(int) - filled).max() <= 1
    assert (pixels[140, 160] == GREY).all()
    assert (pixels[20, 20] == GREY).all()
    row = np.abs(pixels[140, 55:70].astype(int) - paint).max(axis=1)
    assert row.min() <= 6, "the contour has the full colour"


def test_edges_are_antialiased() -> None:
    y, x = np.mgrid[:28, :28]
    disc = np.clip(12 - np.hypot(x - 13.5, y - 13.5), 0, 1).astype(np.float32)
    pixels = drawn([Mask(disc, (20, 20, 220, 220), (20, 20, 220, 220))], **ONLY_MASKS)
    strongest = np.abs(pixels.astype(int) - GREY).max(axis=2)
    assert len(np.unique(strongest)) > 40
    outside = np.hypot(*(np.mgrid[:240, :320] + 0.5 - 120)) > 95
    assert not changed(pixels)[outside].any()


def test_strips_leave_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = ring(20, 20, 300, 230)
    whole = drawn([mask], **ONLY_MASKS)
    monkeypatch.setattr("segment.mask.DISTANCE_PIXELS", 20 * 280)
    assert np.array_equal(drawn([mask], **ONLY_MASKS), whole)


def contour(pixels: NDArray[np.uint8], paint: Any) -> NDArray[np.bool_]:
    """The pixels of contours, which are nearer to the full colour than to the fill."""
    full = np.abs(np.array(paint) - GREY).sum()
    return np.asarray(np.abs(pixels.astype(int) - paint).sum(axis=2) < 0.5 * full)


@pytest.mark.parametrize("bounds", [(60, 60, 260, 220), (60.4, 60.7, 259.5, 219.2), (0, 0, 320, 240)])
def test_the_contour_is_closed_where_the_box_cuts_the_mask(bounds: Box) -> None:
    """In some model families the grid covers the whole photo, and the mask is clipped to the box."""
    mask = Mask(np.ones((40, 40), np.float32), (0, 0, 320, 240), bounds)
    found = [Mask(mask.grid, (-80, -60, 400, 300), bounds)]
    drawn_at = contour(drawn(found, **ONLY_MASKS), colour(found))
    left, top, right, bottom = (round(value) for value in bounds)
    assert drawn_at[top : top + 2, left + 2 : right - 2].any(axis=0).all()
    assert drawn_at[bottom - 2 : bottom, left + 2 : right - 2].any(axis=0).all()
    assert drawn_at[top + 2 : bottom - 2, left : left + 2].any(axis=1).all()
    assert drawn_at[top + 2 : bottom - 2, right - 2 : right].any(axis=1).all()
    assert not drawn_at[top + 6 : bottom - 6, left + 6 : right - 6].any()


def flecked() -> Mask:
    """A square of 20 x 20 cells with pin holes, and a speck beside it."""
    grid = np.zeros((28, 28), np.float32)
    grid[2:22, 2:22] = 1
    grid[8, 8] = grid[14, 15] = grid[14, 16] = 0
    grid[25, 25] = 1
    return Mask(grid, (20, 20, 300, 230), (20, 20, 300, 230))


def test_specks_and_pin_holes_have_no_contour() -> None:
    found = [flecked()]
    pixels = drawn(found, **ONLY_MASKS)
    at = contour(pixels, colour(found))
    rows, columns = np.nonzero(changed(pixels))
    assert (rows.max(), columns.max()) > (205, 270), "the speck itself is shown"
    assert not at[190:, 245:].any()
    assert not at[35 + 10 : 165, 40 + 10 : 220].any(), "nothing but fill inside of the square"
    assert (pixels[round(20 + 8.5 * 7.5), round(20 + 8.5 * 10)] == GREY).all(), "the pin hole stays a hole"


def test_specks_are_small_relative_to_the_mask() -> None:
    cleaned = without_specks(flecked()).probabilities >= 0.5
    expected = np.zeros((28, 28), bool)
    expected[2:22, 2:22] = True
    assert (cleaned == expected).all()
    two = np.zeros((28, 28), np.float32)
    two[2:10, 2:10] = two[15:18, 15:18] = 1
    two[5:7, 5:7] = 0
    mask = Mask(two, (0, 0, 100, 100), (0, 0, 100, 100))
    assert (without_specks(mask).probabilities == two).all()


def test_removing_a_speck_keeps_a_corner_beside_it() -> None:
    grid = np.zeros((28, 28), np.float32)
    grid[2:22, 2:22] = 1
    grid[22, 22] = 0.9
    cleaned = without_specks(Mask(grid, (0, 0, 280, 280), (0, 0, 280, 280))).probabilities
    assert (cleaned[2:22, 2:22] == 1).all()


def test_nested_specks_and_holes_are_removed() -> None:
    grid = np.zeros((56, 56), np.float32)
    grid[2:42, 2:42] = 1
    grid[10:15, 10:15] = 0
    grid[12, 12] = 1
    grid[46:51, 46:51] = 1
    grid[48, 48] = 0
    cleaned = without_specks(Mask(grid, (0, 0, 560, 560), (0, 0, 560, 560))).probabilities
    expected = np.zeros((56, 56), np.float32)
    expected[2:42, 2:42] = 1
    assert (cleaned == expected).all()


def test_cells_much_smaller_than_pixels_are_averaged() -> None:
    """PointRend's grid has as many cells for an instance of 20 pixels as for one of 2,000."""
    y, x = np.mgrid[:224, :224]
    disc = (np.hypot(x - 111.5, y - 111.5) < 90).astype(np.float32)
    small = Mask(disc, (100, 100, 140, 140), (100, 100, 140, 140))
    assert at_pixel_size(small).probabilities.shape == (56, 56)
    coarse = Mask(disc.reshape(56, 4, 56, 4).mean(axis=(1, 3)), small.place, small.bounds)
    assert np.array_equal(drawn([small], **ONLY_MASKS), drawn([coarse], **ONLY_MASKS))
    large = Mask(disc, (0, 0, 200, 200), (0, 0, 200, 200))
    assert at_pixel_size(large).probabilities.shape == (224, 224)


def test_noise_is_drawn_quickly() -> None:
    grid = np.random.default_rng(0).uniform(0, 1, (160, 160)).astype(np.float32)
    started = time.process_time()
    drawn([Mask(grid, (0, 0, 320, 240), (0, 0, 320, 240))], **ONLY_MASKS)
    assert time.process_time() - started < 1, "0.1 s on an idle machine"


def test_the_mask_ends_at_the_bounds() -> None:
    grid = np.zeros((40, 40), np.float32)
    grid[:, :20] = 1
    grid[30:32, 30:32] = 1
    mask = Mask(grid, (0, 0, 40, 40), (28, 28, 36, 36))
    assert without_specks(mask) is mask, "the hidden half must not make the visible part a speck"


@pytest.mark.parametrize("small_first", [True, False])
def test_pixels_are_filled_with_the_colour_of_the_smaller_instance_only(small_first: bool) -> None:
    """A tie on a person and a person before a bus are seen in their own colours, whatever the scores."""
    found = [solid(20, 20, 300, 220), solid(83, 80, 141, 141), solid(100, 100, 203, 203)]
    order, places = range(3), [(40, 40), (121, 121), (170, 170)]
    if small_first:
        found, order = found[::-1], order[::-1]
    pixels = drawn(found, **ONLY_MASKS).astype(float)
    for i, place in zip(order, places, strict=True):
        own = np.asarray(colour(found, i), np.float64)
        assert np.abs(pixels[place] - (GREY + module.FILL * (own - GREY))).max() <= 1


def test_contours_are_seen_on_what_covers_the_mask() -> None:
    found = [solid(40, 40, 120, 120), solid(83, 20, 280, 220)]
    pixels = drawn(found, **ONLY_MASKS)
    small, large = (contour(pixels, colour(found, i)) for i in range(2))
    assert large[60:100, 83:87].any(axis=1).all()
    assert small[40:44, 90:110].any(axis=0).all()


def test_of_two_contours_at_one_place_that_of_the_smaller_instance_is_seen() -> None:
    found = [solid(40, 40, 120, 120), solid(40, 40, 280, 220)]
    pixels = drawn(found, **ONLY_MASKS)
    small, large = (contour(pixels, colour(found, i)) for i in range(2))
    assert small[40:44, 50:110].any(axis=0).all()
    assert not large[40:44, 50:110].any()


def test_of_equal_boxes_the_one_with_the_higher_score_is_drawn_on_top() -> None:
    found = [solid(50, 50, 150, 150), solid(80, 80, 180, 180)]
    assert tuple(drawn(found, **ONLY_BOXES)[149, 90]) == colour(found)


def test_colours_by_class_are_the_same_in_every_photo() -> None:
    left, right = solid(10, 10, 60, 60), solid(100, 10, 160, 60)
    one = drawn([left], classes=[1], colours="class", **ONLY_BOXES)
    two = drawn([right, left], classes=[0, 1], colours="class", **ONLY_BOXES)
    assert tuple(one[10, 20]) == tuple(two[10, 20])
    same = drawn([right, left], classes=[1, 1], colours="class", **ONLY_BOXES)
    assert tuple(same[10, 20]) == tuple(same[10, 120])
    apart = drawn([right, left], classes=[1, 1], colours="instance", **ONLY_BOXES)
    assert tuple(apart[10, 20]) != tuple(apart[10, 120])


@pytest.mark.parametrize("shown", [ONLY_MASKS, ONLY_BOXES], ids=["mask", "box"])
def test_class_colour_without_contrast_has_a_casing(shown: dict[str, Any]) -> None:
    photo = Image.new("RGB", SIZE, PALETTE[0])
    draw(photo, detections([solid(60, 60, 260, 220)], SIZE), LABELS, colours="class", **shown)
    difference = np.abs(np.asarray(photo).astype(int) - PALETTE[0]).max(axis=2)
    assert (difference[120:160, 60:66].max(axis=1) > 100).all()


def test_text_and_lines_grow_with_the_photo() -> None:
    def measures(scale: int) -> tuple[int, int]:
        size, mask = (400 * scale, 300 * scale), solid(100 * scale, 100 * scale, 300 * scale, 200 * scale)
        line = changed(drawn([mask], size, **ONLY_BOXES))[:, 200 * scale].sum()
        return int(line) // 2, int(changed(drawn([mask], size, **ONLY_TEXT)).any(axis=1).sum())

    small, large = measures(1), measures(10)
    assert small[0] == 1
    assert small[1] >= 9
    assert large[0] >= 5
    assert large[1] >= 5 * small[1]


def written(name: str, font: Font | None = None) -> Any:
    """The photo with a tag with this class name."""
    photo = Image.new("RGB", SIZE, GREY)
    draw(photo, detections([solid(60, 60, 260, 220)], SIZE), (name,), font=font, **ONLY_TEXT)
    return np.asarray(photo)


@pytest.mark.parametrize("letters", ["äß", "éñ", "řž", "αω", "жщ"])
def test_other_letters_than_ascii(letters: str) -> None:
    """Not the box that fonts have for characters they lack: the same for each, it would show no order."""
    assert (written(letters) != written(letters[::-1])).any()


def test_an_accent_of_its_own() -> None:
    assert (written("e\u0301t\u0301") == written("\u00e9t\u0301")).all()


def test_a_name_in_another_script_is_shown_as_the_number_of_its_category() -> None:
    assert (written("正方形") == written("#1")).all()


def font_file(path: Path, characters: str) -> Path:
    """A font in which each of these characters is a bar of another height."""
    codes = {ord(character): f"glyph{ord(character)}" for character in characters}
    order = [".notdef", *codes.values()]
    font = FontBuilder(1000)
    font.setupGlyphOrder(order)
    font.setupCharacterMap(codes)
    shapes = {}
    for number, name in enumerate(order):
        pen = TTGlyphPen(None)
        corners = ((50, 0), (50, 100 + 20 * number), (450, 100 + 20 * number), (450, 0))
        pen.moveTo(corners[0])
        for corner in corners[1:]:
            pen.lineTo(corner)
        pen.closePath()
        shapes[name] = pen.glyph()
    font.setupGlyf(shapes)
    font.setupHorizontalMetrics(dict.fromkeys(order, (500, 50)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupOS2()
    font.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    font.setupPost()
    font.save(path)
    return path


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Font:
    return open_font(font_file(tmp_path_factory.mktemp("fonts") / "bars.ttf", BESIDE + "正方形"))


def test_a_font_file_is_used_for_names_that_the_built_in_fonts_lack(bars: Font) -> None:
    number = written("#1")
    assert (written("正方形", bars) != number).any()
    assert (written("正方形", bars) != written("形方正", bars)).any()
    assert (written("三角形", bars) == number).all(), "it does not have all characters"
    assert (written("square", bars) == written("square")).all()


def test_a_font_file_is_kept_open_in_few_sizes(bars: Font) -> None:
    """Not in one for each size of text, as a font for Chinese can take megabytes in each."""
    opened = {font_for("正方形", points, bars).size for points in range(46, 68)}
    assert len(opened) <= SIZES // 2
    assert max(opened) <= 67
    assert all(0.8 * points < font_for("正方形", points, bars).size <= points for points in range(9, 300))


def test_a_font_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"There is no font file none\.ttf\."):
        open_font(tmp_path / "none.ttf")
    (tmp_path / "text.ttf").write_text("text")
    with pytest.raises(OptionError, match=r"text\.ttf cannot be read as a font .* It must be a TTF, OTF or TTC file"):
        open_font(tmp_path / "text.ttf")
    with pytest.raises(OptionError, match=r"does not have the character '%'"):
        open_font(font_file(tmp_path / "digits.ttf", "0123456789…正"))


@given(st.lists(masks(), max_size=5), frames)
@settings(max_examples=60, deadline=None)
def test_draws_anything(found: list[Mask], size: tuple[int, int]) -> None:
    drawn(found, size, classes=[i % 2 for i in range(len(found))])


def test_an_empty_mask_draws_nothing() -> None:
    assert not changed(drawn([empty(50, 50, 100, 100)], **ONLY_MASKS)).any()
    assert not changed(drawn([solid(50, 50, 50, 90), solid(60, 60, 20, 20)], **ONLY_MASKS)).any()


def test_a_large_photo_takes_little_memory_and_time() -> None:
    size = (4000, 3000)
    photo = Image.new("RGB", size, GREY)
    found = detections([ring(100 * i, 80 * i, 1600 + 100 * i, 1000 + 80 * i) for i in range(20)], size)
    tracemalloc.start()
    draw(photo, found, LABELS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20
    started = time.process_time()
    draw(photo, found, LABELS)
    assert time.process_time() - started < 3, "0.3 s on an idle machine"
