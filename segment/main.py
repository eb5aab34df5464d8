"""The two function targets: `segment_http` answers requests, `segment_object` answers bucket events.

functions-framework imports this file before it serves, and may fork then, so nothing is loaded here: the first request
does that, or a probe of /ready. An invalid setting or a missing package stops the start with one line.
"""

from __future__ import annotations

import os

import flask
import functions_framework
from cloudevents.http import CloudEvent

from segment import log
from segment.bucket import events
from segment.errors import MissingPackage, SettingsError
from segment.service import Service
from segment.settings import Settings
from segment.web import app

try:
    settings = Settings.from_environment(os.environ)
    if flask.has_app_context() and flask.current_app.name == "segment_object":
        events.prepare(flask.current_app, settings)
except (MissingPackage, SettingsError) as error:
    raise SystemExit(f"segment: {error}") from None

log.configure(settings.project)
service = Service(settings)
if flask.has_app_context():
    flask.current_app.extensions["segment"] = service
    app.add_probes(flask.current_app, service)


@functions_framework.http
def segment_http(request: flask.Request) -> flask.Response:
    """A photo in, the segmented photo out; or the page."""
    return app.handle(service, request)


@functions_framework.cloud_event
def segment_object(event: CloudEvent) -> None:
    """A new object in a bucket: its photo is segmented, the results are written."""
    events.handle(service, event)
