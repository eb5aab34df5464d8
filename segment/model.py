"""The model: takes a photo, returns detections in the photo's pixels.

The service loads the model on first use, not at import: the `functions-framework` command imports the function in
gunicorn's master process and then forks, and a network compiled before the fork hangs or runs on one core.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segment import container, image, process
from segment.detections import Detections
from segment.engine import Engine
from segment.engine.file import load as load_engine
from segment.engine.file import one_stream
from segment.engine.footprint import Footprint
from segment.errors import Cancelled, ModelError
from segment.image import Photo
from segment.labels import class_indices, read_labels
from segment.modelfile import CHECKPOINT_SUFFIXES, MODEL_SUFFIX
from segment.options import parse_option
from segment.plan import detect_size
from segment.resize import Fit, fitted_size
from segment.results import Results
from segment.settings import DETAIL, FIT, MAX_DETECTIONS, MIN_SCORE, RENDER_FACTOR, THREADS, Settings
from segment.tiles import tiles
from segment.tiles.merge import CANDIDATE_SCORE, merge
from segment.wording import counted

FIRST_PHOTO, FIRST_RENDER_FACTOR = (1280, 960), 25
"""Photo size and render factor of the runs at load, which prepare the weights' layout for the most common input."""
EMBEDDED = Path(__file__).parent / "models" / "shapes.onnx"


