"""The model: a photo in, detections at the photo's size out.

A service loads it on first use and not at import: the `functions-framework` command imports the function in gunicorn's
master and then forks, and a network compiled before the fork would hang and run on one core.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segment import container, image
from segment import engine as engines
from segment.detections import Detections
from segment.engine import Engine
from segment.errors import Cancelled
from segment.labels import read_labels
from segment.resize import Fit, fitted_size
from segment.results import Results
from segment.settings import Settings
from segment.tiles import CANDIDATE_SCORE, merge, tiles

FIRST_PHOTO, FIRST_RENDER_FACTOR = (1280, 960), 25
"""What the first run is like: most photos are, and a layout of the weights is made once for each kind of size."""
EMBEDDED = Path(__file__).parent / "models" / "shapes.onnx"


class Model:
    """A loaded model. `name` is its file's, without the extension; `labels` are the class names by index."""

    def __init__(self, name: str, engine: Engine, files: Sequence[Path] = ()) -> None:
        self.name, self.engine, self._files = name, engine, files
        self.labels, self.footprint = engine.labels, engine.footprint
        self.milliseconds_per_megapixel = 0.0
        width, height = self.network_size(FIRST_PHOTO, FIRST_RENDER_FACTOR, "aspect")
        self._run(np.zeros((height, width, 3), np.uint8), 1.0, 1)
        self.release()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model's files, 16 digits; they are read when it is first asked for."""
        whole = hashlib.sha256()
        for path in _all_files(self._files):
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()[:16]

    @property
    def file_bytes(self) -> int:
        """The size of the model's files in bytes."""
        return sum(path.stat().st_size for path in _all_files(self._files))

    def __call__(
        self,
        photo: str | Path | bytes | Image.Image | NDArray[np.uint8],
        render_factor: int = 25,
        fit: Fit = "aspect",
        min_score: float = 0.5,
        max_detections: int = 100,
        detail: int = 1,
    ) -> Results:
        """The instances in `photo`, in its pixels, best score first.

        `photo`: a file's name, a file's content, a Pillow image, or (H, W, 3) uint8 RGB. Files are turned as their EXIF
        orientation says; a Pillow image is taken as it is, so apply `PIL.ImageOps.exif_transpose` to one that a camera
        turned. With `detail` 2 or more, detail x detail tiles are run too, which finds smaller objects.

        Raises UnsupportedImage or CorruptImage for a file that cannot be read as an image, OSError for one that cannot
        be opened.
        """
        rgb = _rgb(photo)
        size = self.network_size(rgb.size, render_factor, fit)
        return Results.of(self.find(rgb, size, min_score, max_detections, detail), self.labels)

    def network_size(self, size: tuple[int, int], render_factor: int, fit: Fit) -> tuple[int, int]:
        """The (width, height) at which the network sees a photo of `size`."""
        return self.engine.input_size(size) or fitted_size(size, render_factor, fit, self.engine.stride)

    @property
    def fixed_size(self) -> bool:
        """Whether the file has an input of a fixed size, so that render factor and fit have no effect."""
        return self.engine.input_size(FIRST_PHOTO) is not None

    def find(
        self,
        photo: Image.Image,
        network_size: tuple[int, int],
        min_score: float,
        max_detections: int,
        detail: int = 1,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Detections:
        """The instances in `photo`, an RGB image, in its pixels, best score first.

        The whole photo and, with `detail` 2 or more, each of its detail x detail tiles are scaled to `network_size`
        (width, height) and run one after the other: memory stays that of one run.

        Raises Cancelled when `cancelled`, which is called before each tile, returns True.
        """
        lowest = min_score if detail == 1 else min(min_score, CANDIDATE_SCORE)
        seen = photo if photo.size == network_size else image.resize(photo, network_size)
        whole = self._run(np.asarray(seen), lowest, max_detections).at(photo.size)
        if detail == 1:
            return whole
        parts = []
        for tile in tiles(photo.size, detail):
            if cancelled():
                raise Cancelled
            seen = image.resize(photo, network_size, tile)
            parts.append((tile, self._run(np.asarray(seen), lowest, max_detections)))
        found = merge(whole, parts)
        return found.select(np.flatnonzero(found.scores >= min_score)[:max_detections])

    def release(self) -> None:
        """Give up what is kept between runs."""
        self.engine.release()
        container.trim_heap()

    def _run(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        start = time.perf_counter()
        found = self.engine(pixels, min_score, max_detections)
        elapsed = time.perf_counter() - start
        self.milliseconds_per_megapixel = elapsed * 1e9 / (pixels.shape[0] * pixels.shape[1])
        return found


def _all_files(paths: Sequence[Path]) -> Iterator[Path]:
    """These files, and those in these folders, in the order of their names."""
    for path in paths:
        yield from sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]


def _rgb(photo: str | Path | bytes | Image.Image | NDArray[np.uint8]) -> Image.Image:
    if isinstance(photo, (str, Path)):
        photo = Path(photo).read_bytes()
    if isinstance(photo, bytes):
        header = image.read_header(photo)
        return image.decode(photo, header, header.size)
    return Image.fromarray(photo) if isinstance(photo, np.ndarray) else photo.convert("RGB")


def load(model: str | Path = "", labels: str | Path = "", cache: str | Path = "", threads: int | None = None) -> Model:
    """Load a model for use as a library: a file, a name from `segment models`, or by default the embedded demo.

    `labels`: a file of class names, one per line, instead of the model's own. `cache`: a folder for compiled models,
    which makes the next load faster and smaller. Raises ModelError.
    """
    return from_settings(Settings(model=str(model), labels=str(labels), cache=str(cache), threads=threads))


def from_settings(settings: Settings) -> Model:
    """Load the model that the settings name. Raises ModelError."""
    threads, labels = (
        settings.threads or container.cpus(),
        read_labels(Path(settings.labels)) if settings.labels else (),
    )
    own_labels = [Path(settings.labels)] if settings.labels else []
    figures = {"fixed_bytes": settings.fixed_bytes, "bytes_per_pixel": settings.bytes_per_pixel}
    overrides = {name: value for name, value in figures.items() if value is not None}
    if settings.engine == "detectron2":
        from segment.engine.detectron2 import Detectron2

        folder = Path(settings.model)
        return Model(
            folder.name, Detectron2(folder, threads=threads, labels=labels, overrides=overrides), [folder, *own_labels]
        )
    path = locate(settings)
    cache = Path(settings.cache) if settings.cache else None
    engine = engines.load(path, threads=threads, cache=cache, labels=labels, overrides=overrides)
    return Model(path.stem, engine, [path, *own_labels])


def locate(settings: Settings) -> Path:
    """The model file that the settings name: a path, the name of a model of the zoo, or the embedded demo."""
    if not settings.model:
        return EMBEDDED
    path = Path(settings.model)
    if path.suffix == ".onnx" or path.exists():
        return path
    from segment import zoo

    return zoo.model_file(settings.model)
