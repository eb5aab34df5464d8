"""Tests of the interfaces for Label Studio and CVAT over HTTP, with requests as these tools send them."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from flask import Request
from werkzeug.test import EnvironBuilder

from devtools.gcs import Cloud
from devtools.server import CACHE, Server, serve
from segment.service import Service
from segment.settings import Settings
from segment.web import app, labelling, pace
from tests.test_web import check_problem
from training.shapes import CLASSES

CONFIG = """<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">
<Label value="circle"/><Label value="Square"/><Label value="triangle"/><Label value="star"/></BrushLabels></View>"""
TOKEN, PERSONAL, ACCESS = "0123456789abcdef", "header.personal.signature", "header.access.signature"


class LabelStudio(http.server.BaseHTTPRequestHandler):
    """A Label Studio server with photos. Records its requests as (path, Authorization)."""

    photo = b""
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012
    elsewhere = ""
    personal = PERSONAL

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        self.asked.append((self.path, token))
        if self.path == "/elsewhere.jpg" or self.path.startswith("/tasks/"):
            self.send_response(303)
            self.send_header("Location", self.elsewhere)
            self.end_headers()
            return
        known = self.path in {"/data/upload/1/a.jpg", "/data/local-files/?d=b.jpg"}
        known = known and token in {f"Token {TOKEN}", f"Bearer {ACCESS}"}
        self.send_response(200 if known or self.path == "/public.jpg" else 401)
        self.end_headers()
        self.wfile.write(self.photo)

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["refresh"]
        self.asked.append((self.path, given))
        self.send_response(200 if given == self.personal else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"access": ACCESS}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def studio(photo: bytes) -> Iterator[str]:
    """The address of a running LabelStudio."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        LabelStudio.photo = photo
        LabelStudio.elsewhere = f"http://localhost:{web.server_port}/public.jpg"
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.fixture(scope="module")
def tools(studio: str) -> Iterator[Server]:
    """A server with both interfaces enabled, Label Studio at a private address, and a bucket."""
    settings = {"SEGMENT_LABEL_STUDIO_URL": studio, "SEGMENT_LABEL_STUDIO_TOKEN": TOKEN}
    with Cloud() as cloud:
        settings |= {"STORAGE_EMULATOR_HOST": cloud.url, "SEGMENT_INPUT_BUCKET": "photos"}
        for bucket in ("photos", "other"):
            cloud.create_bucket(bucket)
            cloud.put(bucket, "2024/a b.jpg", LabelStudio.photo, "image/jpeg")
        with serve(SEGMENT_LABELLING="label-studio,cvat", **settings) as running:
            yield running


def predict(server: Server, *tasks: Any, config: str = CONFIG) -> requests.Response:
    params = {"login": None, "password": None, "context": None}
    body: Any = {"tasks": list(tasks), "project": "1.17", "label_config": config, "params": params}
    return requests.post(server.url + "/predict", json=body, timeout=60)


def task(image: Any, number: int = 7) -> dict[str, Any]:
    return {"id": number, "data": {"image": image}, "project": 1}


