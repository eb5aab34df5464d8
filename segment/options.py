"""The options of a request, parsed from strings.

Query string, form, JSON and command line all provide raw options: names and strings. Defaults come from the settings.
Unknown options and invalid values raise OptionError with the option's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from segment import values
from segment.errors import OptionError
from segment.formats import Format
from segment.labels import class_indices, named
from segment.resize import Fit
from segment.settings import DETAIL, FIT, MIN_SCORE, RENDER_FACTOR, Settings
from segment.values import BadValue, Value

Segmentation = Literal["rle", "polygons"]
Colours = Literal["instance", "class"]


@dataclass(frozen=True)
class Options:
    """The options of one request.

    `render_factor`: None (auto) means the largest that fits the photo and the memory. `detail`: number of tiles per
    side that are run in addition to the whole photo, 1 for none; None (auto) means the largest that is useful for the
    photo's size and within the limits of memory and pixels. `classes`: names of the classes to return, split at
    commas (see `labels.named`); empty for all. `masks`, `boxes`, `labels`: whether an overlay shows them.
    `segmentation`: encoding of masks in JSON. `colours`: whether an overlay has one colour per instance or per class.
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
        """The options of a request that gives none."""
        return cls(settings.render_factor, settings.fit, settings.min_score, settings.max_detections, settings.detail)

    @classmethod
    def parse(cls, raw_options: Mapping[str, str], settings: Settings) -> Options:
        """Parse `raw_options`. Raises OptionError, whose message has the option, its value and what is valid."""
        parsed = vars(cls.defaults(settings)).copy()
        options = describe(settings)
        for name, given in raw_options.items():
            if name not in options:
                raise OptionError(name, f"Unknown option {name!r}. Valid options: {', '.join(options)}.")
            parsed[name] = parse_option(name, options[name].value, given)
        return cls(**parsed)

    def class_indices(self, labels: Sequence[str]) -> frozenset[int]:
        """The indices of `classes` in a model's `labels`; empty for all. Raises OptionError for an unknown name."""
        return class_indices(named(self.classes, labels), labels)


def parse_option(name: str, value: Value, text: str) -> Any:
    """Parse the text of one option. Raises OptionError, whose message has the option, its value and what is valid."""
    try:
        return value.parse(text)
    except BadValue as error:
        raise OptionError(name, f"{name} {error}") from None


@dataclass(frozen=True)
class Option:
    """One option: its description and its valid values."""

    about: str
    value: Value


def describe(settings: Settings) -> dict[str, Option]:
    """All options by name."""
    return {
        "render_factor": Option(
            "Limits the network's input to (16 x render_factor)^2 pixels. auto is the largest that is useful for the "
            "photo's size and fits the instance's memory.",
            values.auto_or(RENDER_FACTOR),
        ),
        "fit": Option(
            "Keep the photo's aspect ratio, or stretch the photo to a square of the same number of pixels.",
            FIT,
        ),
        "detail": Option(
            "Also run the network on detail x detail tiles. This finds smaller objects; it takes more time but hardly "
            "more memory. auto is the largest that is useful for the photo's size and within memory and "
            "SEGMENT_DETAIL_MEGAPIXELS.",
            values.auto_or(DETAIL),
        ),
        "min_score": Option("Minimum score of an instance.", MIN_SCORE),
        "max_detections": Option(
            "Maximum number of instances; those with the highest scores are returned.",
            values.number(int, 1, settings.max_detections),
        ),
        "classes": Option(
            "Names of the classes to return, separated by commas. A name that contains commas is written as it is.",
            values.names("class names"),
        ),
        "format": Option(
            "Format of the result: an overlay of the instances on the photo (png, jpeg, webp), JSON, a map of instance "
            "ids (PNG), or a zip of cut-outs. An overlay as jpeg has quality 90, or less if it would exceed 0.75 "
            "bytes per pixel, as noise does.",
            values.choice(Format),
        ),
        "masks": Option("Draw masks.", values.flag()),
        "boxes": Option("Draw boxes.", values.flag()),
        "labels": Option("Write class and score.", values.flag()),
        "segmentation": Option("Encoding of masks in JSON: compressed RLE, or polygons.", values.choice(Segmentation)),
        "colours": Option("One colour per instance, or per class.", values.choice(Colours)),
    }
