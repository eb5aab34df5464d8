"""How one photo will be treated, and what that needs, decided from its header before anything is decoded.

A photo is looked at in two steps. First it is decoded just large enough for the network (a JPEG decoder can skip most
of a large photo) and run; then, for formats that show its pixels, it is decoded at the picture's size, drawn on and
encoded. The two never are in memory together, unless the decoder offers one size for both and there is room:

    look  = working + max(decoding, decoded + network's input), beside the network's run
    write = working + max(decoding, decoded + resized + encoder)

With a detail above 1 tiles of the photo are looked at too, one after the other: it is decoded as sharply as they are
seen, and the network's run stays as large. What the network sees, and so what it finds, is the same whatever format is
asked for. The render factor is the user's and is never lowered in secret: what cannot fit is refused with what would.
Only a picture may come back smaller than the photo, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod, sqrt

from segment.engine.footprint import Footprint
from segment.errors import TooLarge
from segment.formats import FORMATS, Format
from segment.image import Header
from segment.options import Options
from segment.resize import BASE, MAX_DETAIL, MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, Fit, pixels
from segment.tiles import magnification, views

Size = tuple[int, int]

PIXEL_BYTES = 4
"""Of an RGB image in Pillow."""
NETWORK_INPUT_BYTES = 7
"""Per pixel that the network sees: the resized image in Pillow and as an array."""
TILE_SHARPNESS = 0.9
"""A tile may have this share of the pixels a side that it is seen at: enlarged by so little it loses nothing that the
network sees, and JPEG's steps of two often spare three quarters of the photo."""
INSTANCE_BYTES = 1 << 10
"""Of an instance, beside its mask: its box, score and class, and Python's objects."""
OUTLINE_BYTES = 128 << 10
"""Of an instance's polygons in JSON, see MAX_POINTS in output/polygons.py."""
WORKING_BYTES = 8 << 20
"""Strips of masks, text, rows of a resize: what each step takes whatever its size."""
SMALLER = 0.9
"""A picture that does not fit is tried this much smaller, again and again, down to SMALLEST pixels a side."""
SMALLEST = 64


@dataclass(frozen=True)
class Figures:
    """What a plan has to keep to.

    `capacity`: bytes for requests. `auto_capacity`: bytes that `auto` counts on. It depends on the instance's size and
    the model alone, where `capacity` depends on what this process happens to hold, so that the same photo gets the same
    results in each process; by default it is `capacity`. `run`: what a run of the network takes. `network_size`:
    (photo's size, render factor, fit) -> the (width, height) that the network sees. `max_detections`: what one run
    finds at most. `mask_bytes`: network's size -> bytes of one instance's mask at most. `detail_pixels`: with detail
    auto, how many pixels the network may see of one photo in all its runs.
    """

    capacity: int
    run: Footprint
    network_size: Callable[[Size, int, Fit], Size]
    max_detections: int = 100
    detail_pixels: float = 4e6
    mask_bytes: Callable[[Size], int] = lambda network: INSTANCE_BYTES
    auto_capacity: int | None = None

    @property
    def for_auto(self) -> Figures:
        """The same with the capacity that `auto` counts on, or with what there is if that is less."""
        return self if self.auto_capacity is None else replace(self, capacity=min(self.capacity, self.auto_capacity))

    def narrowed(self, options: Options) -> Figures:
        """The same for a request whose runs are asked for fewer detections."""
        if options.classes or options.detail != 1:  # what is found is chosen from afterwards
            return self
        return replace(self, max_detections=min(self.max_detections, options.max_detections))

    def network_bytes(self, size: Size) -> int:
        """Memory in bytes of a run on an image of `size`."""
        run = self.run
        return int(run.fixed_bytes + run.bytes_per_pixel * prod(size) + run.bytes_per_instance * self.max_detections)

    def found_bytes(self, network: Size) -> int:
        """Memory in bytes of all that one run on an image of size `network` finds."""
        return self.max_detections * (INSTANCE_BYTES + self.mask_bytes(network))

    def largest_render_factor(self, own_bytes: int = WORKING_BYTES) -> int:
        """The largest render factor whose run fits beside `own_bytes`; 0 if none does."""
        factors = range(MAX_RENDER_FACTOR, MIN_RENDER_FACTOR - 1, -1)
        fitting = (f for f in factors if own_bytes + self.network_bytes((pixels(f), 1)) <= self.capacity)
        return next(fitting, 0)


@dataclass(frozen=True)
class Plan:
    """Sizes are (width, height) in pixels.

    `look_size`, `picture_size`: what the decoder is asked for at least, in the two steps. `look_bytes` and
    `write_bytes` are a request's own memory in them, `network_bytes` the network's in the first. With `keep` the photo
    is decoded once and kept between the steps.
    """

    render_factor: int
    detail: int
    network_size: Size
    look_size: Size
    picture_size: Size
    look_bytes: int
    write_bytes: int
    network_bytes: int
    keep: bool

    @property
    def kept_bytes(self) -> int:
        """What the first step's reservation has to hold of the second."""
        return self.write_bytes if self.keep else 0


def shows_photo(formats: Iterable[Format]) -> bool:
    """Whether any of `formats` shows the photo's pixels, so that it has to be decoded at the result's size."""
    return any(FORMATS[kind].shows_photo for kind in formats)


