"""Plan the sizes and the memory of a request from the photo's header, before anything is decoded.

A photo is processed in two steps:

1. Detection: the photo is decoded just large enough for the network (a JPEG decoder can skip most of the work for a
   large photo), and the network is run.
2. Output: for formats that show the photo, it is decoded again at the size of the result, drawn on and encoded.

The two decoded images are not in memory at the same time. If the decoder produces the same size for both and there is
enough memory, the photo is decoded once and kept. The request's own memory in each step:

    detection = working + max(decoding, decoded + resize + network's input), in addition to the network's run
    output    = working + drawing + max(decoding, decoded + resized + max(resize, encoder)) + kept by the network

With a detail above 1, the photo is decoded larger and tiles of it are run one after the other; a run of the network
takes the same memory. The network's input, and with it the detections, does not depend on the output format. The
requested render factor is never reduced: if it does not fit, the request is refused with the largest that would. The
result may be smaller than the photo; the response then contains its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod, sqrt

from segment.engine.footprint import Footprint
from segment.errors import TooLarge
from segment.formats import FORMATS, Format
from segment.image import PIXEL_BYTES, Header, resize_bytes
from segment.options import Options
from segment.resize import BASE, MAX_DETAIL, MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, Fit, pixels
from segment.tiles import magnification, views

Size = tuple[int, int]

NETWORK_INPUT_BYTES = 7
"""Per pixel of the network's input: the resized image in Pillow and as an array."""
TILE_SHARPNESS = 0.9
"""Minimum ratio of a decoded tile's side to the network's input. Below 1, the tile is enlarged slightly, which does not
change the detections, while JPEG's decoding at half the size often saves three quarters of the pixels."""
INSTANCE_BYTES = 1 << 10
"""Per instance, without its mask: box, score, class, and the Python objects."""
OUTLINE_BYTES = 128 << 10
"""Per instance for its polygons in JSON, see MAX_POINTS in output/polygons.py."""
WORKING_BYTES = 4 << 20
"""Memory of each step that does not depend on sizes: text, and what was not freed yet."""
DRAWING_BYTES = 4 << 20
"""Additional memory of the output: strips of masks, tags, and samples of colours."""
SMALLER = 0.9
"""A result that does not fit is reduced by this factor repeatedly, down to SMALLEST pixels per side."""
SMALLEST = 64


@dataclass(frozen=True)
class Constraints:
    """The constraints that a plan must satisfy.

    `capacity`: bytes available to requests. `auto_capacity`: bytes that render_factor=auto and detail=auto may plan
    with, `capacity` by default. It depends only on the instance's memory and the model, so that all processes choose
    the same values, while `capacity` depends on what this process holds. `run`: memory of a run of the network.
    `network_size`: (photo's size, render factor, fit) -> (width, height) of the network's input. `max_detections`:
    maximum number of instances per run. `mask_bytes`: size of the network's input -> maximum bytes of one instance's
    mask. `detail_pixels`: maximum pixels of network input per photo, over all runs, that detail=auto may choose.
    """

    capacity: int
    run: Footprint
    network_size: Callable[[Size, int, Fit], Size]
    max_detections: int = 100
    detail_pixels: float = 4e6
    mask_bytes: Callable[[Size], int] = lambda network: INSTANCE_BYTES
    auto_capacity: int | None = None

    @property
    def for_auto(self) -> Constraints:
        """The same constraints with the smaller of `auto_capacity` and `capacity`."""
        return self if self.auto_capacity is None else replace(self, capacity=min(self.capacity, self.auto_capacity))

    def narrowed(self, options: Options) -> Constraints:
        """The same constraints for the number of detections per run that these options need."""
        if options.classes or options.detail != 1:  # detections are filtered after the run
            return self
        return replace(self, max_detections=min(self.max_detections, options.max_detections))

    def network_bytes(self, size: Size) -> int:
        """Memory in bytes of a run of the network on an image of `size`."""
        return self.run.run_bytes(prod(size), self.max_detections)

    def found_bytes(self, network: Size) -> int:
        """Memory in bytes of the detections of one run on an image of size `network`."""
        return self.max_detections * (INSTANCE_BYTES + self.mask_bytes(network))

    def largest_render_factor(self, own_bytes: int = WORKING_BYTES) -> int:
        """The largest render factor whose run fits in addition to `own_bytes`; 0 if none does."""
        factors = range(MAX_RENDER_FACTOR, MIN_RENDER_FACTOR - 1, -1)
        fitting = (f for f in factors if own_bytes + self.network_bytes((pixels(f), 1)) <= self.capacity)
        return next(fitting, 0)


