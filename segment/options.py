"""What one request may ask for: one frozen value, read from words.

The same words serve a query string, a form, JSON and the command line. Defaults come from the settings. An unknown
option, or a value out of range, is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from segment.errors import OptionError
from segment.resize import MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, Fit
from segment.settings import Settings, choices

Format = Literal["png", "jpeg", "webp", "json", "ids", "cutouts"]
Segmentation = Literal["rle", "polygons"]
Colours = Literal["instance", "class"]


@dataclass(frozen=True)
class Options:
    """One request's wishes.

    `render_factor`: None is the largest that fits the memory. `classes`: only these class names; empty is all.
    `masks`, `boxes`, `labels`: what an overlay shows. `segmentation`: how JSON writes masks. `colours`: whether an
    overlay colours by instance or by class.
    """

    render_factor: int | None
    fit: Fit
    min_score: float
    max_detections: int
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
        return cls(settings.render_factor, settings.fit, settings.min_score, settings.max_detections)

    @classmethod
    def parse(cls, words: Mapping[str, str], settings: Settings) -> Options:
        """Read options from words. Raises OptionError, which names the option, its value and what would work."""
        values = vars(cls.defaults(settings)).copy()
        readers = _readers(settings)
        for name, word in words.items():
            if name not in readers:
                raise OptionError(name, f"There is no option {name!r}. There are: {', '.join(readers)}.")
            read, expected = readers[name]
            try:
                values[name] = read(word.strip())
            except (ValueError, KeyError):
                raise OptionError(name, f"{name} is {word!r}; it must be {expected}.") from None
        return cls(**values)


_FLAGS = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}


def _readers(settings: Settings) -> dict[str, tuple[Callable[[str], Any], str]]:
    """Option name -> (how it is read, what it must be)."""

    def number(kind: Callable[[str], Any], low: float, high: float) -> tuple[Callable[[str], Any], str]:
        def read(word: str) -> Any:
            value = kind(word)
            if not low <= value <= high:
                raise ValueError
            return value

        return read, f"a {'whole number' if kind is int else 'number'} from {low:g} to {high:g}"

    def choice(literal: Any) -> tuple[Callable[[str], Any], str]:
        names = {name: name for name in choices(literal)}
        return (lambda word: names[word.lower()]), "one of " + ", ".join(names)

    read_factor, factor = number(int, MIN_RENDER_FACTOR, MAX_RENDER_FACTOR)
    flag = (lambda word: _FLAGS[word.lower()]), "true or false"
    return {
        "render_factor": (lambda word: None if word == "auto" else read_factor(word), f"auto or {factor}"),
        "fit": choice(Fit),
        "min_score": number(float, 0, 1),
        "max_detections": number(int, 1, settings.max_detections),
        "classes": (lambda word: tuple(name.strip() for name in word.split(",") if name.strip()), "names, with commas"),
        "format": choice(Format),
        "masks": flag,
        "boxes": flag,
        "labels": flag,
        "segmentation": choice(Segmentation),
        "colours": choice(Colours),
    }
