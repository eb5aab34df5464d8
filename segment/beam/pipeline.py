"""Build the pipeline and run it on a runner.

Invalid addresses, settings, options and Beam options are refused here, before the runner starts.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.pvalue import AsIter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from segment import container
from segment.beam.datasets import Describe, Write, WriteParquet
from segment.beam.steps import FAILURES, METRICS, Divide, Job, List, Segment
from segment.beam.worker import Worker
from segment.bucket.store import check_apart
from segment.bucket.tally import FAILED, summary
from segment.dataset.job import check_datasets
from segment.errors import PipelineError, SettingsError
from segment.labels import read_labels
from segment.model import locate
from segment.modelfile import ModelMetadata
from segment.options import Options
from segment.settings import PREFIX, Settings

log = logging.getLogger(__name__)

LOCAL = ("DirectRunner", "PrismRunner")
"""Runners whose workers can read the files of this machine."""
ONE_PROCESS = "no_use_multiple_sdk_containers"
"""Without it, Dataflow starts a process per CPU, each of which loads the model
(https://cloud.google.com/dataflow/docs/guides/large-inputs-and-models)."""


def run(job: Job, formats: Sequence[Any], runner: str, flags: Sequence[str], environment: Mapping[str, str]) -> int:
    """Segment the photos of `job.source` on `runner` with the Beam options `flags`.

    `environment`: contains the SEGMENT_ settings. Returns 0 if all photos are done, including those that cannot be
    segmented, and 1 if any failed for a reason that may pass. Raises SettingsError, OptionError, ModelError or
    StorageError before the runner starts, and PipelineError if the pipeline fails.
    """
    options = pipeline_options(runner, flags)
    settings = Settings.from_environment(environment)
    _check(job, runner, settings)
    if runner in LOCAL:
        _check_model(Options.parse(job.options, settings), settings)
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX) and value.strip()}
    worker = Worker(given, tuple(formats), job.options, processes(runner, options))
    try:
        # Beam's DirectRunner would download and start Prism, if it could, and ignore how many workers are asked for.
        pipeline = beam.Pipeline(FnApiRunner() if runner == "DirectRunner" else None, options)
    except ValueError as error:  # an option that this runner needs is missing or invalid
        raise SettingsError(f"Beam's options: {' '.join(str(error).split())}") from None
    build(pipeline, job, worker)
    try:
        result = pipeline.run()
        if template := options.view_as(GoogleCloudOptions).template_location:
            print(f"Wrote the template {template}")
            return 0
        if options.view_as(StandardOptions).no_wait_until_finish:
            print(f"Submitted to {runner}")
            return 0
        result.wait_until_finish()
    except Exception as error:  # Beam has no base class for errors; those of workers arrive as text
        log.debug("The pipeline failed", exc_info=True)
        raise PipelineError(f"The pipeline failed on {runner}: {_reason(str(error))}") from error
    counts = _counts(result)
    print(summary(counts))
    return 1 if counts.get(FAILED) else 0


def build(pipeline: beam.Pipeline, job: Job, worker: Worker) -> None:
    """Add the steps to a pipeline."""
    photos = (
        pipeline
        | "Source" >> beam.Create([job.source])
        | "Divide" >> beam.ParDo(Divide(worker))
        | "Spread ranges" >> beam.Reshuffle()
        | "List" >> beam.ParDo(List(job, worker))
        | "Spread photos" >> beam.Reshuffle()
    )
    found, failures = photos | "Segment" >> beam.ParDo(Segment(job, worker)).with_outputs(FAILURES, main="found")
    nothing = pipeline | "Nothing" >> beam.Create([])
    models = pipeline | "Models" >> beam.Create([None] if job.datasets else [])
    model = AsIter(models | "Describe" >> beam.ParDo(Describe(worker)))
    parquet_files = nothing
    if "parquet" in job.datasets:
        parts = found | "By part" >> beam.WithKeys(lambda photo: photo.part) | "Parts" >> beam.GroupByKey()
        parquet_files = parts | "WriteParquet" >> beam.ParDo(WriteParquet(job, worker), model=model)
    (
        pipeline
        | "Once" >> beam.Create([None])
        | "Write"
        >> beam.ParDo(
            Write(job, worker),
            found=AsIter(found if "coco" in job.datasets else nothing),
            failures=AsIter(failures),
            parquet_files=AsIter(parquet_files),
            model=model,
        )
    )


