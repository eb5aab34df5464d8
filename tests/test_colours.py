"""Colours contrast with each other and with the photo."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from devtools.palette import cielab, palette
from segment.mask import Mask
from segment.output import colours
from segment.output.colours import CLEAR, ENOUGH, PALETTE, Colour, by_class, by_instance, ink, oklab
from tests.scripts import constants, numbers
from tests.strategies import detections, empty, solid

SIZE = (320, 240)
RED_BUS, ASPHALT, SKIN = (196, 30, 32), (60, 62, 66), (230, 200, 170)


def chosen(found: list[Mask], photo: Image.Image) -> list[Colour]:
    return [paint.colour for paint in by_instance(photo, detections(found, photo.size))]


def apart(one: Colour, other: Colour) -> float:
    return float(np.linalg.norm(oklab(one) - oklab(other)))


def test_the_palette_is_what_its_script_computes() -> None:
    assert list(PALETTE) == palette()


def test_the_page_uses_the_same_numbers() -> None:
    known = constants("colours.js")
    assert set(known) == {"ENOUGH", "CLEAR", "BESIDE", "THUMBNAIL"}
    assert {name: getattr(colours, name) for name in known} == known
    matrices = np.abs(np.concatenate([colours._TO_LMS, colours._TO_LAB]))
    in_script = np.array(sorted(numbers("colours.js")), np.float32)
    assert np.isin(matrices, in_script).all()


def test_no_two_colours_of_the_palette_look_alike() -> None:
    colours = np.array(PALETTE, np.uint8)
    assert len(colours) >= 30
    for space, least in ((oklab(colours), 0.11), (cielab(colours), 22)):
        distances = np.linalg.norm(space[:, None] - space, axis=2)
        np.fill_diagonal(distances, np.inf)
        assert distances.min() > least, "the previous palette of 20 colours had 0.07 and 20.7"


def test_neighbours_in_the_palette_differ_most() -> None:
    cie = cielab(np.array(PALETTE, np.uint8))
    consecutive = np.linalg.norm(cie[1:] - cie[:-1], axis=1)
    assert consecutive.min() > 45


def test_text_contrasts_with_every_colour() -> None:
    luminance = ((np.array(PALETTE) / 255) ** 2.2) @ [0.2126, 0.7152, 0.0722]
    dark = np.array([ink(colour) == (0, 0, 0) for colour in PALETTE])
    contrast = np.where(dark, (luminance + 0.05) / 0.05, 1.05 / (luminance + 0.05))
    assert contrast.min() > 4.5, "WCAG requires 4.5 for text at level AA"


@pytest.mark.parametrize(
    "ground", [*itertools.product((0, 128, 255), repeat=3), RED_BUS, (60, 62, 66), (230, 200, 170)]
)
def test_colour_contrasts_with_the_photo(ground: Colour) -> None:
    (colour,) = chosen([solid(40, 40, 200, 180)], Image.new("RGB", SIZE, ground))
    assert apart(colour, ground) >= ENOUGH


def test_colours_around_an_instance_count_too() -> None:
    photo = Image.new("RGB", SIZE, RED_BUS)
    photo.paste((20, 160, 60), (100, 80, 220, 160))
    (colour,) = chosen([solid(100, 80, 220, 160)], photo)
    assert min(apart(colour, RED_BUS), apart(colour, (20, 160, 60))) >= CLEAR


def test_neighbours_have_different_colours() -> None:
    found = [solid(x, y, x + 26, y + 26) for y in range(10, 220, 28) for x in range(10, 300, 28)]
    colours = chosen(found, Image.new("RGB", SIZE, (128, 128, 128)))
    for (i, a), (j, b) in itertools.combinations(enumerate(found), 2):
        if max(abs(a.bounds[0] - b.bounds[0]), abs(a.bounds[1] - b.bounds[1])) <= 28:
            assert apart(colours[i], colours[j]) > 0.11, (a.bounds, b.bounds)


def test_people_in_a_row_have_colours_that_differ() -> None:
    """Narrow instances are neighbours though the gap between them is as wide as they are, also on a street."""
    found = [solid(x, 60, x + 12, 130) for x in range(10, 230, 24)]
    colours = chosen(found, Image.new("RGB", SIZE, (176, 172, 166)))
    assert len(set(colours)) >= 6
    assert min(apart(one, other) for one, other in itertools.pairwise(colours)) > 0.2


def test_colours_repeat_only_after_the_whole_palette() -> None:
    """Distant instances may share a colour, but unused colours that stand out as well are chosen first."""
    found = [solid(x, y, x + 8, y + 8) for y in range(10, 210, 40) for x in range(10, 160, 40)]
    colours = chosen(found, Image.new("RGB", SIZE, (10, 10, 10)))
    assert len(set(colours)) == len(found) == 20


def test_a_class_has_the_same_colour_in_every_photo() -> None:
    found = detections([solid(10, 10, 60, 60), solid(100, 10, 160, 60)], SIZE, [1, 0])
    on_red, on_blue = (by_class(Image.new("RGB", SIZE, ground), found) for ground in (RED_BUS, (0, 0, 160)))
    assert [paint.colour for paint in on_red] == [paint.colour for paint in on_blue] == [PALETTE[1], PALETTE[0]]


def test_class_colour_without_contrast_is_reported() -> None:
    found = detections([solid(10, 10, 60, 60)], SIZE)
    (hidden,) = by_class(Image.new("RGB", SIZE, PALETTE[0]), found)
    (seen,) = by_class(Image.new("RGB", SIZE, (0, 0, 0)), found)
    assert (hidden.clear, seen.clear) == (False, True)


def test_instances_without_a_pixel_have_a_colour() -> None:
    photo = Image.new("RGB", SIZE, (128, 128, 128))
    found = [empty(50, 50, 100, 100), solid(50, 50, 50, 90), solid(60, 60, 20, 20), solid(400, 300, 500, 400)]
    assert len(chosen(found, photo)) == 4
    assert chosen([solid(0, 0, 1, 1)], Image.new("RGB", (1, 1)))
    assert chosen([], photo) == []
