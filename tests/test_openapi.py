"""The interface's document: it is valid, it says what the options say, and the service does what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
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


PYTHON_CLIENT = """
import base64, sys
from pathlib import Path
from client import Client
from client.api.default import segment
from client.models import Detections, FormBody, ImageBody, Problem
from client.models.segment_format import SegmentFormat
from client.types import File

url, photo = sys.argv[1:]
client = Client(url)
with open(photo, "rb") as file:
    form = FormBody(file=File(payload=file, file_name="photo.jpg"))
    found = segment.sync(client=client, body=form, format_=SegmentFormat.JSON, min_score=0.3)
assert isinstance(found, Detections), found
assert found.annotations[0].score >= 0.3
body = ImageBody(image=base64.b64encode(Path(photo).read_bytes()).decode())
again = segment.sync(client=client, body=body, format_=SegmentFormat.JSON, min_score=0.3)
assert again == found
problem = segment.sync(client=client, body=ImageBody(image="eA=="), format_=SegmentFormat.JSON)
assert isinstance(problem, Problem) and problem.status == 415, problem
"""
TYPESCRIPT_CLIENT = """
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const [url, photo] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url! });
const form = new FormData();
form.append("file", new Blob([readFileSync(photo!)]), "photo.jpg");
const { data, error } = await client.POST("/segment", {
  params: { query: { format: "json", min_score: 0.3 } },
  body: form as unknown as { file: string }, // openapi-typescript knows no files: a binary string is a string to it
  bodySerializer: (body) => body as unknown as FormData,
});
if (error) throw new Error(error.detail);
const found = data as components["schemas"]["Detections"];
if (!(found.annotations[0]!.score >= 0.3)) throw new Error(JSON.stringify(found));
const refused = await client.POST("/segment", { params: { query: { format: "json" } }, body: { image: "eA==" } });
if (refused.error?.status !== 415) throw new Error(JSON.stringify(refused));
"""


@pytest.mark.slow
def test_a_client_generated_by_openapi_python_client(server: Server, photo: bytes, tmp_path: Path) -> None:
    """Needs a package index."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "openapi-python-client==0.29.1"], check=True, timeout=300)
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / "use.py").write_text(PYTHON_CLIENT, encoding="utf-8")
    generate = ["generate", "--url", server.url + "/openapi.json", "--meta", "none", "--output-path", "client"]
    subprocess.run([python.with_name("openapi-python-client"), *generate], cwd=tmp_path, check=True, timeout=60)
    subprocess.run([python, "use.py", server.url, "photo.jpg"], cwd=tmp_path, check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_a_client_generated_by_openapi_typescript(server: Server, photo: bytes, tmp_path: Path) -> None:
    """Needs a package index."""
    packages = ["openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3", "@types/node@20.19.43"]
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / "use.mts").write_text(TYPESCRIPT_CLIENT, encoding="utf-8")
    strict = ["--strict", "--noUncheckedIndexedAccess", "--skipLibCheck", "--target", "es2022", "--module", "nodenext"]
    for command in (
        ["npm", "install", "--silent", *packages],
        ["npx", "--no-install", "openapi-typescript", server.url + "/openapi.json", "-o", "schema.d.ts"],
        ["npx", "--no-install", "tsc", *strict, "use.mts"],
        ["node", "use.mjs", server.url, "photo.jpg"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
