"""What one request may ask for: one frozen value, read from words.

The same words serve a query string, a form, JSON and the command line. Defaults come from the settings. An unknown
option, or a value out of range, is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from segment.errors import OptionError
from segment.resize import MAX_DETAIL, MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, Fit
from segment.settings import Settings, choices

Format = Literal["png", "jpeg", "webp", "json", "ids", "cutouts"]
Segmentation = Literal["rle", "polygons"]
Colours = Literal["instance", "class"]


@dataclass(frozen=True)
class Options:
    """One request's wishes.

    `render_factor`: None is the largest that fits the memory. `detail`: tiles a side that are seen beside the whole
    photo, 1 is none; None is what pays and fits memory and time. `classes`: only these class names; empty is all.
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
    def parse(cls, words: Mapping[str, str], settings: Settings) -> Options:
        """Read options from words. Raises OptionError, which names the option, its value and what would work."""
        values = vars(cls.defaults(settings)).copy()
        options = describe(settings)
        for name, word in words.items():
            if name not in options:
                raise OptionError(name, f"There is no option {name!r}. There are: {', '.join(options)}.")
            try:
                values[name] = options[name].read(word.strip())
            except (ValueError, KeyError):
                raise OptionError(name, f"{name} is {word!r}; it must be {options[name].expected}.") from None
        return cls(**values)


@dataclass(frozen=True)
class Option:
    """One option: what it is for, how it is read, what it must be, and the same as a JSON Schema."""

    about: str
    read: Callable[[str], Any]
    expected: str
    schema: Mapping[str, Any]


def describe(settings: Settings) -> dict[str, Option]:
    """Every option by name: the one place that says what is admitted."""
    return {
        "render_factor": _or_auto(
            _number(
                int, MIN_RENDER_FACTOR, MAX_RENDER_FACTOR, "The network sees at most (16 x render_factor)^2 pixels."
            ),
            "the largest that fits the memory",
        ),
        "fit": _choice(Fit, "Keep the photo's aspect ratio, or stretch it to a square; the pixels are as many."),
        "detail": _or_auto(
            _number(int, 1, MAX_DETAIL, "Look at detail x detail tiles too: finds small things, for time, not memory."),
            "what the photo's size and a bound on time allow",
        ),
        "min_score": _number(float, 0, 1, "The lowest score of an instance."),
        "max_detections": _number(int, 1, settings.max_detections, "The most instances; the best are kept."),
        "classes": Option(
            "Only these classes, separated by commas.",
            _names,
            "class names, separated by commas",
            {"type": "string", "pattern": "[^,\\s]"},
        ),
        "format": _choice(Format, "What is answered: the photo drawn on, JSON, an instance map or cut-outs in a zip."),
        "masks": _flag("Draw masks."),
        "boxes": _flag("Draw boxes."),
        "labels": _flag("Write class and score."),
        "segmentation": _choice(Segmentation, "How JSON writes masks: compressed run lengths, or polygons."),
        "colours": _choice(Colours, "One colour per instance, or per class."),
    }


_FLAGS = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}


def _flag(about: str) -> Option:
    return Option(about, lambda word: _FLAGS[word.lower()], "true or false", {"type": "boolean"})


def _number(kind: type[int] | type[float], low: float, high: float, about: str) -> Option:
    def read(word: str) -> Any:
        if not word.isascii() or "_" in word:  # Python would read them
            raise ValueError
        value = kind(word)
        if not low <= value <= high:
            raise ValueError
        return value

    name, noun = ("integer", "whole number") if kind is int else ("number", "number")
    return Option(about, read, f"a {noun} from {low:g} to {high:g}", {"type": name, "minimum": low, "maximum": high})


def _or_auto(number: Option, meaning: str) -> Option:
    """A number, or the word auto, which is read as None."""
    return Option(
        f"{number.about} auto is {meaning}.",
        lambda word: None if word == "auto" else number.read(word),
        f"auto or {number.expected}",
        {"anyOf": [number.schema, {"const": "auto"}]},
    )


def _choice(literal: Any, about: str) -> Option:
    names = {name: name for name in choices(literal)}
    return Option(about, lambda word: names[word.lower()], "one of " + ", ".join(names), {"enum": list(names)})


def _names(word: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in word.split(",") if name.strip())
    if not names:
        raise ValueError
    return names
