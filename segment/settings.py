"""The service's settings: one frozen value, read from the environment once.

Nothing else in the package reads the environment. A name that starts with SEGMENT_ and is not listed here, or a value
that cannot be, stops the start with the name, the value and what would do.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from segment.errors import SettingsError
from segment.resize import MAX_DETAIL, MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, Fit

PREFIX = "SEGMENT_"
MIB = 1 << 20

OverlayFormat = Literal["png", "jpeg", "webp"]
EngineName = Literal["openvino", "detectron2"]


def _text(value: str) -> str:
    return value.strip()


def _number(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    def read(value: str) -> Any:
        number = kind(value)
        if not low <= number <= high:
            raise ValueError
        return number

    read.__doc__ = f"a {'whole number' if kind is int else 'number'} from {low:g} to {high:g}"
    return read


def _choice(*names: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in names:
            raise ValueError
        return value

    read.__doc__ = " or ".join(names)
    return read


def _or_word(word: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    def read_or_word(value: str) -> Any:
        return None if value == word else read(value)

    read_or_word.__doc__ = f"{word!r} or {read.__doc__}"
    return read_or_word


def _flag(value: str) -> bool:
    """true or false"""
    return {"true": True, "1": True, "false": False, "0": False}[value.lower()]


def _bytes(value: str) -> int:
    """a size such as 512Mi, 2Gi or a number of bytes"""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|k|M|G)?B?", value)
    if not match:
        raise ValueError
    unit = {None: 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 10**3, "M": 10**6, "G": 10**9}[match[2]]
    return int(float(match[1]) * unit)


def _url(value: str) -> str:
    """an http or https URL"""
    if not re.match(r"https?://[^/]", value):
        raise ValueError
    return value


def _words(value: str) -> tuple[str, ...]:
    """words separated by commas"""
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _words_of(*names: str) -> Callable[[str], tuple[str, ...]]:
    def read(value: str) -> tuple[str, ...]:
        words = _words(value)
        if not words or not set(words) <= set(names):
            raise ValueError
        return words

    read.__doc__ = f"one or more of {', '.join(names)}, separated by commas"
    return read


def _setting(default: Any, read: Callable[[str], Any], about: str) -> Any:
    return field(default=default, metadata={"read": read, "about": about})


@dataclass(frozen=True)
class Settings:
    """What the service is told by its environment; each field is the variable SEGMENT_ + its name in capitals."""

    model: str = _setting("", _text, "Model file, or a name from `segment models`; empty is the embedded demo.")
    engine: EngineName = _setting("openvino", _choice("openvino", "detectron2"), "What runs the network.")
    labels: str = _setting("", _text, "File with one class name per line, instead of the model's own.")
    cache: str = _setting("", _text, "Folder for compiled models; empty compiles at every start.")
    render_factor: int | None = _setting(
        25, _or_word("auto", _number(int, MIN_RENDER_FACTOR, MAX_RENDER_FACTOR)), "Default render factor."
    )
    fit: Fit = _setting("aspect", _choice("aspect", "square"), "Default fit.")
    detail: int | None = _setting(
        1, _or_word("auto", _number(int, 1, MAX_DETAIL)), "Default detail: tiles a side that are seen beside the whole."
    )
    detail_seconds: float = _setting(
        2.0, _number(float, 0, 600), "With detail auto, how long the network may take for a photo."
    )
    min_score: float = _setting(0.5, _number(float, 0, 1), "Default lowest score of an instance.")
    max_detections: int = _setting(100, _number(int, 1, 1000), "Most instances per photo.")
    memory: int | None = _setting(None, _or_word("auto", _bytes), "Memory limit; auto reads the cgroup's.")
    fixed_bytes: int | None = _setting(
        None,
        _or_word("auto", _bytes),
        "Memory of a run, whatever the image; auto is what the file says, or measured at loading.",
    )
    bytes_per_pixel: float | None = _setting(
        None, _or_word("auto", _number(float, 0, 1e6)), "Memory of a run per pixel that the network sees; as above."
    )
    threads: int | None = _setting(
        None, _or_word("auto", _number(int, 1, 64)), "Threads of the network; auto is the container's CPUs."
    )
    queue: int = _setting(16, _number(int, 0, 1000), "Requests that may wait for memory; more are told to come back.")
    wait_seconds: float = _setting(30.0, _number(float, 0, 600), "How long a request waits for memory at most.")
    max_upload: int = _setting(32 * MIB, _bytes, "Largest body or fetched photo.")
    fetch_seconds: float = _setting(20.0, _number(float, 1, 300), "How long fetching a URL may take in all.")
    fetch_private: bool = _setting(False, _flag, "Allow URLs on private and loopback addresses; for development.")
    cors_origins: tuple[str, ...] = _setting((), _words, "Origins that may call from a browser, or *.")
    project: str = _setting(
        "", _text, "Google Cloud project, so that log entries are shown under their request's trace."
    )
    output_bucket: str = _setting("", _text, "Bucket that results of bucket events are written to.")
    output_prefix: str = _setting("", _text, "Prefix of every result's name.")
    output_formats: tuple[str, ...] = _setting(
        ("png", "json"),
        _words_of("png", "jpeg", "webp", "json", "ids", "cutouts"),
        "What is written for each photo in a bucket.",
    )
    storage_seconds: float = _setting(
        20.0, _number(float, 1, 300), "How long one call to Cloud Storage is tried for before an event is put off."
    )
    zoo_url: str = _setting("", _url, "Mirror to fetch models with names from; empty is detectron2's own.")
    input_bucket: str = _setting("", _text, "If given, events from any other bucket are ignored.")
    input_prefix: str = _setting("", _text, "Only objects whose name starts so are segmented.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; an empty value is the default. Raises SettingsError."""
        fields = {PREFIX + f.name.upper(): f for f in dataclasses.fields(cls)}
        values = {}
        for name, text in environment.items():
            if not name.startswith(PREFIX):
                continue
            if name not in fields:
                raise SettingsError(f"{name} is no setting. There are: {', '.join(fields)}.")
            if text.strip():
                values[fields[name].name] = _read(name, text.strip(), fields[name].metadata["read"])
        return cls(**values)


def _read(name: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except (ValueError, KeyError):
        raise SettingsError(f"{name} is {text!r}; it must be {read.__doc__}.") from None


def describe() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every setting, for the README's table and `--help`."""
    rows = []
    for f in dataclasses.fields(Settings):
        default = f.default
        shown = ",".join(default) if isinstance(default, tuple) else "auto" if default is None else str(default)
        if isinstance(default, bool):
            shown = str(default).lower()
        rows.append((PREFIX + f.name.upper(), shown, str(f.metadata["about"])))
    return rows


def choices(literal: Any) -> tuple[str, ...]:
    """The words a Literal type admits."""
    return typing.get_args(literal)
