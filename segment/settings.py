"""The settings of the service, read once from environment variables.

Entry points pass the environment in; no other module reads it. If a SEGMENT_ variable is unknown or its value is
invalid, the process does not start; the message names the setting, the value and what is valid.
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

RENDER_FACTOR = values.number(int, MIN_RENDER_FACTOR, MAX_RENDER_FACTOR)
FIT = values.choice(Fit)
DETAIL = values.number(int, 1, MAX_DETAIL)
MIN_SCORE = values.number(float, 0, 1)
MAX_DETECTIONS = values.number(int, 1, 1000)
"""Valid values of the options that have a default in the settings."""
THREADS = values.number(int, 1, 64)

EngineName = Literal["openvino", "detectron2"]
Labelling = Literal["label-studio", "cvat"]


def _setting(default: Any, value: Value, about: str) -> Any:
    return field(default=default, metadata={"value": value, "about": about})


@dataclass(frozen=True)
class Settings:
    """The settings. Field `name` is read from the environment variable SEGMENT_NAME."""

    model: str = _setting(
        "", values.text(), "Model file, or a name from `segment models`. Empty: the embedded demo model."
    )
    engine: EngineName = _setting(
        "openvino", values.choice(EngineName), "Engine that runs the network: `openvino` or `detectron2`."
    )
    labels: str = _setting(
        "", values.text(), "File with one class name per line; replaces the model's own class names."
    )
    font: str = _setting(
        "",
        values.text(),
        "Font file (TTF, OTF, TTC) for class names in other scripts than Latin, Greek and Cyrillic (see below).",
    )
    cache: str = _setting("", values.text(), "Folder for compiled models. Empty: the model is compiled at every start.")
    zoo_url: str = _setting("", values.url(), "Mirror of the model zoo. Empty: detectron2's own server.")
    render_factor: int | None = _setting(25, values.auto_or(RENDER_FACTOR), "Default render factor.")
    fit: Fit = _setting("aspect", FIT, "Default fit.")
    detail: int | None = _setting(
        1,
        values.auto_or(DETAIL),
        "Default detail: number of tiles per side that are run in addition to the whole photo.",
    )
    detail_megapixels: float = _setting(
        4.0,
        values.number(float, 0, 1000),
        "Limit for `detail=auto`: megapixels of network input per photo, over all runs.",
    )
    min_score: float = _setting(0.5, MIN_SCORE, "Default minimum score of an instance.")
    max_detections: int = _setting(100, MAX_DETECTIONS, "Maximum number of instances per photo.")
    memory: int | None = _setting(
        None,
        values.auto_or(values.byte_size()),
        "Memory limit. `auto`: the limit of the cgroup, or without one the machine's memory, but at most 8Gi.",
    )
    fixed_bytes: int | None = _setting(
        None,
        values.auto_or(values.byte_size()),
        "Memory of one run of the network that does not depend on the image. `auto`: from the model file, or measured.",
    )
    bytes_per_pixel: float | None = _setting(
        None,
        values.auto_or(values.number(float, 0, 1e6)),
        "Memory of one run per pixel of network input. `auto`: from the model file, or measured.",
    )
    threads: int | None = _setting(
        None,
        values.auto_or(THREADS),
        "Threads of the network. `auto`: the number of CPUs of the container.",
    )
    queue: int = _setting(
        16, values.number(int, 0, 1000), "Maximum number of requests that wait for memory; further requests get a 503."
    )
    wait_seconds: float = _setting(30.0, values.number(float, 0, 600), "Maximum time that a request waits for memory.")
    max_upload: int = _setting(32 * MIB, values.byte_size(), "Maximum size of a request body or a fetched photo.")
    receive_seconds: float = _setting(
        60.0,
        values.number(float, 1, 3600),
        "Time limit for receiving a request body; a body of at least 64 KiB/s may take longer.",
    )
    fetch_seconds: float = _setting(20.0, values.number(float, 1, 300), "Time limit for fetching a URL.")
    fetch_private: bool = _setting(False, values.flag(), "Allow URLs on private addresses (for development).")
    cors_origins: tuple[str, ...] = _setting(
        (), values.names("origins"), "Origins that may call from a browser (CORS), separated by commas, or `*`."
    )
    labelling: tuple[Labelling, ...] = _setting(
        (),
        values.several(Labelling),
        "Interfaces for labelling tools: `label-studio`, `cvat` or both (see docs/labelling.md).",
    )
    label_studio_url: str = _setting(
        "", values.url(), "Address of Label Studio, from which its photos are fetched; may be private."
    )
    label_studio_token: str = _setting("", values.text(), "Access token of Label Studio; sent to that address only.")
    label_studio_password: str = _setting(
        "", values.text(), "Password that Label Studio must send (HTTP Basic, with any user name). Empty: none."
    )
    project: str = _setting("", values.text(), "Google Cloud project id, for traces in log entries.")
    input_bucket: str = _setting("", values.text(), "If set, events of other buckets are ignored.")
    input_prefix: str = _setting("", values.text(), "Only objects whose names start with this prefix are segmented.")
    output_bucket: str = _setting("", values.text(), "Bucket to which the results of bucket events are written.")
    output_prefix: str = _setting("", values.text(), "Prefix of the names of results.")
    output_formats: tuple[Format, ...] = _setting(
        ("png", "json"), values.several(Format), "Formats written for each photo in a bucket."
    )
    storage_seconds: float = _setting(
        20.0,
        values.number(float, 1, 300),
        "Time limit of one call to Cloud Storage, retries included.",
    )
    delivery_seconds: float = _setting(
        50.0,
        values.number(float, 1, 600),
        "Time limit for handling one bucket event, all waiting and calls included; after it the event is redelivered.",
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Parse the settings; an empty value means the default. Raises SettingsError."""
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
    """(name, default, description) of every setting, for the table in docs/settings.md."""
    rows = []
    for f in dataclasses.fields(Settings):
        default = f.default
        shown = ",".join(default) if isinstance(default, tuple) else "auto" if default is None else str(default)
        if isinstance(default, bool):
            shown = str(default).lower()
        rows.append((PREFIX + f.name.upper(), shown, str(f.metadata["about"])))
    return rows
