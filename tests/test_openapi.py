"""The interface's document: it is valid, it says what the options say, and the service does what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import requests
import schemathesis

from devtools.server import Server, serve
from segment import options
from segment.settings import Settings
from segment.web import app as web

SCHEMATHESIS = Path(__file__).parent / "schemathesis.toml"


def test_options_are_those_of_the_code(server: Server) -> None:
    document = requests.get(server.url + "/openapi.json", timeout=5).json()
    parameters = document["paths"]["/segment"]["post"]["parameters"]
    assert [p["name"] for p in parameters] == list(options.describe(Settings()))
    factor = next(p["schema"] for p in parameters if p["name"] == "render_factor")
    assert factor["anyOf"][0] == {"type": "integer", "minimum": 4, "maximum": 256}


def test_defaults_are_the_servers_own() -> None:
    with serve(SEGMENT_MIN_SCORE="0.7", SEGMENT_MAX_DETECTIONS="20") as server:
        document = requests.get(server.url + "/openapi.json", timeout=5).json()
        schemas = {p["name"]: p["schema"] for p in document["paths"]["/segment"]["post"]["parameters"]}
        assert schemas["min_score"]["default"] == 0.7
        assert (schemas["max_detections"]["default"], schemas["max_detections"]["maximum"]) == (20, 20)


def test_every_path_is_in_the_document_or_of_the_page(server: Server) -> None:
    document = requests.get(server.url + "/openapi.json", timeout=5).json()
    assert set(document["paths"]) <= set(web.ROUTES)
    left = set(web.ROUTES) - set(document["paths"])
    assert all("." in path or path in {"/", "/docs", "/detect"} for path in left)


def test_docs_show_every_option_operation_and_problem(server: Server) -> None:
    page = requests.get(server.url + "/docs", timeout=5)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for name in options.describe(Settings()):
        assert f'id="option-{name}"' in page.text
    for _, title in web.PROBLEMS.values():
        assert f'id="{title.lower().replace(" ", "-")}"' in page.text
    assert "built-in method" not in page.text
    assert 'src="http' not in page.text


def test_real_answers_fit_the_document(server: Server, photo: bytes) -> None:
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    for form in ("rle", "polygons"):
        query = f"/segment?format=json&segmentation={form}"
        answer = requests.post(server.url + query, files={"file": photo}, timeout=60)
        assert answer.json()["annotations"]
        schema["/segment"]["POST"].validate_response(answer)
    schema["/model"]["GET"].validate_response(requests.get(server.url + "/model", timeout=60))
    schema["/segment"]["POST"].validate_response(requests.post(server.url + "/segment", timeout=5))


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    # What a schema cannot say makes a request valid by the document and yet refused: bytes that are no photo, an option
    # both in the query and in the body, a class that the model does not know.
    checks = ["--checks=all", "--exclude-checks=positive_data_acceptance"]
    arguments = [*checks, "--phases=examples,coverage,fuzzing", "--max-examples=15", "--seed=1"]
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(SCHEMATHESIS), "run", *arguments]
    done = subprocess.run(
        [*command, server.url + "/openapi.json"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
