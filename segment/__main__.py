"""The command line: `python -m segment COMMAND`, or `segment COMMAND` where the distribution is installed.

Here are the arguments of each command; commands.py runs them.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segment
from segment.errors import SegmentError
from segment.extras import explained

try:
    from segment import commands
except ModuleNotFoundError as error:
    sys.exit(f"segment: {explained(error)}")

MODEL = (
    "a name that `segment models` lists, a model file (.onnx), or a checkpoint (.pkl, .pth, .ckpt); files can be URLs"
)
FILE_OR_NAME = "a model file (.onnx) or a name that `segment models` lists; default: the embedded demo model"
RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "PrismRunner")


def run() -> None:
    """The console command `segment`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have bytes that are not text
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 for success, 1 for an error, which is printed; a wrong command line exits with 2."""
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    given, rest = parser.parse_known_args(arguments)
    if rest and given.run is not commands.beam:
        given.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    given.rest = [word for word in rest if word != "--"]
    try:
        return int(given.run(given))
    except SegmentError as error:
        print(f"segment: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"segment: {explained(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segment",
        description="Low-memory instance segmentation.",
        epilog="`segment COMMAND --help` describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"segment-serverless {segment.__version__}")
    commands_of = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_image(commands_of.add_parser("image", help="segment photos and videos"))
    _add_convert(commands_of.add_parser("convert", help="convert a detectron2 config and checkpoint to a model file"))
    _add_quantise(commands_of.add_parser("quantise", help="quantise a converted model file to int8"))
    _add_info(commands_of.add_parser("info", help="describe a model file"))
    _add_models(commands_of.add_parser("models", help="list the models of the zoo"))
    _add_fetch(commands_of.add_parser("fetch", help="download and convert a model"))
    _add_prepare(commands_of.add_parser("prepare", help="download and convert a model, unless it was done before"))
    _add_serve(commands_of.add_parser("serve", help="serve HTTP requests or bucket events"))
    _add_backfill(commands_of.add_parser("backfill", help="segment the photos that are already in a bucket or folder"))
    _add_beam(commands_of)
    _add_cvat(commands_of.add_parser("cvat", help="print the configuration of CVAT's function, see deploy/cvat"))
    commands_of.add_parser("warm", help="load the model once, so that its compiled form is in the cache").set_defaults(
        run=commands.warm
    )
    for command in commands_of.choices.values():
        command.set_defaults(parser=command)  # its usage is shown with its errors
    return parser


def _path(text: str) -> Path:
    """A path that is not empty, as that of an unset shell variable is. It would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _add_image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos", nargs="+", type=_path, metavar="PHOTO", help="photo or video files, or folders of them"
    )
    parser.add_argument("-o", "--output", type=_path, required=True, help="folder for the results")
    _add_set(parser)
    parser.add_argument(
        "-f",
        "--format",
        default="",
        help="files per photo: one or more of png, jpeg, webp, json, ids, cutouts; default: png, or none with -d. "
        "Overlays of a video are an MP4",
    )
    parser.add_argument(
        "-d", "--dataset", default="", help="one dataset of all photos: one or more of coco, parquet, label-studio"
    )
    parser.add_argument(
        "--label-config", type=_path, metavar="FILE", help="Label Studio: labelling config; default: a new one"
    )
    parser.add_argument(
        "--image-root",
        default="",
        metavar="ADDRESS",
        help="Label Studio: start of the photos' addresses; default: /data/local-files/?d=",
    )
    parser.add_argument("-j", "--jobs", default="auto", metavar="N", help="photos processed at once; default: auto")
    parser.set_defaults(run=commands.image)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=_path, metavar="CONFIG", help="detectron2 config, YAML")
    parser.add_argument("weights", type=_path, metavar="WEIGHTS", help="checkpoint: .pkl, .pth, .ckpt")
    parser.add_argument("-o", "--output", type=_path, required=True, help="the model file to write, .onnx")
    parser.add_argument("--labels", type=_path, help="class names: one per line, or detectron2's metadata.json")
    parser.add_argument("--int8", action="store_true", help="quantise to int8")
    _add_calibration(parser)
    parser.set_defaults(run=commands.convert)