@dataclass(frozen=True)
class Plan:
    """The plan for one photo. Sizes are (width, height) in pixels.

    `detect_size`, `picture_size`: minimum size at which the photo is decoded for detection, and size of the result.
    `detect_bytes`, `output_bytes`: the request's own memory in the two steps. `network_bytes`: memory of a run of the
    network. `keep`: whether the photo is decoded once and kept between the steps.
    """

    render_factor: int
    detail: int
    network_size: Size
    detect_size: Size
    picture_size: Size
    detect_bytes: int
    output_bytes: int
    network_bytes: int
    keep: bool

    @property
    def own_bytes(self) -> int:
        """The request's own memory in bytes that is reserved for detection, and for output if the photo is kept."""
        return max(self.detect_bytes, self.output_bytes) if self.keep else self.detect_bytes


def shows_photo(formats: Iterable[Format]) -> bool:
    """Whether any of `formats` contains the photo's pixels, so that it must be decoded at the result's size."""
    return any(FORMATS[kind].shows_photo for kind in formats)


def plan(header: Header, options: Options, formats: Sequence[Format], constraints: Constraints) -> Plan:
    """Plan a request: the result is as large as the photo, or as fits. Raises TooLarge."""
    constraints = constraints.narrowed(options)
    factor = options.render_factor or _best_factor(header, options, constraints.for_auto)
    network = constraints.network_size(header.size, factor, options.fit)
    detail = options.detail or _best_detail(header, network, constraints.for_auto)
    decoded = detect_size(header.size, network, detail)
    detect, run = _detect_bytes(header, network, detail, constraints), constraints.network_bytes(network)
    if detect + run > constraints.capacity:
        raise TooLarge(_detection_too_large(header, options, factor, detail, detect, constraints))
    found = constraints.found_bytes(network)
    if "json" in formats and options.segmentation == "polygons":
        found += constraints.max_detections * OUTLINE_BYTES
    picture = _largest_picture(header, formats, found, constraints)
    output = found + _output_bytes(header, formats, picture)
    shared = shows_photo(formats) and header.decoded_size(decoded) == header.decoded_size(picture)
    keep = shared and max(detect, output) + run <= constraints.capacity
    return Plan(factor, detail, network, decoded, picture, detect, output, run, keep)


def detect_size(photo: Size, network: Size, detail: int) -> Size:
    """The size at which the photo, or each tile, has as many pixels as the network's input; at most the photo's."""
    times = 1.0 if detail == 1 else magnification(detail) * TILE_SHARPNESS
    width, height = (min(ceil(n * times), most) for n, most in zip(network, photo, strict=True))
    return width, height


def _detect_bytes(header: Header, network: Size, detail: int, constraints: Constraints) -> int:
    size = detect_size(header.size, network, detail)
    decoded = header.decoded_size(size)
    pixels_bytes = PIXEL_BYTES * prod(decoded) + resize_bytes(decoded, network) + NETWORK_INPUT_BYTES * prod(network)
    found = constraints.found_bytes(network) * views(detail)
    return WORKING_BYTES + max(header.decode_bytes(size), pixels_bytes + found)


def _detection_fits(header: Header, network: Size, detail: int, constraints: Constraints) -> bool:
    own = _detect_bytes(header, network, detail, constraints)
    return own + constraints.network_bytes(network) <= constraints.capacity


def _output_bytes(header: Header, formats: Sequence[Format], picture: Size) -> int:
    decode, decoded, resize = 0, 0, 0
    if shows_photo(formats):
        size = header.decoded_size(picture)
        decode, decoded = header.decode_bytes(picture), PIXEL_BYTES * prod(size)
        if size != picture:
            decoded += PIXEL_BYTES * prod(picture)
            resize = resize_bytes(size, picture)
    encode = max(
        FORMATS[kind].encoder_bytes * prod(picture if FORMATS[kind].shows_photo else header.size) for kind in formats
    )
    return WORKING_BYTES + DRAWING_BYTES + max(decode, decoded + max(resize, int(encode)))


