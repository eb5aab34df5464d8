"""The commands of the command line. Each takes its parsed arguments and returns an exit code.

The converter needs `onnx`, so it is only imported by the commands that convert; `serve` and `image` do not need it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segment import container, values, zoo
from segment.engine.footprint import Footprint
from segment.errors import OptionError, SegmentError, SettingsError
from segment.formats import Format
from segment.labels import listed, read_labels
from segment.loading import Batch
from segment.model import locate
from segment.modelfile import CHECKPOINT_SUFFIXES, ModelMetadata
from segment.options import Options, parse_option
from segment.preparation import Fp32, Int8, ModelFile, Precision, Preparation, check_output, resolve, write
from segment.progress import PipeReport, Progress, TerminalReport
from segment.service import Service
from segment.settings import Settings
from segment.values import MIB, BadValue, Value
from segment.wording import counted

if TYPE_CHECKING:
    import onnx

TARGETS = ("segment_http", "segment_object")
"""The function targets in main.py."""
PORT = values.number(int, 1, 65535)


def image(arguments: argparse.Namespace) -> int:
    """Segment photos, videos, and folders of them. Those that fail are reported at the end."""
    from segment.dataset import run
    from segment.dataset.job import FolderDataset, Job

    settings = Settings.from_environment(os.environ)
    datasets = _choices("dataset", arguments.dataset, FolderDataset)
    formats = _choices("format", arguments.format if arguments.format or datasets else "png", Format)
    options = Options.parse(_options(arguments), settings)
    for name, value in (("label-config", arguments.label_config), ("image-root", arguments.image_root)):
        if value and "label-studio" not in datasets:
            raise OptionError(name, f"--{name} is for Label Studio; add -d label-studio, or omit it.")
    config = _text("label-config", arguments.label_config) if arguments.label_config else ""
    job = Job(arguments.output, options, formats, datasets, config, arguments.image_root)
    batch = run.batch(arguments.photos, options, _jobs(arguments.jobs))
    return run.run(arguments.photos, job, Service(settings, batch), batch.jobs)


def convert(arguments: argparse.Namespace) -> int:
    """Convert a config and a checkpoint to a model file."""
    precision = _precision(arguments, arguments.int8)
    precision.check()
    check_output(arguments.output)
    from segment import convert as converter

    if arguments.config.suffix.lower() in CHECKPOINT_SUFFIXES:
        raise OptionError(
            "config", f"{arguments.config} is a checkpoint; the config comes first: convert CONFIG WEIGHTS."
        )
    labels = read_labels(arguments.labels) if arguments.labels else ()
    config = converter.config.read(arguments.config)
    tensors = converter.checkpoint.read(arguments.weights)
    model = converter.convert(config, tensors, labels, arguments.weights.name)
    return _write(model, precision, arguments.output)


def quantise(arguments: argparse.Namespace) -> int:
    """Quantise a converted model file to int8."""
    precision = _precision(arguments, True)
    check_output(arguments.output)
    from segment import convert as converter

    model = converter.load(arguments.model)
    precision.check()
    return _write(model, precision, arguments.output)


def _precision(arguments: argparse.Namespace, int8: bool) -> Precision:
    """The precision that the options name. Raises OptionError."""
    if arguments.proposals is not None and arguments.proposals < 1:
        raise OptionError("proposals", f"--proposals is {arguments.proposals}; it must be at least 1.")
    if int8:
        return Int8(arguments.calibrate, arguments.proposals)
    if arguments.calibrate:
        raise OptionError("calibrate", "--calibrate is for int8; add --int8, or omit it.")
    return Fp32(arguments.proposals)


def _write(model: onnx.ModelProto, precision: Precision, path: Path) -> int:
    report = TerminalReport()
    write(precision.apply(model, report), path, report)
    return _print_summary(path)


def _print_summary(path: Path) -> int:
    """Print a summary of a model file that was written. Returns 0."""
    if converted := ModelMetadata.read(path):
        print(f"{path}: {counted(len(converted.labels), 'class', 'classes')}, {converted.precision}, {_size(path)}")
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Describe a model file, and what this machine can do with it."""
    settings = Settings.from_environment({**os.environ, "SEGMENT_MODEL": arguments.model})
    path = locate(settings)
    converted = ModelMetadata.read(path)
    service = Service(settings)
    about = service.describe()
    rows = {
        "file": f"{path} ({_size(path)})",
        "source": converted.source if converted else "not converted here",
        "precision": converted.precision if converted else "as exported",
        "classes": f"{len(service.labels)}: {listed(service.labels, 10)}",
        "memory of a run": _per_run(service.footprint),
        "limits here": f"{container.memory_limit(settings.memory) / MIB:.0f} MiB of memory, "
        f"{counted(container.cpus(), 'CPU')}",
        "largest render factor": about["largest_render_factor"] or "none; the input of the network has a fixed size",
    }
    for name, value in rows.items():
        print(f"{name:22} {value}")
    return 0


