"""A function of nuclio (https://docs.nuclio.io) for CVAT, with the same response as CVAT's path in labelling.py.

nuclio calls `init_context` once in each worker process, then `handler` for each request. The configuration in
deploy/cvat installs nuclio's runtime into the image of this service.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from segment import log
from segment.errors import RequestError, SegmentError
from segment.labelling import cvat
from segment.options import Options
from segment.service import Service
from segment.settings import Settings
from segment.web.problems import problem_of
from segment.web.upload import from_base64


def init_context(context: Any, environment: Mapping[str, str]) -> None:
    """Load the model. `context`: nuclio_sdk.Context. Raises SettingsError, ModelError."""
    settings = Settings.from_environment(environment)
    log.configure(settings.project)
    context.user_data.service = Service(settings)
    context.user_data.service.load()


def handler(context: Any, event: Any) -> Any:
    """The shapes in a photo, or a problem document. `event`: nuclio_sdk.Event, whose body is parsed JSON."""
    service: Service = context.user_data.service
    try:
        with ExitStack() as until:
            body = b"".join(_shapes(service, event.body, until))
        return context.Response(body=body, content_type="application/json", status_code=200)
    except SegmentError as error:
        response = problem_of(error)
        return context.Response(
            body=response.get_data(), content_type="application/problem+json", status_code=response.status_code
        )


def _shapes(service: Service, body: Any, until: ExitStack) -> list[bytes]:
    if not isinstance(body, Mapping) or not isinstance(body.get("image"), str):
        raise RequestError('The body must be JSON with a photo in base64, such as {"image": "/9j/4AAQ..."}.')
    raw_options = {"min_score": json.dumps(body["threshold"])} if "threshold" in body else {}
    options = Options.parse(raw_options, service.settings)
    until.enter_context(service.receive()).grow(len(body["image"]))
    data = from_base64(body["image"])
    return service.annotate(data, options, lambda found: cvat.shapes(found, service.labels), until)
