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

`error.json` contains the reason why a photo could not be segmented (refusal.py). If the photo is refused again, the new
error.json replaces the old one. Without permission to delete, the new one is written beside it as error-XXXXXXXX.json,
with a digest of the limits, so that the photo is not tried again with these either. The newest of them contains the
current reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from segment.bucket.store import Object, Store
from segment.dataset.entry import shown
from segment.formats import FORMATS, File
from segment.options import Options

ERROR_NAME = "error.json"
_ERROR_NAMES = re.compile(r"error(-[0-9a-f]{8})?\.json")
SOURCE_KEY = "segment-source"
"""Custom metadata that marks an object as a result."""
GENERATION_KEY = "segment-generation"
"""Custom metadata with the photo's generation."""
ASKED = ("render_factor", "fit", "detail", "min_score", "max_detections")
"""The options that settings have a default for. Results always record them."""
_OTHERS = {option.name: option.default for option in fields(Options) if option.name not in (*ASKED, "format")}
"""The other options by their defaults. Results record those that differ."""
_FILES = frozenset(info.file_name for info in FORMATS.values())


def folder_of(prefix: str, photo: Object) -> str:
    """The start of the names of a photo's results: PREFIX NAME/GENERATION/."""
    return f"{prefix}{photo.name}/{photo.generation}/"


def origin(address: str, photo: Object) -> dict[str, str]:
    """The metadata by which a result names its photo. `address`: that of the photo's store."""
    return {SOURCE_KEY: shown(f"{address}/{photo.name}"), GENERATION_KEY: str(photo.generation)}


def in_order(files: Iterable[File]) -> list[File]:
    """The order in which results are written, whatever the order of the formats in the settings.

    Services with different settings that make results of one photo at the same time compete for the first file, and
    those that come second complete the results of the first.
    """
    return sorted(files, key=lambda file: (file.name != FORMATS["json"].file_name, file.name))


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
