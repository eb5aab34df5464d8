"""Checkpoints with the names and shapes of a zoo model and random values, for measuring memory and speed.

    python -m benchmarks.checkpoints mask_rcnn_R_50_FPN_3x OUT.pkl [--seed 0]

Speed and memory depend on the shapes and on the number of detections, but not on trained weights, and a file can be
generated from a seed anywhere. The values keep the standard deviation of activations at about 1 in every layer (He et
al., "Delving Deep into Rectifiers", 2015). The weights of each output channel sum to zero, which removes the part of
the activations that all positions share, so that scores, classes and masks differ between positions.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segment import zoo
from segment.convert import backbone, pointrend, res5
from segment.convert import config as configs
from segment.convert.architecture import BATCH_NORMS, Config, PointRend, RegNet, ResNet, ViT

Array = NDArray[np.float32]

RECTIFIED = 0.25
"""Variance of a convolution's input after a ReLU. It would be 1/2 - 1/(2 pi) = 0.34 if neighbours were independent;
with 0.25, activations neither grow nor vanish over 152 layers."""
LINEAR = 0.5
"""Variance of the feature pyramid's maps."""
POOLED = 0.05
"""Variance over the channels of res5's output for a region, averaged over its positions (R50-C4)."""
PIXELS = 60.0
"""Spread of a photo's values around the mean."""
LOGIT = {"objectness": 1.5, "class": 1.5, "mask": 1.2}
"""Spread of the logits, chosen so that probabilities are neither all equal nor all 0 or 1."""
DELTA = {"rpn": 0.25, "box": 1.0}
"""Spread of the box deltas, in the units of BBOX_REG_WEIGHTS."""
OFFSET = 1.0
"""Spread of the offsets of deformable convolutions in pixels, and of the logits of their modulation."""
BACKGROUND = 7.0
"""Logit of "no object" above the mean class. With it, about 15 of 100 detections score above 0.5 (R50-FPN)."""