def models(arguments: argparse.Namespace) -> int:
    """List the models of the zoo."""
    from segment.zoo import table

    print(table.text(arguments.dataset, arguments.sort))
    return 0


def fetch(arguments: argparse.Namespace) -> int:
    """Download a model and convert it."""
    preparation = _preparation(arguments)
    return _print_summary(preparation.make(arguments.output, TerminalReport()))


def prepare(arguments: argparse.Namespace) -> int:
    """Prepare a model for serving, unless it is prepared already."""
    report = PipeReport() if arguments.progress else TerminalReport()
    try:
        preparation = _preparation(arguments)
        with contextlib.redirect_stdout(sys.stderr):  # NNCF draws progress bars
            preparation.prepare(report)
    except SegmentError as error:
        report(Progress("failed", str(error)))
        raise
    return 0


def _preparation(arguments: argparse.Namespace) -> Preparation:
    """The preparation of the model that the arguments name. Raises the errors of `resolve`, OptionError."""
    model = arguments.model.removesuffix(zoo.INT8)  # NAME-int8 is what `segment models` and SEGMENT_MODEL call it
    precision = _precision(arguments, arguments.int8 or model != arguments.model)
    mirror = Settings.from_environment(os.environ).zoo_url
    return resolve(model, precision, config=arguments.config, labels=arguments.labels, mirror=mirror)


def cvat(arguments: argparse.Namespace) -> int:
    """Print the configuration of CVAT's function for a model, for deploy/cvat/function.yaml."""
    from segment.labelling import cvat

    name, labels = _name_and_labels(Settings.from_environment({**os.environ, "SEGMENT_MODEL": arguments.model}))
    print(cvat.function_yaml(name, labels, arguments.image), end="")
    return 0


def _name_and_labels(settings: Settings) -> tuple[str, tuple[str, ...]]:
    """The name of the model and its classes. A model of the zoo does not have to be downloaded. Raises ModelError."""
    name = settings.model.removesuffix(zoo.INT8)
    if name in zoo.entries() and not settings.labels and not Path(settings.model).exists():
        return settings.model, zoo.labels(zoo.entry(name))
    service = Service(settings)
    return service.model_name, service.labels


def backfill(arguments: argparse.Namespace) -> int:
    """Segment the photos that are already in a bucket or folder, or those of the dead-lettered events."""
    from segment import log
    from segment.bucket import backfill as filling
    from segment.dataset.job import Dataset

    datasets = _choices("dataset", arguments.dataset, Dataset)
    if arguments.redrive and datasets:
        raise OptionError("dataset", "--redrive writes no dataset; omit --dataset.")
    if arguments.dataset_only and not datasets:
        raise OptionError("dataset-only", "--dataset-only needs the formats of the dataset, such as -d coco,parquet.")
    if arguments.redrive and arguments.source:
        raise OptionError("redrive", "--redrive segments the photos of the dead letters; omit the source.")
    if not arguments.redrive and not arguments.source:
        raise OptionError("source", "There is no source; give gs://bucket/prefix, a folder, or --redrive SUBSCRIPTION.")
    settings = Settings.from_environment(os.environ)
    log.configure(settings.project)
    filling.end_on_sigterm()
    if arguments.redrive:
        from segment.bucket import redrive

        return redrive.run(arguments.redrive, Service(redrive.patient(settings)), os.environ)
    service = Service(filling.patient(settings, datasets), Batch(Options.defaults(settings), filling.WORKERS))
    files = not arguments.dataset_only
    return filling.run(arguments.source, arguments.destination, service, os.environ, datasets=datasets, files=files)


def beam(arguments: argparse.Namespace) -> int:
    """Segment a bucket or a folder on a runner of Apache Beam."""
    import apache_beam  # noqa: F401 - say which extra is missing before anything else

    from segment.beam import pipeline
    from segment.beam.source import Source
    from segment.beam.steps import Job
    from segment.dataset.job import Dataset

    settings = Settings.from_environment(os.environ)
    datasets = _choices("dataset", arguments.dataset, Dataset)
    formats = _choices("format", arguments.format, Format) or (() if datasets else settings.output_formats)
    if formats and datasets and "json" not in formats:
        formats = (*formats, "json")  # from which the dataset takes photos that are done
    options = _options(arguments)
    job = Job(Source.parse(arguments.input), _absolute(arguments.output), options, bool(formats), datasets)
    return pipeline.run(job, formats, arguments.runner, arguments.rest, os.environ)