def _add_quantise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=_path, metavar="MODEL", help="a file that `convert` wrote")
    parser.add_argument("-o", "--output", type=_path, required=True, help="the model file to write, .onnx")
    _add_calibration(parser)
    parser.set_defaults(run=commands.quantise)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", metavar="MODEL", help=FILE_OR_NAME)
    parser.set_defaults(run=commands.info)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", default="", help="only the models of one dataset: coco, lvis_v0.5, lvis_v1, cityscapes"
    )
    parser.add_argument("--sort", default="", metavar="COLUMN", help="best first: mask-ap, ms-int8, held-int8, ...")
    parser.set_defaults(run=commands.models)


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    _add_preparation(parser)
    parser.add_argument(
        "-o", "--output", type=_path, help="the model file to write, .onnx; default: in the cache folder"
    )
    parser.set_defaults(run=commands.fetch)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    _add_preparation(parser)
    parser.add_argument("--progress", action="store_true", help="write each step to standard output as JSON")
    parser.set_defaults(run=commands.prepare)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", help="segment_http or segment_object; default: FUNCTION_TARGET, or segment_http")
    parser.add_argument("--model", default="", help=f"{MODEL}; default: SEGMENT_MODEL, or the embedded demo model")
    parser.add_argument("--host", default="", help="address to listen on; default: HOST, or all addresses")
    parser.add_argument("--port", default="", help="port to listen on; default: PORT, or 8080")
    _add_preparation(parser)
    parser.set_defaults(run=commands.serve)


def _add_backfill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", default="", metavar="SOURCE", help="gs://bucket/prefix, or a folder")
    parser.add_argument(
        "destination", nargs="?", default="", metavar="DESTINATION", help="gs://bucket/prefix or folder for the results"
    )
    parser.add_argument(
        "--redrive",
        default="",
        metavar="SUBSCRIPTION",
        help="instead of a source, deliver the dead letters in projects/PROJECT/subscriptions/NAME again",
    )
    parser.add_argument(
        "-d",
        "--dataset",
        default="",
        help="also write one dataset of all photos that have results: coco, parquet, or both",
    )
    parser.add_argument(
        "--dataset-only", action="store_true", help="with -d: write the dataset instead of files for each photo"
    )
    parser.set_defaults(run=commands.backfill)


def _add_beam(commands_of: Any) -> None:
    beam = commands_of.add_parser(
        "beam",
        help="segment a bucket or folder on a runner of Apache Beam",
        epilog="Other options are Beam's own, such as --region or --direct_num_workers "
        "(https://beam.apache.org/documentation/runners/capability-matrix/).",
        allow_abbrev=False,
    )
    beam.add_argument(
        "--input", required=True, metavar="PHOTOS", help="gs://bucket/prefix, gs://bucket/**.jpg, a folder"
    )
    beam.add_argument("--output", required=True, help="gs://bucket/prefix or folder for the results")
    beam.add_argument("--runner", choices=RUNNERS, default=RUNNERS[0], help=f"default: {RUNNERS[0]}")
    _add_set(beam)
    beam.add_argument(
        "-f", "--format", default="", help="files per photo; default: SEGMENT_OUTPUT_FORMATS, or none with -d"
    )
    beam.add_argument("-d", "--dataset", default="", help="one dataset of all photos: coco, parquet, or both")
    beam.set_defaults(run=commands.beam)


def _add_cvat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", metavar="MODEL", help=FILE_OR_NAME)
    parser.add_argument("--image", default="segment", help="the service's image, with that model; default: segment")
    parser.set_defaults(run=commands.cvat)


def _add_preparation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="", help="a checkpoint's detectron2 config, a file or URL; default: config.yaml beside it"
    )
    parser.add_argument(
        "--labels",
        default="",
        help="its class names, a file or URL; default: labels.txt beside it, or numbers",
    )
    parser.add_argument("--int8", action="store_true", help="quantise to int8")
    _add_calibration(parser)


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibrate",
        type=_path,
        metavar="FOLDER",
        help="calibrate int8 on photos like those to be segmented; default: on photographs in this package",
    )
    parser.add_argument(
        "--proposals",
        type=int,
        metavar="N",
        help="maximum number of region proposals; fewer take less memory and time. "
        "Default: that of the config (1000 in the zoo), or at most 300 in int8",
    )


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-s",
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the HTTP API, such as render_factor=40 or classes=person",
    )


if __name__ == "__main__":
    run()
