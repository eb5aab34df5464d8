"""How one photo will be treated, and what that needs, decided from its header before anything is decoded.

    own = upload + working + max(decoding, decoded photo + max(network's input, picture + encoder))
    network = bytes per pixel x pixels that the network sees

The render factor is the user's and is never lowered in secret: what cannot fit is refused with what would. Only a
picture may come back smaller than the photo, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod, sqrt

from segment.errors import TooLarge
from segment.image import Header
from segment.options import Format, Options
from segment.resize import BASE, MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, Fit, pixels

Size = tuple[int, int]

PICTURES: frozenset[Format] = frozenset({"png", "jpeg", "webp", "cutouts"})
"""Formats that show the photo's pixels, and so need it decoded at their size."""
ENCODER_BYTES: Mapping[Format, float] = {"png": 4, "jpeg": 1.5, "webp": 9, "cutouts": 6, "ids": 4, "json": 0}
"""Memory per pixel that drawing and encoding take beside the picture itself, the result included."""
PIXEL_BYTES = 4
"""Of an RGB image in Pillow."""
NETWORK_INPUT_BYTES = 7
"""Per pixel that the network sees: the resized image in Pillow and as an array."""
WORKING_BYTES = 12 << 20
"""Strips of masks, text, rows of a resize: what a request takes whatever its size."""
SMALLER = 0.9
"""A picture that does not fit is tried this much smaller, again and again, down to SMALLEST pixels a side."""
SMALLEST = 64


@dataclass(frozen=True)
class Figures:
    """What a plan has to keep to: the room for requests in bytes, the network's bytes per pixel, its sizes.

    `network_size`: (photo's size, render factor, fit) -> the (width, height) that the network sees.
    """

    capacity: int
    bytes_per_pixel: float
    network_size: Callable[[Size, int, Fit], Size]

    def network_bytes(self, size: Size) -> int:
        """Memory in bytes of a run on an image of `size`."""
        return int(self.bytes_per_pixel * prod(size))

    def largest_render_factor(self, own_bytes: int = WORKING_BYTES) -> int:
        """The largest render factor whose network fits beside `own_bytes`; 0 if none does."""
        factors = range(MAX_RENDER_FACTOR, MIN_RENDER_FACTOR - 1, -1)
        fitting = (f for f in factors if own_bytes + self.network_bytes((pixels(f), 1)) <= self.capacity)
        return next(fitting, 0)


@dataclass(frozen=True)
class Plan:
    """Sizes are (width, height) in pixels. `decode_size` is what the decoder is asked for at least."""

    render_factor: int
    network_size: Size
    picture_size: Size
    decode_size: Size
    own_bytes: int
    network_bytes: int

    @property
    def all_bytes(self) -> int:
        return self.own_bytes + self.network_bytes


def plan(header: Header, options: Options, formats: Sequence[Format], upload: int, figures: Figures) -> Plan:
    """The plan with the largest picture, up to the photo's size, that fits. Raises TooLarge.

    `upload`: bytes of the photo's file, which stay in memory until the answer is sent.
    """
    scale = 1.0
    while True:
        picture = (max(1, ceil(header.size[0] * scale)), max(1, ceil(header.size[1] * scale)))
        tried = _plan_at(header, options, formats, upload, figures, picture)
        if tried.all_bytes <= figures.capacity:
            return tried
        if PICTURES.isdisjoint(formats) or max(picture) <= SMALLEST:
            raise TooLarge(_refusal(header, tried, figures))
        scale *= SMALLER


def _plan_at(
    header: Header, options: Options, formats: Sequence[Format], upload: int, figures: Figures, picture: Size
) -> Plan:
    def decode_size(network: Size) -> Size:
        needed = network if PICTURES.isdisjoint(formats) else (max(network[0], picture[0]), max(network[1], picture[1]))
        return min(needed[0], header.size[0]), min(needed[1], header.size[1])

    def own_bytes(network: Size) -> int:
        decode = decode_size(network)
        decoded = PIXEL_BYTES * prod(header.decoded_size(decode))
        needs = [NETWORK_INPUT_BYTES * prod(network)]
        for kind in formats:
            if kind in PICTURES:
                resized = 0 if header.decoded_size(decode) == picture else PIXEL_BYTES
                needs.append(int((resized + ENCODER_BYTES[kind]) * prod(picture)))
            else:
                needs.append(int(ENCODER_BYTES[kind] * prod(header.size)))
        return upload + WORKING_BYTES + max(header.decode_bytes(decode), decoded + max(needs))

    factor = options.render_factor or _best_factor(header, options, figures, own_bytes)
    network = figures.network_size(header.size, factor, options.fit)
    return Plan(factor, network, picture, decode_size(network), own_bytes(network), figures.network_bytes(network))


def _best_factor(header: Header, options: Options, figures: Figures, own_bytes: Callable[[Size], int]) -> int:
    """The largest render factor that fits, but no more pixels than the photo has."""
    smallest = figures.network_size(header.size, MIN_RENDER_FACTOR, options.fit)
    enough = ceil(sqrt(prod(header.size)) / BASE)
    return max(MIN_RENDER_FACTOR, min(enough, figures.largest_render_factor(own_bytes(smallest))))


def _refusal(header: Header, tried: Plan, figures: Figures) -> str:
    """Why this does not fit, and the largest render factor or photo that would."""
    largest = figures.largest_render_factor(tried.own_bytes)
    if largest:
        return (
            f"Render factor {tried.render_factor} needs more memory than this instance has. "
            f"The largest that fits this photo is {largest}."
        )
    width, height = header.size
    kind = "progressive JPEG" if header.progressive else header.format
    room = figures.capacity - WORKING_BYTES - tried.network_bytes
    per_pixel = (tried.own_bytes - WORKING_BYTES) / max(prod(header.size), 1)
    megapixels = max(room, 0) / max(per_pixel, 1) / 1e6
    advice = (
        f"A {kind} of up to {megapixels:.1f} megapixels works here" if megapixels >= 0.1 else "More memory is needed"
    )
    return (
        f"This {kind} of {width} x {height} pixels needs {tried.all_bytes >> 20} MiB of memory; this instance has "
        f"{figures.capacity >> 20} MiB for it. {advice}; so does a larger baseline JPEG."
    )