def serve(arguments: argparse.Namespace) -> int:
    """Serve a function target, with the variables of the functions framework; prepare the model meanwhile."""
    from segment.web import server

    host = arguments.host or os.environ.get("HOST") or "0.0.0.0"
    port = parse_option("--port", PORT, arguments.port) if arguments.port else _variable("PORT", PORT, 8080)
    target = arguments.target or os.environ.get("FUNCTION_TARGET") or "segment_http"
    source = os.environ.get("FUNCTION_SOURCE")
    if not source and target not in TARGETS:
        raise SettingsError(f"The function target is {target!r}; it must be one of {', '.join(TARGETS)}.")
    command: list[str] = []
    settings = Settings.from_environment(os.environ)
    arguments.model = arguments.model or settings.model
    _check_used(arguments, settings)
    if arguments.model and settings.engine == "detectron2":
        os.environ["SEGMENT_MODEL"] = arguments.model
    elif arguments.model:
        preparation = _preparation(arguments)
        os.environ["SEGMENT_MODEL"] = str(preparation.path)
        if isinstance(preparation, ModelFile) and preparation.labels:
            os.environ["SEGMENT_LABELS"] = str(preparation.labels)
        if not preparation.ready:
            command = [sys.executable, "-m", "segment", "prepare", "--progress", *_prepare_arguments(arguments)]
    threads = _variable("THREADS", values.number(int, 1, 1000), 8)
    return server.run(host, port, threads, source, target, command)


def _check_used(arguments: argparse.Namespace, settings: Settings) -> None:
    """Refuse the options of a preparation if no model is prepared. Raises OptionError."""
    for name in ("int8", "config", "labels", "calibrate", "proposals"):
        if getattr(arguments, name) and settings.engine != "openvino":
            raise OptionError(name, f"--{name} has no effect with SEGMENT_ENGINE={settings.engine}; omit it.")
        if getattr(arguments, name) and not arguments.model:
            raise OptionError(name, f"--{name} is for a model of your choice; name it with --model (for make: MODEL=).")


def _variable(name: str, value: Value, default: int) -> int:
    """A number in one of functions-framework's environment variables. Raises SettingsError."""
    try:
        return int(value.parse(os.environ.get(name) or str(default)))
    except BadValue as error:
        raise SettingsError(f"{name} {error}") from None


def _prepare_arguments(arguments: argparse.Namespace) -> list[str]:
    """The arguments of `prepare` for the model of `serve`."""
    given = [arguments.model, *(["--int8"] if arguments.int8 else [])]
    for name in ("config", "labels", "calibrate", "proposals"):
        if value := getattr(arguments, name):
            given += [f"--{name}", str(value)]
    return given


def warm(arguments: argparse.Namespace) -> int:
    """Load the model once, so that its compiled form is in the cache."""
    service = Service(Settings.from_environment(os.environ))
    service.load()
    print(f"{service.model_name}: {counted(len(service.labels), 'class', 'classes')}, ready")
    return 0


def _choices(name: str, given: str, choices: Any) -> tuple[Any, ...]:
    """The names in `given`, separated by commas, each one of `choices`; empty for none. Raises OptionError."""
    return tuple(parse_option(f"--{name}", values.several(choices), given)) if given else ()


def _text(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(name, f"--{name}: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise OptionError(name, f"--{name}: {path} is not text in UTF-8. Save it as UTF-8.") from None


def _jobs(given: str) -> int | None:
    """The number of jobs; None for auto. Raises OptionError."""
    return parse_option("--jobs", values.auto_or(values.number(int, 1, 256)), given)  # type: ignore[no-any-return]


def _absolute(address: str) -> str:
    """A bucket's address as it is, a folder's from the root, for a process that runs elsewhere."""
    return address if address.startswith("gs://") else str(Path(address).resolve())


def _options(arguments: argparse.Namespace) -> dict[str, str]:
    """The options given with -s, by name. Raises OptionError."""
    options: dict[str, str] = {}
    for name, value in map(_option, arguments.set):
        if name in options:
            raise OptionError(name, f"-s {name}=... is given twice.")
        options[name] = value
    if "format" in options:
        raise OptionError(
            "format", "-s format=... has no effect on files. Give their formats with -f, such as -f png,json."
        )
    return options


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise OptionError(name, f"{text!r} is not an option; use OPTION=VALUE, such as render_factor=40.")
    return name, value


def _per_run(memory: Footprint) -> str:
    """Memory of a run as text."""
    return (
        f"{memory.fixed_bytes / MIB:.0f} MiB, {counted(round(memory.bytes_per_pixel), 'byte')} per pixel, "
        f"{memory.bytes_per_instance / 1024:.0f} KiB per instance"
    )


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