def pipeline_options(runner: str, flags: Sequence[str]) -> PipelineOptions:
    """Beam's options. Raises SettingsError for unknown, missing and invalid ones."""
    options = PipelineOptions([f"--runner={runner}", *flags])
    given = _parsed(options)
    if runner in {"DirectRunner", "DataflowRunner"}:  # the others have options that only their servers know
        unknown = given.keys() - PipelineOptions([]).get_all_options().keys()
        if unknown:
            raise SettingsError(f"Beam has no option --{min(unknown)}. See: python -m segment beam --help")
    if runner == "DataflowRunner":
        import apitools  # noqa: F401 - otherwise Beam fails later, with a traceback

        debug = options.view_as(DebugOptions)
        debug.experiments = list(dict.fromkeys([*(debug.experiments or []), ONE_PROCESS]))
    return options


def _parsed(options: PipelineOptions) -> dict[str, Any]:
    """All options by name, including unknown ones. Raises SettingsError for an invalid value."""
    with redirect_stderr(io.StringIO()) as usage:
        try:
            return dict(options.get_all_options(retain_unknown_options=True))
        except SystemExit:
            reason = usage.getvalue().strip().splitlines()[-1].partition("error: ")[2]
    raise SettingsError(f"Beam's options: {reason}")


def processes(runner: str, options: PipelineOptions) -> int:
    """Number of processes that share a machine's memory: the workers, and the runner if it runs on the same machine."""
    if runner == "DirectRunner":
        direct = options.view_as(DirectOptions)
        if direct.direct_running_mode == "multi_processing":
            return int(direct.direct_num_workers or container.cpus()) + 1
    elif runner != "DataflowRunner":
        portable = options.view_as(PortableOptions)
        if portable.environment_type != "LOOPBACK":
            return int(portable.sdk_worker_parallelism or container.cpus())
    return 1


def _check(job: Job, runner: str, settings: Settings) -> None:
    """Check the job. Raises SettingsError, OptionError, StorageError."""
    options = Options.parse(job.options, settings)
    check_datasets(job.datasets, options)
    seconds = settings.storage_seconds
    source, destination = job.source.location(seconds), job.destination(seconds)
    for address in (source.store.address, destination.store.address):
        if runner == "DataflowRunner" and not address.startswith("gs://"):
            raise SettingsError(f"{address} must be gs://bucket/prefix: Dataflow's workers can only access buckets.")
    check_apart(source.address, destination.address)
    for location in (source, destination):  # request one object, so that a missing bucket is noticed now
        next(iter(location.store.objects(location.prefix)), None)


def _check_model(options: Options, settings: Settings) -> None:
    """Check that the model exists and has the classes in `options`. Raises ModelError, OptionError.

    The model is not loaded. Files of other families may not contain their labels; then the workers check the classes.
    """
    if settings.engine != "openvino":
        return
    converted = ModelMetadata.read(locate(settings))
    labels = read_labels(Path(settings.labels)) if settings.labels else converted.labels if converted else ()
    if labels:
        options.class_indices(labels)


def _reason(message: str) -> str:
    """The reason in a message that may contain a worker's traceback: one of our errors, or else the last line."""
    ours = re.findall(r"segment\.errors\.\w+: (.+)", message)
    lines = ours or [line for line in message.splitlines() if line.strip()] or ["no reason was given"]
    return str(lines[-1]).strip().partition(" [while running")[0]


def _counts(result: Any) -> dict[str, int]:
    """Number of photos by outcome, the most frequent first."""
    found = result.metrics().query(MetricsFilter().with_namespace(METRICS))["counters"]
    counts = {counter.key.metric.name: counter.result for counter in found}
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))
