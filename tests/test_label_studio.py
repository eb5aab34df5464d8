"""The tasks of a real Label Studio server, on SQLite, are pre-annotated by this service.

Slow: Label Studio is installed into an environment of its own, and its first start creates a database.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from pycocotools import mask as coco

from devtools.server import ROOT, Server, free_port, serve
from segment.__main__ import main
from tests.environments import LABEL_STUDIO, environment

pytestmark = pytest.mark.slow

EMAIL, PASSWORD = "tester@example.com", "not-secret-123"
START_SECONDS = 1200
CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="circle"/><Label value="Square"/></BrushLabels>
<PolygonLabels name="outline" toName="image"><Label value="star"/></PolygonLabels>
<RectangleLabels name="box" toName="image"><Label value="Round" predicted_values="ring"/></RectangleLabels></View>"""
PHOTOS = ("scene-1.jpg", "scene-2.jpg", "scene-3.jpg")


@dataclass
class LabelStudio:
    """A running Label Studio, and a personal access token of its user."""

    url: str
    token: str

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Call the API and return the JSON of the response."""
        access = requests.post(f"{self.url}/api/token/refresh/", json={"refresh": self.token}, timeout=60)
        headers = {"Authorization": f"Bearer {access.json()['access']}"}
        answer = requests.request(method, self.url + path, headers=headers, timeout=300, **arguments)
        assert answer.ok, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    """Label Studio with one user. Unlike by default, services on local addresses are allowed."""
    programs = environment(LABEL_STUDIO)
    folder, port = tmp_path_factory.mktemp("label-studio"), free_port()
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "DJANGO_DB": "sqlite",
        "COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "SSRF_PROTECTION_ENABLED": "false",
        "ML_BLOCK_LOCAL_IP": "false",
    }
    command: list[str | Path] = [programs / "label-studio", "start", "--no-browser", "--port", str(port)]
    command += ["--internal-host", "127.0.0.1", "--username", EMAIL, "--password", PASSWORD]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | settings, cwd=folder, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait(url, process, folder / "log")
            yield LabelStudio(url, sign_in(url))
        finally:
            process.terminate()
            process.wait(30)


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(requests.ConnectionError):
            if requests.get(url + "/health", timeout=60).ok:
                return
        time.sleep(1)
    pytest.fail(f"Label Studio did not start:\n{log.read_text()[-3000:]}")


def sign_in(url: str) -> str:
    """A personal access token, created as in the settings of a signed-in user."""
    session = requests.Session()
    session.get(url + "/user/login/", timeout=60)
    form = {"email": EMAIL, "password": PASSWORD, "csrfmiddlewaretoken": session.cookies["csrftoken"]}
    session.post(url + "/user/login/", data=form, headers={"Referer": url}, timeout=60)
    headers = {"X-CSRFToken": str(session.cookies["csrftoken"]), "Referer": url}
    answer = session.post(url + "/api/token/", headers=headers, timeout=60)
    return str(answer.json()["token"])


@pytest.fixture(scope="module")
def backend(studio: LabelStudio) -> Iterator[Server]:
    """The service, connected to Label Studio."""
    settings = {"SEGMENT_LABEL_STUDIO_URL": studio.url, "SEGMENT_LABEL_STUDIO_TOKEN": studio.token}
    with serve(SEGMENT_LABELLING="label-studio", SEGMENT_LABEL_STUDIO_PASSWORD=PASSWORD, **settings) as running:
        assert requests.get(running.url + "/ready", timeout=60).ok
        yield running


def create(studio: LabelStudio, title: str) -> int:
    return int(studio.call("POST", "/api/projects/", json={"title": title, "label_config": CONFIG})["id"])


def connect(studio: LabelStudio, backend: Server, project: int) -> Any:
    """Connect the service as Settings > Model > Connect Model does."""
    auth = {"auth_method": "BASIC_AUTH", "basic_auth_user": "segment", "basic_auth_pass": PASSWORD}
    return studio.call("POST", "/api/ml", json={"url": backend.url, "project": project, "title": "Segment", **auth})


def upload(studio: LabelStudio, project: int, name: str, data: bytes) -> None:
    studio.call("POST", f"/api/projects/{project}/import", files={name: (name, data, "image/jpeg")})


def retrieve(studio: LabelStudio, project: int) -> list[Any]:
    """Do what "Retrieve Predictions" in the data manager does, and return all predictions."""
    selected = {"selectedItems": {"all": True, "excluded": []}}
    studio.call("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", json=selected)
    return list(studio.call("GET", f"/api/predictions?project={project}"))


def test_tasks_are_pre_annotated(studio: LabelStudio, backend: Server, tmp_path: Path) -> None:
    project = create(studio, "Shapes")
    for name in PHOTOS:
        upload(studio, project, name, (ROOT / "segment" / "web" / "page" / name).read_bytes())
    assert connect(studio, backend, project)["readable_state"] == "Connected"
    predictions = {one["task"]: one for one in retrieve(studio, project)}
    tasks = studio.call("GET", f"/api/tasks?project={project}&fields=all")["tasks"]
    assert set(predictions) == {task["id"] for task in tasks}
    for task in tasks:
        name = next(name for name in PHOTOS if task["data"]["image"].endswith(name))
        photo = (ROOT / "segment" / "web" / "page" / name).read_bytes()
        answer = requests.post(backend.url + "/segment?format=json", data=photo, timeout=60)
        check(predictions[task["id"]], answer.json()["annotations"], tmp_path)


def check(prediction: Any, found: list[Any], folder: Path) -> None:
    """Label Studio's stored prediction, read by its own converter, has the service's detections to the pixel."""
    assert prediction["model_version"].startswith("shapes-")
    regions = prediction["result"]
    kinds = {"circle": "brushlabels", "square": "brushlabels", "star": "polygonlabels", "ring": "rectanglelabels"}
    names = {"square": "Square", "ring": "Round"}
    expected = sorted(
        (kinds[one["category_name"]], names.get(one["category_name"], one["category_name"]), one["score"])
        for one in found
        if one["category_name"] in kinds
    )
    assert sorted((one["type"], one["value"][one["type"]][0], one["score"]) for one in regions) == expected
    brushes = [one for one in regions if one["type"] == "brushlabels"]
    (folder / "rles.json").write_text(json.dumps([one["value"]["rle"] for one in brushes]))
    program = (
        "import json, numpy, sys; from label_studio_sdk.converter.brush import decode_rle;"
        "numpy.savez(sys.argv[2], *map(decode_rle, json.load(open(sys.argv[1]))))"
    )
    programs = environment(LABEL_STUDIO)
    command: list[str | Path] = [programs / "python", "-c", program, folder / "rles.json", folder / "masks.npz"]
    subprocess.run(command, check=True)
    circles_and_squares = [one for one in found if kinds.get(one["category_name"]) == "brushlabels"]
    with np.load(folder / "masks.npz") as masks:
        for region, truth, packed in zip(brushes, circles_and_squares, masks.values(), strict=True):
            size = region["original_height"], region["original_width"]
            assert np.array_equal(packed.reshape(*size, 4)[:, :, 3] == 255, coco.decode(truth["segmentation"]))


def test_broken_photo_does_not_stop_the_others(studio: LabelStudio, backend: Server) -> None:
    project = create(studio, "Broken")
    photo = (ROOT / "segment" / "web" / "page" / PHOTOS[0]).read_bytes()
    upload(studio, project, "broken.jpg", photo[:2000])
    upload(studio, project, "good.jpg", photo)
    connect(studio, backend, project)
    for _ in range(2):
        (prediction,) = retrieve(studio, project)
        assert prediction["result"]
    assert backend.log().count("has no prediction") == 2


def test_a_config_without_labels_of_the_model_is_refused(studio: LabelStudio, backend: Server) -> None:
    config = CONFIG.replace("circle", "a").replace("Square", "b").replace("star", "c").replace("ring", "d")
    project = studio.call("POST", "/api/projects/", json={"title": "Other labels", "label_config": config})["id"]
    with pytest.raises(AssertionError, match="doesn't look like a valid ML backend"):
        connect(studio, backend, project)


def test_a_dataset_of_tasks_is_imported(studio: LabelStudio, tmp_path: Path) -> None:
    """Label Studio imports the output of `segment image -d label-studio`: tasks and labelling config."""
    photos = [str(ROOT / "segment" / "web" / "page" / name) for name in PHOTOS]
    assert main(["image", *photos, "-o", str(tmp_path), "-d", "label-studio,coco"]) == 0
    written = json.loads((tmp_path / "tasks.json").read_text())
    config = (tmp_path / "label_config.xml").read_text()
    project = studio.call("POST", "/api/projects/", json={"title": "Dataset", "label_config": config})["id"]
    done = studio.call("POST", f"/api/projects/{project}/import", json=written)
    assert (done["task_count"], done["prediction_count"]) == (len(PHOTOS), len(PHOTOS))
    tasks = studio.call("GET", f"/api/tasks?project={project}&fields=all")["tasks"]
    predictions = {one["task"]: one for one in studio.call("GET", f"/api/predictions?project={project}")}
    kept = {task["data"]["image"]: predictions[task["id"]]["result"] for task in tasks}
    assert kept == {task["data"]["image"]: task["predictions"][0]["result"] for task in written}
    annotations = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    assert sum(map(len, kept.values())) == len(annotations) > len(PHOTOS)