def data_url(photo: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(photo).decode()


class TestOff:
    @pytest.mark.parametrize("path", ["/predict", "/setup", "/webhook", "/api/functions", "/api/function_invocations"])
    def test_by_default(self, server: Server, path: str) -> None:
        check_problem(requests.post(server.url + path, json={}, timeout=60), 404)

    def test_one_tool_alone_with_a_password(self) -> None:
        password = "secret"
        with serve(SEGMENT_LABELLING="label-studio", SEGMENT_LABEL_STUDIO_PASSWORD=password) as running:
            for auth in (None, ("user", "wrong"), ("user", "")):
                answer = requests.post(running.url + "/predict", json={}, auth=auth, timeout=60)
                check_problem(answer, 401, "SEGMENT_LABEL_STUDIO_PASSWORD")
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")
            user = ("user", password)
            assert requests.get(running.url + "/api/functions", timeout=60).status_code == 404
            for address in ("/data/upload/1/a.jpg", "s3://bucket/a.jpg", "gs:///a.jpg"):
                body: Any = {"tasks": [task(address)], "label_config": CONFIG}
                answer = requests.post(running.url + "/predict", json=body, auth=user, timeout=60)
                check_problem(answer, 400, f"The photo '{address}' can only be read", "Set SEGMENT_LABEL_STUDIO_URL")


class TestDocument:
    def test_document_has_the_enabled_paths(self, tools: Server, server: Server) -> None:
        document = requests.get(tools.url + "/openapi.json", timeout=60).json()
        paths = {path: set(methods) for path, methods in document["paths"].items() if path in labelling_paths()}
        assert paths == {path: {verb.lower() for verb in verbs} for path, verbs in labelling_paths().items()}
        assert not set(requests.get(server.url + "/openapi.json", timeout=60).json()["paths"]) & set(labelling_paths())
        page = requests.get(tools.url + "/docs", timeout=60).text
        assert all(f"<code>{path}</code>" in page for path in labelling_paths())

    def test_responses_match_the_document(self, tools: Server, photo: bytes) -> None:
        import schemathesis  # imported here: it takes seconds in each test process

        schema = schemathesis.openapi.from_url(tools.url + "/openapi.json")
        image = base64.b64encode(photo).decode()
        bodies: dict[str, Any] = {
            "/setup": {"project": "1.17", "schema": CONFIG},
            "/predict": {"tasks": [task(data_url(photo)), task("/missing.jpg")], "label_config": CONFIG},
            "/webhook": {"action": "START_TRAINING"},
            "/api/function_invocations": {"image": image, "threshold": 0.5},
        }
        for path, methods in labelling_paths().items():
            for method in methods:
                case = schema[path][method].Case(body=bodies[path]) if path in bodies else schema[path][method].Case()
                case.call_and_validate(timeout=60)


def labelling_paths() -> dict[str, list[str]]:
    return {path: list(verbs) for tool in labelling.ROUTES.values() for path, verbs in tool.items()}


class TestLabelStudio:
    def test_setup(self, tools: Server) -> None:
        body = {"project": "1.17", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "x"}
        answer = requests.post(tools.url + "/setup", json={**body, "extra_params": None}, timeout=60)
        version = answer.json()["model_version"]
        assert version.startswith("shapes-")
        assert requests.post(tools.url + "/setup", json={**body, "schema": "<View></View>"}, timeout=60).ok
        wrong = requests.post(tools.url + "/setup", json={**body, "schema": CONFIG.replace("le", "el")}, timeout=60)
        assert wrong.ok, "the labels star and Square are valid"
        wrong = requests.post(
            tools.url + "/setup", json={**body, "schema": "<View><BrushLabels name='a' toName='b'/></View>"}, timeout=60
        )
        check_problem(wrong, 400, "None of the labels", "The classes are: circle, square, triangle, star, ring")

    def test_predict(self, tools: Server, photo: bytes) -> None:
        answer = predict(tools, task(data_url(photo)), task(data_url(photo)))
        assert answer.status_code == 200
        first, second = answer.json()["results"]
        assert first == second
        assert first["model_version"].startswith("shapes-")
        direct = requests.post(tools.url + "/segment?format=json", files={"file": photo}, timeout=60).json()
        known = [one for one in direct["annotations"] if one["category_name"] != "ring"]
        assert len(known) < len(direct["annotations"]), "the photo must contain a class without a label in the config"
        names = {"square": "Square"}
        assert [one["value"]["brushlabels"] for one in first["result"]] == [
            [names.get(one["category_name"], one["category_name"])] for one in known
        ]
        assert [one["score"] for one in first["result"]] == [one["score"] for one in known]
        assert {one["original_width"] for one in first["result"]} == {320}

    @pytest.mark.parametrize(
        "address",
        ["/data/upload/1/a.jpg", "upload/1/a.jpg", "/data/local-files/?d=b.jpg", "{studio}/data/upload/1/a.jpg"],
    )
    def test_photos_that_label_studio_keeps(self, tools: Server, studio: str, address: str) -> None:
        answer = predict(tools, task(address.format(studio=studio)))
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0]["result"]

    def test_cloud_storage_is_read_through_signed_urls(self, tools: Server, studio: str) -> None:
        port = urlsplit(studio).port
        LabelStudio.asked.clear()
        LabelStudio.elsewhere = f"http://127.0.0.1:{port}/public.jpg"
        assert predict(tools, task("s3://bucket/photo.jpg", 12)).ok
        identity = base64.urlsafe_b64encode(b"s3://bucket/photo.jpg").decode()
        assert LabelStudio.asked[0] == (f"/tasks/12/presign/?fileuri={identity}", f"Token {TOKEN}")
        assert LabelStudio.asked[1][0] == "/public.jpg"

    def test_token_is_only_sent_to_label_studio(self, tools: Server, studio: str) -> None:
        port = urlsplit(studio).port
        LabelStudio.asked.clear()
        LabelStudio.elsewhere = f"http://localhost:{port}/public.jpg"
        for address in ("/elsewhere.jpg", f"http://localhost:{port}/public.jpg"):
            check_problem(predict(tools, task(address)), 400, "localhost does not have a public address")
        assert [path for path, _ in LabelStudio.asked] == ["/elsewhere.jpg"]

    def test_the_services_own_bucket(self, tools: Server) -> None:
        LabelStudio.asked.clear()
        answer = predict(tools, task("gs://photos/2024/a b.jpg"), task("gs://photos/2024/a"))
        there, missing = answer.json()["results"]
        assert there["result"]
        assert missing == []
        assert not LabelStudio.asked

    def test_a_personal_token_is_exchanged(self, studio: str) -> None:
        LabelStudio.asked.clear()
        settings = {"SEGMENT_LABEL_STUDIO_URL": studio, "SEGMENT_LABEL_STUDIO_TOKEN": PERSONAL}
        with serve(SEGMENT_LABELLING="label-studio", **settings) as running:
            answer = predict(running, task("/data/upload/1/a.jpg"), task("/data/upload/1/a.jpg"))
            assert all(one["result"] for one in answer.json()["results"])
            assert LabelStudio.asked == [
                ("/api/token/refresh/", PERSONAL),
                *[("/data/upload/1/a.jpg", f"Bearer {ACCESS}")] * 2,
            ], "the token must be exchanged once per request"
            LabelStudio.personal = "revoked.personal.token"
            check_problem(predict(running, task("/data/upload/1/a.jpg")), 502, "answered 401", "/api/token/refresh/")

    @pytest.mark.parametrize(
        ("image", "status", "words"),
        [
            ("gs://other/2024/a b.jpg", 502, "answered 401"),
            ("/data/upload/1/missing.jpg", 502, "answered 401"),
            ("ftp://example.com/a.jpg", 502, "answered 401"),
            ("http://169.254.169.254/", 400, "not have a public address"),
            ("data:image/jpeg;base64,AAAA", 415, ""),
            ("data:image/jpeg;base64,****", 400, "base64"),
            (None, 400, "`image` in the data of the task must be the address of a photo"),
            ({"url": "x"}, 400, "`image` in the data of the task must be the address of a photo"),
        ],
    )
    def test_a_photo_that_cannot_be_read(self, tools: Server, image: Any, status: int, words: str) -> None:
        LabelStudio.elsewhere = "/nowhere.jpg"
        check_problem(predict(tools, task(image)), status, words)

    def test_one_bad_photo_leaves_the_others(self, tools: Server, photo: bytes) -> None:
        answer = predict(tools, task(data_url(photo)), task("/data/upload/1/missing.jpg", 8), "no task")
        good, bad, none = answer.json()["results"]
        assert good["result"]
        assert bad == none == [], "tasks without a prediction are requested again"
        assert "Task 8 has no prediction" in tools.log()

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"{", "not valid JSON"),
            (b"[]", "must be an object"),
            (b"{}", "`label_config` must be a string"),
            (json.dumps({"label_config": CONFIG, "tasks": {}}).encode(), "`tasks` must be a list"),
        ],
    )
    def test_a_body_that_label_studio_does_not_send(self, tools: Server, body: bytes, words: str) -> None:
        answer = requests.post(
            tools.url + "/predict", data=body, headers={"Content-Type": "application/json"}, timeout=60
        )
        check_problem(answer, 400, words)

    def test_a_slow_photo_does_not_exceed_the_time_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Label Studio would give up the request, with the predictions of all its tasks."""
        monkeypatch.setattr(labelling, "PREDICT_SECONDS", 0.3)
        monkeypatch.setattr(pace, "CROWDED_WINDOW_SECONDS", 0.1)
        settings = {"SEGMENT_LABELLING": "label-studio", "SEGMENT_FETCH_PRIVATE": "1", "SEGMENT_FETCH_SECONDS": "300"}
        service = Service(Settings.from_environment({**settings, "SEGMENT_CACHE": str(CACHE), "SEGMENT_THREADS": "1"}))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.jpg"
            body = json.dumps({"tasks": [task(url)], "label_config": CONFIG})
            request = EnvironBuilder("/predict", method="POST", data=body, content_type="application/json")
            answer = app.handle(service, Request(request.get_environ()))
        assert (answer.status_code, "time limit of 0.3 s" in answer.get_data(as_text=True)) == (503, True)

    def test_webhook(self, tools: Server) -> None:
        assert requests.post(tools.url + "/webhook", json={"action": "START_TRAINING"}, timeout=60).ok

    def test_several_photos_in_a_task(self, tools: Server, photo: bytes) -> None:
        config = """<View><Image name="a" value="$one"/><Image name="b" value="$two"/>
        <RectangleLabels name="x" toName="a"><Label value="circle"/></RectangleLabels>
        <RectangleLabels name="y" toName="b"><Label value="circle"/></RectangleLabels></View>"""
        data = {"one": data_url(photo), "two": data_url(photo)}
        ((first, second),) = predict(tools, {"id": 1, "data": data}, config=config).json()["results"]
        assert {one["to_name"] for one in first["result"]} == {"a"}
        assert {one["to_name"] for one in second["result"]} == {"b"}


class TestCvat:
    def test_functions(self, tools: Server) -> None:
        functions = requests.get(tools.url + "/api/functions", timeout=60).json()
        assert list(functions) == ["segment"]
        function = functions["segment"]
        assert requests.get(tools.url + "/api/functions/segment", timeout=60).json() == function
        assert function["metadata"]["annotations"]["type"] == "detector"
        spec = json.loads(function["metadata"]["annotations"]["spec"])
        assert [label["name"] for label in spec] == list(CLASSES)

    def invoke(self, server: Server, body: Any, name: str = "segment") -> requests.Response:
        headers = {"x-nuclio-function-name": name, "x-nuclio-path": "/", "x-nuclio-project-name": "cvat"}
        return requests.post(server.url + "/api/function_invocations", json=body, headers=headers, timeout=60)

    def test_shapes(self, tools: Server, photo: bytes) -> None:
        image = base64.b64encode(photo).decode()
        answer = self.invoke(tools, {"image": image, "threshold": 0.3})
        direct = requests.post(f"{tools.url}/segment?format=json&min_score=0.3", files={"file": photo}, timeout=60)
        found = direct.json()["annotations"]
        assert [shape["label"] for shape in answer.json()] == [one["category_name"] for one in found]
        for shape, one in zip(answer.json(), found, strict=True):
            assert float(shape["confidence"]) == pytest.approx(one["score"], abs=1e-3)
            assert sum(shape["mask"][:-4]) == one["area"]
        fewer = self.invoke(tools, {"image": image, "threshold": 0.99}).json()
        assert len(fewer) < len(found)

    def test_a_photo_without_objects(self, tools: Server) -> None:
        from tests.conftest import jpeg

        image = base64.b64encode(jpeg(np.full((64, 64, 3), 200, np.uint8))).decode()
        assert self.invoke(tools, {"image": image}).json() == []

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({"image": "AAAA"}, 415, ""),
            ({}, 400, "contains no photo"),
            ({"image": "AAAA", "threshold": 2}, 400, "min_score is '2'"),
            ({"image": "AAAA", "threshold": 0.2, "min_score": 0.2}, 400, "send one of them"),
            ({"image": 5}, 400, "`image` must be a string"),
        ],
    )
    def test_bad_input(self, tools: Server, body: Any, status: int, words: str) -> None:
        check_problem(self.invoke(tools, body), status, words)

    def test_another_function(self, tools: Server) -> None:
        check_problem(self.invoke(tools, {}, "yolo"), 404, "There is no function 'yolo'")
