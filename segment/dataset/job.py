"""The results of a run: files for each photo, and datasets."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segment.dataset.photos import Photo
from segment.errors import OptionError, UnsupportedImage
from segment.formats import FORMATS, OVERLAY_FORMATS, Format
from segment.model import locate
from segment.options import Options
from segment.service import Service

Dataset = Literal["coco", "parquet"]
FolderDataset = Literal["coco", "parquet", "label-studio"]
"""The datasets of a folder."""


def check_datasets(datasets: Collection[FolderDataset], options: Options) -> None:
    """Check that datasets can be made of results with these options. Raises OptionError."""
    if {"parquet", "label-studio"}.intersection(datasets) and options.segmentation != "rle":
        raise OptionError(
            "segmentation", "Parquet and Label Studio datasets contain masks as RLE; omit segmentation=polygons."
        )


@dataclass(frozen=True)
class Job:
    """The results that a run writes to `output`: files in `formats` for each photo, and `datasets`.

    `label_config`: Label Studio's labelling config; empty for one with all labels. `image_root`: start of the photos'
    addresses in Label Studio.
    """

    output: Path
    options: Options
    formats: tuple[Format, ...]
    datasets: tuple[FolderDataset, ...] = ()
    label_config: str = ""
    image_root: str = ""

    def key(self, photo: Photo, service: Service) -> tuple[str, int]:
        """A hash of what the results depend on, and the photo's modification time in nanoseconds.

        Raises OSError, and UnsupportedImage for a named pipe or a device, which would be read without an end.
        """
        status, model = photo.path.stat(), locate(service.settings)
        if not stat.S_ISREG(status.st_mode):
            raise UnsupportedImage("This is not a regular file, but a folder, a named pipe or a device.")
        made_by = (str(model), model.stat().st_mtime_ns, service.settings.engine, self.options, self.formats)
        given = (
            *made_by,
            bool(self.datasets),
            service.settings.labels,
            service.settings.font,
            photo.result,
            status.st_size,
            status.st_mtime_ns,
        )
        return hashlib.sha256(repr(given).encode("utf-8", "backslashreplace")).hexdigest(), status.st_mtime_ns

    def files(self, photo: Photo) -> dict[Format, Path]:
        """The photo's result files."""
        return {kind: self.output / f"{photo.result}.{FORMATS[kind].file_name}" for kind in self.formats}

    def frame_files(self, video: Photo, number: int) -> dict[Format, Path]:
        """The result files of a frame, in a folder named as the video. Overlays are one video instead."""
        folder = (self.output / video.result).with_name(video.path.name)
        kinds = (kind for kind in self.formats if kind not in OVERLAY_FORMATS)
        return {kind: folder / f"{number:06}.{FORMATS[kind].file_name}" for kind in kinds}

    def overlay_video(self, video: Photo) -> Path | None:
        """The file of a video's overlays, if overlays are wanted."""
        wanted = any(kind in OVERLAY_FORMATS for kind in self.formats)
        return self.output / f"{video.result}.overlay.mp4" if wanted else None
