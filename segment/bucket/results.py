"""The results of one photo: which of them exist, and the model and settings with which they were made.

The results of generation G of the photo NAME are NAME/G/overlay.png, NAME/G/detections.json and so on, one file per
format, or NAME/G/error.json. All results of one photo are made with the same model and settings, even if different
processes write them at different times:

- The metadata of each file contains the model and the settings (`Run`), with the values that `auto` was resolved to.
- If some files exist and others are missing, the missing ones are made with the model and settings of those that exist,
  even if the settings have changed.
- If that is not possible (the model has changed, the instance is too small, or the metadata is missing, as in a
  folder), all files are replaced.
- A complete set is never modified.

`error.json` contains the reason why a photo could not be segmented. It is final if the reason is the photo itself. If
the reason is a limit of the instance or of the settings, it contains these (`Limits`), and the photo is tried again
when they have changed. If it is refused again, the new error.json replaces the old one. Without permission to delete,
the new one is written beside it as error-XXXXXXXX.json, with a digest of the limits, so that the photo is not tried
again with these either. The newest of them contains the current reason.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from segment.bucket.store import Object, Store
from segment.errors import RequestError, StorageRefused, TooLarge
from segment.formats import FORMATS
from segment.options import Options

ERROR_NAME = "error.json"
_ERROR_NAMES = re.compile(r"error(-[0-9a-f]{8})?\.json")
SOURCE_KEY = "segment-source"
"""Custom metadata that marks an object as a result."""
LIMITS_KEY = "segment-limits"
ASKED = ("render_factor", "fit", "detail", "min_score", "max_detections")
"""The options that settings have a default for. Results always record them."""
_OTHERS = {option.name: option.default for option in fields(Options) if option.name not in (*ASKED, "format")}
"""The other options by their defaults. Results record those that differ."""
_FILES = frozenset(info.file_name for info in FORMATS.values())
_SMALL = 1 << 16
"""Upper bound for the size of an error.json in bytes."""


class NameTooLong(RequestError):
    """The photo's name is so long that the names of its results would exceed the limit."""


def folder_of(prefix: str, photo: Object) -> str:
    """The start of the names of a photo's results: PREFIX NAME/GENERATION/."""
    return f"{prefix}{photo.name}/{photo.generation}/"


def is_result(item: Object) -> bool:
    """Whether the object is a result written by this service."""
    return SOURCE_KEY in item.metadata


@dataclass(frozen=True)
class Run:
    """The origin of results: the model's name and digest, and the settings as JSON, with `auto` resolved."""

    model: str
    digest: str
    settings: str

    @classmethod
    def of(cls, model: str, digest: str, options: Options, render_factor: int | None, detail: int) -> Run:
        """The run of a request with these options, and the render factor and detail that were used.

        `render_factor`: None if the network's input has a fixed size; then the option is recorded unchanged.
        """
        used = {name: getattr(options, name) for name in ASKED} | {"detail": detail}
        if render_factor is not None:
            used["render_factor"] = render_factor
        used |= {name: value for name, default in _OTHERS.items() if (value := getattr(options, name)) != default}
        return cls(model, digest, json.dumps(used))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Run:
        """Parse the metadata of a result; missing keys become empty strings."""
        return cls(*(metadata.get(key, "") for key in ("segment-model", "segment-model-digest", "segment-settings")))

    def metadata(self) -> dict[str, str]:
        """As metadata of a result."""
        return {
            "segment-model": self.model,
            "segment-model-digest": self.digest,
            "segment-settings": self.settings,
        }

    def options(self, defaults: Options) -> Options | None:
        """The options with which this run can be repeated; None if they were not recorded."""
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
    """The limits that caused a refusal: memory in bytes, model and settings. If they change, the photo is retried."""

    memory: int
    max_upload: int
    model: str
    settings: str

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Results:
    """The existing results of one photo: `files` by name, and `errors`, which say why it was refused, oldest first."""

    files: Mapping[str, Object]
    errors: Sequence[Object]

    @classmethod
    def find(cls, store: Store, folder: str) -> Results:
        """List the results of a photo, in one call."""
        return cls.of(store.objects(folder), folder)

    @classmethod
    def of(cls, items: Iterable[Object], folder: str) -> Results:
        """The results among the objects in a photo's folder."""
        existing = {item.name.removeprefix(folder): item for item in items}
        errors = [item for name, item in existing.items() if _ERROR_NAMES.fullmatch(name)]
        errors.sort(key=lambda item: item.generation)
        return cls({name: item for name, item in existing.items() if name in _FILES}, errors)

    @property
    def error(self) -> Object | None:
        """The error.json with the current reason, if the photo was refused."""
        return self.errors[-1] if self.errors else None

    @property
    def runs(self) -> set[Run]:
        """The runs that made the files; more than one if they do not belong together."""
        return {Run.from_metadata(item.metadata) for item in self.files.values()}

    def complete(self, names: Sequence[str]) -> bool:
        """Whether all these files exist and belong together."""
        return self.files.keys() >= set(names) and len(self.runs) == 1

    def resume(self, model: str, digest: str, defaults: Options) -> Options | None:
        """The options for making the missing files; None if the existing files must be replaced."""
        if not self.files:
            return defaults
        run, *others = self.runs
        if others or (run.model, run.digest) != (model, digest):
            return None
        options = run.options(defaults)
        # Memory is planned for at most the number of detections in the settings.
        return options if options and options.max_detections <= defaults.max_detections else None


def other_error_name(limits: str) -> str:
    """The name of an error.json with these limits that cannot replace another one."""
    return f"error-{hashlib.sha256(limits.encode()).hexdigest()[:8]}.json"


def refused_by(store: Store, error: Object) -> str | None:
    """The Limits, as JSON, that caused this error.json; None if the cause is the photo itself."""
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
    """The limits to record in an error.json, as JSON; empty if the photo must not be tried again."""
    if isinstance(error, StorageRefused):  # a change of permissions cannot be detected, so the photo is always retried
        return json.dumps("access")
    return limits.text() if isinstance(error, TooLarge | NameTooLong) else ""
