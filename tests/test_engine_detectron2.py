"""The detectron2 engine returns detectron2's own results, stored in golden/, and those of the converted model.

Without detectron2 only the error for the missing package is tested.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from segment import model
from segment.detections import Detections
from segment.engine.detectron2 import Detectron2
from segment.engine.footprint import Footprint
from segment.errors import ModelError
from segment.settings import Settings

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("r50", "x101", "agnostic", "gn", "cascade")
UNMEASURED = Footprint(0, 0.0)

installed = importlib.util.find_spec("detectron2") is not None
needs_detectron2 = pytest.mark.skipif(not installed, reason="detectron2 is not installed (requirements-detectron2.txt)")


def folder_of(name: str, tmp_path: Path) -> Path:
    """A golden model in a folder laid out like the output of a training run."""
    shutil.copy(GOLDEN / f"{name}.yaml", tmp_path / "config.yaml")
    shutil.copy(GOLDEN / f"{name}.pkl", tmp_path / "model_final.pkl")
    return tmp_path


def load(folder: Path) -> Detectron2:
    return Detectron2(folder, threads=1, memory=UNMEASURED)


def change(folder: Path, **values: Any) -> None:
    """Change keys below MODEL in the config."""
    path = folder / "config.yaml"
    document = yaml.safe_load(path.read_text())
    document["MODEL"].update(values)
    path.write_text(yaml.safe_dump(document))


def agreeing(found: Detections, boxes: Any, scores: Any, classes: Any, grids: Any) -> int:
    """The number of expected instances that are found: boxes to 0.05 px, scores to 1e-3, masks to 5e-3 on average."""
    return sum(
        any(
            found.classes[i] == classes[j]
            and abs(found.scores[i] - scores[j]) < 1e-3
            and np.abs(found.boxes[i] - boxes[j]).max() < 0.05
            and np.abs(found.masks[i].grid - grids[j].astype(np.float32)).mean() < 5e-3
            for i in range(len(found))
        )
        for j in range(len(scores))
    )


def test_without_detectron2(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if installed:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setitem(__import__("sys").modules, "detectron2.modeling", None)
        with pytest.raises(ModelError, match=r"needs detectron2 .*\[detectron2\]'; and detectron2 as https"):
            load(tmp_path)


@needs_detectron2
@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_detectron2(name: str, tmp_path: Path) -> None:
    engine = load(folder_of(name, tmp_path))
    answers = np.load(GOLDEN / f"{name}.npz")
    for i in range(3):
        expected = [answers[f"{key}{i}"] for key in ("boxes", "scores", "classes", "masks")]
        found = engine(answers[f"image{i}"], 0.0, 100)
        assert len(found) == len(expected[1])
        assert agreeing(found, *expected) >= len(found) - 1
        assert found.size == (answers[f"image{i}"].shape[1], answers[f"image{i}"].shape[0])


@needs_detectron2
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_converted_model(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from segment import convert
    from segment.engine import file

    config, tensors = convert.config.read(GOLDEN / f"{name}.yaml"), convert.checkpoint.read(GOLDEN / f"{name}.pkl")
    onnx.save(convert.convert(config, tensors), tmp_path / "model.onnx")
    converted = file.load(tmp_path / "model.onnx", threads=1, memory=UNMEASURED)
    original = load(folder_of(name, tmp_path))
    image = np.load(GOLDEN / f"{name}.npz")["image0"]
    ours, theirs = (run(image, 0.1, 10) for run in (converted, original))
    grids = [mask.grid for mask in theirs.masks]
    assert agreeing(ours, theirs.boxes, theirs.scores, theirs.classes, grids) >= len(theirs) - 1
    assert converted.stride == original.stride


@needs_detectron2
def test_score_and_count_limits_apply(tmp_path: Path) -> None:
    engine = load(folder_of("r50", tmp_path))
    image = np.load(GOLDEN / "r50.npz")["image0"]
    everything = engine(image, 0.0, 100)
    middle = float(np.median(everything.scores))
    assert (engine(image, middle, 100).scores > middle).all()
    np.testing.assert_array_equal(engine(image, 0.0, 3).scores, everything.scores[:3])
    assert len(engine(image, 1.0, 100)) == 0


@needs_detectron2
def test_serves_through_the_settings(tmp_path: Path) -> None:
    folder = folder_of("r50", tmp_path)
    (folder / "labels.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    loaded = model.from_settings(Settings(engine="detectron2", model=str(folder)))
    assert loaded.labels == tuple("abcdefg")
    assert loaded.footprint.bytes_per_pixel > 0  # measured
    image = np.load(GOLDEN / "r50.npz")["image0"]
    found = loaded(image, render_factor=10, min_score=0.0)
    assert found.size == (image.shape[1], image.shape[0])


@needs_detectron2
def test_labels_from_the_settings_must_match_the_classes(tmp_path: Path) -> None:
    folder = folder_of("r50", tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    with pytest.raises(ModelError, match="the model has 7 classes, and 2 labels were given"):
        model.from_settings(Settings(engine="detectron2", model=str(folder), labels=str(names)))


@needs_detectron2
def test_image_is_not_resized_again(tmp_path: Path) -> None:
    engine = load(folder_of("r50", tmp_path))
    seen: list[tuple[int, ...]] = []
    engine._model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    engine(np.zeros((160, 96, 3), np.uint8), 0.5, 10)
    assert seen == [(1, 3, 160, 96)]


@needs_detectron2
def test_configs_that_do_not_convert(tmp_path: Path) -> None:
    """The engine runs a C4 network (no pyramid) with deformable convolutions from the checkpoint of a training run."""
    import torch
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    config = get_cfg()
    values = {
        "DEVICE": "cpu",
        "MASK_ON": True,
        "RESNETS.STEM_OUT_CHANNELS": 8,
        "RESNETS.RES2_OUT_CHANNELS": 16,
        "RESNETS.WIDTH_PER_GROUP": 8,
        "RESNETS.DEFORM_ON_PER_STAGE": [False, True, False, False],
        "RPN.POST_NMS_TOPK_TEST": 20,
        "ROI_HEADS.NUM_CLASSES": 3,
        "ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "ROI_MASK_HEAD.CONV_DIM": 8,
    }
    config.merge_from_list([word for key, value in values.items() for word in ("MODEL." + key, value)])
    torch.manual_seed(0)
    tensors = {name: tensor * 0.3 for name, tensor in build_model(config).state_dict().items()}
    torch.save({"model": tensors, "iteration": 7}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(config.dump())
    (tmp_path / "metadata.json").write_text(json.dumps({"thing_classes": ["cat", "dog", "fish"]}))
    engine = load(tmp_path)
    found = engine(np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8), 0.0, 5)
    assert engine.labels == ("cat", "dog", "fish")
    assert len(found) == 5
    assert found.masks[0].grid.shape == (14, 14)


@needs_detectron2
def test_a_lazy_config(tmp_path: Path) -> None:
    import torch
    from detectron2.config import LazyCall, LazyConfig, get_cfg, instantiate
    from detectron2.modeling import build_model
    from omegaconf import OmegaConf

    config = get_cfg()
    config.merge_from_file(str(GOLDEN / "r50.yaml"))
    # The shortest lazy config of a whole network: one call that builds it from the YAML config.
    lazy = OmegaConf.create({"model": LazyCall(from_text)(text=config.dump())})
    LazyConfig.save(lazy, str(tmp_path / "config.yaml"))
    torch.save({"model": build_model(config).state_dict()}, tmp_path / "model_final.pth")
    assert instantiate(lazy.model) is not None
    assert load(tmp_path)(np.zeros((64, 64, 3), np.uint8), 0.0, 5).size == (64, 64)


def from_text(text: str) -> Any:
    from detectron2.config import CfgNode
    from detectron2.modeling import build_model

    return build_model(CfgNode.load_cfg(text))


# Models that are refused


def without_a_tensor(folder: Path) -> str:
    path = folder / "model_final.pkl"
    document = pickle.loads(path.read_bytes())
    del document["model"]["backbone.bottom_up.res4.1.conv2.weight"]
    path.write_bytes(pickle.dumps(document))
    return r"no tensor backbone\.bottom_up\.res4\.1\.conv2\.weight"


def of_another_shape(folder: Path) -> str:
    change(folder, FPN={"IN_FEATURES": ["res2", "res3", "res4", "res5"], "OUT_CHANNELS": 16})
    return r"has the shape .*; the config needs"


def deeper_than_its_config(folder: Path) -> str:
    shutil.copy(GOLDEN / "x101.pkl", folder / "model_final.pkl")
    return r"does not fit its config\.yaml"


def cut_off(folder: Path) -> str:
    path = folder / "model_final.pkl"
    path.write_bytes(path.read_bytes()[:10_000])
    return r"model_final\.pkl cannot be read"


def no_weights(folder: Path) -> str:
    (folder / "model_final.pkl").unlink()
    return r"no model_final\.pth or model_final\.pkl"


def no_config(folder: Path) -> str:
    (folder / "config.yaml").unlink()
    return r"config\.yaml cannot be read"


def no_yaml(folder: Path) -> str:
    (folder / "config.yaml").write_text("{")
    return "not a YAML file"


def another_yaml(folder: Path) -> str:
    (folder / "config.yaml").write_text("a: 1")
    return "neither MODEL nor model"


def unknown_key(folder: Path) -> str:
    change(folder, NO_SUCH_KEY=1)
    return "NO_SUCH_KEY"


def unknown_network(folder: Path) -> str:
    change(folder, META_ARCHITECTURE="NoSuchNetwork")
    return "cannot build this config.*NoSuchNetwork"


def no_masks(folder: Path) -> str:
    change(folder, MASK_ON=False)
    return "has no masks"


def too_few_labels(folder: Path) -> str:
    (folder / "labels.txt").write_text("one\n")
    return "1 labels .* 7 classes"


@needs_detectron2
@pytest.mark.parametrize(
    "spoil",
    [
        without_a_tensor,
        of_another_shape,
        deeper_than_its_config,
        cut_off,
        no_weights,
        no_config,
        no_yaml,
        another_yaml,
        unknown_key,
        unknown_network,
        no_masks,
        too_few_labels,
    ],
)
def test_refuses(spoil: Any, tmp_path: Path) -> None:
    folder = folder_of("r50", tmp_path)
    message = spoil(folder)
    with pytest.raises(ModelError, match=message):
        load(folder)
