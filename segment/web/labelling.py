"""Labelling tools over HTTP: a Label Studio ML backend, and CVAT's automatic annotation.

| tool | path | methods | response |
|---|---|---|---|
| label-studio | `/setup` | POST | the model's version; 400 if the labelling config has no label of the model |
| | `/predict` | POST | predictions for tasks |
| | `/webhook` | POST | a status; annotations are ignored, because the model does not learn from them |
| cvat | `/api/functions` | GET | the list of functions, which is one, in the format of nuclio's dashboard |
| | `/api/functions/segment` | GET | this function |
| | `/api/function_invocations` | POST | the shapes in a photo |

Label Studio also calls `/health` (app.py). The interfaces are those that label_studio/ml/api_connector.py and
cvat/apps/lambda_manager/views.py call. They are only served if SEGMENT_LABELLING contains the tool.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from flask import Request, Response
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import NotFound, Unauthorized

from segment.detections import Detections
from segment.errors import Busy, Cancelled, ModelError, OptionError, RequestError, SegmentError
from segment.labelling import cvat, labelstudio
from segment.labelling.labelstudio import Control
from segment.options import Options
from segment.service import Service
from segment.settings import Labelling, Settings
from segment.web.exchange import Exchange, Handler, handler
from segment.web.responses import json_response
from segment.web.taskphoto import TaskPhotos

log = logging.getLogger(__name__)

PREDICT_SECONDS = 80.0
"""Time limit for a request. Label Studio waits 100 s for the predictions of all its tasks (ML_TIMEOUT_PREDICT). Tasks
that are not finished by then get no prediction; Label Studio requests them again."""

Json = dict[str, Any]


def routes(settings: Settings) -> Mapping[str, Mapping[str, Handler]]:
    """Path -> method -> handler of the labelling tools in the settings."""
    found: dict[str, Mapping[str, Handler]] = {}
    for tool, paths in ROUTES.items():
        if tool in settings.labelling:
            found |= paths
    return found


# Label Studio


@handler
def _setup(exchange: Exchange) -> Response:
    _check_password(exchange)
    body = exchange.upload_object()
    config = _field(body, "schema", str)
    if any(tag in config for tag in labelstudio.REGIONS):  # a new project has none yet
        _controls(exchange.service, config)
    return json_response({"model_version": _version(exchange.service)})


@handler
def _webhook(exchange: Exchange) -> Response:
    _check_password(exchange)
    exchange.upload_object()
    return json_response({"status": "ok"})


@handler
def _predict(exchange: Exchange) -> Response:
    _check_password(exchange)
    body = exchange.upload_object()
    controls = _controls(exchange.service, _field(body, "label_config", str))
    tasks, photos = _field(body, "tasks", list), TaskPhotos(exchange.service.settings)
    answers: list[list[bytes]] = []
    failures: list[SegmentError] = []
    exchange = replace(exchange, end=time.monotonic() + PREDICT_SECONDS)
    for task in tasks:
        try:
            answers.append(_predict_in_time(exchange, task, controls, photos))
        except (Cancelled, ModelError):
            raise
        except SegmentError as error:
            number = task.get("id") if isinstance(task, dict) else None
            log.warning("Task %s has no prediction: %s", number, error)
            failures.append(error)
            answers.append([b"[]"])  # {"result": []} would be a prediction without instances, and never requested again
    if failures and len(failures) == len(tasks):
        raise failures[0]
    return _stream(chain([b'{"results":['], *_separated(answers), [b"]}"]))


def _check_password(exchange: Exchange) -> None:
    """Raise Unauthorized if the settings contain a password and the request does not."""
    expected = exchange.service.settings.label_studio_password
    given = exchange.request.authorization
    sent = (given.password if given and given.type == "basic" else None) or ""
    if expected and not hmac.compare_digest(sent.encode(), expected.encode()):
        raise Unauthorized(
            "The password is wrong or missing. Give SEGMENT_LABEL_STUDIO_PASSWORD to Label Studio, as Basic "
            "Authentication with any user name, where you connect the model.",
            www_authenticate=WWWAuthenticate("basic", {"realm": "segment"}),
        )


def _controls(service: Service, config: str) -> Sequence[Control]:
    """The controls of the config. Errors are logged, because Label Studio refers its users to the log."""
    try:
        return labelstudio.controls(config, service.labels)
    except RequestError as error:
        log.warning("%s", error)
        raise


def _predict_in_time(exchange: Exchange, task: object, controls: Sequence[Control], photos: TaskPhotos) -> list[bytes]:
    """As `_predict_task`. Raises Busy when the exchange is late."""
    with suppress(Cancelled):
        if not exchange.cancelled():
            return _predict_task(exchange, task, controls, photos)
    if not exchange.late():  # the client has disconnected
        raise Cancelled
    raise Busy(f"The time limit of {PREDICT_SECONDS:g} s per request was reached; request the rest again.")


def _predict_task(exchange: Exchange, task: object, controls: Sequence[Control], photos: TaskPhotos) -> list[bytes]:
    """A task's prediction in JSON, in pieces; a list of predictions if several fields contain photos."""
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        raise RequestError('A task must be an object with `data`, such as {"data": {"image": "https://..."}}.')
    service, version = exchange.service, _version(exchange.service)
    defaults = Options.defaults(service.settings)
    lowest = min(defaults.min_score if control.min_score is None else control.min_score for control in controls)
    options = replace(defaults, min_score=lowest)
    answers = []
    for field in dict.fromkeys(control.field for control in controls):
        own = [control for control in controls if control.field == field]

        def write(found: Detections, own: Sequence[Control] = own) -> Iterable[bytes]:
            return labelstudio.prediction(found, own, defaults.min_score, version)

        with service.receive() as held:  # for this photo only
            data = photos.read(replace(exchange, held=held), task, field)
            answers.append(service.annotate(data, options, write, exchange.until, exchange.cancelled))
    return answers[0] if len(answers) == 1 else [b"[", *chain(*_separated(answers)), b"]"]