class Model:
    """A loaded model. `name`: the file's name without extension. `labels`: class names by index."""

    def __init__(self, name: str, engine: Engine, files: Sequence[Path] = ()) -> None:
        self.name, self.engine, self._files = name, engine, files
        self.labels, self.footprint, self.streams = engine.labels, engine.footprint, engine.streams
        self.milliseconds_per_megapixel = 0.0
        self._first_runs()
        self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}, {counted(len(self.labels), 'class', 'classes')}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A model cannot be pickled or copied. Call segment.load in each process; Results can be pickled."
        )

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the model's files, computed on first access."""
        whole = hashlib.sha256()
        for path in _all_files(self._files):
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()[:16]

    @property
    def file_bytes(self) -> int:
        """Total size of the model's files in bytes."""
        return sum(path.stat().st_size for path in _all_files(self._files))

    def __call__(
        self,
        photo: Photo,
        render_factor: int = 25,
        fit: Fit = "aspect",
        min_score: float = 0.5,
        max_detections: int = 100,
        detail: int = 1,
        classes: Iterable[str] = (),
    ) -> Results:
        """Detect the instances in `photo`, in its pixels, sorted by descending score.

        `photo`: file name, content of a file, Pillow image, or (H, W, 3) uint8 RGB array. Files are read as the service
        does, so that the results are the same: the EXIF orientation is applied, and JPEGs are decoded no larger than
        needed. For a Pillow image, apply `PIL.ImageOps.exif_transpose` first if needed. With `detail` 2 or more,
        detail x detail tiles are run too, which finds smaller objects. `classes`: names of the classes to return; empty
        for all.

        Raises OptionError for an invalid option or an unknown class, UnsupportedImage or CorruptImage if a file cannot
        be decoded or an array has another shape or type, OSError if a file cannot be opened.
        """
        _check(render_factor=render_factor, fit=fit, min_score=min_score, max_detections=max_detections, detail=detail)
        names = (classes,) if isinstance(classes, str) else tuple(classes)
        chosen = class_indices(names, self.labels)
        photo_size, read = image.readable(photo)
        size = self.network_size(photo_size, render_factor, fit)
        rgb = read(detect_size(photo_size, size, detail))
        found = self.find(rgb, size, min_score, max_detections, detail, chosen)
        return Results.of(found.at(photo_size), self.labels)

    def network_size(self, size: tuple[int, int], render_factor: int, fit: Fit) -> tuple[int, int]:
        """The (width, height) of the network's input for a photo of `size`."""
        return self.engine.input_size(size) or fitted_size(size, render_factor, fit, self.engine.stride)

    @property
    def fixed_size(self) -> bool:
        """Whether the network's input has a fixed size, so that render factor and fit have no effect."""
        return self.engine.input_size(FIRST_PHOTO) is not None

    def find(
        self,
        photo: Image.Image,
        network_size: tuple[int, int],
        min_score: float,
        max_detections: int,
        detail: int = 1,
        classes: frozenset[int] = frozenset(),
        most_per_run: int = Settings.max_detections,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Detections:
        """Detect the instances in `photo`, an RGB image, in its pixels, sorted by descending score.

        The whole photo and, with `detail` 2 or more, each of the detail x detail tiles are scaled to `network_size`
        (width, height) and run one after the other, in the memory of one run.

        `classes`: indices of the classes to return; empty for all. The network detects all classes, so with `classes`
        it returns `most_per_run` instances instead of `max_detections`, from which those of the classes are selected.
        So it does with tiles, as the instances of one view decide about those of another.

        `cancelled` is called before each tile. Raises Cancelled when it returns True.
        """
        most = max(max_detections, most_per_run) if classes or detail > 1 else max_detections
        lowest = min_score if detail == 1 else min(min_score, CANDIDATE_SCORE)
        seen = photo if photo.size == network_size else image.resize(photo, network_size)
        found = self._run(np.asarray(seen), lowest, most).at(photo.size)
        if detail > 1:
            parts = []
            for tile in tiles(photo.size, detail):
                if cancelled():
                    raise Cancelled
                seen = image.resize(photo, network_size, tile)
                parts.append((tile, self._run(np.asarray(seen), lowest, most)))
            found = merge(found, parts, network_size)
            found = found[found.scores >= min_score]
        if classes:
            found = found[np.isin(found.classes, list(classes))]
        return found[:max_detections]

    def release(self) -> None:
        """Free the memory that is kept between runs."""
        self.engine.release()
        process.trim_heap()

    def _first_runs(self) -> None:
        """One run, and then a run of each stream, so that all memory that a stream keeps is allocated at load."""
        width, height = self.network_size(FIRST_PHOTO, FIRST_RENDER_FACTOR, "aspect")
        black = np.zeros((height, width, 3), np.uint8)
        self._run(black, 1.0, 1)
        if self.streams > 1:
            with ThreadPoolExecutor(self.streams) as pool:
                list(pool.map(lambda _: self._run(black, 1.0, 1), range(self.streams)))

    def _run(self, pixels: NDArray[np.uint8], min_score: float, max_detections: int) -> Detections:
        start = time.perf_counter()
        found = self.engine(pixels, min_score, max_detections)
        elapsed = time.perf_counter() - start
        self.milliseconds_per_megapixel = elapsed * 1e9 / (pixels.shape[0] * pixels.shape[1])
        return found


def _all_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among `paths`, and the files in the folders among them sorted by name."""
    for path in paths:
        yield from sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]


_VALID = {
    "render_factor": RENDER_FACTOR,
    "fit": FIT,
    "min_score": MIN_SCORE,
    "max_detections": MAX_DETECTIONS,
    "detail": DETAIL,
}


def _check(**options: object) -> None:
    """Raise OptionError if an option is invalid."""
    for name, value in options.items():
        parse_option(name, _VALID[name], str(value))


def load(
    model: str | Path = "",
    labels: str | Path | Sequence[str] = "",
    cache: str | Path = "",
    threads: int | None = None,
) -> Model:
    """Load a model: a file, a name from `segment models`, or by default the embedded demo model.

    `labels`: class names by index, or a file with one per line; they replace the model's own. `cache`: folder for
    compiled models; later loads are faster and take less memory. `threads`: 1 to 64, by default the number of CPUs.
    Raises ModelError, OptionError.
    """
    if threads is not None:
        parse_option("threads", THREADS, str(threads))
    settings = Settings(model=str(model), cache=str(cache), threads=threads)
    if isinstance(labels, (str, Path)):
        return from_settings(replace(settings, labels=str(labels)))
    return from_settings(settings, tuple(labels))


def from_settings(
    settings: Settings,
    labels: tuple[str, ...] = (),
    streams: Callable[[Footprint], int] = one_stream,
) -> Model:
    """Load the model that the settings name. Raises ModelError.

    `labels`: class names, instead of a file. `streams`: see engine/file.py; detectron2 always has one.
    """
    threads = settings.threads or container.cpus()
    if settings.labels:
        labels = read_labels(Path(settings.labels))
    labels_files = [Path(settings.labels)] if settings.labels else []
    memory = {"fixed_bytes": settings.fixed_bytes, "bytes_per_pixel": settings.bytes_per_pixel}
    overrides = {name: value for name, value in memory.items() if value is not None}
    if settings.engine == "detectron2":
        from segment.engine.detectron2 import Detectron2

        folder = Path(settings.model)
        original = Detectron2(folder, threads=threads, labels=labels, overrides=overrides)
        return Model(folder.name, original, [folder, *labels_files])
    path = locate(settings)
    cache = Path(settings.cache) if settings.cache else None
    engine = load_engine(path, threads=threads, cache=cache, labels=labels, overrides=overrides, streams=streams)
    return Model(path.stem, engine, [path, *labels_files])


def locate(settings: Settings) -> Path:
    """The model file that the settings name: a path, a model of the zoo, or the embedded demo model.

    Raises ModelError for an unknown name, a model of the zoo that was not fetched, and a checkpoint.
    """
    if not settings.model:
        return EMBEDDED
    path = Path(settings.model)
    is_checkpoint = path.suffix.lower() in CHECKPOINT_SUFFIXES
    if path.suffix == MODEL_SUFFIX or (path.exists() and not is_checkpoint):
        return path
    from segment import zoo

    if is_checkpoint and not zoo.find(settings.model):
        raise ModelError(
            f"{path.name} is a checkpoint, not a model file. Convert it: "
            f"python -m segment convert CONFIG {path.name} -o model{MODEL_SUFFIX}"
        )
    return zoo.model_file(settings.model)