def _largest_picture(header: Header, formats: Sequence[Format], found: int, constraints: Constraints) -> Size:
    largest = min(FORMATS[kind].max_side for kind in formats)
    scale = min(1.0, largest / max(header.size))
    picture = _scaled(header.size, scale)
    kept = constraints.run.kept  # by the network, see Budget
    while (needed := kept + found + _output_bytes(header, formats, picture)) > constraints.capacity:
        if not shows_photo(formats) or max(picture) <= SMALLEST:
            raise TooLarge(_photo_too_large(header, needed, constraints))
        scale *= SMALLER
        picture = _scaled(header.size, scale)
    return picture


def _scaled(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _best_factor(header: Header, options: Options, constraints: Constraints) -> int:
    """The largest render factor that fits, with at most about as many pixels as the photo has."""
    enough = ceil(sqrt(prod(header.size)) / BASE)
    most = max(MIN_RENDER_FACTOR, min(enough, MAX_RENDER_FACTOR))
    return _largest_factor(header, options.fit, options.detail or 1, most, constraints) or MIN_RENDER_FACTOR


def _largest_factor(header: Header, fit: Fit, detail: int, most: int, constraints: Constraints) -> int:
    """The largest render factor up to `most` at which detection on this photo fits; 0 if there is none."""
    for factor in range(most, MIN_RENDER_FACTOR - 1, -1):
        if _detection_fits(header, constraints.network_size(header.size, factor, fit), detail, constraints):
            return factor
    return 0


def _best_detail(header: Header, network: Size, constraints: Constraints) -> int:
    """The largest detail within the limits of memory and pixels, unless a smaller one already uses every pixel."""
    for detail in range(MAX_DETAIL, 1, -1):
        useful = detect_size(header.size, network, detail - 1) != header.size
        affordable = views(detail) * prod(network) <= constraints.detail_pixels
        if useful and affordable and _detection_fits(header, network, detail, constraints):
            return detail
    return 1


def _most_detections(header: Header, network: Size, constraints: Constraints) -> int:
    """The largest max_detections with which detection fits; 0 if there is none."""
    for most in range(constraints.max_detections - 1, 0, -1):
        if _detection_fits(header, network, 1, replace(constraints, max_detections=most)):
            return most
    return 0


def _detection_too_large(
    header: Header, options: Options, factor: int, detail: int, own: int, constraints: Constraints
) -> str:
    network = constraints.network_size(header.size, factor, options.fit)
    narrows = constraints.narrowed(replace(options, max_detections=1)).max_detections == 1
    fewer = _most_detections(header, network, constraints) if narrows else 0
    if largest := _largest_factor(header, options.fit, detail, factor, constraints):
        at_detail, alternative = "", ""
        if detail > 1:
            at_detail, alternative = f" at detail {detail}", ", or reduce detail"
        elif fewer:
            alternative = f", or set max_detections to {fewer} or less"
        return (
            f"Render factor {factor}{at_detail} needs more memory than this instance has. "
            f"The largest render factor for this photo is {largest}{alternative}."
        )
    if fewer:
        return (
            f"{constraints.max_detections} detections at render factor {factor} need more memory than this instance "
            f"has. Set max_detections to {fewer} or less, or give the instance more memory."
        )
    return _photo_too_large(header, own + constraints.network_bytes((0, 0)), constraints)


def _photo_too_large(header: Header, needed: int, constraints: Constraints) -> str:
    width, height = header.size
    kind = "progressive JPEG" if header.progressive else header.name
    room = constraints.capacity - constraints.network_bytes((0, 0)) - WORKING_BYTES
    per_pixel = max(header.decode_bytes((1, 1)) / prod(header.size), 0.1)
    megapixels = max(room, 0) / per_pixel / 1e6
    advice = f"Send at most about {megapixels:.1f} megapixels as {kind}, or a larger baseline JPEG."
    if megapixels < 0.1:
        advice = "Give the instance more memory."
    return (
        f"This {kind} of {width} x {height} pixels needs {needed >> 20} MiB of memory; this instance has "
        f"{constraints.capacity >> 20} MiB available. {advice}"
    )