def _version(service: Service) -> str:
    return labelstudio.prediction_version(service.model_name, service.model_digest)


# CVAT


def _functions(service: Service, _request: Request) -> Response:
    return json_response({cvat.NAME: cvat.function(service.model_name, service.labels)})


def _function(service: Service, _request: Request) -> Response:
    return json_response(cvat.function(service.model_name, service.labels))


@handler
def _invoke(exchange: Exchange) -> Response:
    service, request = exchange.service, exchange.request
    name = request.headers.get("X-Nuclio-Function-Name", cvat.NAME)
    if name != cvat.NAME:
        raise NotFound(f"There is no function {name[:100]!r}; the only one is {cvat.NAME!r}.")
    upload = exchange.upload()
    raw_options = dict(upload.raw_options)
    if "threshold" in raw_options:
        if "min_score" in raw_options:
            raise OptionError("threshold", "threshold and min_score are the same; send one of them.")
        raw_options["min_score"] = raw_options.pop("threshold")
    options = Options.parse(raw_options, service.settings)
    data = exchange.photo(upload)

    def write(found: Detections) -> Iterable[bytes]:
        return cvat.shapes(found, service.labels)

    return _stream(service.annotate(data, options, write, exchange.until, exchange.cancelled))


# Both


def _field(body: Json, name: str, kind: type[str] | type[list[Any]]) -> Any:
    value = body.get(name)
    if not isinstance(value, kind):
        expected = "a string" if kind is str else "a list"
        raise RequestError(f"`{name}` must be {expected}, as Label Studio sends it.")
    return value


def _stream(pieces: Iterable[bytes]) -> Response:
    """A JSON response that is sent in pieces, without a copy of the whole."""
    return Response(iter(pieces), content_type="application/json", headers={"Cache-Control": "no-store"})


def _separated(lists: Sequence[Sequence[bytes]]) -> Iterable[Sequence[bytes]]:
    """The lists, separated by commas."""
    for index, pieces in enumerate(lists):
        if index:
            yield [b","]
        yield pieces


ROUTES: Mapping[Labelling, Mapping[str, Mapping[str, Handler]]] = {
    "label-studio": {
        "/setup": {"POST": _setup},
        "/predict": {"POST": _predict},
        "/webhook": {"POST": _webhook},
    },
    "cvat": {
        "/api/functions": {"GET": _functions},
        f"/api/functions/{cvat.NAME}": {"GET": _function},
        "/api/function_invocations": {"POST": _invoke},
    },
}
