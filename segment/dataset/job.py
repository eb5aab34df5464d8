"""What is made of each photo of a run, and where it is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segment.dataset.photos import Photo
from segment.formats import FORMATS, OVERLAY_FORMATS, Format
from segment.model import locate
from segment.options import Options
from segment.service import Service

Dataset = Literal["coco", "parquet"]


@dataclass(frozen=True)
class Job:
    """What is made of each photo: files in `formats` below `output`, and entries for `datasets`."""

    output: Path
    options: Options
    formats: tuple[Format, ...]
    datasets: tuple[Dataset, ...] = ()

    def key(self, photo: Photo, service: Service) -> tuple[str, int]:
        """What the results follow from, as a hash, and the photo's modification time in nanoseconds. Raises OSError."""
        status, model = photo.path.stat(), locate(service.settings)
        made_by = (str(model), model.stat().st_mtime_ns, service.settings.engine, self.options, self.formats)
        given = (
            *made_by,
            bool(self.datasets),
            service.settings.labels,
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
