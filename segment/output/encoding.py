"""Encode the detections in a photo as result files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from PIL import Image

from segment import image
from segment.detections import Detections
from segment.formats import OVERLAY_FORMATS, File, Format
from segment.options import Options
from segment.output import coco, overlay, pictures
from segment.output.font import Font

Stage = Callable[[str], AbstractContextManager[None]]
"""Returns a context that measures the time of the stage with this name: "draw" or "encode"."""


def encode(
    found: Detections,
    labels: Sequence[str],
    formats: Sequence[Format],
    options: Options,
    about: Mapping[str, object],
    photo: Image.Image | None,
    picture_size: tuple[int, int],
    stage: Stage,
    font: Font | None = None,
) -> tuple[File, ...]:
    """One file for each of `formats`.

    `found`: in pixels of the full-size photo. `about`: how the photo was segmented, for JSON. `photo`: of any size; it
    is drawn on. Only formats that do not show it can be encoded without it. `picture_size`: (width, height) in pixels
    of the pictures that show the photo. `font`: for class names that the built-in fonts lack.
    """
    files = dict[Format, File]()
    with stage("encode"):
        if "json" in formats:
            files["json"] = coco.coco(found, labels, options.segmentation, about)
        if "ids" in formats:
            files["ids"] = pictures.ids(found)
    if photo is not None:
        with stage("draw"):
            picture = photo if photo.size == picture_size else image.resize(photo, picture_size)
        files |= _pictures(picture, found.at(picture_size), labels, formats, options, stage, font)
    return tuple(files[kind] for kind in formats)


def _pictures(
    picture: Image.Image,
    found: Detections,
    labels: Sequence[str],
    formats: Sequence[Format],
    options: Options,
    stage: Stage,
    font: Font | None,
) -> dict[Format, File]:
    """The files that show the photo. `found` is in pixels of `picture`, which is drawn on."""
    files = dict[Format, File]()
    if "cutouts" in formats:
        with stage("encode"):
            files["cutouts"] = pictures.cutouts(picture, found, labels)
    if wanted := [kind for kind in OVERLAY_FORMATS if kind in formats]:
        with stage("draw"):
            shown = {"masks": options.masks, "boxes": options.boxes, "text": options.labels}
            overlay.draw(picture, found, labels, colours=options.colours, font=font, **shown)
        for kind in wanted:
            with stage("encode"):
                files[kind] = pictures.picture(picture, kind)
    return files
