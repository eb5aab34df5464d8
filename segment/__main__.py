"""The command line: `python -m segment COMMAND`.

image     segment photos and videos into a folder
convert   a detectron2 config and checkpoint into a model file
quantise  a converted model file into int8
info      what a model file is
models    the models that can be had by name
fetch     download a model and convert it
prepare   the same unless that was done
serve     serve HTTP requests or bucket events, after preparing the model
backfill  segment what is in a bucket or folder already
beam      the same on a runner of Apache Beam, such as Dataflow
cvat      print the configuration of CVAT's function for a model
warm      load the model once, so that its compiled form is in the cache
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segment import commands
from segment.errors import SegmentError
from segment.extras import EXTRAS, missing

CALIBRATE = "calibrate int8 on photos like those to be segmented; default: on photographs that come with this package"
MODEL = "a name that `segment models` lists, a model file (.onnx), or a checkpoint (.pkl, .pth); files can be URLs"

RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "PrismRunner")


def run() -> None:
    """The console command `segment`."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a failure that was explained, 2 a wrong command line."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if rest and given.run is not commands.beam:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    given.rest = [word for word in rest if word != "--"]
    try:
        return int(given.run(given))
    except SegmentError as error:
        print(f"segment: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print(f"segment: {missing(package)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segment", description="Low-memory instance segmentation.")
    commands_of = parser.add_subparsers(required=True, metavar="COMMAND")

    image = commands_of.add_parser("image", help="segment photos and videos into a folder")
    image.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="photo or video files, or folders of them")
    image.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    image.add_argument(
        "-s", "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option, such as render_factor=40"
    )
    image.add_argument(
        "-f",
        "--format",
        default="",
        help="files per photo: one or more of png, jpeg, webp, json, ids, cutouts; default: png, or none with -d. "
        "Overlays of a video are an MP4",
    )
    image.add_argument(
        "-d", "--dataset", default="", help="one dataset of all photos: one or more of coco, parquet, label-studio"
    )
    image.add_argument(
        "--label-config",
        type=Path,
        metavar="FILE",
        help="Label Studio: labelling config; default: a new one",
    )
    image.add_argument(
        "--image-root",
        default="",
        metavar="ADDRESS",
        help="Label Studio: start of the photos' addresses; default: /data/local-files/?d=",
    )
    image.add_argument("-j", "--jobs", default="auto", metavar="N", help="photos in work at a time; default: auto")
    image.set_defaults(run=commands.image)

    convert = commands_of.add_parser("convert", help="a detectron2 config and checkpoint into a model file")
    convert.add_argument("config", type=Path, metavar="CONFIG", help="detectron2 config, full, YAML")
    convert.add_argument("weights", type=Path, metavar="WEIGHTS", help="checkpoint, .pkl or .pth")
    convert.add_argument("-o", "--output", type=Path, required=True, help="the model file to write, .onnx")
    convert.add_argument("--labels", type=Path, help="class names: one per line, or detectron2's metadata.json")
    convert.add_argument("--int8", action="store_true", help="quantise to int8")
    convert.add_argument("--calibrate", type=Path, metavar="FOLDER", help=CALIBRATE)
    _add_proposals(convert)
    convert.set_defaults(run=commands.convert)

    quantise = commands_of.add_parser("quantise", help="a converted model file into int8")
    quantise.add_argument("model", type=Path, metavar="MODEL", help="a file that `convert` wrote")
    quantise.add_argument("-o", "--output", type=Path, required=True, help="the model file to write, .onnx")
    quantise.add_argument("--calibrate", type=Path, metavar="FOLDER", help=CALIBRATE)
    _add_proposals(quantise)
    quantise.set_defaults(run=commands.quantise)

    info = commands_of.add_parser("info", help="what a model file is")
    info.add_argument("model", nargs="?", default="", help="a file or a name; without it the embedded demo")
    info.set_defaults(run=commands.info)

    models = commands_of.add_parser("models", help="the models that can be had by name")
    models.add_argument("--dataset", default="", help="only the models of one data set: coco, lvis_v0.5, cityscapes")
    models.add_argument("--sort", default="", metavar="COLUMN", help="best first: mask-ap, ms-int8, held-int8, ...")
    models.set_defaults(run=commands.models)

    fetch = commands_of.add_parser("fetch", help="download a model and convert it")
    prepare = commands_of.add_parser("prepare", help="make a model ready to serve unless that was done")
    for parser_of, run_command in ((fetch, commands.fetch), (prepare, commands.prepare)):
        parser_of.add_argument("model", metavar="MODEL", help=MODEL)
        _add_preparation(parser_of)
        parser_of.set_defaults(run=run_command)
    fetch.add_argument("-o", "--output", type=Path, help="the model file to write; by default in the cache folder")
    prepare.add_argument("--progress", action="store_true", help="write each step to standard output as JSON")

    serve = commands_of.add_parser(
        "serve", help="serve HTTP requests or bucket events, after preparing the model; see PORT, HOST, THREADS"
    )
    serve.add_argument("--target", help="segment_http or segment_object; by default FUNCTION_TARGET, or segment_http")
    serve.add_argument("--model", default="", help=f"{MODEL}; by default SEGMENT_MODEL, or the embedded demo")
    _add_preparation(serve)
    serve.set_defaults(run=commands.serve)

    _add_backfill(commands_of)
    _add_beam(commands_of)
    commands_of.add_parser("warm", help="load the model once").set_defaults(run=commands.warm)
    _add_cvat(commands_of.add_parser("cvat", help="print the configuration of CVAT's function, see deploy/cvat"))
    return parser


def _add_backfill(commands_of: Any) -> None:
    backfill = commands_of.add_parser("backfill", help="segment what is in a bucket or folder already")
    backfill.add_argument("source", nargs="?", default="", help="gs://bucket/prefix, or a folder")
    backfill.add_argument("destination", nargs="?", default="", help="gs://bucket/prefix or folder for the results")
    backfill.add_argument(
        "--redrive",
        default="",
        metavar="SUBSCRIPTION",
        help="instead of a source, deliver the dead letters in projects/PROJECT/subscriptions/NAME again",
    )
    backfill.add_argument(
        "-d",
        "--dataset",
        default="",
        help="also write one dataset of all photos that have results: coco, parquet, or both",
    )
    backfill.add_argument(
        "--dataset-only", action="store_true", help="with -d: write the dataset instead of files for each photo"
    )
    backfill.set_defaults(run=commands.backfill)


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
    beam.add_argument(
        "-s", "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option, such as render_factor=40"
    )
    beam.add_argument(
        "-f", "--format", default="", help="files per photo; default: SEGMENT_OUTPUT_FORMATS, or none with -d"
    )
    beam.add_argument("-d", "--dataset", default="", help="one dataset of all photos: coco, parquet, or both")
    beam.set_defaults(run=commands.beam)


def _add_cvat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", help="a file or a name; without it the embedded demo")
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
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help=CALIBRATE)
    _add_proposals(parser)


def _add_proposals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--proposals",
        type=int,
        metavar="N",
        help="look twice at N regions at most: less memory and time. "
        "Default: what the config says (1000 in the zoo), in int8 300 of them",
    )


if __name__ == "__main__":
    run()
