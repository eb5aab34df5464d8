"""Segment a folder of photos and videos: several at a time, resumable, with datasets at the end.

Decoding, drawing and encoding of some photos overlap with runs of the network on others. The service reserves the
memory of each photo before it is decoded, so additional jobs wait and do not use more memory.

A video is treated as a folder of frames: clip.mp4/000001.png and so on in datasets and in the output, numbered as
FFmpeg numbers images. Its overlays, however, are one video.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from segment import container
from segment.dataset import coco, files, labelstudio, photos
from segment.dataset.entry import ERRORS_NAME, Failure, errors_csv, shown
from segment.dataset.job import Job, check_datasets
from segment.dataset.journal import Journal
from segment.dataset.photos import Photo
from segment.dataset.recorder import Recorder
from segment.dataset.segmenter import Segmenter
from segment.dataset.work import Work
from segment.errors import StorageError
from segment.labelling.labelstudio import Control, prediction_version
from segment.loading import Batch
from segment.options import Options
from segment.service import Service
from segment.wording import counted

SHOWN_FAILURES = 20
"""Number of failures that are printed at the end; errors.csv contains all."""


def batch(paths: Sequence[Path], options: Options, jobs: int | None = None) -> Batch:
    """The photos in `paths`, for the service of a run. `jobs`: by default one more than the CPUs."""
    jobs = jobs or container.cpus() + 1
    single = all(path.suffix.lower() in photos.SUFFIXES for path in paths) and not any(path.is_dir() for path in paths)
    return Batch(options, min(jobs, len(paths)) if single else jobs)


def run(paths: Sequence[Path], job: Job, service: Service, jobs: int) -> int:
    """Segment the photos and videos in `paths`, then write the datasets. Returns 0, or 1 if any photo failed.

    `jobs`: number of photos that are processed at a time. Photos that an earlier run with the same options finished are
    skipped. Photos that fail are listed at the end and in errors.csv.

    Raises ModelError, OptionError, StorageError.
    """
    check_datasets(job.datasets, job.options)
    if "parquet" in job.datasets:
        import pyarrow  # noqa: F401 - if it is missing, fail now and not after the last photo
    unlisted: list[OSError] = []
    found = photos.find(paths, job.output, unlisted.append, photos.SUFFIXES | photos.VIDEO_SUFFIXES)
    first = list(itertools.islice(found, 1))  # conflicting paths are refused before anything is written
    service.load()
    controls = _controls(job, service) if "label-studio" in job.datasets else ()
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as refused:
        raise StorageError(
            f"The output folder {job.output} cannot be created: {refused.strerror}. Choose another one."
        ) from None
    with Journal(job.output) as journal:
        skipped = _segment(itertools.chain(first, found), job, service, jobs, journal)
        if not first:
            known = ", ".join(sorted(photos.SUFFIXES | photos.VIDEO_SUFFIXES))
            print(f"There are no photos to segment. In a folder, they are files that end in {known}.", file=sys.stderr)
        if skipped:
            print(f"{counted(skipped, 'photo')} done before")
        for error in unlisted:
            journal.failed(shown(str(error.filename)), files.reason(error))
        try:
            _write_datasets(job, service, journal, controls)
            return 1 if _report(journal, job.output / ERRORS_NAME) else 0
        except OSError as refused:
            raise StorageError(
                f"{refused.filename or job.output} cannot be written: {files.reason(refused)}. The same command "
                "continues."
            ) from None


def _segment(found: Iterable[Photo], job: Job, service: Service, jobs: int, journal: Journal) -> int:
    """Segment photos and videos, with a progress bar. Returns the number of those that were done before."""
    with ThreadPoolExecutor(jobs) as pool, tqdm(unit="photo", disable=not sys.stderr.isatty()) as bar:

        def progress(line: str) -> None:
            bar.update()
            if line:
                tqdm.write(line)

        recorder = Recorder(journal, progress)
        work = Work(Segmenter(job, service, pool, jobs), recorder)
        for photo in found:
            work.add(photo)
        work.finish()
    return recorder.skipped


def _write_datasets(job: Job, service: Service, journal: Journal, controls: Sequence[Control]) -> None:
    """Write the datasets and print their paths. Raises OSError."""
    if "coco" in job.datasets:
        print(coco.write(journal.entries, service.labels, job.output))
    if "parquet" in job.datasets:
        from segment.dataset import parquet

        print(parquet.write(journal.entries(), service.model_name, job.output))
    if "label-studio" in job.datasets:
        _write_tasks(job, service, journal, controls)


def _controls(job: Job, service: Service) -> Sequence[Control]:
    """The control tags of the labelling config. Raises RequestError, OptionError."""
    config = job.label_config or labelstudio.default_config(service.labels)
    return labelstudio.read_config(config, service.labels)


def _write_tasks(job: Job, service: Service, journal: Journal, controls: Sequence[Control]) -> None:
    """Write tasks for Label Studio, and a labelling config unless one was given."""
    version = prediction_version(service.model_name, service.model_digest)
    root, path = job.image_root or labelstudio.IMAGE_ROOT, job.output / labelstudio.FILE_NAME
    print(labelstudio.write(journal.entries(), controls, root, version, path))
    if not job.label_config:
        config = labelstudio.default_config(service.labels).encode()
        print(files.write(job.output / labelstudio.CONFIG_NAME, [config]))


def _report(journal: Journal, path: Path) -> int:
    """Print the failures of the run and write them to `path`, if there are any. Returns their number."""
    failures = journal.failures()
    first = list(itertools.islice(failures, 1))
    path.unlink(missing_ok=True)
    if not first:
        return 0
    count = 0

    def printed(failures: Iterable[Failure]) -> Iterator[Failure]:
        nonlocal count
        for count, failure in enumerate(failures, 1):
            if count <= SHOWN_FAILURES:
                print(f"{failure.name}: {failure.error}", file=sys.stderr)
            yield failure

    files.write(path, errors_csv(printed(itertools.chain(first, failures))))
    print(f"{counted(count, 'photo')} could not be segmented; see {path}", file=sys.stderr)
    return count