def plan(header: Header, options: Options, formats: Sequence[Format], figures: Figures) -> Plan:
    """The plan with the largest picture, up to the photo's size, that fits. Raises TooLarge."""
    figures = figures.narrowed(options)
    factor = options.render_factor or _best_factor(header, options, figures.for_auto)
    network = figures.network_size(header.size, factor, options.fit)
    detail = options.detail or _best_detail(header, network, figures.for_auto)
    look_size = _look_size(header, network, detail)
    look, run = _look_bytes(header, network, detail, figures), figures.network_bytes(network)
    if look + run > figures.capacity:
        raise TooLarge(_cannot_look(header, options.fit, factor, detail, look, figures))
    found = figures.found_bytes(network)
    if "json" in formats and options.segmentation == "polygons":
        found += figures.max_detections * OUTLINE_BYTES
    picture = _largest_picture(header, formats, found, figures)
    write = found + _write_bytes(header, formats, picture)
    shared = shows_photo(formats) and header.decoded_size(look_size) == header.decoded_size(picture)
    keep = shared and max(look, write) + run <= figures.capacity
    return Plan(factor, detail, network, look_size, picture, look, write, run, keep)


def _look_size(header: Header, network: Size, detail: int) -> Size:
    """The size at which the whole, or a tile, has the pixels that the network sees, but no more than the photo has."""
    times = 1.0 if detail == 1 else magnification(detail) * TILE_SHARPNESS
    width, height = (min(ceil(n * times), most) for n, most in zip(network, header.size, strict=True))
    return width, height


def _look_bytes(header: Header, network: Size, detail: int, figures: Figures) -> int:
    size = _look_size(header, network, detail)
    seen = PIXEL_BYTES * prod(header.decoded_size(size)) + NETWORK_INPUT_BYTES * prod(network)
    found = figures.found_bytes(network) * views(detail)
    return WORKING_BYTES + max(header.decode_bytes(size), seen + found)


def _write_bytes(header: Header, formats: Sequence[Format], picture: Size) -> int:
    decode, decoded, resize = 0, 0, 0
    if shows_photo(formats):
        size = header.decoded_size(picture)
        decode, decoded = header.decode_bytes(picture), PIXEL_BYTES * prod(size)
        if size != picture:
            decoded += PIXEL_BYTES * prod(picture)
            resize = PIXEL_BYTES * picture[0] * size[1]  # Pillow resizes rows first, then columns
    encode = max(
        FORMATS[kind].encoder_bytes * prod(picture if FORMATS[kind].shows_photo else header.size) for kind in formats
    )
    return WORKING_BYTES + max(decode, decoded + max(resize, int(encode)))


def _largest_picture(header: Header, formats: Sequence[Format], found: int, figures: Figures) -> Size:
    picture, scale = header.size, 1.0
    while (needed := found + _write_bytes(header, formats, picture)) > figures.capacity:
        if not shows_photo(formats) or max(picture) <= SMALLEST:
            raise TooLarge(_cannot_decode(header, needed, figures))
        scale *= SMALLER
        picture = max(1, round(header.size[0] * scale)), max(1, round(header.size[1] * scale))
    return picture


def _best_factor(header: Header, options: Options, figures: Figures) -> int:
    """The largest render factor that fits, but no more pixels than the photo has."""
    enough = ceil(sqrt(prod(header.size)) / BASE)
    most = max(MIN_RENDER_FACTOR, min(enough, MAX_RENDER_FACTOR))
    return _largest_factor(header, options.fit, options.detail or 1, most, figures) or MIN_RENDER_FACTOR


def _largest_factor(header: Header, fit: Fit, detail: int, most: int, figures: Figures) -> int:
    """The largest render factor up to `most` at which this photo can be looked at; 0 if there is none."""
    for factor in range(most, MIN_RENDER_FACTOR - 1, -1):
        network = figures.network_size(header.size, factor, fit)
        if _look_bytes(header, network, detail, figures) + figures.network_bytes(network) <= figures.capacity:
            return factor
    return 0


def _best_detail(header: Header, network: Size, figures: Figures) -> int:
    """The largest detail within the limits of memory and pixels; none whose next smaller shows every pixel already."""
    room = figures.capacity - figures.network_bytes(network)
    for detail in range(MAX_DETAIL, 1, -1):
        pays = _look_size(header, network, detail - 1) != header.size
        affordable = views(detail) * prod(network) <= figures.detail_pixels
        if pays and affordable and _look_bytes(header, network, detail, figures) <= room:
            return detail
    return 1


def _cannot_look(header: Header, fit: Fit, factor: int, detail: int, look: int, figures: Figures) -> str:
    largest = _largest_factor(header, fit, detail, factor, figures)
    asked, or_else = (f" at detail {detail}", ", or ask for less detail") if detail > 1 else ("", "")
    if largest:
        return (
            f"Render factor {factor}{asked} needs more memory than this instance has. "
            f"The largest that fits this photo is {largest}{or_else}."
        )
    return _cannot_decode(header, look + figures.network_bytes((0, 0)), figures)


def _cannot_decode(header: Header, needed: int, figures: Figures) -> str:
    width, height = header.size
    kind = "progressive JPEG" if header.progressive else header.format
    room = figures.capacity - figures.network_bytes((0, 0)) - WORKING_BYTES
    per_pixel = max(header.decode_bytes((1, 1)) / prod(header.size), 0.1)
    megapixels = max(room, 0) / per_pixel / 1e6
    advice = f"A {kind} of up to about {megapixels:.1f} megapixels works here; so does a larger baseline JPEG."
    if megapixels < 0.1:
        advice = "Give the instance more memory."
    return (
        f"This {kind} of {width} x {height} pixels needs {needed >> 20} MiB of memory; this instance has "
        f"{figures.capacity >> 20} MiB for it. {advice}"
    )
