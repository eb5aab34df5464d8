"""ViTDet's plain vision transformer, which computes one feature map with a token per patch of pixels.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; Li et al., "Exploring Plain Vision Transformer Backbones for
Object Detection", 2022; decomposed relative positions: Li et al., "MViTv2", 2022, section 4.1. detectron2/modeling/
backbone/vit.py (ViT) and utils.py. Tensor names in the checkpoint are detectron2's: `backbone.net.blocks.0.norm1.bias`.

Most blocks attend within windows. In the global blocks, all tokens attend to all tokens: with 64 x 64 tokens, the
logits of each head take 67 MB. If the size of the map is known, the heads are computed one after the other, and the
runtime reuses their memory. Otherwise, QUERIES tokens are computed at a time, so that the memory is proportional to the
number of tokens and not to its square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segment.convert.architecture import ViT
from segment.convert.graph import Graph
from segment.convert.layers import Conv, convolution, gelu
from segment.convert.weights import Weights

Doubles = NDArray[np.float64]
CUBIC = -0.75
"""Parameter of torch's bicubic interpolation."""
QUERIES = 128
"""Number of tokens whose global attention is computed at a time if the size of the map is not known."""


@dataclass(frozen=True)
class Grid:
    """The size of a map of tokens: `rows` and `columns`, int64 (1,) each.

    `side`: rows and columns if every image is padded to the same square; 0 if they depend on the image.
    """

    rows: str
    columns: str
    side: int = 0

    @classmethod
    def square(cls, g: Graph, side: int) -> Grid:
        return cls(g.ints(side), g.ints(side), side)

    def count(self, g: Graph) -> str:
        return g.op("Mul", self.rows, self.columns)


