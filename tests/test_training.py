"""Tests of the generated training scenes, of the demo model on new scenes, and of its variants."""

from __future__ import annotations

import hashlib
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

import segment
from devtools.server import CACHE
from segment import convert
from segment.convert import config
from training import examples, families
from training.shapes import CLASSES, scene, view

SCENES = {
    0: ((328, 294), [3818, 763, 1671, 3758], "41002db94e4aa2f0"),
    1: ((268, 274), [7889], "e38fb1ef513fb3da"),
    2: ((326, 234), [2585, 4470, 490, 995, 4856, 1762, 167, 368, 8933], "b69ae13cb5cce12f"),
    3: ((322, 205), [722, 3716, 3410, 2684, 1742, 1929, 8151], "3962ed4c3965d701"),
    4: ((308, 343), [1684, 1678, 250, 7669, 17373, 6255, 10364], "77c712a1e5860d8f"),
}
"""Seed -> (width, height), visible pixels of each object, first digits of the SHA-256 of image, masks and classes."""
DRAWN_WITH = {"numpy": "2.4.", "pillow": "13.0."}


@pytest.mark.parametrize("seed", SCENES)
def test_scenes_stay_the_same(seed: int) -> None:
    """The documented accuracy of the checkpoint was measured on these scenes."""
    image, masks, classes = scene(seed)
    size, visible, _ = SCENES[seed]
    assert (image.shape[1], image.shape[0]) == size
    assert masks.shape == (len(classes), *image.shape[:2])
    assert masks.sum(axis=(1, 2)) == pytest.approx(visible, rel=0.01)


@pytest.mark.parametrize("seed", SCENES)
@pytest.mark.skipif(
    not all(metadata.version(name).startswith(version) for name, version in DRAWN_WITH.items()),
    reason=f"the digits hold for {' and '.join(name + ' ' + v + 'x' for name, v in DRAWN_WITH.items())}",
)
def test_scenes_stay_the_same_to_the_bit(seed: int) -> None:
    image, masks, classes = scene(seed)
    digest = hashlib.sha256(image.tobytes() + masks.tobytes() + classes.tobytes()).hexdigest()
    assert digest[:16] == SCENES[seed][2]


def test_scene_matches_its_ground_truth() -> None:
    image, masks, classes = scene(7, (200, 160))
    assert (image.shape, image.dtype.name) == ((160, 200, 3), "uint8")
    assert (masks.dtype.name, classes.dtype.name) == ("bool", "int64")
    assert masks.sum(axis=0).max() <= 1, "masks must not include hidden parts"
    assert masks.sum(axis=(1, 2)).min() >= 100, "objects with fewer than 100 visible pixels must be left out"
    assert set(classes) <= set(range(len(CLASSES)))


def test_page_shows_scenes_of_this_generator() -> None:
    for number, seed in enumerate(examples.SEEDS, 1):
        drawn = scene(seed, (640, 480))[0].astype(int)
        with Image.open(examples.FOLDER / f"scene-{number}.jpg") as shown:
            assert np.abs(np.asarray(shown, np.int64) - drawn).mean() < 12


def test_demo_model_finds_the_shapes() -> None:
    """It finds over 75 % of the objects of 1,000 pixels or more, with their class and an IoU over 0.5."""
    model = segment.load(threads=1, cache=CACHE)
    assert model.labels == CLASSES
    found = total = 0
    for seed in range(12):
        image, masks, classes = scene(seed)
        answer = model(image, render_factor=20)
        height, width = masks.shape[1:]
        pasted = [mask.paste((0, 0, width, height)) >= 0.5 for mask in answer.masks]
        for kind, mask in zip(classes, masks, strict=True):
            if mask.sum() < 1000:
                continue
            total += 1
            found += any(
                label == kind and (mask & other).sum() > 0.5 * (mask | other).sum()
                for label, other in zip(answer.classes, pasted, strict=True)
            )
    assert total > 20
    assert found / total > 0.75


def test_a_trained_pointrend_has_the_demos_boxes_and_finer_masks() -> None:
    tensors = families.trained("pointrend")
    demo = convert.checkpoint.read(families.FOLDER / "shapes.pkl")
    shared = tensors.keys() & demo.keys()
    assert len(shared) > 250
    assert all(np.array_equal(tensors[name], demo[name]) for name in shared)
    model = convert.convert(config.read(families.config_file("pointrend")), tensors, CLASSES)
    masks = model.graph.output[3].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in masks][1:] == [224, 224]


def test_views_contain_cut_shapes_of_all_sizes() -> None:
    areas, cut = [], 0
    for seed in range(20):
        image, masks, classes = view(seed, (240, 180))
        assert image.shape == (180, 240, 3)
        assert masks.shape == (len(classes), 180, 240)
        assert not len(masks) or masks.sum(axis=0).max() <= 1
        areas += masks.sum(axis=(1, 2)).tolist()
        cut += int(np.count_nonzero(masks[:, 0].any(axis=1) | masks[:, :, 0].any(axis=1)))
    assert min(areas) < 100
    assert max(areas) > 0.4 * 240 * 180
    assert cut > 10


@pytest.mark.parametrize("name", ["mask_rcnn", "scales"])
def test_a_variant_of_the_demo_converts(name: str) -> None:
    demo, tensors = families.from_demo(families.VARIANTS[name]), families.trained(name)
    assert tensors.keys() == demo.keys()
    changed = {key for key in demo if not np.array_equal(demo[key], tensors[key])}
    assert changed
    assert all(key.startswith(families.VARIANTS[name].trained) for key in changed)
    model = convert.convert(config.read(families.config_file(name)), tensors, CLASSES)
    assert len(model.graph.output) == 4


def test_c4_begins_with_the_demos_backbone() -> None:
    begun = families.from_demo(families.VARIANTS["c4"])
    assert begun["roi_heads.res5.2.conv3.weight"].shape == (512, 128, 1, 1)
    assert {name.split(".")[0] for name in begun} == {"backbone", "roi_heads"}
    assert not any("fpn" in name or "bottom_up" in name for name in begun)


def test_the_trained_c4_converts() -> None:
    model = convert.convert(config.read(families.config_file("c4")), families.trained("c4"), CLASSES)
    masks = model.graph.output[3].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in masks][1:] == [14, 14]
