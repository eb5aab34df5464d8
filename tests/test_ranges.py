"""Numbers in a config outside of their valid range are refused with their key, their value and the valid range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segment.convert import config, document
from segment.convert.ranges import Range
from segment.errors import ConversionError

GOLDEN = Path(__file__).parent / "golden"
LONGEST_MESSAGE = 400


def changed(name: str, key: str, value: Any) -> dict[str, Any]:
    """A golden config with another value at a dotted key."""
    given = document.read(GOLDEN / f"{name}.yaml")
    *parents, last = key.split(".")
    at: Any = given
    for parent in parents:
        at = at[parent]
    at[last] = value
    return given


YAML = [
    ("r50", "MODEL.ROI_HEADS.NUM_CLASSES", 0, "1 to 100,000"),
    ("r50", "MODEL.ROI_HEADS.NMS_THRESH_TEST", -0.5, "0 to 1"),
    ("r50", "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.5, "0 to 1"),
    ("r50", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1, "-1 to less than 1"),
    ("r50", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [10, 10, 5, 0], "list of 4 numbers from 1e-06 to 1,000,000"),
    ("r50", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [10, 10, 5], "list of 4 numbers"),
    ("r50", "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 10**6, "0 to 64"),
    ("r50", "MODEL.ROI_BOX_HEAD.NUM_FC", 10**4, "0 to 1,000"),
    ("r50", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "no", "true or false"),
    ("r50", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", 1, "true or false"),
    ("r50", "MODEL.RPN.BBOX_REG_WEIGHTS", [1, -1, 1, 1], "1e-06"),
    ("r50", "MODEL.RPN.NMS_THRESH", -0.7, "0 to 1"),
    ("r50", "MODEL.RPN.CONV_DIMS", [0], "at least 1, or -1"),
    ("r50", "MODEL.RPN.CONV_DIMS", [2.5], "whole numbers"),
    ("r50", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", -1, "0 to"),
    ("r50", "MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [0], [256], [512]], "0.001"),
    ("r50", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 0]], "0.001"),
    ("r50", "MODEL.ANCHOR_GENERATOR.OFFSET", 1, "0 to less than 1"),
    ("r50", "MODEL.PIXEL_STD", [57, 0, 57], "1e-06"),
    ("r50", "MODEL.PIXEL_MEAN", [1e9, 0, 0], "-1,000,000"),
    ("r50", "MODEL.FPN.OUT_CHANNELS", 0.5, "whole number"),
    ("r50", "TEST.DETECTIONS_PER_IMAGE", 0, "1 to 1,000,000"),
    ("cascade", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[10, 10, 5, 5], [0, 0, 0, 0]], "1e-06"),
    ("cascade", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [], "a list of lists, each a list of 4 numbers"),
    ("cascade", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [10, 10, 5, 5], "a list of lists"),
    ("pointrend", "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 10**6, "0 to 10"),
    ("pointrend", "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 10, "masks of 7168 x 7168; the maximum is 1024 x 1024"),
    ("pointrend", "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 10**6, "1 to 16,384"),
    ("pointrend", "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 1000, "1 to 32"),
]

HEADS, RPN, NET = "model.roi_heads.", "model.proposal_generator.", "model.backbone.net."
LAZY = [
    ("lazy-r50", "model.pixel_std", [1.0, 0.0, 1.0], "list of 3 numbers from 1e-06"),
    ("lazy-r50", HEADS + "box_predictor.box2box_transform.weights", [10, 10, 0, 5], "list of 4 numbers from 1e-06"),
    ("lazy-r50", HEADS + "box_predictor.test_nms_thresh", -0.5, "0 to 1"),
    ("lazy-r50", HEADS + "box_predictor.test_score_thresh", 1.5, "-1 to less than 1"),
    ("lazy-r50", HEADS + "box_predictor.cls_agnostic_bbox_reg", 0, "true or false"),
    ("lazy-r50", HEADS + "box_head.fc_dims", [1024, -1], "1 to 100,000"),
    ("lazy-r50", HEADS + "mask_pooler.output_size", 0, "1 to 256"),
    ("lazy-r50", HEADS + "mask_pooler.sampling_ratio", -1, "0 to 64"),
    ("lazy-r50", RPN + "head.conv_dims", [-2], "-1 to 100,000"),
    ("lazy-r50", RPN + "nms_thresh", 7, "0 to 1"),
    ("lazy-r50", RPN + "pre_nms_topk", [2000, 0.5], "list of 2 whole numbers"),
    ("lazy-r50", RPN + "anchor_generator.aspect_ratios", [0.0, 1.0], "0.001"),
    ("lazy-r50", RPN + "anchor_generator.sizes", [[-32], [64], [128], [256], [512]], "0.001"),
    ("lazy-r50", RPN + "anchor_generator.offset", -0.5, "0 to less than 1"),
    ("lazy-regnety", "model.backbone.bottom_up.w_a", -1, "0 to 100,000"),
    ("lazy-regnety", "model.backbone.bottom_up.w_m", 1e30, "1 to 1,000"),
    ("lazy-regnety", "model.backbone.bottom_up.depth", 10**5, "1 to 1,000"),
    ("lazy-regnety", "model.backbone.bottom_up.se_ratio", -0.25, "0 to 1,000"),
    ("vitdet", NET + "window_size", 10**5, "0 to 256"),
    ("vitdet", NET + "window_block_indexes", [0, -1], "whole numbers from 0"),
    ("vitdet", NET + "mlp_ratio", 0, "0.001"),
    ("vitdet", NET + "norm_layer", document.Partial(document.Name("torch.nn.LayerNorm"), {"eps": 0}), "1e-12"),
    ("vitdet", "model.backbone.square_pad", 10**5, "0 to 4,096"),
]


@pytest.mark.parametrize(("name", "key", "value", "said"), [*YAML, *LAZY])
def test_a_number_outside_of_its_range_is_refused_with_its_key(name: str, key: str, value: Any, said: str) -> None:
    with pytest.raises(ConversionError) as refusal:
        config.parse(changed(name, key, value))
    assert key in str(refusal.value)
    assert said in str(refusal.value)


def without_aliases(node: Any) -> Any:
    """Nested values in which no mapping or list occurs twice."""
    if isinstance(node, dict):
        return {key: without_aliases(value) for key, value in node.items()}
    return [without_aliases(value) for value in node] if isinstance(node, list) else node


def numbers(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all numbers in nested values."""
    if isinstance(node, dict | list):
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield from numbers(value, (*path, key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path


@pytest.mark.parametrize(
    "name", ["r50", "cascade", "c4", "dconv", "pointrend", "implicit", "lazy-r50", "lazy-regnety", "vitdet-cascade"]
)
def test_no_number_of_a_config_is_read_without_a_check(name: str) -> None:
    """What is no number, or none that a float32 can hold, is refused with its key if the number is used at all."""
    given = without_aliases(document.read(GOLDEN / f"{name}.yaml"))
    wanted = config.parse(given)
    odd = (float("nan"), float("inf"), float("-inf"), 10**400, -(10**5000), "x" * 5000, None, {"a": 1})
    for *parents, last in numbers(given):
        at: Any = given
        for parent in parents:
            at = at[parent]
        before = at[last]
        names = [*parents, last]
        while isinstance(names[-1], int):  # the errors of a list name the list
            names.pop()
        key = ".".join(map(str, names))
        for value in odd:
            at[last] = value
            try:
                assert config.parse(given) == wanted, f"{key} is accepted as {type(value).__name__}"
                break  # the converter does not use this number
            except ConversionError as refusal:
                assert key in str(refusal)  # noqa: PT017 - only what is refused has a message
                assert len(str(refusal)) < LONGEST_MESSAGE  # noqa: PT017
        at[last] = before
    assert config.parse(given) == wanted


def test_values_that_are_written_as_python_are_read_as_detectron2_reads_them() -> None:
    """Tuples are text in YAML; fvcore's CfgNode evaluates them."""
    given = changed("r50", "MODEL.PIXEL_STD", "(57.0, 58.0, 59.0)")
    given["MODEL"]["ANCHOR_GENERATOR"]["ASPECT_RATIOS"] = "((0.5, 1.0, 2.0),)"
    given["MODEL"]["RPN"]["NMS_THRESH"] = "0.6"
    read = config.parse(given)
    assert (read.std, read.proposals.nms) == ((57.0, 58.0, 59.0), 0.6)
    assert read.proposals.anchors == config.read(GOLDEN / "r50.yaml").proposals.anchors
    for text in ("(" * 9000, "__import__('os')", "(1, 2", "((), 1, 2)"):
        with pytest.raises(ConversionError, match=r"MODEL\.PIXEL_STD is "):
            config.parse(changed("r50", "MODEL.PIXEL_STD", text))


def test_anchors_of_all_levels_can_be_given_without_a_list_around_them() -> None:
    wanted = config.read(GOLDEN / "r50.yaml")
    given = changed("r50", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [0.5, 1.0, 2.0])
    assert config.parse(given) == wanted


def test_a_range_describes_itself() -> None:
    with pytest.raises(ConversionError, match=r"^key is \[\]; it must be a list of 2 lists, each a list of whole "):
        Range(int, 0, 9).rows("key", [], rows=2)
    assert Range(float, 0.0, 1.0).one("key", "1e-3") == 0.001
    assert (
        Range(int, 0, 9).per_level("key", [[1, 2]], 2)
        == ((1, 2), (1, 2))
        == Range(int, 0, 9).per_level("key", [1, 2], 2)
    )