def feature_map(g: Graph, w: Weights, config: ViT, image: str, prefix: str, square: int) -> str:
    """image (1, 3, H, W) -> (1, width, H / patch, W / patch). `square`: H and W; 0 if they are not known."""
    name, side = prefix + "patch_embed.proj", config.patch
    x = g.conv(image, *w.conv(name, config.width, 3, side), name=name, strides=[side] * 2)
    grid = Grid.square(g, square // side) if square else Grid(g.dim(x, 2), g.dim(x, 3))
    if config.positions:
        x = g.op("Add", x, _positions(g, w, config, prefix + "pos_embed", grid))
    x = g.op("Transpose", g.reshape(x, config.width, -1), perm=[1, 0])  # (tokens, width), row by row
    for number in range(config.depth):
        x = _block(g, w, config, x, f"{prefix}blocks.{number}", number, grid)
    return _as_map(g, config, x, grid)


def _positions(g: Graph, w: Weights, config: ViT, name: str, grid: Grid) -> str:
    """The table of absolute positions, resized to the grid: (1, width, rows, columns)."""
    side, skipped = config.positions, 1 if config.class_token else 0
    table = w.take(name, 1, side**2 + skipped, config.width)[0, skipped:]
    table = np.ascontiguousarray(table.T).reshape(1, config.width, side, side)
    if grid.side:  # the runtime would take minutes to find the same constant
        matrix = _interpolation(side, grid.side, cubic=True)
        return g.constant((matrix @ table @ matrix.T).astype(np.float32), name=name)
    return g.op(
        "Resize",
        g.constant(table, name=name),
        "",
        "",
        g.shape(1, config.width, grid.rows, grid.columns),
        mode="cubic",
        coordinate_transformation_mode="half_pixel",
        cubic_coeff_a=CUBIC,
    )


def _interpolation(into: int, out: int, *, cubic: bool) -> Doubles:
    """The matrix (out, into) that resizes an axis as torch.nn.functional.interpolate does without align_corners."""
    at = (np.arange(out) + 0.5) * into / out - 0.5
    if not cubic:
        at = at.clip(0, into - 1)
    low = np.floor(at)
    taps = np.arange(-1, 3) if cubic else np.arange(2)
    distance = np.abs(at[:, None] - (low[:, None] + taps))  # (out, taps)
    if cubic:  # Keys, "Cubic convolution interpolation for digital image processing", 1981
        near = (CUBIC + 2) * distance**3 - (CUBIC + 3) * distance**2 + 1
        far = CUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weights = np.where(distance <= 1, near, far)
    else:
        weights = 1 - distance
    matrix = np.zeros((out, into))
    columns = (low[:, None] + taps).clip(0, into - 1).astype(int)
    np.add.at(matrix, (np.arange(out)[:, None], columns), weights)
    return matrix


def _block(g: Graph, w: Weights, config: ViT, x: str, name: str, number: int, grid: Grid) -> str:
    """x (tokens, width) -> the same: attention, then two fully connected layers, each with a residual connection."""
    width = config.width
    y = _layer_norm(g, w, config, x, name + ".norm1")
    if config.window and number in config.window_blocks:
        y = _window_attention(g, w, config, y, name + ".attn", grid)
    else:
        y = _global_attention(g, w, config, y, name + ".attn", grid)
    x = g.op("Add", x, y)
    y = _layer_norm(g, w, config, x, name + ".norm2")
    y = gelu(g, _linear(g, w, y, name + ".mlp.fc1", width, config.hidden))
    x = g.op("Add", x, _linear(g, w, y, name + ".mlp.fc2", config.hidden, width))
    if number in config.residual_blocks:
        x = _bottleneck(g, w, config, x, name + ".residual", grid)
    return x


def _bottleneck(g: Graph, w: Weights, config: ViT, x: str, name: str, grid: Grid) -> str:
    """x (tokens, width) -> the same: 1x1, 3x3 and 1x1 convolutions with layer norms, with a residual connection."""
    y, into = _as_map(g, config, x, grid), config.width
    for number, kernel, out in ((1, 1, into // 2), (2, 3, into // 2), (3, 1, into)):
        norm_name = f"{name}.norm{number}"
        y = convolution(g, w, y, f"{name}.conv{number}", Conv(into, out, kernel=kernel, norm="LN"), norm_name)
        y, into = gelu(g, y) if number < 3 else y, out
    return g.op("Add", x, g.op("Transpose", g.reshape(y, config.width, -1), perm=[1, 0]))


# Attention


@dataclass(frozen=True)
class Heads:
    """The inputs of attention, for `batch` maps of n tokens and h heads each.

    `queries`, `keys`, `values`: (batch * h, n, d), the queries divided by sqrt(d). `down` (batch * h, n, rows, 1) and
    `across` (batch * h, n, 1, columns): what is added to the logits for the distance in rows and in columns, empty
    without relative positions.
    """

    queries: str
    keys: str
    values: str
    down: str
    across: str


def _window_attention(g: Graph, w: Weights, config: ViT, x: str, name: str, grid: Grid) -> str:
    """x (tokens, width) -> the same, by windows. Windows at the right and lower edge are padded with zeros."""
    side, width = config.window, config.width
    window = Grid.square(g, side)
    down, across = (_missing(g, n, side) for n in (grid.rows, grid.columns))
    rows, columns = g.op("Add", grid.rows, down), g.op("Add", grid.columns, across)
    high, wide = g.op("Div", rows, g.ints(side)), g.op("Div", columns, g.ints(side))
    x = g.op("Reshape", x, g.shape(grid.rows, grid.columns, width))
    x = g.op("Pad", x, g.shape(0, 0, 0, down, across, 0))
    x = g.op("Transpose", g.op("Reshape", x, g.shape(high, side, wide, side, width)), perm=[0, 2, 1, 3, 4])
    heads = _heads(g, w, config, g.reshape(x, -1, width), name, g.op("Mul", high, wide), window, side)
    x = _attend(g, heads, window)
    x = g.op("Reshape", x, g.shape(high, wide, config.heads, side, side, width // config.heads))
    x = g.op("Transpose", x, perm=[0, 3, 1, 4, 2, 5])
    x = g.op("Reshape", x, g.shape(rows, columns, width))
    x = g.slice(g.slice(x, g.ints(0), grid.rows), g.ints(0), grid.columns, axis=1)
    return _linear(g, w, g.reshape(x, -1, width), name + ".proj", width, width)


def _global_attention(g: Graph, w: Weights, config: ViT, x: str, name: str, grid: Grid) -> str:
    """x (tokens, width) -> the same; every token attends to all."""
    heads = _heads(g, w, config, x, name, g.ints(1), grid, config.relative_positions)
    x = _attend_by_head(g, config, heads, grid) if grid.side else _attend_by_query(g, config, heads, grid)
    x = g.reshape(g.op("Transpose", x, perm=[1, 0, 2]), -1, config.width)
    return _linear(g, w, x, name + ".proj", config.width, config.width)


def _heads(g: Graph, w: Weights, config: ViT, x: str, name: str, batch: str, grid: Grid, table_side: int) -> Heads:
    """The inputs of attention of x (batch * tokens, width), which are maps of the size of `grid`."""
    width, count = config.width, config.heads
    each = width // count
    x = _linear(g, w, x, name + ".qkv", width, 3 * width, bias=config.qkv_bias)
    x = g.op("Reshape", x, g.shape(batch, grid.count(g), 3, count, each))
    x = g.op("Transpose", x, perm=[2, 0, 3, 1, 4])  # (3, batch, heads, tokens, d)
    x = g.op("Reshape", x, g.shape(3, -1, grid.count(g), each))
    queries, keys, values = (g.op("Squeeze", part, g.ints(0)) for part in g.ops("Split", x, outputs=3, axis=0))
    scaled = g.op("Mul", queries, g.scalar(each**-0.5))
    if not config.relative_positions:
        return Heads(scaled, keys, values, "", "")
    on_map = g.op("Reshape", queries, g.shape(-1, grid.rows, grid.columns, each))
    turned = g.op("Transpose", on_map, perm=[0, 2, 1, 3])
    by_row = _distances(g, w, name + ".rel_pos_h", grid.rows, grid.side, table_side, each)
    by_column = _distances(g, w, name + ".rel_pos_w", grid.columns, grid.side, table_side, each)
    down, across = g.op("MatMul", on_map, by_row), g.op("MatMul", turned, by_column)
    across = g.op("Transpose", across, perm=[0, 2, 1, 3])
    return Heads(
        scaled,
        keys,
        values,
        g.op("Reshape", down, g.shape(-1, grid.count(g), grid.rows, 1)),
        g.op("Reshape", across, g.shape(-1, grid.count(g), 1, grid.columns)),
    )


def _distances(g: Graph, w: Weights, name: str, length: str, known: int, side: int, each: int) -> str:
    """The table of relative positions (2 * side - 1, d), resized to `length` tokens: (length, d, length).

    Entry [i, :, j] is multiplied with a query at i for a key at j. `known`: the length, 0 if it is not known.
    """
    table = w.take(name, 2 * side - 1, each)
    if known:
        table = np.asarray(_interpolation(2 * side - 1, 2 * known - 1, cubic=False) @ table, np.float32)
        apart = np.arange(known)[:, None] - np.arange(known)[None, :]
        return g.constant(np.ascontiguousarray(table[apart + known - 1].transpose(0, 2, 1)), name=name)
    resized = g.op(
        "Resize",
        g.constant(np.ascontiguousarray(table.T)[None, :, None], name=name),
        "",
        "",
        g.shape(1, each, 1, g.op("Sub", g.op("Mul", length, g.ints(2)), g.ints(1))),
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    at = g.op("Range", g.constant(np.int64(0)), g.op("Squeeze", length), g.constant(np.int64(1)))
    far = g.op("Sub", g.op("Unsqueeze", at, g.ints(1)), g.op("Unsqueeze", at, g.ints(0)))
    index = g.op("Add", far, g.op("Sub", length, g.ints(1)))  # (length, length), from 0 to 2 * length - 2
    return g.op("Transpose", g.gather(g.reshape(resized, each, -1), index, axis=1), perm=[1, 0, 2])


def _attend(g: Graph, heads: Heads, grid: Grid) -> str:
    """softmax(queries @ keys + relative positions) @ values, for all of queries (B, m, d): (B, m, d)."""
    logits = g.op("MatMul", heads.queries, g.op("Transpose", heads.keys, perm=[0, 2, 1]))
    if heads.down:
        relative = g.op("Add", heads.down, heads.across)  # (B, m, rows, columns)
        logits = g.op("Add", logits, g.op("Reshape", relative, g.shape(0, 0, grid.count(g))))
    return g.op("MatMul", g.op("Softmax", logits, axis=-1), heads.values)


def _attend_by_head(g: Graph, config: ViT, heads: Heads, grid: Grid) -> str:
    """As `_attend` for (heads, n, d), one head after the other."""
    count = config.heads
    parts = [g.ops("Split", x, outputs=count, axis=0) if x else [""] * count for x in vars(heads).values()]
    return g.op("Concat", *(_attend(g, Heads(*each), grid) for each in zip(*parts, strict=True)), axis=0)


def _attend_by_query(g: Graph, config: ViT, heads: Heads, grid: Grid) -> str:
    """As `_attend` for (heads, n, d), QUERIES queries at a time."""
    count, each = grid.count(g), config.width // config.heads
    missing = _missing(g, count, QUERIES)

    def padded(x: str, rank: int) -> str:
        return g.op("Pad", x, g.shape(*[0] * rank, 0, missing, *[0] * (rank - 2))) if x else ""

    queries, down, across = padded(heads.queries, 3), padded(heads.down, 4), padded(heads.across, 4)

    def some(inner: Graph, number: str) -> str:
        start = inner.op("Mul", number, inner.ints(QUERIES))
        stop = inner.op("Add", start, inner.ints(QUERIES))

        def part(x: str) -> str:
            return inner.slice(x, start, stop, axis=1) if x else ""

        return _attend(inner, Heads(part(queries), heads.keys, heads.values, part(down), part(across)), grid)

    trips = g.op("Squeeze", g.op("Div", g.op("Add", count, missing), g.ints(QUERIES)))
    x = g.op("Transpose", g.loop(trips, some), perm=[1, 0, 2, 3])  # (heads, trips, QUERIES, d)
    return g.slice(g.reshape(x, config.heads, -1, each), g.ints(0), count, axis=1)


def _missing(g: Graph, length: str, step: int) -> str:
    """The difference between `length` and the next multiple of `step`."""
    return g.op("Mod", g.op("Sub", g.ints(step), g.op("Mod", length, g.ints(step))), g.ints(step))


# Layers


def _as_map(g: Graph, config: ViT, x: str, grid: Grid) -> str:
    """x (tokens, width) -> (1, width, rows, columns)."""
    x = g.op("Transpose", x, perm=[1, 0])
    return g.op("Reshape", x, g.shape(1, config.width, grid.rows, grid.columns))


def _layer_norm(g: Graph, w: Weights, config: ViT, x: str, name: str) -> str:
    """Layer norm over the width of x (tokens, width)."""
    scale, shift = w.affine(name, config.width)
    weight, bias = g.constant(scale, name=name + ".weight"), g.constant(shift, name=name + ".bias")
    return g.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=config.epsilon)


def _linear(g: Graph, w: Weights, x: str, name: str, into: int, out: int, *, bias: bool = True) -> str:
    shift = w.take(f"{name}.bias", out) if bias else np.zeros(out, np.float32)
    return g.linear(x, w.take(f"{name}.weight", out, into), shift, name=name)
