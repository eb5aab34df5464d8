"""Label Studio: a project's labelling config, and detections as a prediction for it.

The config (https://labelstud.io/tags) is XML. A control tag such as BrushLabels contains the labels of its regions and
refers to an Image tag, which refers to the field of a task's data with the photo:

    <View>
      <Image name="image" value="$photo"/>
      <BrushLabels name="mask" toName="image" model_score_threshold="0.4">
        <Label value="Car" predicted_values="car,truck"/>
      </BrushLabels>
    </View>

`predicted_values` and `model_score_threshold` have the same meaning as in Label Studio's own ML backends
(https://github.com/HumanSignal/label-studio-ml-backend, label_studio_ml/model.py). https://labelstud.io/guide/predictions
describes regions; lengths are percentages of the photo's width and height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from segment.detections import Detections
from segment.errors import RequestError
from segment.labels import listed
from segment.output import brush, rle
from segment.output.coco import dump
from segment.output.polygons import outlines
from segment.settings import MIN_SCORE
from segment.values import BadValue

CLOUD = ("gs://", "s3://", "azure-blob://")
"""Starts of the addresses of photos in cloud storage. Names in them are not percent-encoded."""
MAX_CONFIG = 1 << 20
"""Maximum number of characters of a labelling config."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Control:
    """A control tag of an image.

    `kind`: the type of its regions, such as brushlabels. `name` and `image`: the names of the tag and of its Image tag.
    `field`: the field of a task's data with the photo. `labels`: label by index of the model's class; other classes are
    left out. `min_score`: minimum score of an instance; None is the service's default.
    """

    kind: str
    name: str
    image: str
    field: str
    labels: Mapping[int, str]
    min_score: float | None = None


def controls(config: str, classes: Sequence[str]) -> tuple[Control, ...]:
    """The control tags of a labelling config that have labels for a model with these classes.

    Raises RequestError if the config cannot be parsed, or if there are none.
    """
    root = _parse(config)
    images = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("Image")}
    found, tags = [], [tag for tag in root.iter() if tag.tag in REGIONS]
    for tag in tags:
        image = tag.get("toName", "")
        labels = _labels(tag, classes)
        if images.get(image, "").startswith("$") and labels:
            name, field = tag.get("name", ""), images[image].removeprefix("$")
            found.append(Control(str(tag.tag).lower(), name, image, field, labels, _min_score(tag)))
    if found:
        return tuple(found)
    if tags:
        raise RequestError(
            "None of the labels in the labelling config is a class of this model, or no Image tag has a value such as "
            f"$image. The classes are: {listed(classes)}. Name a label like a class, or list classes in its "
            'predicted_values, as in <Label value="Car" predicted_values="car,truck"/>.'
        )
    raise RequestError(f"The labelling config has none of the tags {', '.join(REGIONS)}.")


def prediction(found: Detections, controls: Sequence[Control], min_score: float, version: str) -> Iterator[bytes]:
    """`found`, in pixels of the photo, as a prediction in JSON, in pieces of at most one region.

    `min_score`: minimum score for controls without their own. `version`: that of the model. The score of the prediction
    is the mean of its regions' scores.
    """
    yield b'{"result":['
    scores: list[float] = []
    for control in controls:
        lowest = min_score if control.min_score is None else control.min_score
        for index in range(len(found)):
            label, score = control.labels.get(int(found.classes[index])), float(found.scores[index])
            if label is None or score < lowest:
                continue
            for value in REGIONS_OF[control.kind](found, index):
                separator = b"," if scores else b""
                scores.append(score)
                yield separator + dump(_region(control, len(scores), found.size, label, score, value))
    mean = sum(scores) / len(scores) if scores else 0.0
    yield b"]," + dump({"score": round(mean, 4), "model_version": version})[1:]


def prediction_version(model: str, digest: str) -> str:
    """The version that predictions are marked with: Label Studio asks for new ones when it changes."""
    return f"{model}-{digest[:8]}"


def _region(control: Control, number: int, size: tuple[int, int], label: str, score: float, value: Json) -> Json:
    return {
        "id": f"region-{number}",
        "from_name": control.name,
        "to_name": control.image,
        "type": control.kind,
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "score": round(score, 4),
        "value": {**value, control.kind: [label]},
    }


def _brush(found: Detections, index: int) -> Iterator[Json]:
    runs = rle.runs(found.masks[index], found.size, by_rows=True)
    if len(runs):
        yield {"format": "rle", "rle": list(brush.encode(runs, found.size))}


def _polygons(found: Detections, index: int) -> Iterator[Json]:
    """One region for each part of the mask, because a polygon in Label Studio has one outline."""
    width, height = found.size
    for outline in outlines(found.masks[index], found.size):
        points = zip(outline[::2], outline[1::2], strict=True)
        yield {"points": [[_percent(x, width), _percent(y, height)] for x, y in points], "closed": True}


def _rectangle(found: Detections, index: int) -> Iterator[Json]:
    (width, height), (x0, y0, x1, y1) = found.size, (float(value) for value in found.boxes[index])
    left, top, right, bottom = _percent(x0, width), _percent(y0, height), _percent(x1, width), _percent(y1, height)
    if left < right and top < bottom:
        size = {"width": round(right - left, 4), "height": round(bottom - top, 4)}
        yield {"x": left, "y": top, **size, "rotation": 0}


def _percent(length: float, whole: int) -> float:
    return round(min(max(100 * length / whole, 0.0), 100.0), 4)


REGIONS: Mapping[str, Callable[[Detections, int], Iterator[Json]]] = {
    "BrushLabels": _brush,
    "PolygonLabels": _polygons,
    "RectangleLabels": _rectangle,
}
"""Control tags, and the functions that make the `value` of their regions from an instance, without the labels."""
REGIONS_OF = {tag.lower(): regions for tag, regions in REGIONS.items()}


def _parse(config: str) -> ElementTree.Element:
    if len(config) > MAX_CONFIG:
        raise RequestError(f"The labelling config has {len(config):,} characters; the maximum is {MAX_CONFIG:,}.")
    if "<!" in config.replace("<!--", ""):  # no entities: a short document can expand to gigabytes
        raise RequestError("The labelling config has a document type or CDATA, which are not supported. Remove it.")
    try:
        return ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise RequestError(f"The labelling config is not valid XML: {error}.") from None


def _labels(tag: ElementTree.Element, classes: Sequence[str]) -> dict[int, str]:
    """The label of each class that has one. A label's `predicted_values` take precedence over its name."""
    index = {_key(name): number for number, name in reversed(list(enumerate(classes)))}
    found: dict[int, str] = {}
    for label in tag.iter("Label"):
        value = label.get("value", "")
        named = [index[key] for key in map(_key, label.get("predicted_values", "").split(",")) if key in index]
        for number in named or [index[key] for key in [_key(value)] if key in index]:
            found.setdefault(number, value)
    return found


def _key(name: str) -> str:
    """A name for comparison: without case, with `_` and `-` as spaces."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _min_score(tag: ElementTree.Element) -> float | None:
    given = tag.get("model_score_threshold")
    if given is None:
        return None
    try:
        return float(MIN_SCORE.parse(given))
    except BadValue as error:
        raise RequestError(f"model_score_threshold of {tag.get('name')} {error}") from None
