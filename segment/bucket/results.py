"""The results of one photo: what there is of them, and what they were made with.

The results of generation G of the photo NAME are NAME/G/overlay.png, NAME/G/detections.json and so on, one file a
format, or NAME/G/error.json. The files of one photo always come from one model and the same settings, whoever writes
which of them, and when:

- Each file carries, as metadata, what it was made with (`Run`). With `auto`, this is what `auto` came to.
- If some files are there and others are missing, those that are there decide: the missing ones are made with the same
  model and settings, though the settings may have changed.
- If that is impossible (the model has changed, the instance is too small, or it is not known what they were made with,
  as in a folder, which keeps no metadata), all of them are replaced.
- A complete set is never touched.

An `error.json` says why a photo could not be segmented. It is final if the photo is to blame. If another instance or
other settings could have segmented it, it carries these (`Limits`), and the photo is tried again when they differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from segment.bucket.store import Object, Store
from segment.errors import RequestError, StorageRefused, TooLarge
from segment.formats import FORMATS
from segment.options import Options

ERROR_NAME = "error.json"
SOURCE_KEY = "segment-source"
"""Custom metadata that marks an object as a result."""
LIMITS_KEY = "segment-limits"
ASKED = ("render_factor", "fit", "detail", "min_score", "max_detections")
"""The options that settings have a default for. Results always record them."""
_OTHERS = {option.name: option.default for option in fields(Options) if option.name not in (*ASKED, "format")}
"""The other options by their defaults. Results record those that differ."""
_FILES = frozenset(info.file_name for info in FORMATS.values())
_SMALL = 1 << 16
"""Bytes that an error.json does not reach."""


class NameTooLong(RequestError):
    """The name of a photo leaves no room for the names of its results."""


def folder_of(prefix: str, photo: Object) -> str:
    """The start of the names of a photo's results: PREFIX NAME/GENERATION/."""
    return f"{prefix}{photo.name}/{photo.generation}/"


@dataclass(frozen=True)
class Run:
    """What results were made with: the model's name and digest, and the settings as JSON, none of them `auto`."""

    model: str
    digest: str
    settings: str

    @classmethod
    def of(cls, model: str, digest: str, options: Options, render_factor: int | None, detail: int) -> Run:
        """A run with these options, where `auto` came to this render factor and detail.

        `render_factor`: None for a model file with an input of a fixed size; the setting is recorded as it is.
        """
        used = {name: getattr(options, name) for name in ASKED} | {"detail": detail}
        if render_factor is not None:
            used["render_factor"] = render_factor
        used |= {name: value for name, default in _OTHERS.items() if (value := getattr(options, name)) != default}
        return cls(model, digest, json.dumps(used))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Run:
        """What a result's metadata says; empty strings where it says nothing."""
        return cls(*(metadata.get(key, "") for key in ("segment-model", "segment-model-digest", "segment-settings")))

    def metadata(self) -> dict[str, str]:
        """As a result's metadata."""
        return {
            "segment-model": self.model,
            "segment-model-digest": self.digest,
            "segment-settings": self.settings,
        }

    def options(self, defaults: Options) -> Options | None:
        """The options that repeat this run; None if it does not say."""
        try:
            used = json.loads(self.settings)
            asked = {name: used[name] for name in ASKED}
            others = {name: used.get(name, default) for name, default in _OTHERS.items()}
            others["classes"] = tuple(others["classes"])
            return replace(defaults, **asked, **others)
        except (ValueError, TypeError, KeyError):
            return None


@dataclass(frozen=True)
class Limits:
    """What decides whether a photo that was refused is tried again: memory in bytes, model and settings."""

    memory: int
    max_upload: int
    model: str
    settings: str

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Results:
    """What is there of one photo's results: `files` by name, and the object error.json, if there is one."""

    files: Mapping[str, Object]
    error: Object | None

    @classmethod
    def find(cls, store: Store, folder: str) -> Results:
        """What is in a photo's folder. One call."""
        return cls.of(store.objects(folder), folder)

    @classmethod
    def of(cls, items: Iterable[Object], folder: str) -> Results:
        """What the objects in a photo's folder are of its results."""
        there = {item.name.removeprefix(folder): item for item in items}
        return cls({name: item for name, item in there.items() if name in _FILES}, there.get(ERROR_NAME))

    @property
    def runs(self) -> set[Run]:
        """What the files were made with; more than one run means that they do not belong together."""
        return {Run.from_metadata(item.metadata) for item in self.files.values()}

    def complete(self, names: Sequence[str]) -> bool:
        """Whether all these files are there and belong together."""
        return self.files.keys() >= set(names) and len(self.runs) == 1

    def resume(self, model: str, digest: str, defaults: Options) -> Options | None:
        """The options that make what is missing; None if all that is there has to be replaced."""
        if not self.files:
            return defaults
        run, *others = self.runs
        if others or (run.model, run.digest) != (model, digest):
            return None
        options = run.options(defaults)
        # Memory is planned for the setting's number of detections.
        return options if options and options.max_detections <= defaults.max_detections else None


def refused_by(store: Store, error: Object) -> str | None:
    """The Limits, as text, that the photo of this error.json exceeded; None if the photo itself is to blame."""
    if error.metadata:
        return error.metadata.get(LIMITS_KEY)
    body = store.read(error, _SMALL) or b"{}"  # a folder keeps no metadata
    try:
        problem: Any = json.loads(body)
        limits = problem.get("limits")
    except (ValueError, AttributeError):
        return None
    return json.dumps(limits, sort_keys=True) if limits else None


def limits_of(error: RequestError | StorageRefused, limits: Limits) -> str:
    """What an error.json has to carry, so that the photo is tried again when it can be segmented; empty if never."""
    if isinstance(error, StorageRefused):  # nothing here shows whether permissions have changed: always try again
        return json.dumps("access")
    return limits.text() if isinstance(error, TooLarge | NameTooLong) else ""
