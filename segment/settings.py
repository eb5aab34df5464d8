"""The service's settings: one frozen value, read from the environment once.

Nothing else in the package reads the environment. An unknown SEGMENT_ name, or a value that is out of range, stops the
start with a message that names the setting, the value and what is valid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from segment import values
from segment.errors import SettingsError
from segment.formats import Format
from segment.resize import MAX_DETAIL, MAX_RENDER_FACTOR, MIN_RENDER_FACTOR, Fit
from segment.values import MIB, BadValue, Value

PREFIX = "SEGMENT_"

EngineName = Literal["openvino", "detectron2"]


def _setting(default: Any, value: Value, about: str) -> Any:
    return field(default=default, metadata={"value": value, "about": about})


@dataclass(frozen=True)
class Settings:
    """What the service is told by its environment; each field is the variable SEGMENT_ + its name in capitals."""

    model: str = _setting("", values.text(), "Model file, or a name from `segment models`; empty is the embedded demo.")
    engine: EngineName = _setting("openvino", values.choice(EngineName), "Engine that runs the network.")
    labels: str = _setting("", values.text(), "File with one class name per line, instead of the model's own.")
    cache: str = _setting("", values.text(), "Folder for compiled models; empty compiles at every start.")
    render_factor: int | None = _setting(
        25, values.auto_or(values.number(int, MIN_RENDER_FACTOR, MAX_RENDER_FACTOR)), "Default render factor."
    )
    fit: Fit = _setting("aspect", values.choice(Fit), "Default fit.")
    detail: int | None = _setting(
        1,
        values.auto_or(values.number(int, 1, MAX_DETAIL)),
        "Default detail: tiles per side that are run besides the whole photo.",
    )
    detail_megapixels: float = _setting(
        4.0,
        values.number(float, 0, 1000),
        "With detail auto, limit of the network's input per photo, all runs together.",
    )
    min_score: float = _setting(0.5, values.number(float, 0, 1), "Default lowest score of an instance.")
    max_detections: int = _setting(100, values.number(int, 1, 1000), "Largest number of instances per photo.")
    memory: int | None = _setting(None, values.auto_or(values.byte_size()), "Memory limit; auto reads the cgroup's.")
    fixed_bytes: int | None = _setting(
        None,
        values.auto_or(values.byte_size()),
        "Memory of a run that does not depend on the image; auto reads the model file, or measures.",
    )
    bytes_per_pixel: float | None = _setting(
        None,
        values.auto_or(values.number(float, 0, 1e6)),
        "Memory of a run per pixel of the network's input; as above.",
    )
    threads: int | None = _setting(
        None, values.auto_or(values.number(int, 1, 64)), "Threads of the network; auto is the container's CPUs."
    )
    queue: int = _setting(16, values.number(int, 0, 1000), "Most requests that wait for memory; more get a 503.")
    wait_seconds: float = _setting(30.0, values.number(float, 0, 600), "Longest time that a request waits for memory.")
    max_upload: int = _setting(32 * MIB, values.byte_size(), "Largest request body or fetched photo.")
    receive_seconds: float = _setting(60.0, values.number(float, 1, 3600), "Time limit for receiving a request body.")
    fetch_seconds: float = _setting(20.0, values.number(float, 1, 300), "Time limit for fetching a URL.")
    fetch_private: bool = _setting(False, values.flag(), "Allow URLs on private addresses; for development.")
    cors_origins: tuple[str, ...] = _setting((), values.names("origins"), "Origins that may call from a browser, or *.")
    project: str = _setting("", values.text(), "Google Cloud project, for traces in log entries.")
    output_bucket: str = _setting("", values.text(), "Bucket for the results of bucket events.")
    output_prefix: str = _setting("", values.text(), "Prefix of the results' names.")
    output_formats: tuple[str, ...] = _setting(
        ("png", "json"), values.several(Format), "Formats that are written for each photo in a bucket."
    )
    storage_seconds: float = _setting(
        20.0,
        values.number(float, 1, 300),
        "How long one call to Cloud Storage is retried.",
    )
    delivery_seconds: float = _setting(
        50.0,
        values.number(float, 1, 600),
        "Time limit of one bucket event, all waiting and calls together; then it is delivered again.",
    )
    zoo_url: str = _setting("", values.url(), "Mirror of the model zoo; empty is detectron2's own server.")
    input_bucket: str = _setting("", values.text(), "If set, events from other buckets are ignored.")
    input_prefix: str = _setting("", values.text(), "Only objects whose name starts with this are segmented.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings; an empty value is the default. Raises SettingsError."""
        fields = {PREFIX + f.name.upper(): f for f in dataclasses.fields(cls)}
        found = {}
        for name, given in environment.items():
            if not name.startswith(PREFIX):
                continue
            if name not in fields:
                raise SettingsError(f"Unknown setting {name}. Valid settings: {', '.join(fields)}.")
            if given.strip():
                found[fields[name].name] = _parse(name, given.strip(), fields[name].metadata["value"])
        return cls(**found)


def _parse(name: str, given: str, value: Value) -> Any:
    try:
        return value.parse(given)
    except BadValue as error:
        raise SettingsError(f"{name} {error}") from None


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