def checkpoint(config: Config, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """All tensors of detectron2's state_dict for `config`, by name."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.generic]] = {}
    for part in (_bottom_up, _pyramid, _proposals, _box_heads, _mask_head):
        tensors.update(part(config, rng))
    return tensors


Named = Iterator[tuple[str, NDArray[np.generic]]]


def _bottom_up(config: Config, rng: np.random.Generator) -> Named:
    spread = PIXELS / float(np.mean(config.std))
    if isinstance(config.bottom_up, RegNet):
        return _regnet(config.bottom_up, backbone.prefix(config), rng, spread)
    if isinstance(config.bottom_up, ViT):
        return _vit(config.bottom_up, backbone.prefix(config), rng, spread)
    return _resnet(config.bottom_up, backbone.prefix(config), rng, spread)


def _resnet(net: ResNet, prefix: str, rng: np.random.Generator, spread: float) -> Named:
    yield from _conv(rng, prefix + "stem.conv1", net.stem_channels, 3, 7, net.norm, given=spread**2, bias=False)
    for stage in range(2, 2 + len(net.blocks)):
        yield from _stage(rng, net, f"{prefix}res{stage}", stage)


def _regnet(net: RegNet, prefix: str, rng: np.random.Generator, spread: float) -> Named:
    into = net.stem_channels
    yield from _conv(rng, prefix + "stem.conv", into, 3, 3, net.norm, given=spread**2, norm_name=prefix + "stem.bn")
    for stage, (width, blocks, group) in enumerate(zip(net.widths, net.blocks, net.group_widths, strict=True), start=1):
        for block in range(1, blocks + 1):
            name = f"{prefix}s{stage}.b{block}"
            inner = name + ".f"
            if block == 1:
                yield from _conv(
                    rng, name + ".proj", width, into, 1, net.norm, given=2 * RECTIFIED, norm_name=name + ".bn"
                )
            a, b, c = (f"{inner}.{part}_bn" for part in "abc")
            yield from _conv(rng, inner + ".a", width, into, 1, net.norm, given=2 * RECTIFIED, norm_name=a)
            yield from _conv(rng, inner + ".b", width, group, 3, net.norm, norm_name=b)
            if squeezed := round(into * net.se_ratio):
                yield from _conv(rng, inner + ".se.f_ex.0", squeezed, width, 1, "")
                yield from _conv(rng, inner + ".se.f_ex.2", width, squeezed, 1, "")
            yield from _conv(rng, inner + ".c", width, width, 1, net.norm, scale=0.5 / blocks**0.5, norm_name=c)
            into = width


def _vit(net: ViT, prefix: str, rng: np.random.Generator, spread: float) -> Named:
    width, added = net.width, 0.5 / net.depth**0.5  # small residuals, as in _stage
    yield from _conv(rng, prefix + "patch_embed.proj", width, 3, net.patch, "", given=spread**2)
    if net.positions:
        rows = net.positions**2 + (1 if net.class_token else 0)
        yield prefix + "pos_embed", rng.normal(0, 0.2, (1, rows, width)).astype(np.float32)
    for number in range(net.depth):
        name = f"{prefix}blocks.{number}"
        side = net.window if net.window and number in net.window_blocks else net.relative_positions
        yield from _norm(rng, name + ".norm1", width)
        for key, tensor in _linear(rng, name + ".attn.qkv", 3 * width, width, given=1.0):
            if net.qkv_bias or not key.endswith("bias"):
                yield key, tensor
        if net.relative_positions:
            for axis in "hw":
                table = rng.normal(0, 0.1, (2 * side - 1, width // net.heads))
                yield f"{name}.attn.rel_pos_{axis}", table.astype(np.float32)
        yield from _linear(rng, name + ".attn.proj", width, width, given=0.1, scale=added)
        yield from _norm(rng, name + ".norm2", width)
        yield from _linear(rng, name + ".mlp.fc1", net.hidden, width, given=1.0)
        yield from _linear(rng, name + ".mlp.fc2", width, net.hidden, scale=added)
        if number in net.residual_blocks:
            inner = width // 2
            for i, (out, into, kernel) in enumerate(((inner, width, 1), (inner, inner, 3), (width, inner, 1)), 1):
                norm_name, scale = f"{name}.residual.norm{i}", added if i == 3 else 1.0
                yield from _conv(
                    rng, f"{name}.residual.conv{i}", out, into, kernel, "LN", norm_name=norm_name, scale=scale
                )


def _stage(rng: np.random.Generator, net: ResNet, prefix: str, stage: int) -> Named:
    into, out, width, blocks = net.inputs(stage), net.channels(stage), net.width(stage), net.blocks[stage - 2]
    for block in range(blocks):
        name = f"{prefix}.{block}"
        if into != out:
            yield from _conv(rng, name + ".shortcut", out, into, 1, net.norm, given=2 * RECTIFIED, bias=False)
        if net.basic:
            yield from _conv(rng, name + ".conv1", out, into, 3, net.norm, given=2 * RECTIFIED, bias=False)
            yield from _conv(rng, name + ".conv2", out, out, 3, net.norm, scale=0.5 / blocks**0.5, bias=False)
            into = out
            continue
        yield from _conv(rng, name + ".conv1", width, into, 1, net.norm, given=2 * RECTIFIED, bias=False)
        if stage in net.deformable:
            predicted = (3 if net.modulated else 2) * 9 * net.offset_groups
            yield from _conv(rng, name + ".conv2_offset", predicted, width, 3, "", scale=OFFSET)
        yield from _conv(rng, name + ".conv2", width, width // net.groups, 3, net.norm, bias=False)
        # Each block adds a small residual, so that the sum of all keeps the given spread.
        yield from _conv(rng, name + ".conv3", out, width, 1, net.norm, scale=0.5 / blocks**0.5, bias=False)
        into = out


def _pyramid(config: Config, rng: np.random.Generator) -> Named:
    if not config.pyramid:
        return
    channels, norm = config.pyramid.channels, config.pyramid.norm
    if isinstance(config.bottom_up, ViT):
        yield from _simple_pyramid(config, config.bottom_up, rng)
        return
    for level in config.pyramid.levels:
        into = config.bottom_up.channels(level)
        yield from _conv(rng, f"backbone.fpn_lateral{level}", channels, into, 1, norm, given=2 * RECTIFIED)
        merged = 1.0 + config.pyramid.levels[-1] - level  # each level is the sum of its own and all coarser ones
        yield from _conv(rng, f"backbone.fpn_output{level}", channels, channels, 3, norm, given=merged)


def _simple_pyramid(config: Config, net: ViT, rng: np.random.Generator) -> Named:
    assert config.pyramid
    width, out, norm = net.width, config.pyramid.channels, config.pyramid.norm
    for level in config.pyramid.levels:
        name, times = f"backbone.simfp_{level}", net.patch / 2**level
        first, into = {4: 4, 2: 1, 1: 0, 0.5: 1}[times], {4: width // 4, 2: width // 2}.get(times, width)
        if times >= 2:
            yield from _transposed(rng, name + ".0", width, width // 2, given=1.0)
        if times == 4:
            yield from _norm(rng, name + ".1", width // 2, batch_norm=norm in BATCH_NORMS)
            yield from _transposed(rng, name + ".3", width // 2, into, given=RECTIFIED)
        yield from _conv(rng, f"{name}.{first}", out, into, 1, norm, given=1.0)
        yield from _conv(rng, f"{name}.{first + 1}", out, out, 3, norm, given=1.0, scale=LINEAR**0.5)


def _proposals(config: Config, rng: np.random.Generator) -> Named:
    rpn, prefix, into, given = config.proposals, "proposal_generator.rpn_head.", config.channels, LINEAR
    for i, dim in enumerate(rpn.conv_dims):
        name = "conv" if len(rpn.conv_dims) == 1 else f"conv.conv{i}"
        out = into if dim == -1 else dim
        yield from _conv(rng, prefix + name, out, into, 3, "", given=given)
        into, given = out, RECTIFIED
    anchors = len(rpn.anchors.sizes[0]) * len(rpn.anchors.ratios[0])
    yield from _conv(rng, prefix + "objectness_logits", anchors, into, 1, "", scale=LOGIT["objectness"])
    yield from _conv(rng, prefix + "anchor_deltas", 4 * anchors, into, 1, "", scale=DELTA["rpn"])


def _box_heads(config: Config, rng: np.random.Generator) -> Named:
    if config.res5_heads:
        yield from _stage(rng, res5.network(config), res5.NAME, res5.STAGE)
    head, boxes = config.box, 1 if config.box.agnostic else config.classes
    for stage in range(len(head.box_weights)):
        suffix = f".{stage}" if head.cascade else ""
        name, into, given = f"roi_heads.box_head{suffix}", config.channels, LINEAR
        for i in range(1, head.convs + 1):
            yield from _conv(rng, f"{name}.conv{i}", head.conv_channels, into, 3, head.norm, given=given)
            into, given = head.conv_channels, RECTIFIED
        if config.res5_heads:
            into, given = config.bottom_up.channels(res5.STAGE), POOLED
        else:
            into *= head.pooler.resolution**2
        for i in range(1, head.fcs + 1):
            yield from _linear(rng, f"{name}.fc{i}", head.fc_channels, into, given=given)
            into, given = head.fc_channels, RECTIFIED
        name = f"roi_heads.box_predictor{suffix}"
        for key, tensor in _linear(
            rng, name + ".cls_score", config.classes + 1, into, given=given, scale=LOGIT["class"]
        ):
            if key.endswith("bias"):
                tensor[-1] += BACKGROUND
            yield key, tensor
        yield from _linear(rng, name + ".bbox_pred", 4 * boxes, into, given=given, scale=DELTA["box"])


def _mask_head(config: Config, rng: np.random.Generator) -> Named:
    if isinstance(config.mask, PointRend):
        yield from _point_rend(config, config.mask, rng)
        return
    head, prefix, into, given = config.mask, "roi_heads.mask_head.", config.channels, LINEAR
    if config.res5_heads:
        into = config.bottom_up.channels(res5.STAGE)
    for i in range(1, head.convs + 1):
        yield from _conv(rng, f"{prefix}mask_fcn{i}", head.channels, into, 3, head.norm, given=given)
        into, given = head.channels, RECTIFIED
    yield from _transposed(rng, prefix + "deconv", into, head.channels, given=given)
    classes = 1 if head.agnostic else config.classes
    yield from _conv(rng, prefix + "predictor", classes, head.channels, 1, "", scale=LOGIT["mask"])


def _point_rend(config: Config, head: PointRend, rng: np.random.Generator) -> Named:
    coarse, point = head.coarse, f"{pointrend.HEAD}.point_head"
    name = f"{pointrend.HEAD}.{'parameter_head' if head.implicit else 'coarse_head'}"
    into, given = config.channels * len(coarse.levels), LINEAR
    if into > coarse.conv_channels:
        yield from _conv(rng, name + ".reduce_channel_dim_conv", coarse.conv_channels, into, 1, "", given=given)
        given = RECTIFIED
    yield from _conv(
        rng, name + ".reduce_spatial_dim_conv", coarse.conv_channels, coarse.conv_channels, 2, "", given=given
    )
    into = coarse.conv_channels * (coarse.resolution // 2) ** 2
    for number in range(1, coarse.fcs + 1):
        yield from _linear(rng, f"{name}.fc{number}", coarse.fc_channels, into, given=RECTIFIED)
        into = coarse.fc_channels
    predicted = pointrend.parameters(head, config.channels) if head.implicit else head.classes * head.coarse_side**2
    yield from _linear(rng, name + ".prediction", predicted, into, given=RECTIFIED, scale=0.1 if head.implicit else 1.0)
    if head.positions:
        yield (
            point + ".positional_encoding_gaussian_matrix",
            rng.standard_normal((2, pointrend.FREQUENCIES), np.float32),
        )
    if head.implicit:
        return
    into, given, more = config.channels * len(head.levels) + head.classes, LINEAR, head.classes
    for number in range(1, head.fcs + 1):
        yield from _point_layer(rng, f"{point}.fc{number}", head.fc_channels, into, given)
        into, given = head.fc_channels + (more if head.coarse_each_layer else 0), RECTIFIED
    yield from _point_layer(rng, point + ".predictor", head.outputs, into, given, scale=LOGIT["mask"])


def _point_layer(rng: np.random.Generator, name: str, out: int, into: int, given: float, scale: float = 1.0) -> Named:
    for key, tensor in _linear(rng, name, out, into, given=given, scale=scale):
        yield key, tensor[:, :, None] if tensor.ndim == 2 else tensor


def _conv(
    rng: np.random.Generator,
    name: str,
    out: int,
    into: int,
    kernel: int,
    norm: str,
    *,
    given: float = RECTIFIED,
    scale: float = 1.0,
    norm_name: str = "",
    bias: bool = True,
) -> Named:
    """A convolution whose input has the variance `given` and whose output has the spread `scale`.

    `bias`: whether a convolution without a norm has a bias.
    """
    weight = _values(rng, (out, into, kernel, kernel), into * kernel**2, given)
    if not norm:
        yield name + ".weight", weight * np.float32(scale)
        if bias:
            yield name + ".bias", np.zeros(out, np.float32)
        return
    yield name + ".weight", weight
    norm_name = norm_name or name + ".norm"
    yield from _norm(rng, norm_name, out, scale=scale, batch_norm=norm in BATCH_NORMS)
    if norm in BATCH_NORMS and norm != "FrozenBN":
        yield norm_name + ".num_batches_tracked", np.array(0, np.int64)


def _norm(rng: np.random.Generator, name: str, channels: int, *, scale: float = 1.0, batch_norm: bool = False) -> Named:
    yield name + ".weight", (scale * rng.uniform(0.8, 1.2, channels)).astype(np.float32)
    yield name + ".bias", (scale * rng.normal(0, 0.1, channels)).astype(np.float32)
    if batch_norm:
        yield name + ".running_mean", rng.normal(0, 0.1, channels).astype(np.float32)
        yield name + ".running_var", rng.uniform(0.8, 1.2, channels).astype(np.float32)


def _transposed(rng: np.random.Generator, name: str, into: int, out: int, *, given: float) -> Named:
    """A transposed convolution of 2 x 2 with a stride of 2: each output depends on one position of the input."""
    yield name + ".weight", _values(rng, (into, out, 2, 2), into, given, axis=0)
    yield name + ".bias", np.zeros(out, np.float32)


def _linear(
    rng: np.random.Generator, name: str, out: int, into: int, *, given: float = RECTIFIED, scale: float = 1.0
) -> Named:
    """As `_conv`, for a fully connected layer."""
    yield name + ".weight", _values(rng, (out, into), into, given) * np.float32(scale)
    yield name + ".bias", (scale * rng.normal(0, 0.1, out)).astype(np.float32)


def _values(
    rng: np.random.Generator, shape: tuple[int, ...], reach: int, given: float, axis: int | None = None
) -> Array:
    """Normally distributed weights, with sum 0 per output, that map `reach` inputs of variance `given` to spread 1."""
    values = rng.standard_normal(shape, np.float32)
    values -= values.mean(axis=axis if axis is not None else tuple(range(1, len(shape))), keepdims=True)
    values *= np.float32((reach * given) ** -0.5)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a zoo model's checkpoint with random values.")
    parser.add_argument("name", help="a name of `python -m segment models`")
    parser.add_argument("out", type=Path, help="the .pkl to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tensors = checkpoint(configs.parse(zoo.entry(arguments.name).config), arguments.seed)
    with arguments.out.open("wb") as file:
        pickle.dump({"model": tensors, "__author__": f"random values from seed {arguments.seed}"}, file)


if __name__ == "__main__":
    main()
