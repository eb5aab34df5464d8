"""Request options: one frozen value, parsed from strings.

Query string, form, JSON and command line all give the same raw options, a name and a string each. Defaults come from
the settings. An unknown option, or a value out of range, is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segment import values
from segment.errors import OptionError
from segment.formats import Format
from segment.resize import MAX_DETAIL, MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, Fit
from segment.settings import Settings
from segment.values import BadValue, Value

Segmentation = Literal["rle", "polygons"]
Colours = Literal["instance", "class"]


@dataclass(frozen=True)
class Options:
    """What one request asks for.

    `render_factor`: None is the largest that fits the memory. `detail`: tiles per side that are run besides the whole
    photo, 1 is none; None is what pays and fits the memory and the limit on pixels. `classes`: only these class names;
    empty is all.
    `masks`, `boxes`, `labels`: what an overlay shows. `segmentation`: how JSON writes masks. `colours`: whether an
    overlay colours by instance or by class.
    """

    render_factor: int | None
    fit: Fit
    min_score: float
    max_detections: int
    detail: int | None = 1
    classes: tuple[str, ...] = ()
    format: Format = "png"
    masks: bool = True
    boxes: bool = True
    labels: bool = True
    segmentation: Segmentation = "rle"
    colours: Colours = "instance"

    @classmethod
    def defaults(cls, settings: Settings) -> Options:
        """What a request that asks for nothing gets."""
        return cls(settings.render_factor, settings.fit, settings.min_score, settings.max_detections, settings.detail)

    @classmethod
    def parse(cls, raw_options: Mapping[str, str], settings: Settings) -> Options:
        """Parse `raw_options`. Raises OptionError, which names the option, its value and what is valid."""
        parsed = vars(cls.defaults(settings)).copy()
        options = describe(settings)
        for name, given in raw_options.items():
            if name not in options:
                raise OptionError(name, f"Unknown option {name!r}. Valid options: {', '.join(options)}.")
            try:
                parsed[name] = options[name].value.parse(given)
            except BadValue as error:
                raise OptionError(name, f"{name} {error}") from None
        return cls(**parsed)


@dataclass(frozen=True)
class Option:
    """One option: what it is for, and the values it takes."""

    about: str
    value: Value


def describe(settings: Settings) -> dict[str, Option]:
    """Every option by name: the one place that says what is valid."""
    factor = values.number(int, MIN_RENDER_FACTOR, MAX_RENDER_FACTOR)
    detail = values.number(int, 1, MAX_DETAIL)
    return {
        "render_factor": Option(
            "The network sees at most (16 x render_factor)^2 pixels. auto is the largest that the photo and the "
            "instance's memory allow.",
            values.auto_or(factor),
        ),
        "fit": Option(
            "Keep the photo's aspect ratio, or stretch it to a square; the number of pixels is the same.",
            values.choice(Fit),
        ),
        "detail": Option(
            "Also run the network on detail x detail tiles: finds small objects, costs time and no memory. "
            "auto is what the photo's size, the memory and SEGMENT_DETAIL_MEGAPIXELS allow.",
            values.auto_or(detail),
        ),
        "min_score": Option("The lowest score of an instance.", values.number(float, 0, 1)),
        "max_detections": Option(
            "The largest number of instances; those with the best scores are kept.",
            values.number(int, 1, settings.max_detections),
        ),
        "classes": Option("Only these classes, separated by commas.", values.names("class names")),
        "format": Option(
            "The format of the result: the photo with its objects drawn, JSON, an instance map, or cut-outs in a zip.",
            values.choice(Format),
        ),
        "masks": Option("Draw masks.", values.flag()),
        "boxes": Option("Draw boxes.", values.flag()),
        "labels": Option("Write class and score.", values.flag()),
        "segmentation": Option("How JSON encodes masks: compressed RLE, or polygons.", values.choice(Segmentation)),
        "colours": Option("One colour per instance, or per class.", values.choice(Colours)),
    }
